"""How much of what enters a connector can be read back from what leaves it? (Li et al. 2025; the connector study, section 4.)

A reconstructor maps E_post to E_pre. `train` fits one on the training part of a split that keeps duplicates together (the study's
leak) and keeps the weights of the lowest validation loss (the study's are the last); standardisation and the linear baseline are
fitted once, on the training part, and go with it: `evaluate`, on whatever data, changes nothing (the study's fits them anew and
overwrites them). `through_connector` sends what was read back through the native connector. What a reconstructor cannot read back
is lost to it, not to every other: its size and its data bound it too. Knows no figures.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

from spatialprobes.families import reconstructors
from spatialprobes.families.reconstructors import Architecture
from spatialprobes.probes import reconstruction_data as data
from spatialprobes.probes.reconstruction_data import Linear, Statistics
from spatialprobes.train_best import Schedule, claim, fit_best
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SITES = {"pre": "pre_norm", "pre_normed": "post_norm"}  # what a family calls where E_pre was taken
FORMAT = 1  # of the folder
FILES = ("config.json", "model.safetensors", "statistics.safetensors")


@dataclass
class Reconstructor:
    """A trained reconstructor: network, what it was standardised by, the linear baseline (None: not fitted), how it came to be.

    site: where E_pre was taken ("pre" or "pre_normed"). keys: {"train", "validation"}: the pictures of each part. about: model,
    schedule, seed, groups, best step and history of validation.
    """

    architecture: Architecture
    module: nn.Module
    statistics: Statistics
    linear: Linear | None
    site: str
    keys: dict[str, list[str]]
    about: dict[str, Any]

    @torch.no_grad()
    def predict(self, post: Any, batch_size: int = data.BLOCK) -> Float[np.ndarray, "picture token width"]:
        """E_pre read back from E_post [picture, token, width], float32 in the model's own units.

        Raises ValueError for vectors of other sizes than it was made for.
        """
        self._check(post)
        blocks = data.blocks(post, range(len(post)), batch_size)
        return np.concatenate([self._raw(block.to(self.device)).cpu().numpy() for _, block in blocks])

    @property
    def device(self) -> torch.device:
        """Where it runs; `reconstructor.module.to(...)` moves it."""
        return next(self.module.parameters()).device

    def save(self, folder: str | Path, half: bool = False) -> Path:
        """Write the folder: config.json, model.safetensors, statistics.safetensors; it appears whole or not at all.

        half: weights of network and baseline in float16 (statistics stay float64).
        """
        config = {
            "format": FORMAT, "architecture": dataclasses.asdict(self.architecture), "site": self.site, "keys": self.keys,
            "about": self.about, "linear": self.linear and {"together": self.linear.together, "ridge": self.linear.ridge},
        }  # fmt: skip
        scales = {field.name: getattr(self.statistics, field.name) for field in dataclasses.fields(Statistics)}
        baseline = {"linear.weight": self.linear.weight, "linear.places": self.linear.places} if self.linear else {}
        if half:
            baseline = {name: value.half() for name, value in baseline.items()}
        weights = {name: value.half() if half else value for name, value in self.module.state_dict().items()}
        return write_folder(Path(folder), config, {FILES[1]: weights, FILES[2]: scales | baseline})

    @classmethod
    def load(cls, folder: str | Path) -> Reconstructor:
        """As saved, weights as float32. Raises FileNotFoundError naming what is missing, ValueError for another kind of file."""
        folder = Path(folder)
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder}: no reconstructor there ({missing[0]} is missing)")
        config = json.loads((folder / FILES[0]).read_text())
        if config.get("format") != FORMAT or "architecture" not in config:
            raise ValueError(f"{folder / FILES[0]}: describes no reconstructor of format {FORMAT}")
        shape = Architecture(**config["architecture"])
        module = reconstructors.build(shape)
        module.load_state_dict({name: value.float() for name, value in load_file(folder / FILES[1]).items()})
        stored = load_file(folder / FILES[2])
        scales = Statistics(**{field.name: stored[field.name] for field in dataclasses.fields(Statistics)})
        linear = None
        if config["linear"] is not None:
            linear = Linear(stored["linear.weight"].float(), stored["linear.places"].float(), **config["linear"])
        return cls(shape, module.eval(), scales, linear, config["site"], config["keys"], config["about"])

    @classmethod
    def from_study(
        cls, state: Mapping[str, Tensor], meta: Mapping[str, Any], statistics: Mapping[str, np.ndarray]
    ) -> Reconstructor:
        """The study's own, of its best_model.pt and dataset_stats as `sources.connector_files` reads them; without a baseline.

        The "best" model of the study is its last. Its E_pre is Idefics2's after the norm, the others' before theirs. Which
        pictures it was trained on is not in the file (four in five of folder 00000), so `evaluate` calls all "new".
        Raises ValueError as `families.reconstructors.from_study`.
        """
        module = reconstructors.from_study(state, meta)
        names = {"pre_mean": "mean_pre", "pre_std": "std_pre", "post_mean": "mean_post", "post_std": "std_post"}
        scales = {ours: torch.as_tensor(np.asarray(statistics[theirs])).double() for ours, theirs in names.items()}
        site = "pre_normed" if meta["embed_model"] == "idefics2" else "pre"
        plain = {name: value for name, value in meta.items() if isinstance(value, str | int | float | None)}
        return cls(module.shape, module, Statistics(**scales), None, site, {}, {"study": plain})

    def _check(self, post: Any) -> None:
        made = (self.architecture.post_tokens, self.architecture.post_width)
        if tuple(post.shape[1:]) != made:
            raise ValueError(f"post has {tuple(post.shape[1:])} tokens and width, this reconstructor was made for {made}")

    def _raw(self, post: Tensor) -> Tensor:
        return self.statistics.raw(self.module(self.statistics.standardised(post, "post")))


def train(
    pre: Any,
    post: Any,
    keys: Sequence[str],
    *,
    kind: str,
    out: str | Path,
    groups: Int[np.ndarray, " picture"] | None = None,
    site: str = "pre",
    in_order: bool | None = None,
    schedule: Schedule | None = None,
    validation: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    model: str = "",
    callbacks: Sequence[TrainerCallback] = (),
    **sizes: Any,
) -> Reconstructor:
    """A reconstructor of this kind, trained on pairs [picture, token, width] and left with its best weights.

    kind: "mlp", "transformer" or "sequence"; sizes: hidden, layers, heads, ... as of `Architecture`, the published ones where not
    given. groups: a label a picture, alike for duplicates, which the split keeps together. site: where E_pre was taken ("pre" or
    "pre_normed"). in_order: whether E_post's tokens stand in the order of E_pre's, for the linear baseline (None: where there are
    as many, or a fourth). out: folder of checkpoints; a killed training goes on from there. schedule: the study's by default.
    device: "auto" is a GPU where there is one. model: whose vectors these are, for the record.
    Raises ValueError for data that don't fit together, NaN or infinities, sizes as `Architecture`, and an `out` that holds the
    checkpoints of another training.
    """
    if site not in SITES:
        raise ValueError(f"site={site!r} is unknown; {', '.join(map(repr, SITES))}")
    pre_shape, post_shape = data.check(pre, post, keys)
    schedule = schedule or Schedule()
    shape = reconstructors.architecture(kind, pre_shape, post_shape, **sizes)
    data.check_finite(pre, post, keys)
    in_order = data.aligned(pre_shape[0], post_shape[0]) if in_order is None else in_order
    held = data.split(keys, groups, validation, seed)
    parts = {"train": np.flatnonzero(~held), "validation": np.flatnonzero(held)}
    scales = data.statistics(pre, post, parts["train"])
    linear = data.linear_baseline(pre, post, parts["train"], parts["validation"], scales, in_order)
    named = {name: [keys[place] for place in which] for name, which in parts.items()}
    data_seen = {
        "site": site,
        "keys": data.digest(named),
        "vectors": data.digest([scales.pre_std.tolist(), scales.post_std.tolist()]),
    }
    claim(
        Path(out),
        {"architecture": dataclasses.asdict(shape), "schedule": dataclasses.asdict(schedule), "seed": seed, **data_seen},
    )
    module = reconstructors.build(shape, seed)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    pairs = {name: data.PairsData(pre, post, which) for name, which in parts.items()}
    fitted = fit_best(
        _Loss(module, scales), pairs["train"], pairs["validation"], data.PairsData.collate, Path(out), schedule,
        labels=("pre",), seed=seed, device=device, callbacks=callbacks,
    )  # fmt: skip
    labels = np.arange(len(keys)) if groups is None else np.asarray(groups)
    about = {
        "model": model, "seed": seed, "schedule": dataclasses.asdict(schedule), "best_step": fitted.best_step,
        "best_loss": fitted.best_loss, "steps": fitted.steps, "history": fitted.history,
        "groups": {name: len(np.unique(labels[which])) for name, which in parts.items()},
    }  # fmt: skip
    return Reconstructor(shape, module.cpu().eval(), scales, linear, site, named, about)


class _Loss(nn.Module):
    """Mean squared error of standardised E_pre, over the dimensions that move."""

    def __init__(self, module: nn.Module, scales: Statistics):
        super().__init__()
        self.module, self.scales = module, scales

    def forward(self, post: Tensor, pre: Tensor) -> dict[str, Tensor]:
        target = self.scales.standardised(pre, "pre")
        error = (self.module(self.scales.standardised(post, "post")) - target).square()
        return {"loss": error[..., (self.scales.pre_std > 0).to(error.device)].mean()}


@torch.no_grad()
def evaluate(
    reconstructor: Reconstructor, pre: Any, post: Any, keys: Sequence[str], batch_size: int = data.BLOCK
) -> pd.DataFrame:
    """How well E_pre is read back, a row a picture; nothing is fitted, and nothing of the reconstructor changes.

    Columns: key; part ("train", "validation", or "new" for a picture it never had); mse, error in standardised space (mean over
    tokens and the dimensions that move); r2 = 1 - mse, the mean over dimensions of the variance explained, in units of that of
    the training part; cosine, the mean over tokens in raw space (the study's; a direction that all tokens share makes it high
    whatever is read back: compare cosine_mean); and the same of the baselines: mse_mean, cosine_mean (every token is the training
    mean; its mse is 1 over the training part), mse_linear, r2_linear, cosine_linear (NaN where none was fitted). error_raw,
    deviation_raw: mean squared error, and mean squared deviation from the training mean, in raw units.
    Raises ValueError for data of other sizes, or that don't fit together.
    """
    pre_shape, _ = data.check(pre, post, keys)
    reconstructor._check(post)
    shape, scales = reconstructor.architecture, reconstructor.statistics
    if pre_shape != (shape.pre_tokens, shape.pre_width):
        raise ValueError(f"pre has {pre_shape} tokens and width, this reconstructor gives {(shape.pre_tokens, shape.pre_width)}")
    part = {key: name for name, of in reconstructor.keys.items() for key in of}
    moving = (scales.pre_std > 0).to(reconstructor.device)
    frames = []
    for which, after in data.blocks(post, range(len(keys)), batch_size):
        before, after = data.rows(pre, which).to(reconstructor.device), after.to(reconstructor.device)
        target, read = scales.standardised(before, "pre"), scales.standardised(after, "post")
        made = {"": reconstructor.module(read), "_mean": torch.zeros_like(target)}
        made["_linear"] = reconstructor.linear(read) if reconstructor.linear else torch.full_like(target, torch.nan)
        columns: dict[str, Any] = {"key": [keys[place] for place in which]}
        columns["part"] = [part.get(key, "new") for key in columns["key"]]
        for name, found in made.items():
            raw = scales.raw(found)
            columns[f"mse{name}"] = (found - target)[..., moving].double().square().mean((1, 2))
            columns[f"cosine{name}"] = F.cosine_similarity(raw, before, dim=-1).double().mean(1)
            if not name:
                columns["error_raw"] = (raw - before).double().square().mean((1, 2))
        columns["deviation_raw"] = (before - scales.pre_mean.to(before)).double().square().mean((1, 2))
        frames.append(
            pd.DataFrame({name: one.cpu().numpy() if isinstance(one, Tensor) else one for name, one in columns.items()})
        )
    frame = pd.concat(frames, ignore_index=True)
    frame["r2"], frame["r2_linear"] = 1 - frame["mse"], 1 - frame["mse_linear"]
    return frame[
        ["key", "part", "r2", "mse", "cosine", "mse_mean", "cosine_mean", "r2_linear", "mse_linear", "cosine_linear",
         "error_raw", "deviation_raw"]
    ]  # fmt: skip


@torch.no_grad()
def through_connector(
    vlm: VLM, pre: Any, site: str = "pre", batch_size: int = 32, connector: nn.Module | None = None
) -> list[Float[Tensor, "token width"]]:
    """p(E_pre): what the model's own connector makes of given inputs, float32 on the CPU, one a picture.

    pre: [picture, token, width], or a list of [token, width] where pictures differ in size, in the order that `capture` gives
    (cells in raster order, the patches of a cell together). No connector looks at where a patch is, so no grid is needed: LLaVA's
    reads each token, Qwen's each cell, Idefics2's all patches alike. site: where `pre` was taken, "pre" or "pre_normed".
    connector: another in the native one's place.
    Raises ValueError for another width, and where the model's connector does not read that site.
    """
    if site not in SITES:
        raise ValueError(f"site={site!r} is unknown; {', '.join(map(repr, SITES))}")
    made: list[Tensor] = []
    for start in range(0, len(pre), batch_size):
        pictures = [data.rows(pre, slice(place, place + 1))[0] if not isinstance(pre, list) else torch.as_tensor(pre[place])
                    for place in range(start, min(start + batch_size, len(pre)))]  # fmt: skip
        made += [one.float().cpu() for one in vlm.family.connect(vlm.model, pictures, SITES[site], connector)]
    return made


def agreement(made: Sequence[Any], post: Sequence[Any], keys: Sequence[str]) -> pd.DataFrame:
    """p(E_pre_hat) against stored E_post, a row a picture: [key, reproj_cosine, reproj_mse], in raw units.

    reproj_cosine: mean over tokens; reproj_mse: mean over tokens and dimensions (its scale is the model's own: not to be compared
    over models). Raises ValueError for lengths or sizes that differ.
    """
    if not len(made) == len(post) == len(keys):
        raise ValueError(f"{len(made)} and {len(post)} pictures for {len(keys)} keys")
    found = []
    for key, one, other in zip(keys, made, post, strict=True):
        ours, stored = torch.as_tensor(np.asarray(one)).float(), torch.as_tensor(np.asarray(other)).float()
        if ours.shape != stored.shape:
            raise ValueError(f"{key!r}: {tuple(ours.shape)} from the connector, {tuple(stored.shape)} stored")
        cosine = float(F.cosine_similarity(ours, stored, dim=-1).double().mean())
        found.append({"key": key, "reproj_cosine": cosine, "reproj_mse": float((ours - stored).double().square().mean())})
    return pd.DataFrame(found)


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> Path:
    """A folder of config.json and files of tensors, put in place at once; an older one there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (new / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        for name, weights in tensors.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, new / name)
        old = folder.with_name(f".{folder.name}-old")
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder
