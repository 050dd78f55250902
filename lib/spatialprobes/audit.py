"""Published results, read and recomputed: the connector study's tables and figures from its own files, and what they left out.

`audit` reads a checkout of the study's repository (or a run of ours exported in its layout), writes the study's tables with its
names, columns and digits, its kinds of figures, and beside them the same quantities with copies, baselines, lengths, empty
captions and noise accounted for; the study's findings and each difference are claims. Needs neither a model nor torch. What is
missing is listed, not fatal. Numbers of the study are the study's: nothing here was measured by us.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from spatialprobes import audit_captions as captions
from spatialprobes import audit_geometry as geometry
from spatialprobes import audit_perturbation as perturbation
from spatialprobes import plots
from spatialprobes.audit_corrections import corrections
from spatialprobes.audit_figures import figures
from spatialprobes.audit_files import Material, gather
from spatialprobes.audit_findings import findings
from spatialprobes.claims import Claim, markdown, save_claims
from spatialprobes.sources.connector_published import KINDS, label
from spatialprobes.tables import provenance, save_table, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

CITED = "drink36/VLM_Connectors, result files"
THEIRS: dict[str, Callable[[pd.DataFrame], str]] = {  # the study's files, as it wrote numbers
    "summary_stats": lambda table: table.to_csv(index=False, float_format="%.4f"),
    "knn_summary_per_model": lambda table: table.to_csv(index=False, float_format="%.4f"),
    "caption_recon_correlations": lambda table: table.round(4).to_csv(index=False),
    "caption_recon_pre_correlations": lambda table: table.to_csv(index=False, float_format="%.6f"),
}
TEX = {
    "spectral_diagnostics": ("knn_summary_per_model", geometry.spectral_tex),
    "caption_recon_correlations": ("caption_recon_correlations", captions.correlations_tex),
}


@dataclass
class Audit:
    """tables: by name, the study's (`THEIRS`) and ours, unrounded; claims: the study's findings first, then our differences;
    missing: `audit_files.MISSING`, what was not there, broken or mended; drawn: the figures that were asked for."""

    tables: dict[str, pd.DataFrame]
    claims: list[Claim]
    missing: pd.DataFrame
    models: list[str]
    drawn: list[plots.Drawn] = field(default_factory=list)

    def texts(self) -> dict[str, str]:
        """The study's files by name with their contents: those whose tables have rows."""
        found = {f"{name}.csv": write(self.tables[name]) for name, write in THEIRS.items() if name in self.tables}
        return found | {f"{name}.tex": write(self.tables[of]) for name, (of, write) in TEX.items() if of in self.tables}


def audit(source: str | Path, out: str | Path | None = None, *, seed: int = 0, draw: Collection[str] | None = None) -> Audit:
    """Read `source`, compute everything, and write it below `out` where one is given.

    source: a checkout, or the folder with knn_out, recon_pre_eval, caption_compare_out_nor and perturb_out_scored. Written: the
    study's CSV and TeX files, tables/*.parquet (all tables), figures/*.png and *.pdf, figures.json, claims.json, claims.md,
    missing.csv. draw: names of the figures to draw (those of `audit_figures`); None: all. Raises FileNotFoundError or ValueError
    where the source holds no result at all, ValueError for a figure that the files don't allow, OSError where out is no folder.
    """
    found = gather(source)
    tables = {name: table for name, table in compute(found, seed).items() if len(table)}
    claims = findings(found, tables, seed) + corrections(found, tables, seed)
    drawn = figures(tables)
    if unknown := sorted(set(draw or ()) - {one.name for one in drawn}):
        raise ValueError(f"no figure {unknown[0]!r} from these files; there: {', '.join(one.name for one in drawn)}")
    made = Audit(tables, claims, found.missing(), found.models, [one for one in drawn if draw is None or one.name in draw])
    if out is not None:
        write(made, out, {"source": CITED, "files": fingerprint(found.root), "seed": seed})
    return made


