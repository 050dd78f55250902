"""What the connector study left out, as claims on its own files: each says by how much, by a rule fixed here.

Copies, the score that a caption had to lose, its length, pooling over models, empty captions, the noise of a second run, the site
of E_pre, and how many correlations were looked at. A correction that a file does not need fails its claim; one whose files are
missing makes none. Knows tables and draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes import audit_geometry as geometry
from spatialprobes.audit_captions import BASELINE, BEFORE, DISTORTIONS, LENGTH, OUTCOMES, deduplicated, moments
from spatialprobes.audit_moments import correlation, covariances, means
from spatialprobes.audit_perturbation import PILOT, clusters_by_copies
from spatialprobes.audit_statements import LIMITS, NORM_SITE, SMALL_K, differs, families, overlap, size, slug, states
from spatialprobes.claims import Claim, claim
from spatialprobes.sources.connector_published import label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spatialprobes.audit_files import Material

COSINE, DROP, BERT = DISTORTIONS["cos"], "clipscore_drop", "bertscore_recon_vs_post_f1"
MIDDLE_K = 50
COPIES = "copies are pictures of one folder whose reconstruction scores agree to the last digit; the pictures were not looked at"
FEW_EMPTY = 0.01  # the share of empty captions from which who is missing can matter
ZERO = "an empty caption's score is taken as 0, the least there is: the other bound of an unknown"


def corrections(found: Material, tables: Mapping[str, pd.DataFrame], seed: int = 0) -> list[Claim]:
    """Claims on every difference, as far as the files go. Ids end in the model."""
    folders = geometry.folder_table(found.geometry, found.counts)
    return [
        *_copies(found, folders, seed),
        *_norm_site(folders, seed),
        *_baseline_and_length(found, seed),
        *_pooled(found, seed),
        *_many(tables),
        *_empty(found, seed),
        *_noise(tables),
    ]


def _copies(found: Material, folders: pd.DataFrame, seed: int) -> list[Claim]:
    made = []
    for model in found.models:
        marked = found.of(model)
        if marked.empty:
            continue
        share = pd.DataFrame({"share": (marked["copies"] > 1).astype(float)})
        drawn = means(share, marked["anywhere"].to_numpy(), seed=seed)["share"]
        named = {"model": label(model), "n": len(marked), "table": "duplicates", "caveat": COPIES}
        words = "More than a tenth of the pictures stand in their folder more than once"
        made.append(states(f"audit.copies.{slug(model)}", words, "low(share of pictures with a copy) > .1", *drawn, **named))
        own = folders[folders["model"] == model]
        if own.empty or any(f"pre_post_knor{k}_mean" not in own for k in (SMALL_K, MIDDLE_K)):
            continue
        copies = {key: rows["copies"].to_numpy() for key, rows in marked.groupby(["model", "folder"])}
        lowest, floors = geometry.floor_draws(own, copies, SMALL_K, seed)
        mean, draws = geometry.knor_draws(own, f"pre_post_knor{SMALL_K}", seed)
        named |= {"table": "knor", "n": int(own["n"].sum())}
        if np.isnan(lowest):
            continue
        made.append(
            states(
                f"audit.copies_make_overlap.{slug(model)}",
                "More than half of the overlap of 10 neighbours before and after the connector is copies finding one another",
                "low(floor of copies / overlap @10) > .5",
                lowest / mean,
                floors / draws,
                **named,
            )
        )
        if mean > geometry.pooled(own, f"pre_post_knor{MIDDLE_K}")[0]:
            small, middle = (overlap(found, own, "pre_post", k, True, seed) for k in (SMALL_K, MIDDLE_K))
            words = "That overlap @10 exceeds overlap @50 is the work of copies: above their floor it does not"
            rule = "high(overlap above the floor, @10 - @50) < 0"
            made.append(differs(f"audit.copies_make_order.{slug(model)}", words, rule, small, middle, **named))
    return made


def _norm_site(folders: pd.DataFrame, seed: int) -> list[Claim]:
    made = []
    for model in families(folders)[1]:
        own = folders[folders["model"] == model]
        made.append(
            states(
                f"audit.norm_site.{slug(model)}",
                "The geometry of Qwen's E_pre, as published, is one direction: it holds over 90% of its centred tokens' energy",
                "low(share of the first singular value's energy) > .9",
                *geometry.knor_draws(own, "pre_top1_energy_ratio", seed),
                model=label(model),
                n=int(own["n"].sum()),
                table="diagnostics",
                caveat=f"{NORM_SITE}; to be measured again behind the norm, which these files do not allow",
            )
        )
    return made


def _baseline_and_length(found: Material, seed: int) -> list[Claim]:
    made = []
    for model, frame in found.captions.items():
        shared = {"model": label(model), "table": "correlations", "caveat": LIMITS}
        if (of := moments(frame, DROP, seed=seed)) is not None:
            before = correlation(of, BASELINE[DROP], DROP)
            words = "What the caption from E_post scored tells more of the loss than the reconstruction's cosine does"
            rule = "low(|r of the score before| - |r of cosine|) > 0"
            pair = size(before), size(correlation(of, COSINE, DROP))
            made.append(differs(f"audit.baseline_tells_more.{slug(model)}", words, rule, *pair, n=of.n, **shared))
        if (once := moments(deduplicated(frame), DROP, seed=seed)) is not None:
            words = "The score before hides part of what cosine tells of the loss: held fixed, and each picture once, r is larger"
            rule = "low(|partial r| - |r|) > 0"
            pair = size(correlation(once, COSINE, DROP, [BASELINE[DROP]])), size(correlation(once, COSINE, DROP))
            made.append(differs(f"audit.baseline_hides.{slug(model)}", words, rule, *pair, n=once.n, **shared))
        if (of := moments(frame, BERT, seed=seed)) is not None:
            words = "By how many words two captions differ tells more of their BERTScore than the reconstruction's cosine does"
            rule = "low(|r of length| - |r of cosine|) > 0"
            pair = size(correlation(of, LENGTH, BERT)), size(correlation(of, COSINE, BERT))
            made.append(differs(f"audit.length_tells_more.{slug(model)}", words, rule, *pair, n=of.n, **shared))
    return made


def _pooled(found: Material, seed: int) -> list[Claim]:
    """The row "all" of the study's table, against its rows of one model; a picture's rows of all models are drawn together."""
    parts = {model: frame.dropna(subset=[*BEFORE, BERT]) for model, frame in found.captions.items() if set(BEFORE) <= set(frame)}
    parts = {model: frame for model, frame in parts.items() if frame["cluster"].nunique() > 2}
    if len(parts) < 2:
        return []
    made = []
    rows = pd.concat(parts.values())
    names = [*BEFORE, BERT]
    pooled = covariances(rows[names], rows["cluster"].to_numpy(), seed=seed)
    single = [covariances(frame[names], frame["cluster"].to_numpy(), seed=seed) for frame in parts.values()]
    for x in BEFORE:
        largest = max((size(correlation(one, x, BERT)) for one in single), key=lambda one: one[0])
        made.append(
            differs(
                f"audit.pooling_makes.{slug(x)}",
                f"Pooling models whose scales differ makes a correlation of {x} with BERTScore that none of them has",
                "low(|r of all models together| - the largest |r| of one) > .1",
                size(correlation(pooled, x, BERT)),
                largest,
                model=", ".join(map(label, parts)),
                n=len(rows),
                table="caption_recon_pre_correlations",
                caveat=LIMITS,
            )
        )
    return made


def _many(tables: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Of the correlations that pass p < .05 in the study's table, how many don't with each picture once and FDR held."""
    if "correlations" not in tables or "caption_recon_correlations" not in tables:
        return []
    theirs = tables["caption_recon_correlations"].set_index("Model")
    ours = tables["correlations"]
    ours = ours[(ours["statistic"] == "pearson") & (ours["rows"] == "deduplicated") & (ours["given"] == "nothing")]
    q = {(row["label"], row["x"], row["y"]): row["q"] for row in ours.to_dict("records")}
    passed = [
        q.get((model, x, y), np.nan) >= 0.05
        for model in theirs.index
        for outcome, y in OUTCOMES.items()
        for name, x in DISTORTIONS.items()
        if theirs.loc[model, f"{name}→{outcome}_pearson_p"] < 0.05
    ]
    if not passed:
        return []
    lost = float(np.mean(passed))
    words = "Some correlations that pass p < .05 in the study's table don't with each picture once and the FDR held"
    caveat = f"{sum(passed)} of {len(passed)}; a count of these tests, without an interval"
    named = {"model": ", ".join(theirs.index), "table": "correlations", "caveat": caveat}
    return [claim("audit.many_tests", words, "estimate(share that does not) > 0", lost, lost, lost, len(passed), **named)]


