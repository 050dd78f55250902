"""Pictures of every kind that a user may hand in, and what is said of those that can't be read."""

import http.server
import io
import struct
import threading
import time
import zlib
from contextlib import suppress
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from spatialprobes import fetch as fetching
from spatialprobes.examples import Example
from spatialprobes.fetch import FetchError, fetch
from spatialprobes.images import ImageError, open_image, read_all

QUADRANTS = {(0, 0): (200, 30, 30), (1, 0): (30, 160, 40), (0, 1): (40, 60, 200), (1, 1): (220, 200, 40)}  # (x, y): colour


def quadrants(width=48, height=32):
    """Four plain colours, so that any turn, mirror or mix-up of channels is seen."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for (x, y), colour in QUADRANTS.items():
        pixels[y * height // 2 : (y + 1) * height // 2, x * width // 2 : (x + 1) * width // 2] = colour
    return Image.fromarray(pixels)


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def assert_quadrants(image, tolerance=4):
    assert image.mode == "RGB"
    for (x, y), colour in QUADRANTS.items():
        found = image.getpixel(((2 * x + 1) * image.width // 4, (2 * y + 1) * image.height // 4))
        assert np.abs(np.subtract(found, colour)).max() <= tolerance, (x, y, found, colour)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
@pytest.mark.parametrize("how", ["path", "string", "bytes", "image", "function"])
def test_the_same_picture_comes_from_every_kind_of_source(tmp_path, kind, how):
    data = encoded(quadrants(), format=kind)
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(data)
    source = {
        "path": path,
        "string": str(path),
        "bytes": data,
        "image": Image.open(path),
        "function": lambda: Image.open(path),
    }[how]
    image = open_image(source)
    assert image.size == (48, 32)
    assert_quadrants(image, tolerance=8)


def test_the_suffix_is_not_believed(tmp_path):
    (tmp_path / "really_png.jpg").write_bytes(encoded(quadrants(), format="PNG"))
    assert_quadrants(open_image(tmp_path / "really_png.jpg"), tolerance=0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    # what a camera stores, so that showing it under this orientation gives the upright picture: the inverse turn
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quadrants() if orientation == 1 else quadrants().transpose(turn[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(stored, format=kind, exif=exif))
    assert image.size == (48, 32)
    assert_quadrants(image, tolerance=8)
    assert np.array_equal(open_image(image), image)  # not turned a second time


@pytest.mark.parametrize(
    "junk", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0"]
)
def test_a_broken_exif_block_does_not_cost_the_picture(junk):
    assert_quadrants(open_image(encoded(quadrants(), format="JPEG", exif=junk)), tolerance=8)


def test_cmyk():
    image = quadrants().convert("CMYK")
    assert_quadrants(open_image(encoded(image, format="JPEG", quality=95)), tolerance=8)
    assert_quadrants(open_image(encoded(image, format="TIFF")), tolerance=0)


def test_lab_and_ycbcr_are_converted():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    assert_quadrants(
        open_image(encoded(ImageCms.applyTransform(quadrants(), to_lab), format="TIFF")), tolerance=10
    )  # 8-bit Lab is coarse
    assert_quadrants(open_image(quadrants().convert("YCbCr")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16)[None].repeat(8, 0)
    image = open_image(encoded(Image.fromarray(ramp), format=kind))
    expected = np.rint(ramp / 257.0)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), expected[..., None].repeat(3, -1).astype(np.uint8))


def png_16_bit(pixels, colour_type):
    """A PNG of uint16 [height, width, channels], written by hand, since Pillow writes only grey ones."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_and_alpha_are_scaled():
    colour = np.asarray(quadrants(), np.uint16) * 257
    assert_quadrants(open_image(png_16_bit(colour, 2)), tolerance=1)
    opaque = np.concatenate([colour, np.full_like(colour[..., :1], 65535)], -1)
    assert_quadrants(open_image(png_16_bit(opaque, 6)), tolerance=1)
    grey_alpha = np.zeros((4, 4, 2), np.uint16)
    grey_alpha[..., 0], grey_alpha[:2, :, 1] = 30000, 65535
    image = np.asarray(open_image(png_16_bit(grey_alpha, 4)))
    assert np.abs(image[:2].astype(int) - 30000 / 257).max() <= 1 and (image[2:] == 255).all()


