"""A folder of pictures: what is found, under which key, with which caption, and what is said of the rest."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialprobes.images import ImageError, open_image
from spatialprobes.sources.image_folder import SUFFIXES, CaptionError, image_folder, walk


def picture(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path, format={".webp": "WEBP", ".png": "PNG"}.get(path.suffix.lower(), "JPEG"))
    return path


def test_any_depth_any_case_sorted_with_captions(tmp_path):
    for name in ("b.JPG", "00000/000010000.jpg", "00000/10000.jpeg", "a/b/c/d.WebP", "a/b.png", "a.png", "a/é.png"):
        picture(tmp_path / name)
    for name in ("notes.md", "a.gif", "picture.png.bak", ".hidden.png", "._a.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not a picture")
    (tmp_path / "00000/000010000.txt").write_text("\ufeffa bowl of rice \n", encoding="utf-8")
    (tmp_path / "b.TXT").write_text("two\nlines")
    (tmp_path / "a.txt").write_text("  \n")
    (tmp_path / "orphan.txt").write_text("of nothing")

    examples = list(walk(tmp_path))
    keys = [example.id for example in examples]
    assert keys == ["00000/000010000.jpg", "00000/10000.jpeg", "a.png", "a/b.png", "a/b/c/d.WebP", "a/é.png", "b.JPG"]
    assert all(type(key) is str for key in keys) and [example.cluster for example in examples] == keys
    assert [example.meta["stem"] for example in examples][:2] == ["000010000", "10000"]
    captions = {example.id: example.meta["caption"] for example in examples if "caption" in example.meta}
    assert captions == {"00000/000010000.jpg": "a bowl of rice", "b.JPG": "two\nlines"}
    assert [open_image(example.image).size for example in examples] == [(4, 3)] * 7


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.lists(st.text("ab01-", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join), min_size=1, max_size=6),
    st.randoms(),
)
def test_order_and_keys_do_not_depend_on_the_file_system(tmp_path_factory, stems, random):
    folder = tmp_path_factory.mktemp("folder")
    names = [stem + random.choice(SUFFIXES) for stem in stems]
    random.shuffle(names)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert [example.id for example in walk(folder)] == sorted(names)
    assert [example.id for example in walk(str(folder))] == sorted(names)


def test_unreadable_pictures_are_listed_or_stop_it(tmp_path):
    for i in range(3):
        picture(tmp_path / f"sub/{i}.png", (i, i, i))
    (tmp_path / "sub/1.png").write_bytes((tmp_path / "sub/1.png").read_bytes()[:40])
    (tmp_path / "zero.jpg").touch()
    good, bad = image_folder(tmp_path)
    assert [example.id for example in good] == ["sub/0.png", "sub/2.png"]
    assert [entry.example for entry in bad] == ["sub/1.png", "zero.jpg"]
    assert str(bad[1]) == f"{tmp_path / 'zero.jpg'}: holds zero bytes"
    with pytest.raises(ImageError, match=r"sub/1\.png"):
        image_folder(tmp_path, strict=True)
    assert len(image_folder(tmp_path / "sub", max_pixels=1)[1]) == 3


def test_what_is_said_of_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        list(walk(tmp_path / "nowhere"))
    with pytest.raises(NotADirectoryError, match=r"a\.png: is not a folder"):
        list(walk(picture(tmp_path / "a.png")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no picture in it.*\.jpg, \.jpeg, \.png, \.webp"):
        list(walk(tmp_path / "empty"))
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CaptionError, match=r"a\.txt: not UTF-8 at byte 3"):
        list(walk(tmp_path))


def test_links_to_files_are_followed_and_loops_are_not(tmp_path):
    picture(tmp_path / "a/real.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a/real.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert [example.id for example in image_folder(tmp_path)[0]] == ["a/real.png", "link.png"]


def test_two_real_photographs():
    root = os.environ.get("SPATIALPROBES_REAL_DATA")
    if root is None:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no real photographs here")
    good, bad = image_folder(Path(root) / "photos", strict=True)
    assert [example.id for example in good] == ["extreme_ironing.jpg", "waterview.jpg"] and not bad
    for example in good:
        image = open_image(example.image)
        assert min(image.size) > 200 and np.asarray(image).std() > 20
