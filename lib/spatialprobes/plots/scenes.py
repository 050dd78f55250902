"""Figures of pictures with words under them: what a world looks like, what was asked and answered."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from spatialprobes.plots import DPI, RC, WIDTHS, need

if TYPE_CHECKING:
    import pandas as pd

MOST = 12
GAP = 0.14  # inches between cells
FOOT = 0.22  # inches left free below, for the model's name
LINE = 0.135  # inches a line of text takes
WIDEST = 2.2  # inches of a picture: a lone one does not fill the page
SIZE = 7  # points


def gallery(frame: pd.DataFrame, *, columns: int = 4, width: str = "two") -> Figure:
    """1 to 12 pictures in a grid, each with a title and wrapped text below.

    Columns: png (the picture's bytes, any format Pillow reads), title (a line or so), text (question, answer, caption; line
    breaks are kept). columns: cells in a row. Raises ValueError for a missing column, more than 12 rows, or bytes that are
    no picture.
    """
    need(frame, ("png", "title", "text"), "scenes.gallery")
    if len(frame) > MOST:
        raise ValueError(f"scenes.gallery: {len(frame)} pictures; at most {MOST} fit, choose some of the rows")
    if not 1 <= columns <= MOST:
        raise ValueError(f"scenes.gallery: columns={columns} is not between 1 and {MOST}")
    if width not in WIDTHS:
        raise ValueError(f"width {width!r} is not one of {', '.join(WIDTHS)}")
    across = min(columns, len(frame))
    cell = min((WIDTHS[width] - GAP) / across - GAP, WIDEST)
    pictures = [picture(data) for data in frame["png"]]
    titles = [wrap(title, cell, "bold") for title in frame["title"]]
    texts = [wrap(text, cell, "normal") for text in frame["text"]]
    heights = [cell * image.shape[0] / image.shape[1] for image in pictures]
    rows = [range(start, min(start + across, len(frame))) for start in range(0, len(frame), across)]
    picture_heights = [max(heights[i] for i in row) for row in rows]
    text_heights = [LINE * max(len(titles[i]) + len(texts[i]) for i in row) + 0.06 for row in rows]
    total = sum(picture_heights) + sum(text_heights) + GAP * (len(rows) + 1) + FOOT
    wide = across * (cell + GAP) + GAP
    figure = Figure(figsize=(wide, total))
    top = total - GAP
    for row, picture_height, text_height in zip(rows, picture_heights, text_heights, strict=True):
        for place, i in enumerate(row):
            left = GAP + place * (cell + GAP)
            ax = figure.add_axes((left / wide, (top - heights[i]) / total, cell / wide, heights[i] / total))
            ax.imshow(pictures[i], aspect="auto")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.5)
            for number, line in enumerate(titles[i] + texts[i]):
                y = top - picture_height - 0.05 - number * LINE
                weight = "bold" if number < len(titles[i]) else "normal"
                figure.text(left / wide, y / total, line, va="top", fontsize=SIZE, weight=weight, parse_math=False)
        top -= picture_height + text_height + GAP
    return figure


def picture(data: bytes) -> np.ndarray:
    """RGB pixels of encoded bytes. Raises ValueError when they are no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, TypeError) as error:
        raise ValueError(f"a png column holds bytes that are no picture: {error}") from error


def wrap(text: str, room: float, weight: str) -> list[str]:
    """Lines of `text` that fit `room` inches by the font's own measures; its line breaks are kept, a word too long is cut."""
    lines = []
    for part in str(text).split("\n"):
        line = ""
        for word in part.split() or [""]:
            if line and text_width(f"{line} {word}", weight) <= room:
                line = f"{line} {word}"
                continue
            lines += [line] if line else []
            while len(word) > 1 and text_width(word, weight) > room:
                fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or text_width(word[:n], weight) <= room)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines


def text_width(text: str, weight: str) -> float:
    """Inches that `text` takes in a caption."""
    font = get_font(findfont(FontProperties(family=RC["font.family"], weight=weight)))
    font.set_size(SIZE, DPI)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / DPI