def test_floats_and_wide_integers():
    ramp = np.linspace(0, 1, 16, dtype=np.float32)[None]
    for values in (ramp, ramp * 255):
        assert np.array_equal(np.asarray(open_image(Image.fromarray(values)))[0, :, 0], np.rint(ramp[0] * 255))
    for values in (ramp - 0.5, ramp * 1e6, ramp * np.nan, np.array([[0, 10**6]], np.int32)):
        with pytest.raises(ImageError, match="what is white is not known"):
            open_image(Image.fromarray(values))


def test_transparency_is_composited_on_the_background():
    image = quadrants().convert("RGBA")
    alpha = np.full((32, 48), 255, np.uint8)
    alpha[:16, :24], alpha[:16, 24:] = 0, 128
    image.putalpha(Image.fromarray(alpha))
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encoded(image, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
        white, black = np.asarray(open_image(data), int), np.asarray(open_image(data, background=(0, 0, 0)), int)
        assert (white[:16, :24] == 255).all() and (black[:16, :24] == 0).all()
        half = 128 / 255 * np.array(QUADRANTS[1, 0])
        assert np.abs(black[4, 40] - half).max() <= 1 and np.abs(white[4, 40] - (half + 127)).max() <= 1
        assert np.array_equal(white[16:], np.asarray(quadrants())[16:])


def test_palettes_bits_and_transparent_colours():
    assert_quadrants(open_image(encoded(quadrants().quantize(16), format="PNG")), tolerance=4)
    palette = quadrants().quantize(4, dither=Image.Dither.NONE)
    index = palette.getpixel((0, 0))
    image = open_image(encoded(palette, format="PNG", transparency=index))
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((47, 0)) != (255, 255, 255)
    bits = Image.fromarray(np.eye(9, dtype=bool))
    assert np.array_equal(np.asarray(open_image(encoded(bits, format="PNG")))[..., 0], np.eye(9) * 255)
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image = np.asarray(open_image(encoded(grey, format="PNG", transparency=7)))
    assert image[0, 7].tolist() == [255, 255, 255] and image[0, 6].tolist() == [6, 6, 6]
    colours = np.asarray(open_image(encoded(quadrants(), format="PNG", transparency=QUADRANTS[1, 1])))
    assert (colours[16:, 24:] == 255).all() and (colours[:16, :24] == QUADRANTS[0, 0]).all()
    deep = Image.fromarray(np.array([[0, 257 * 9, 65535]], np.uint16))
    image = np.asarray(open_image(encoded(deep, format="PNG", transparency=257 * 9), background=(1, 2, 3)))
    assert image.tolist() == [[[0, 0, 0], [1, 2, 3], [255, 255, 255]]]


def test_one_pixel():
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
        image = open_image(Image.new(mode, (1, 1)))
        assert (image.mode, image.size) == ("RGB", (1, 1))


def test_of_an_animation_the_first_frame():
    frames = [quadrants(), Image.new("RGB", (48, 32))]
    for kind in ("GIF", "WEBP", "TIFF"):
        assert_quadrants(open_image(encoded(frames[0], format=kind, save_all=True, append_images=frames[1:])), tolerance=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_12_000_pixels_are_read_and_bounded(kind):
    picture = quadrants().resize((12_000, 600), Image.Resampling.NEAREST)
    data = encoded(picture, format=kind)
    image = open_image(data)
    assert image.size == (4096, 205)
    assert_quadrants(image, tolerance=6)
    assert open_image(data, max_side=None).size == (12_000, 600)
    assert open_image(data, max_side=100).size == (100, 5)
    with pytest.raises(ImageError, match=r"12,000 x 600 pixels; the limit is 1,000,000"):
        open_image(data, max_pixels=1_000_000)


def test_a_bomb_is_refused_by_its_header_and_a_higher_limit_is_obeyed():
    def announced(side):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        body = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))

    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="60,000 x 60,000 pixels"):
        open_image(announced(60_000))
    with pytest.raises(ImageError) as info:  # past the limit now, so that the missing pixels are what is wrong
        open_image(announced(14_000), max_pixels=14_000**2)
    assert "limit" not in str(info.value)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@settings(max_examples=15, deadline=None)
