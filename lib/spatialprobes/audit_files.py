"""All that can be read of the connector study's results in one place, and a list of what is missing or broken.

Nothing here is fatal but a source without any result: a file that is missing or malformed is listed with what it is needed for,
and the rest is read. Files are read one after another; of each caption only what the audit needs is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from spatialprobes.audit_captions import with_reconstruction
from spatialprobes.audit_geometry import mark_copies
from spatialprobes.sources import connector_published as published
from spatialprobes.sources.text_lines import short

if TYPE_CHECKING:
    from spatialprobes.sources.connector_published import Geometry

MARKED = ["model", "folder", "key", "mse_pre", "cosine_pre", "copies_of", "copies", "anywhere"]
MISSING = ["kind", "model", "folder", "file", "status", "detail"]
NEEDED = {
    published.GEOMETRY: "knn_summary_per_model, spectral_diagnostics, the neighbourhood and spectrum figures",
    published.RECONSTRUCTION: "duplicates and floors, weights of folders, caption_recon_pre_correlations",
    published.CAPTIONS: "summary_stats, caption_recon_correlations, caption_recon_pre_correlations",
    published.PERTURBATION: "perturbation, noise_floor",
    published.PER_IMAGE: "the figure of effective rank against CLIPScore",
}
Perturbation = tuple[str, str, float]  # model, mode, level


@dataclass
class Material:
    """What was read: geometry by (model, folder); marked: rows of `mark_copies` of all models, and counts of them by (model,
    folder); captions from `with_reconstruction` by model; perturbed by (model, mode, level); per_image: [model, folder, key,
    effective ranks, ...]."""

    root: Path
    models: list[str]
    geometry: dict[tuple[str, str], Geometry] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    marked: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=MARKED))
    captions: dict[str, pd.DataFrame] = field(default_factory=dict)
    perturbed: dict[Perturbation, pd.DataFrame] = field(default_factory=dict)
    per_image: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["model", "folder", "key"]))
    listed: list[dict[str, str]] = field(default_factory=list)

    def of(self, model: str) -> pd.DataFrame:
        """That model's rows of `marked`."""
        return self.marked[self.marked["model"] == model]

    def missing(self) -> pd.DataFrame:
        """`MISSING`; status: "missing", "malformed", "unmatched" (rows without a partner) or "note" (read, not as it stood)."""
        return pd.DataFrame(self.listed, columns=MISSING)

    def note(self, status: str, kind: str, detail: str, model: str = "", folder: str = "", path: Path | None = None) -> None:
        """List something. The file is named from the root."""
        file = "" if path is None else path.relative_to(self.root).as_posix()
        detail = detail.replace(f"{self.root}/", "")
        self.listed.append(dict(zip(MISSING, (kind, model, folder, file, status, detail), strict=True)))


def gather(source: str | Path) -> Material:
    """Read what is there. Raises FileNotFoundError, NotADirectoryError or ValueError where the source holds no results at all."""
    root = published.locate(source)
    found = Material(root, published.models(root))
    if not found.models:
        raise ValueError(f"{root}: its folders name no model: no results of the connector study")
    _read_geometry(found)
    _read_reconstruction(found)
    _read_captions(found)
    _read_perturbations(found)
    _absent(found)
    return found


def _read_geometry(found: Material) -> None:
    tables = []
    for model in found.models:
        try:
            files = published.geometry_files(found.root, model)
        except published.Malformed as error:
            found.note("malformed", published.GEOMETRY, str(error), model)
            continue
        for folder, path in files.items():
            try:
                found.geometry[model, folder] = published.read_geometry(path)
            except ValueError as error:
                found.note("malformed", published.GEOMETRY, short(error, path), model, folder, path)
            if (beside := path.with_name(published.PER_IMAGE)).is_file():
                try:
                    tables.append(published.read_per_image(beside).assign(model=model, folder=folder))
                except ValueError as error:
                    found.note("malformed", published.PER_IMAGE, short(error, beside), model, folder, beside)
    if tables:
        found.per_image = pd.concat(tables, ignore_index=True)


