"""What stands before and behind a model's connector, of one batch of pictures: tower and connector run, the language model not.

Three sites, words for what the connector study hooked differently in each family:

    pre          the tower's output as it comes to the connector, before the norm that stands before the connector's weights
    pre_normed   after that norm. LLaVA has none there: CLIP's own post-layernorm of it, which no part of LLaVA applies
    post         what enters the language model

Tokens are in raster order of the cells, whatever order the tower keeps; where a square of patches becomes one token, its rows
stand together. A class token is never among them: it does not pass the connector. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from spatialprobes.examples import Example
from spatialprobes.families import TowerRun, fit_picture
from spatialprobes.images import open_image
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float

SITES = ("pre", "pre_normed", "post")
READINGS = {"pre": "pre_norm", "pre_normed": "post_norm"}  # what `capture` calls them


@dataclass(frozen=True)
class Reading:
    """tokens: by site, one [token, width] a picture, where the model lies and in its dtype.

    patches: (rows, columns) of each picture's patches, as they come to the connector; None where the tower's are not known.
    grids: of its tokens behind the connector; None where they have none (latents). merge: side of the square of patches that
    becomes one token.
    """

    tokens: dict[str, list[Float[Tensor, "token width"]]]
    patches: list[tuple[int, int] | None]
    grids: list[tuple[int, int] | None]
    merge: int

    def grid(self, site: str, picture: int) -> tuple[int, int] | None:
        """(rows, columns) that a picture's tokens stand for at a site."""
        return self.grids[picture] if site == "post" else self.patches[picture]


def check_sites(sites: Sequence[str]) -> tuple[str, ...]:
    """Raises ValueError for no site, one that is unknown, or one that stands twice."""
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if unknown := [site for site in sites if site not in SITES]:
        raise ValueError(f"site {unknown[0]!r} is unknown; {', '.join(map(repr, SITES))}")
    if not sites or len(set(sites)) < len(sites):
        raise ValueError(f"sites={sites!r}: at least one of {', '.join(map(repr, SITES))}, each once")
    return tuple(site for site in SITES if site in sites)


def read(vlm: VLM, examples: Sequence[Example], sites: Sequence[str] = SITES) -> Reading:
    """The tokens of these examples' pictures, run as one batch; questions are not needed and not looked at.

    Raises ValueError for a site that the model's family does not know, and while an intervention on what the connector gives is
    open; ImageError naming an example whose picture can't be read.
    """
    return run(vlm, prepared(vlm, examples), check_sites(sites))


@dataclass(frozen=True)
class Prepared:
    """Pictures, ready for the tower. inputs: its tensors. which: row i of the batch shows picture which[i].

    grids: of their tokens behind the connector, None where only a run tells.
    """

    inputs: dict[str, Tensor]
    which: list[int]
    grids: list[tuple[int, int] | None] | None


def prepared(vlm: VLM, examples: Sequence[Example]) -> Prepared:
    """Open and process these examples' pictures, without prompts where the family allows it. Raises as `VLM.pictures`."""
    family = vlm.family
    side, fill = family.side(vlm.processor), family.fill(vlm.processor)
    fitted = [
        fit_picture(open_image(one.image, name=f"the picture of {one.id}"), vlm.image_fit, side, fill)[0] for one in examples
    ]
    try:
        inputs = family.image_inputs(vlm.processor, fitted)
    except ValueError:
        inputs = None  # what was refused, and of which example, is told below
    if inputs is not None:
        return Prepared(inputs, list(range(len(fitted))), None)
    pictures, which = vlm.pictures(examples)
    return Prepared(pictures.inputs, which, pictures.grids)


@torch.no_grad()
def run(vlm: VLM, batch: Prepared, sites: Sequence[str]) -> Reading:
    """As `read`. sites: checked."""
    if vlm.family.edits_image_features(vlm.model):
        raise ValueError("an intervention on the picture's tokens is open; what the connector gives is read without one")
    inputs = vlm.to_device(batch.inputs)
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    with _hooked(vlm, found) as runs, _left_out(vlm.family.unread_blocks(vlm.model)):
        features = vlm.family.image_features(vlm.model, inputs)
    grids = batch.grids or [vlm.family.grid(vlm.model, inputs, i, len(one)) for i, one in enumerate(features)]
    if "post" in found:
        found["post"] = list(features)
    many = len(grids)
    if wrong := [site for site, tokens in found.items() if len(tokens) != many]:
        raise ValueError(f"{vlm.name}: {wrong[0]!r} gave the tokens of {len(found[wrong[0]])} pictures, {many} were run")
    tower = runs[0] if runs else None
    patches: list[tuple[int, int] | None] = [None] * many if tower is None else list(tower.grids)
    tokens = {site: [found[site][i] for i in batch.which] for site in sites}
    merge = 1 if tower is None else tower.merge
    return Reading(tokens, [patches[i] for i in batch.which], [grids[i] for i in batch.which], merge)


def squashed(picture: Image.Image, side: int | None) -> Image.Image:
    """The picture as side x side pixels, its ratio ignored, where a side is given; bicubic, as Pillow and the study do it."""
    return picture if side is None else picture.resize((side, side), Image.Resampling.BICUBIC)


@contextmanager
def at_side(vlm: VLM, side: int | None) -> Iterator[None]:
    """While open, pictures of side x side pixels enter the tower as they are, where the family would else enlarge them."""
    with nullcontext() if side is None else vlm.family.keeping_side(vlm.processor, side):
        yield


@contextmanager
def _left_out(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While open, these blocks give what they are given."""
    for block in blocks:
        block.forward = lambda hidden, *args, **kwargs: hidden
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def _hooked(vlm: VLM, found: dict[str, list[Tensor]]) -> Iterator[list[TowerRun]]:
    """While open, what passes the connector is added to `found` at the sites before it; yields the tower's runs."""
    family, model = vlm.family, vlm.model
    runs: list[TowerRun] = []
    before = [site for site in found if site in READINGS]

    def started(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        run = family.tower_run(model, args, kwargs)
        if run is not None:
            runs.append(run)

    def reader(site: str, take: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., None]:
        def called(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            tokens = take(args[0] if args else next(iter(kwargs.values())), output)
            found[site] += family.connector_tokens(model, tokens, runs[-1] if runs else None, "input")

        return called

    with ExitStack() as stack:
        if before:
            stack.callback(family.part(model, "tower").register_forward_pre_hook(started, with_kwargs=True).remove)
        for site in before:
            module, take = family.connector_reading(model, READINGS[site])
            stack.callback(module.register_forward_hook(reader(site, take), with_kwargs=True).remove)
        yield runs
