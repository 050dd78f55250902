"""A series of checkpoints of one model over its training: as a notebook's parameter, and as the tables that its runs left.

The studies call a checkpoint by what it was fine-tuned on: 80k is 80,000 samples, which is 1,250 steps of batch 64. Knows names,
folders and tables; nothing of models and measures.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spatialprobes import paths, plots
from spatialprobes.tables import read_table

STUDY = ("vanilla", "80k", "400k", "800k", "2m", "roborefer")  # the scales of the swap study, in its order
LABEL = r"[A-Za-z0-9][A-Za-z0-9._+-]*"  # becomes part of file names
UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
EXAMPLE = "'vanilla=lab-llava-vanilla 12800=lab-llava-12800 final=lab-llava'"


@dataclass(frozen=True)
class Scale:
    """One checkpoint. label: what tables and figures call it. samples: it was trained on, None where nobody says."""

    label: str
    model: str
    samples: int | None


def parse(text: str) -> list[Scale]:
    """The series in `text`: ``label=model`` or ``label:samples=model``, parted by blanks; by samples, unknown ones last.

    samples: as given, else what the label says (vanilla is 0, 12800, 80k, 2m), else the card of a lab model, else None.
    Raises ValueError for an empty text, a part without "=", a label twice, samples that are no whole number, and a label that
    says other samples than the lab model's card.
    """
    parts = text.split()
    if not parts:
        raise ValueError(f"the series is empty; give label=model for each checkpoint, as {EXAMPLE}")
    scales = [_scale(part) for part in parts]
    labels = [scale.label for scale in scales]
    if twice := [label for label in labels if labels.count(label) > 1]:
        models = ", ".join(scale.model for scale in scales if scale.label == twice[0])
        raise ValueError(f"the series has the label {twice[0]!r} for {models}; each checkpoint needs a label of its own")
    return sorted(scales, key=lambda scale: (scale.samples is None, scale.samples or 0))


def samples_of(label: str) -> int | None:
    """The samples that a label says: 0 for vanilla, 12800, 80k, 1.5m; None where it says none, or a part of one."""
    if label == "vanilla":
        return 0
    if not (found := re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?([km]?)", label, flags=re.IGNORECASE)):
        return None
    whole, fraction, unit = found[1], found[2] or "", UNITS[found[3].lower()]
    samples, rest = divmod(int(whole + fraction) * unit, 10 ** len(fraction))
    return None if rest else samples


def ordered(labels: Iterable[str]) -> list[str]:
    """The distinct labels: those of the study in its order, then the others by name."""
    distinct = set(labels)
    return [label for label in STUDY if label in distinct] + sorted(distinct - set(STUDY))


def tables_of_runs(runs: Sequence[str], name: str, base: Path | None = None) -> pd.DataFrame:
    """Table `name` of each run, one below the other in their order, with the columns run and model (unless it has one).

    base: the checkout, by default the current one. `frame.attrs["provenance"]` names the runs and their models' facts.
    Raises FileNotFoundError naming a run or table that is not there and how to make it; ValueError without runs, for a run twice,
    and for a table that has a column run already or is none of this library.
    """
    if not runs:
        raise ValueError("no runs were given; name those whose tables are to be put together")
    if twice := [run for run in runs if list(runs).count(run) > 1]:
        raise ValueError(f"run {twice[0]!r} is named twice")
    frames, models = [], []
    for run in runs:
        frame = _table(run, name, base)
        facts = frame.attrs["provenance"]
        if "run" in frame.columns:
            raise ValueError(f"table {name!r} of run {run!r} has a column 'run' already; it is itself of several runs")
        models.append(facts.get("model", ""))
        frame.attrs = {}  # pandas compares them when frames are put together
        frame.insert(0, "run", run)
        if "model" not in frame.columns:
            frame.insert(1, "model", plots.model_name(facts))
        frames.append(frame)
    out = pd.concat(frames, ignore_index=True)
    out.attrs = {"provenance": {"table": name, "runs": list(runs), "model": models}}
    return out


def same_layers(frame: pd.DataFrame, by: str = "scale") -> pd.DataFrame:
    """The frame, if its checkpoints may share one layer axis.

    by: the column that tells them apart. Raises ValueError naming two checkpoints that differ in their layers, in their width
    where there is such a column, or in their family where the provenance says it; and for a missing column.
    """
    for column in (by, "layer"):
        if column not in frame.columns:
            raise ValueError(f"the table has no column {column!r}; there: {', '.join(map(str, frame.columns))}")
    _same({str(key): _names(part["layer"]) for key, part in frame.groupby(by, sort=False, dropna=False)}, "layers")
    if "width" in frame.columns:
        _same({str(key): _names(part["width"]) for key, part in frame.groupby(by, sort=False, dropna=False)}, "width")
    models = frame.attrs.get("provenance", {}).get("model", [])
    facts = [one for one in (models if isinstance(models, list) else [models]) if isinstance(one, dict) and "family" in one]
    _same({str(one.get("model", place)): str(one["family"]) for place, one in enumerate(facts)}, "family")
    return frame


def _scale(part: str) -> Scale:
    head, equals, model = part.partition("=")
    label, colon, given = head.partition(":")
    if not equals or not model:
        raise ValueError(f"{part!r} is no label=model; a series is written as {EXAMPLE}")
    if not re.fullmatch(LABEL, label):
        raise ValueError(f"label {label!r} of {part!r}: letters, digits and . _ + - alone, for files are named after it")
    card = _card_samples(model)
    if not colon:
        said = samples_of(label)
        if said is not None and card is not None and said != card:
            raise ValueError(f"{part!r}: the label says {said:,} samples, the card of {model} {card:,}; write {label}:{card}=...")
        return Scale(label, model, card if said is None else said)
    samples = samples_of(given)
    if samples is None:
        raise ValueError(f"{part!r}: {given!r} is no number of samples; write 12800, 80k or 2m")
    return Scale(label, model, samples)


def _card_samples(model: str) -> int | None:
    """What the card of a lab model says; None for any other model."""
    card = paths.lab_folder() / model / "card.json"
    if "/" in model or not os.path.isfile(card):  # False too for what no name could be
        return None
    try:
        samples = dict(json.loads(card.read_text(encoding="utf-8"))).get("samples")
    except (ValueError, TypeError) as error:
        raise ValueError(f"the card of {model} cannot be read: {error}") from error
    return samples if isinstance(samples, int) else None


def _table(run: str, name: str, base: Path | None) -> pd.DataFrame:
    folder = paths.run_folder(run, base) / "tables"
    path = folder / f"{name}.parquet"
    if not folder.is_dir():
        raise FileNotFoundError(f"run {run!r} has left nothing yet ({folder.parent}); make it: spatialprobes run {run}")
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.parquet"))) or "none"
        raise FileNotFoundError(
            f"run {run!r} has no table {name!r}; there: {there}. If it should have one: spatialprobes run {run} --force"
        )
    return read_table(path)


def _names(values: pd.Series) -> str:
    """The distinct values as text, numbers in a short form: 0..4, norm."""
    found = {str(value) for value in values}
    numbers = sorted(int(value) for value in found if value.isdecimal())
    words = sorted(value for value in found if not value.isdecimal())
    runs = numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2 if numbers else False
    return ", ".join(([f"{numbers[0]}..{numbers[-1]}"] if runs else [str(number) for number in numbers]) + words)


def _same(found: dict[str, Any], what: str) -> None:
    for name, value in found.items():
        first, expected = next(iter(found.items()))
        if value != expected:
            raise ValueError(
                f"{first} and {name} differ in {what} ({expected} against {value}): of different architectures, they have no "
                "layer axis in common; draw them apart"
            )