def compute(found: Material, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table by name; empty where its files are missing."""
    folders = geometry.folder_table(found.geometry, found.counts)
    summary = geometry.knn_summary(folders)
    spectra = geometry.spectra(found.geometry, folders)
    ranks = dict(zip(summary["model"], summary["post_max_rank"], strict=True)) if len(summary) else {}
    own = {
        "summary_stats": captions.summary_stats(found.captions),
        "knn_summary_per_model": summary,
        "caption_recon_correlations": captions.recon_correlations(found.captions),
        "caption_recon_pre_correlations": captions.pre_correlations(found.captions),
        "knor": geometry.knor(folders, found.marked, seed),
        "diagnostics": geometry.diagnostics(folders, seed),
        "spectra": spectra,
        "duplicates": geometry.duplicates(found.marked),
        "duplicates_agreement": geometry.copies_agree(found.marked),
        "correlations": captions.corrected(found.captions, seed),
        "captions": caption_rows(found),
        "perturbation": perturbation.with_axes(perturbations(found, seed), ranks, spectra),
        "noise_floor": noise_floor(found, seed),
        "erank_clip": erank_clip(found),
    }
    return {name: table if name in THEIRS else _labelled(table) for name, table in own.items()}


def perturbations(found: Material, seed: int = 0) -> pd.DataFrame:
    """A row a file: model, mode, level and what `audit_perturbation.measure` gives."""
    rows = []
    for (model, mode, level), frame in found.perturbed.items():
        clusters = perturbation.clusters_by_copies(frame["key"], found.of(model))
        rows.append({"model": model, "mode": mode, "level": level, **perturbation.measure(frame, clusters, seed)})
    return pd.DataFrame(rows, columns=None if rows else ["model", "mode", "level"])


def noise_floor(found: Material, seed: int = 0) -> pd.DataFrame:
    """A row a model with several files of perturbations: how far the captions before them agree (`audit_perturbation.noise`)."""
    rows = []
    for model in found.models:
        files = {f"{mode} {level:g}": one for (of, mode, level), one in found.perturbed.items() if of == model}
        if len(files) > 1:
            marked = found.of(model)
            same = perturbation.noise(files, lambda keys, marked=marked: perturbation.clusters_by_copies(keys, marked), seed)
            rows.append({"model": model, **same})
    return pd.DataFrame(rows)


def caption_rows(found: Material) -> pd.DataFrame:
    """A row a caption, of all models: what the scatter figures are drawn from."""
    names = ["key", "folder", *captions.DISTORTIONS.values(), *captions.BEFORE, *captions.OUTCOMES.values(),
             "clipscore_post_direct", "clipscore_recon", captions.LENGTH, "identical", "cluster"]  # fmt: skip
    parts = [frame[[name for name in names if name in frame]].assign(model=model) for model, frame in found.captions.items()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def erank_clip(found: Material) -> pd.DataFrame:
    """[model, key, post_effective_rank, clipscore_original] of each picture that has both: scores are those of the first file."""
    rows = []
    for model in found.models:
        files = [frame for (of, _, _), frame in found.perturbed.items() if of == model]
        spectra = found.per_image[found.per_image["model"] == model]
        if files and "post_effective_rank" in spectra:
            largest = max(files, key=len)[["key", "clipscore_original"]]
            rows.append(spectra[["key", "post_effective_rank"]].merge(largest, on="key").assign(model=model))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def write(made: Audit, out: str | Path, facts: dict[str, object]) -> list[Path]:
    """Write everything below `out`; the paths. Figures are drawn from the tables as written."""
    out = Path(out)
    known = provenance(**facts)
    written = [write_atomically(out / name, text.encode()) for name, text in made.texts().items()]
    written += [save_table(table, out / "tables" / f"{name}.parquet", known) for name, table in made.tables.items()]
    written.append(save_claims(made.claims, out / "claims.json"))
    written.append(write_atomically(out / "claims.md", markdown(made.claims).encode()))
    written.append(write_atomically(out / "missing.csv", made.missing.to_csv(index=False).encode()))
    written.append(plots.save_drawn(made.drawn, out))
    for one in made.drawn:
        written += plots.draw_from_table(one, out, out / "figures")
    return written


def fingerprint(root: Path) -> str:
    """sha256 over the names and contents of the result files below `root`, in the order of their names."""
    digest = hashlib.sha256()
    files = (path for kind in KINDS for path in (root / kind).rglob("*") if path.suffix in (".csv", ".json"))
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the study's name of each model, which figures show, beside its short one."""
    return table.assign(label=table["model"].map(label)) if "model" in table else table
