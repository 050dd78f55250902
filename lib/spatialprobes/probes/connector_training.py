"""Another connector in the native one's place, trained through the frozen language model on captions.

Only the connector learns: vision features are made of stored E_pre and put where the picture's tokens stand, and the loss is the
cross-entropy of the caption's tokens, found by the batch's own spans. (The study counts the tokens of a prompt that is tokenised
apart, and is right only where padding is on the right.) A term may hold the geometry of the stored E_post. `swapped` runs a model
with such a connector. Knows no world and no scores.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainerCallback

from spatialprobes.examples import Example, batches
from spatialprobes.families import connectors
from spatialprobes.families.connectors import Design
from spatialprobes.probes.reconstruction import SITES, through_connector, write_folder
from spatialprobes.probes.reconstruction_data import digest, rows, split
from spatialprobes.train_best import Schedule, claim, fit_best
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

IGNORED = -100
REGULARISERS = ("mse", "distances")
SCHEDULE = Schedule(epochs=10, batch_size=4, accumulation=4, lr=1e-4, weight_decay=1e-4, warmup=200, patience=5)  # the study's


@dataclass
class OtherConnector:
    """A connector that is not the model's own: what it is made of, its weights, and how it came to be.

    about: model, schedule, seed, regulariser and its weight, best step, history of validation, keys of each part.
    """

    design: Design
    module: nn.Module
    about: dict[str, Any]

    def save(self, folder: str | Path, half: bool = False) -> Path:
        """Write the folder: config.json and model.safetensors; it appears whole or not at all. half: weights in float16."""
        config = {"connector": dataclasses.asdict(self.design), "about": self.about}
        weights = {name: value.half() if half else value for name, value in self.module.state_dict().items()}
        return write_folder(Path(folder), config, {"model.safetensors": weights})

    @classmethod
    def load(cls, folder: str | Path) -> OtherConnector:
        """As saved, weights as float32. Raises FileNotFoundError, and ValueError for a folder of something else."""
        folder = Path(folder)
        if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder}: no connector there ({missing[0]} is missing)")
        config = json.loads((folder / "config.json").read_text())
        if "connector" not in config:
            raise ValueError(f"{folder / 'config.json'}: describes no connector")
        design = Design(**config["connector"])
        module = connectors.build(design)
        module.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return cls(design, module.eval().requires_grad_(False), config["about"])

    def post(self, vlm: VLM, pre: Any, site: str = "pre", batch_size: int = 32) -> list[Float[Tensor, "token width"]]:
        """The new E_post of these pictures; as `reconstruction.through_connector`."""
        self.check(vlm)
        return through_connector(vlm, pre, site, batch_size, self.module)

    def check(self, vlm: VLM) -> None:
        """Raises ValueError where this connector was not made for a model like this one."""
        made = connectors.design(vlm.model.config)
        for name in ("kind", "pre_width", "post_width", "latents"):
            if getattr(made, name) != getattr(self.design, name):
                ours, theirs = getattr(self.design, name), getattr(made, name)
                raise ValueError(f"a connector with {name}={ours!r} does not fit {vlm.name!r}, which needs {theirs!r}")


@contextmanager
def swapped(vlm: VLM, connector: OtherConnector) -> Iterator[None]:
    """While open, the model runs with this connector: features, forward, generate and what capture reads; then its own is back.

    The connector runs in the model's dtype. Raises ValueError where it was not made for a model like this one.
    """
    connector.check(vlm)
    path, _, name = vlm.family.connector.rpartition(".")
    owner = vlm.model.get_submodule(path)
    native = getattr(owner, name)
    setattr(owner, name, copy.deepcopy(connector.module).to(device=vlm.device, dtype=vlm.dtype).eval())
    try:
        yield
    finally:
        setattr(owner, name, native)


def train(
    vlm: VLM,
    pre: Any,
    examples: Sequence[Example],
    *,
    out: str | Path,
    post: Any = None,
    kind: str | None = None,
    site: str = "pre",
    regulariser: str = "mse",
    weight: float = 0.0,
    groups: Int[np.ndarray, " picture"] | None = None,
    validation: float = 0.2,
    schedule: Schedule | None = None,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
    **sizes: Any,
) -> OtherConnector:
    """A connector trained on captions and left with the weights of the lowest validation cross-entropy.

    pre: [picture, token, width] or a list of [token, width], in the order of the examples; site: where it was taken, "pre" or
    "pre_normed". examples: one a picture; its question asks for a caption, which its answer is. post: stored E_post, as pre,
    where weight > 0: "mse" adds weight times the squared distance to it (the study's; tokens of another number are interpolated),
    "distances" that of the pictures' mutual distances, mean-pooled and in units of their mean. groups: a label a picture, alike
    for duplicates. kind and sizes: as `families.connectors.design`. out: folder of checkpoints; a killed training goes on.
    Raises ValueError with the reason for a family without such a connector, for data that don't fit together, and for an `out`
    that holds the checkpoints of another training.
    """
    design = connectors.design(vlm.model.config, kind, **sizes)
    schedule = schedule or SCHEDULE
    _check(pre, post, examples, site, regulariser, weight, schedule)
    keys = [example.id for example in examples]
    held = split(keys, groups, validation, seed)
    captions = CaptionData(vlm, pre, post if weight else None, examples)
    through = _ThroughLanguageModel(vlm, connectors.build(design, seed), site, regulariser, weight)
    parts = {"train": np.flatnonzero(~held).tolist(), "validation": np.flatnonzero(held).tolist()}
    named = {name: [keys[place] for place in which] for name, which in parts.items()}
    asked = {"site": site, "regulariser": regulariser if weight else None, "weight": weight, "keys": digest(named)}
    claim(Path(out), {"design": dataclasses.asdict(design), "schedule": dataclasses.asdict(schedule), "seed": seed, **asked})
    fitted = fit_best(
        through, captions.part(parts["train"]), captions.part(parts["validation"]), captions.collate, Path(out), schedule,
        labels=("labels",), seed=seed, device=vlm.device.type, callbacks=callbacks,
    )  # fmt: skip
    about = {
        "model": vlm.name, "seed": seed, "schedule": dataclasses.asdict(schedule), "site": site, "best_step": fitted.best_step,
        "best_loss": fitted.best_loss, "steps": fitted.steps, "history": fitted.history,
        "regulariser": regulariser if weight else None, "weight": weight,
        "keys": named,
    }  # fmt: skip
    return OtherConnector(design, through.connector.cpu().eval().requires_grad_(False), about)


class CaptionData(Dataset):
    """Item i: what the language model is given for picture i but for its vision features, and what is known of those.

    Prompts are encoded once, by the model's own template, each ending with its caption.
    """

    def __init__(self, vlm: VLM, pre: Any, post: Any, examples: Sequence[Example], which: Sequence[int] | None = None):
        self.vlm, self.pre, self.post = vlm, pre, post
        self.prompts = [prompt for chunk in batches(examples, 64) for prompt in _prompts(vlm, chunk)]
        self.which = list(range(len(examples))) if which is None else list(which)

    def part(self, which: Sequence[int]) -> CaptionData:
        """The same, of these pictures alone."""
        made = copy.copy(self)
        made.which = list(which)
        return made

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.which[index]
        item = {"prompt": self.prompts[place], "pre": _one(self.pre, place)}
        return item if self.post is None else {**item, "post": _one(self.post, place)}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """labels [n, token], IGNORED but for captions; inputs: left-padded ids, mask and positions; pre, post: one a picture."""
        prompts = [item["prompt"] for item in items]
        inputs = self.vlm.complete([list(prompt.tokens) for prompt in prompts], [prompt.grid for prompt in prompts])
        length = inputs["input_ids"].shape[1]
        labels = torch.tensor([[IGNORED] * (length - len(prompt.labels)) + list(prompt.labels) for prompt in prompts])
        batch = {"labels": labels, "inputs": inputs, "pre": [item["pre"] for item in items]}
        return batch if self.post is None else {**batch, "post": [item["post"] for item in items]}


@dataclass(frozen=True)
class Prompt:
    """tokens: of a prompt with its caption. labels: the same for the caption and the end behind it, else IGNORED."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    grid: tuple[int, int] | None


def _prompts(vlm: VLM, examples: Sequence[Example]) -> list[Prompt]:
    batch, found = vlm.encode(examples, answers=True), []
    for row, spans in zip(batch.input_ids.cpu(), batch.spans, strict=True):
        labels = torch.full_like(row, IGNORED)
        labels[spans.answer] = row[spans.answer]
        behind = int(spans.answer[-1]) + 1
        if behind < len(row) and int(row[behind]) in vlm._ends:
            labels[behind] = row[behind]
        found.append(Prompt(tuple(row[spans.start :].tolist()), tuple(labels[spans.start :].tolist()), spans.grid))
    return found


class _ThroughLanguageModel(nn.Module):
    """The cross-entropy of captions given vision features that `connector` makes; the model around it is no part of this one."""

    def __init__(self, vlm: VLM, connector: nn.Module, site: str, regulariser: str, weight: float):
        super().__init__()
        self.connector = connector
        self.vlm, self.site, self.regulariser, self.weight = vlm, site, regulariser, weight

    def forward(
        self, labels: Tensor, inputs: dict[str, Tensor], pre: list[Tensor], post: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        model, family = self.vlm.model, self.vlm.family
        features = family.connect(model, pre, SITES[self.site], self.connector)
        picture = inputs["input_ids"] == family.image_token_id(model)
        if (places := picture.sum(-1).tolist()) != (made := [len(one) for one in features]):
            raise ValueError(f"prompts with {places} vision tokens, and {made} from the connector: pictures of another size")
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        embedded = embedded.masked_scatter(picture[..., None], torch.cat(features).to(embedded.dtype))
        others = {name: value for name, value in inputs.items() if name != "input_ids"}
        kept = labels.shape[1] - int((labels != IGNORED).any(0).nonzero()[0]) + 1  # captions stand at the end
        logits = model(inputs_embeds=embedded, **others, logits_to_keep=kept, use_cache=False).logits
        target = labels[:, 1 - kept :] if kept > 1 else labels[:, :0]
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        if self.training and self.weight:
            loss = loss + self.weight * _geometry(self.regulariser, features, post)
        return {"loss": loss}


def _geometry(regulariser: str, made: list[Tensor], stored: list[Tensor]) -> Tensor:
    """How far new E_post is from the stored one, or its pictures' distances from theirs."""
    stored = [one.to(made[0]) for one in stored]
    if regulariser == "distances":
        ours, theirs = (torch.pdist(torch.stack([one.mean(0) for one in side])) for side in (made, stored))
        return F.mse_loss(ours / ours.mean(), theirs / theirs.mean())
    pairs = zip(made, stored, strict=True)
    return torch.stack([F.mse_loss(one, _stretched(other, len(one))) for one, other in pairs]).mean()


def _stretched(tokens: Float[Tensor, "token width"], count: int) -> Float[Tensor, "count width"]:
    """As many tokens, by linear interpolation along their order."""
    if len(tokens) == count:
        return tokens
    return F.interpolate(tokens.T[None], size=count, mode="linear", align_corners=False)[0].T


def _one(vectors: Any, place: int) -> Float[Tensor, "token width"]:
    if isinstance(vectors, list):
        return torch.as_tensor(vectors[place]).float()
    return rows(vectors, slice(place, place + 1))[0]


def _check(
    pre: Any, post: Any, examples: Sequence[Example], site: str, regulariser: str, weight: float, schedule: Schedule
) -> None:
    if site not in SITES:
        raise ValueError(f"site={site!r} is unknown; {', '.join(map(repr, SITES))}")
    if regulariser not in REGULARISERS:
        raise ValueError(f"regulariser={regulariser!r} is unknown; {', '.join(map(repr, REGULARISERS))}")
    if len(pre) != len(examples):
        raise ValueError(f"pre holds {len(pre)} pictures for {len(examples)} examples; align them first")
    if not weight >= 0:
        raise ValueError(f"weight={weight} of the regulariser must be at least 0")
    if weight and (post is None or len(post) != len(examples)):
        held = "none" if post is None else len(post)
        raise ValueError(f"a regulariser needs the stored E_post of all {len(examples)} pictures; there are {held}")
    if weight and regulariser == "distances" and schedule.batch_size < 3:
        raise ValueError(f"mutual distances need batches of at least 3 pictures, not {schedule.batch_size}")