def _empty(found: Material, seed: int) -> list[Claim]:
    made = []
    for (model, mode, level), frame in found.perturbed.items():
        if frame["empty"].mean() < FEW_EMPTY or len(frame) < PILOT:
            continue
        as_zero = frame["clipscore_original"] - frame["clipscore_perturbed"].fillna(0.0)
        both = pd.DataFrame({"zero": as_zero, "there": frame["clipscore_drop"]})
        drawn = means(both, clusters_by_copies(frame["key"], found.of(model)), seed=seed)
        made.append(
            differs(
                f"audit.empty_left_out.{slug(model, mode, f'{level:g}')}",
                "The loss shown leaves out the pictures that got no caption at all: counted as 0, it is over a point larger",
                "low(loss with empty captions as 0 - loss without them, CLIPScore points) > 1",
                drawn["zero"],
                drawn["there"],
                model=label(model),
                n=len(frame),
                table="perturbation",
                caveat=f"{mode} {level:g}: {int(frame['empty'].sum())} of {len(frame)} empty; {ZERO}",
            )
        )
    return made


def _noise(tables: Mapping[str, pd.DataFrame]) -> list[Claim]:
    made = []
    rows = tables["noise_floor"].to_dict("records") if "noise_floor" in tables else []
    for row in (row for row in rows if row["runs"] > 1):
        made.append(
            claim(
                f"audit.second_run_differs.{slug(row['model'])}",
                "Captioned a second time without any perturbation, more than a tenth of the pictures get another caption",
                "high(share captioned alike) < .9",
                row["same"],
                row["same_low"],
                row["same_high"],
                row["n"],
                row["label"],
                "noise_floor",
                f"{row['runs']} runs in {row['files']} files; no file holds a control with E_post put back unchanged",
            )
        )
    return made
