"""Where a discovered family's tokens are in the picture, proved by painting one part of it and seeing which token changes most.

First the tower's patches, before its first block has mixed them; then the vision tokens of square pictures; then in which of the
usual ways a wide or a tall picture is fitted to a square. What painting does not show is refused. Also the pictures and hooks
that all proofs use.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from spatialprobes.examples import Example
from spatialprobes.families.frames import Frame

if TYPE_CHECKING:
    from jaxtyping import Float

QUESTION = "what is in the picture ?"
SIDES = {"square": (384, 384), "wide": (576, 384), "tall": (384, 576)}  # pixels, of the pictures that are painted
SPOTS = 9  # cells that are painted
FOUND = 2 / 3  # share of them that must be the tokens that change most
FRAMES: dict[str, Callable[[int, int], Frame]] = {
    "squashed to a square": lambda width, height: Frame(),
    "its central square": lambda w, h: Frame.window((w - min(w, h)) / 2, (h - min(w, h)) / 2, min(w, h), min(w, h), w, h),
    "padded on both sides": lambda w, h: Frame.window((w - max(w, h)) / 2, (h - max(w, h)) / 2, max(w, h), max(w, h), w, h),
    "padded at its end": lambda w, h: Frame.window(0, 0, max(w, h), max(w, h), w, h),
}


def prove_grids(vlm: Any) -> None:
    """Prove, or refuse, the grids of the tower and of the vision tokens, and where pictures that are no squares are in them."""
    _tower_grid(vlm)
    _grid(vlm)
    _frames(vlm)


def _tower_grid(vlm: Any) -> None:
    """Painting one patch changes, before the first block of the tower, the token that its grid has there."""
    family = vlm.family
    if "tower_layers" in family.refused:
        return family.refuse("tower grid", family.refused["tower_layers"])
    plain = _entering(vlm, [probe_example()])[0]
    side = int(plain.shape[0] ** 0.5)
    family.tower_grid, family.tower_before = (side, side), len(plain) - side * side
    hits, shown = _painted(vlm, "square", Frame(), _patches)
    if not shown:
        return family.refuse("tower grid", "one picture is not one row of patches in the tower")
    if hits < FOUND * shown:
        return family.refuse("tower grid", f"of {shown} painted patches {hits} changed their own token of {len(plain)} most")
    where = f"{side} x {side} patches after {family.tower_before} tokens"
    family.confirm("tower grid", f"{hits} of {shown} painted patches change their own token most", where)


def _grid(vlm: Any) -> None:
    """Painting one cell of a square picture changes most the vision token that the grid has there."""
    family, n = vlm.family, len(vlm.encode([probe_example()]).spans[0].vision)
    side = round(n**0.5)
    if side * side != n or n < 4:
        return family.refuse("grid", f"a square picture has {n} vision tokens, which make no square")
    family.grids = {n: (side, side)}
    hits, shown = _painted(vlm, "square", Frame(), _cells)
    if hits < FOUND * shown or not shown:
        family.grids = {}
        return family.refuse("grid", f"of {shown} painted cells {hits} changed their own token most")
    family.frames["square"] = FRAMES["squashed to a square"]
    family.confirm("grid", f"{hits} of {shown} painted cells change their own token most", f"{side} x {side}", "square pictures")
    if "tower grid" not in family.refused and family.tower_grid[0] % side == 0:
        family.merge = family.tower_grid[0] // side


def _frames(vlm: Any) -> None:
    """Which way of fitting wide and tall pictures puts what is painted where the grid shows it."""
    family = vlm.family
    if not family.grids:
        return
    at = _cells if "tower grid" in family.refused else _patches  # patches are finer, and nothing has been mixed there yet
    for shape in ("wide", "tall"):
        found = {name: _painted(vlm, shape, frame(*SIDES[shape]), at) for name, frame in FRAMES.items()}
        share = {name: hits / shown if shown else 0.0 for name, (hits, shown) in found.items()}
        best, second = sorted(share, key=share.get, reverse=True)[:2]
        if share[best] >= FOUND and share[best] > share[second]:
            family.frames[shape] = FRAMES[best]
            hits, shown = found[best]
            proof = f"{hits} of {shown} painted parts found, {share[second]:.0%} the next best way"
            family.confirm(f"grid ({shape})", proof, best)
        else:
            family.refuse(f"grid ({shape})", "painted parts do not tell one way in which such a picture is fitted")


def _cells(vlm: Any, examples: list[Example]) -> tuple[tuple[int, int], list[Tensor]]:
    """The grid of the vision tokens, and those of each picture."""
    return next(iter(vlm.family.grids.values())), vlm.vision_features(examples, batch_size=4)


def _patches(vlm: Any, examples: list[Example]) -> tuple[tuple[int, int], list[Tensor]]:
    """The grid of the tower's patches, and what enters its first block at those of each picture."""
    return vlm.family.tower_grid, [one[vlm.family.tower_before :] for one in _entering(vlm, examples)]