@given(kept=st.floats(0.0, 0.9))
def test_a_truncated_file_never_passes(kind, kept):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = encoded(noise, format=kind)
    with pytest.raises(ImageError, match=r"^cut: "):
        open_image(data[: int(kept * len(data))], name="cut")


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBPVP8 ", b"GIF89a", b"II*\0"]),
)
def test_any_bytes_give_a_picture_or_an_image_error_in_one_line(body, head):
    try:
        assert open_image(head + body, max_pixels=10**6).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error) and str(error).startswith(error.name)


def test_what_is_said_of_files(tmp_path):
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "vector.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    whole = encoded(quadrants(), format="PNG")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "zero.png": "holds zero bytes",
        "text.jpg": "not an image",
        "vector.png": "not an image",
        "cut.png": "truncated",
        "folder.png": "is a folder",
        "missing.png": "no such file",
        "nul\0.png": "no such file",
        "x" * 300: "too long",
    }.items():
        with pytest.raises(ImageError, match=reason) as info:
            open_image(tmp_path / name)
        assert str(info.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(info.value)


def test_what_is_said_of_other_sources():
    def broken():
        raise RuntimeError("the disk is gone")

    with pytest.raises(ImageError, match=r"broken.*RuntimeError: the disk is gone"):
        open_image(broken)
    with pytest.raises(ImageError, match="returned int"):
        open_image(lambda: 3)
    with pytest.raises(ImageError, match="is no source of a picture"):
        open_image(3.5)
    with pytest.raises(ImageError, match="zero bytes"):
        open_image(b"")
    for refused in ("file:///etc/passwd", "FILE:/etc/passwd", "ftp://host/a.png", "data:image/png;base64,AAAA", "gopher://a/b"):
        with pytest.raises(ImageError, match="refused"):
            open_image(refused)


def test_read_all_leaves_out_by_name_or_stops(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded(quadrants(), format="PNG"))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    calls = []

    def counted():
        calls.append(1)
        return quadrants()

    images = [tmp_path / "good.png", tmp_path / "bad.png", counted, counted, quadrants(), lambda: None, tmp_path / "bad.png"]
    examples = [Example(id=f"e{i}", image=image, question="what ?") for i, image in enumerate(images)]
    good, bad = read_all(examples)
    assert good == [examples[i] for i in (0, 2, 3, 4)]
    assert [(entry.example, entry.name) for entry in bad] == [
        ("e1", str(tmp_path / "bad.png")),
        ("e5", "e5"),
        ("e6", str(tmp_path / "bad.png")),
    ]
    assert str(bad[0]).startswith(f"e1 ({tmp_path / 'bad.png'}): ") and str(bad[1]).startswith("e5: ")
    assert all(entry.reason and entry.name in str(entry) for entry in bad)
    assert len(calls) == 1
    with pytest.raises(ImageError, match=r"bad\.png"):
        read_all(examples, strict=True)


# A server on this machine that misbehaves in every way at once, by path.

PICTURE = encoded(quadrants(), format="PNG")


class Misbehaving(http.server.BaseHTTPRequestHandler):
    requested: ClassVar[list[str]] = []

    def do_GET(self):
        self.requested.append(self.path)
        with suppress(BrokenPipeError, ConnectionResetError):  # the client hung up, as it should
            getattr(self, self.path.strip("/"))()

    def answer(self, body, status=200, length=None, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def good(self):
        self.answer(PICTURE, Content_Type="application/octet-stream")

    def html(self):
        self.answer(b"<!doctype html><p>not found, but 200", Content_Type="image/png")

    def missing(self):
        self.answer(b"gone", status=404)

    def empty(self):
        self.answer(b"")

    def broken(self):
        self.answer(PICTURE[:50], length=len(PICTURE))

    def zipped(self):
        self.answer(zlib.compress(PICTURE), Content_Encoding="deflate")

    def announced(self):
        self.answer(PICTURE, length=10**9)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PICTURE)
        while True:
            self.wfile.write(bytes(10_000))

    def drip(self):
        self.send_response(200)
        self.end_headers()
        for byte in PICTURE:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.05)

    def drip_headers(self):
        self.send_response_only(200)
        self.flush_headers()
        while True:
            self.wfile.write(b"X-Slow: 1\r\n")
            self.wfile.flush()
            time.sleep(0.05)

    def silent(self):
        time.sleep(1.0)

    def once(self):
        self.answer(b"", status=302, Location="/good")

    def loop(self):
        self.answer(b"", status=302, Location="/loop")

    def to_file(self):
        self.answer(b"", status=302, Location="file:///etc/passwd")

    def to_ftp(self):
        self.answer(b"", status=301, Location="ftp://127.0.0.1/a.png")

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_url_is_read(server):
    assert_quadrants(open_image(f"{server}/good"), tolerance=0)
    assert_quadrants(open_image(f"{server}/once"), tolerance=0)


