"""From the picture to what a model sees of it: fitting a picture before the processor, and the affine map that results.

Knows pixels and fractions, not models; the family adds what its own processor does (`Family.frame`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

ImageFit = Literal["native", "pad", "crop", "squash"]


def check_fit(how: str) -> None:
    """Raises ValueError for an unknown way to fit a picture."""
    if how not in get_args(ImageFit):
        raise ValueError(f"image_fit {how!r} is unknown; one of {', '.join(get_args(ImageFit))}")


def fit_picture(
    picture: Image.Image, how: ImageFit = "native", side: int | None = None, fill: tuple[int, int, int] = (124, 116, 104)
) -> tuple[Image.Image, Frame]:
    """The picture as it is handed to the processor, and where its points went.

    how: "native" leaves it to the processor; "pad" centres it on a square of its longer side in the colour `fill` (what LLaVA-1.5
    was trained with); "crop" keeps the central square of its shorter side; "squash" resizes it to a square, ignoring the ratio,
    of `side` pixels where the processor's input has a fixed side.
    Raises ValueError for an unknown `how`.
    """
    check_fit(how)
    width, height = picture.size
    if how == "native" or (how in ("pad", "crop") and width == height):
        return picture, Frame()
    if how == "squash":
        side = side or max(width, height)
        return picture.resize((side, side), Image.Resampling.BICUBIC), Frame()
    if how == "pad":
        side = max(width, height)
        canvas = Image.new("RGB", (side, side), fill)
        canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
        return canvas, Frame.window(-((side - width) // 2), -((side - height) // 2), side, side, width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side)), Frame.window(left, top, side, side, width, height)


@dataclass(frozen=True)
class Frame:
    """Affine map, per axis (x, y), from fractions of the picture to fractions of the model's input.

    seen = scale * picture + shift. Points that map outside [0, 1] were cropped away.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def window(cls, left: float, top: float, width: float, height: float, picture_width: float, picture_height: float) -> Frame:
        """The map for a window (in pixels of the picture, may reach beyond it) that becomes the whole input."""
        return cls((picture_width / width, picture_height / height), (-left / width, -top / height))

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return self.scale[0] * x + self.shift[0], self.scale[1] * y + self.shift[1]

    def then(self, after: Frame) -> Frame:
        """First this map, then `after`."""
        scale = tuple(a * b for a, b in zip(self.scale, after.scale, strict=True))
        shift = tuple(a * b + c for a, b, c in zip(after.scale, self.shift, after.shift, strict=True))
        return Frame(scale, shift)