def _entering(vlm: Any, examples: list[Example]) -> list[Float[Tensor, "token width"]]:
    """What enters the tower's first block, for each picture or tile."""
    seen: list[Tensor] = []
    first = vlm.family.part(vlm.model, "tower_layers")[0]
    with hooks([(first, lambda args, kwargs, _: seen.extend(args[0] if args else next(iter(kwargs.values()))))]):
        vlm.vision_features(examples, batch_size=4)
    return seen


def _painted(vlm: Any, shape: str, frame: Frame, at: Callable) -> tuple[int, int]:
    """How many painted cells changed their own token most, and how many were painted; (0, 0) where tokens have another number."""
    (rows, columns), _ = at(vlm, [])
    examples, painted = _paint((rows, columns), SIDES[shape], frame)
    _, found = at(vlm, examples)
    if len(found) != len(examples) or any(len(one) != rows * columns for one in found):
        return 0, 0
    changes = [(one - found[0]).float().norm(dim=-1) for one in found[1:]]
    return sum(int(one.argmax()) == cell for one, cell in zip(changes, painted, strict=True)), len(painted)


def _paint(grid: tuple[int, int], size: tuple[int, int], frame: Frame) -> tuple[list[Example], list[int]]:
    """A picture, then copies of it with one cell each in other colours; and which cells those are."""
    (rows, columns), (width, height) = grid, size
    plain = noise(0, size)
    shown, painted = [plain], []
    for cell in np.random.default_rng(0).permutation(rows * columns).tolist():
        row, column = divmod(cell, columns)
        left, right = (((column + end) / columns - frame.shift[0]) / frame.scale[0] * width for end in (0, 1))
        upper, lower = (((row + end) / rows - frame.shift[1]) / frame.scale[1] * height for end in (0, 1))
        if left >= 0 and upper >= 0 and right <= width and lower <= height and len(painted) < SPOTS:
            array = np.array(plain)
            place = np.s_[round(upper) : round(lower), round(left) : round(right)]
            array[place] = 255 - array[place]
            shown.append(Image.fromarray(array))
            painted.append(cell)
    return [Example(f"painted-{i}", one) for i, one in enumerate(shown)], painted


def probe_example(seed: int = 0, question: str = QUESTION) -> Example:
    return Example(f"proof-{seed}", noise(seed, SIDES["square"]), question)


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """Noise in blocks, so that every part differs from its neighbours."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)


def hooks(reads: list[tuple[nn.Module, Callable]]) -> ExitStack:
    """Each function is called with (args, kwargs, output) of its module; what it returns, if anything, replaces the output."""
    stack = ExitStack()
    for module, read in reads:

        def call(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any, read: Callable = read) -> Any:
            return read(args, kwargs, output)

        stack.callback(module.register_forward_hook(call, with_kwargs=True).remove)
    return stack