def _read_reconstruction(found: Material) -> None:
    tables = []
    for model in found.models:
        own = []
        for folder, path in published.reconstruction_files(found.root, model).items():
            try:
                own.append(published.read_reconstruction(path, model, folder))
                found.counts[model, folder] = len(own[-1])
            except ValueError as error:
                found.note("malformed", published.RECONSTRUCTION, short(error, path), model, folder, path)
        if own:
            tables.append(mark_copies(pd.concat(own, ignore_index=True)).assign(model=model))
    if tables:
        found.marked = pd.concat(tables, ignore_index=True)
    for key, one in found.geometry.items():
        if one.n is not None and found.counts.get(key, one.n) != one.n:
            detail = f"{found.counts[key]:,} rows, but the overlap file says {one.n:,} pictures; weighted by the rows"
            found.note("note", published.RECONSTRUCTION, detail, *key)


def _read_captions(found: Material) -> None:
    for model in found.models:
        path = found.root / published.CAPTIONS / model / published.CAPTION_FILE
        if not path.is_file():
            continue
        try:
            frame, notes = published.read_captions(path, model)
        except ValueError as error:
            found.note("malformed", published.CAPTIONS, short(error, path), model, path=path)
            continue
        for note in notes:
            found.note("note", published.CAPTIONS, note, model, path=path)
        for name in (name for name in published.CAPTION_MAYBE if name not in frame):
            found.note("missing", published.CAPTIONS, f"no column {name}: what is made of it is left empty", model, path=path)
        joined = with_reconstruction(frame, found.of(model))
        if "mse_pre" in joined and (alone := joined["mse_pre"].isna()).any():
            first = joined["key"][alone.idxmax()]
            detail = f"{int(alone.sum())} of {len(joined)} keys are in no {published.RECONSTRUCTION} file, the first {first!r}"
            found.note("unmatched", published.CAPTIONS, detail, model, path=path)
        found.captions[model] = joined


def _read_perturbations(found: Material) -> None:
    for named, path in published.perturbation_files(found.root):
        try:
            frame = published.read_perturbation(path)
        except ValueError as error:
            found.note("malformed", published.PERTURBATION, short(error, path), named["model"], path=path)
            continue
        found.perturbed[named["model"], named["mode"], float(named["level"])] = frame


def _absent(found: Material) -> None:
    """List what some model has and another lacks."""
    if any(model in published.LABELS for model in found.models):
        for model in (name for name in published.LABELS if name not in found.models):
            found.note("missing", "all", "no file of this model: its rows, and what compares it with others, are left out", model)
    broken = {(one["kind"], one["model"], one["folder"]) for one in found.listed if one["status"] == "malformed"}
    folders = sorted({folder for _, folder in (*found.geometry, *found.counts)})
    for model in found.models:
        for kind, have in ((published.GEOMETRY, found.geometry), (published.RECONSTRUCTION, found.counts)):
            gone = [folder for folder in folders if (model, folder) not in have and (kind, model, folder) not in broken]
            for folder in [""] if folders and gone == folders else gone:
                found.note("missing", kind, f"needed for {NEEDED[kind]}", model, folder)
        if model not in found.captions and (published.CAPTIONS, model, "") not in broken:
            found.note("missing", published.CAPTIONS, f"needed for {NEEDED[published.CAPTIONS]}", model)
        if model not in set(found.per_image["model"]):
            found.note("missing", published.PER_IMAGE, f"needed for {NEEDED[published.PER_IMAGE]}", model)
        _absent_overlaps(found, model)
        for mode, level in sorted({(mode, level) for _, mode, level in found.perturbed}):
            if (model, mode, level) not in found.perturbed:
                detail = f"{mode} {level:g}, which another model has; needed for {NEEDED[published.PERTURBATION]}"
                found.note("missing", published.PERTURBATION, detail, model)


def _absent_overlaps(found: Material, model: str) -> None:
    """Overlaps (reference, side, k) that another folder or model has."""
    every = {knor for one in found.geometry.values() for knor in one.knors}
    for (name, folder), one in found.geometry.items():
        if name == model and (gone := sorted(every - set(one.knors))):
            words = ", ".join(f"{f'{ref}_{side}_' if ref else ''}top{k}" for ref, side, k in gone)
            found.note("missing", published.GEOMETRY, f"no {words}: left out for this model", model, folder)