@pytest.mark.parametrize(
    "path, reason",
    {
        "html": "not what was asked for: begins with b'<!doctype ht' \\(image/png\\)",
        "missing": "answers 404",
        "empty": "zero bytes",
        "broken": "broke after 50 of|can't be fetched",
        "zipped": "comes compressed",
        "announced": "1,000,000,000 bytes; the limit is 20,000,000",
        "endless": "more than 20,000,000 bytes",
        "loop": "redirects more than 5 times",
        "to_file": "refused",
        "to_ftp": "refused",
    }.items(),
)
def test_what_is_said_of_urls(server, path, reason):
    with pytest.raises(ImageError, match=reason) as info:
        open_image(f"{server}/{path}")
    assert str(info.value).startswith(f"{server}/{path}: ") and "\n" not in str(info.value)


def test_redirects_are_counted(server):
    Misbehaving.requested.clear()
    with pytest.raises(FetchError):
        fetch(f"{server}/loop")
    assert len(Misbehaving.requested) == fetching.MAX_REDIRECTS + 1


@pytest.mark.parametrize("path", ["drip", "drip_headers"])
def test_a_server_that_drips_is_left_in_time(server, path):
    with pytest.raises(FetchError, match="time limit"):
        fetch(f"{server}/{path}", seconds=0.4)


def test_a_silent_server_and_a_closed_port(server, monkeypatch):
    monkeypatch.setattr(fetching, "READ_SECONDS", 0.2)
    with pytest.raises(FetchError, match=r"stopped sending for 0\.2 s"):
        fetch(f"{server}/silent")
    with pytest.raises(FetchError, match="refused"):
        fetch("http://127.0.0.1:9/a.png")
    for wrong in ("http://", "http://[::1/a.png", "https:///a.png"):
        with pytest.raises(FetchError, match="refused"):
            fetch(wrong)


def test_read_all_fetches_once(server):
    Misbehaving.requested.clear()
    url = f"{server}/good"
    good, bad = read_all([Example(id="a", image=url), Example(id="b", image=url), Example(id="c", image=f"{server}/html")])
    assert [example.id for example in good] == ["a", "b"] and [entry.example for entry in bad] == ["c"]
    for example in good:
        assert_quadrants(open_image(example.image), tolerance=0)
    assert Misbehaving.requested.count("/good") == 1
