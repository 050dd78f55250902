"""The connector study's five findings as claims, each as the study took it and again with what it left out.

Rules are fixed here, before any file is read. A finding that needs a model, a reference or a perturbation which is not at hand
makes no claim (what is missing is listed elsewhere). Models belong to a family by their names ("qwen" in it), so that a lab
run counts too. Knows tables and draws; every difference is taken between draws of the same folders or pictures.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING

from spatialprobes import audit_geometry as geometry
from spatialprobes.audit_captions import BEFORE, DISTORTIONS, deduplicated, moments
from spatialprobes.audit_moments import correlation, explained
from spatialprobes.audit_statements import (
    CAPACITY,
    LARGE_K,
    LIMITS,
    NORM_SITE,
    SMALL_K,
    VIEWS,
    common,
    differs,
    families,
    larger_first,
    overlap,
    references,
    size,
    slug,
    states,
)
from spatialprobes.audit_truncation import masking, truncation
from spatialprobes.claims import Claim
from spatialprobes.sources.connector_published import label

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from spatialprobes.audit_files import Material

COSINE, MSE = DISTORTIONS["cos"], DISTORTIONS["MSE"]
DROP, BERT = "clipscore_drop", "bertscore_recon_vs_post_f1"


def findings(found: Material, tables: Mapping[str, pd.DataFrame], seed: int = 0) -> list[Claim]:
    """Claims on all five findings, as far as the files go. Ids end in the models that are compared."""
    folders = geometry.folder_table(found.geometry, found.counts)
    return [
        *_neighbourhoods(found, folders, seed),
        *_reorganisation(found, folders, seed),
        *_informative(found, seed),
        *truncation(found, tables, seed),
        *masking(found, seed),
        *_not_alone(found, seed),
    ]


# --- 1: LLaVA and Idefics2 keep more of the neighbourhood than the Qwen family ---


def _neighbourhoods(found: Material, folders: pd.DataFrame, seed: int) -> list[Claim]:
    made = []
    for keeper, qwen in product(*families(folders)):
        one, other, paired = common(folders, keeper, qwen)
        if not len(one):
            continue
        named = {"model": f"{label(keeper)} - {label(qwen)}", "n": int(one["n"].sum() + other["n"].sum()), "table": "knor"}
        which, caveat = slug(keeper, qwen), f"{NORM_SITE}; {LIMITS}{paired}"
        for k, above in ((LARGE_K, False), (SMALL_K, True)):
            pair = [overlap(found, own, "pre_post", k, above, seed) for own in (one, other)]
            if None in pair:
                continue
            words = f"overlap @{k}" + (" above the floor of copies" if above else "")
            made.append(
                differs(
                    f"audit.neighbourhood{'_above_copies' if above else ''}.{which}",
                    f"LLaVA's and Idefics2's connectors keep more of a picture's neighbours than Qwen's: {words}",
                    f"low(difference of {words}) > 0",
                    *pair,
                    **named,
                    caveat=caveat,
                )
            )
    return made


# --- 2: Qwen's E_post lies closer to CLIP and DINO than its E_pre ---


def _reorganisation(found: Material, folders: pd.DataFrame, seed: int) -> list[Claim]:
    made = []
    for model in families(folders)[1]:
        own = folders[folders["model"] == model]
        for ref in references(own):
            for k, above in ((LARGE_K, False), (SMALL_K, True)):
                pair = [overlap(found, own, f"{ref}_{side}", k, above, seed) for side in ("post", "pre")]
                if None in pair:
                    continue
                words = f"overlap with {ref} @{k}" + (" above the floor of copies" if above else "")
                made.append(
                    differs(
                        f"audit.reorganisation_{slug(ref)}{'_above_copies' if above else ''}.{slug(model)}",
                        f"Qwen's connector brings pictures closer to the order of {ref} than they were before it: {words}",
                        f"low({words}, post - pre) > 0",
                        *pair,
                        model=label(model),
                        n=int(own["n"].sum()),
                        table="knor",
                        caveat=f"{NORM_SITE}; {VIEWS}; Qwen trains tower and connector together",
                    )
                )
    return made


# --- 3: reconstruction cosine is informative for some models, above all Qwen-3.5; MSE is weaker ---


def _informative(found: Material, seed: int) -> list[Claim]:
    made, drawn = [], {}
    caveat = f"{CAPACITY}; {LIMITS}"
    for model, frame in found.captions.items():
        forms = {"": (frame, ()), "_given_baseline": (deduplicated(frame), ("clipscore_post_direct",))}
        for form, (rows, given) in forms.items():
            if (of := moments(rows, DROP, (BERT,), seed=seed)) is None:
                continue
            words = ", given the score before, every picture once" if form else ""
            shared = {"model": label(model), "n": of.n, "table": "correlations", "caveat": caveat}
            cosine = correlation(of, COSINE, DROP, given)
            if not form:
                drawn[model] = cosine
            made.append(
                states(
                    f"audit.cosine_tells_drop{form}.{slug(model)}",
                    f"The worse a reconstruction's cosine, the more CLIPScore a caption loses{words}",
                    "high(r of cosine and drop) < -.1",
                    *cosine,
                    **shared,
                )
            )
            mse = correlation(of, MSE, DROP, given)
            made.append(
                differs(
                    f"audit.mse_is_weaker{form}.{slug(model)}",
                    f"MSE tells less of the loss of CLIPScore than cosine does{words}",
                    "low(|r of cosine| - |r of MSE|) > 0",
                    *(size(one) for one in (cosine, mse)),
                    **shared,
                )
            )
        if (of := moments(frame, BERT, seed=seed)) is not None:
            made.append(
                states(
                    f"audit.cosine_tells_bert.{slug(model)}",
                    "The better a reconstruction's cosine, the closer by BERTScore its caption is to the one from E_post",
                    "low(r of cosine and BERTScore) > .1",
                    *correlation(of, COSINE, BERT),
                    model=label(model),
                    n=of.n,
                    table="correlations",
                    caveat=caveat,
                )
            )
    for qwen, other in product([name for name in drawn if "qwen3.5" in name], [name for name in drawn if "qwen3.5" not in name]):
        made.append(
            differs(
                f"audit.above_all_qwen35.{slug(other, qwen)}",
                "Cosine tells more of the loss of CLIPScore for Qwen-3.5 than for another model",
                "low(r of the other - r of Qwen-3.5) > 0",
                drawn[other],
                drawn[qwen],
                model=f"{label(other)} - {label(qwen)}",
                n=len(found.captions[other]) + len(found.captions[qwen]),
                table="correlations",
                caveat=caveat,
            )
        )
    return made


# --- 5: connector distortion alone does not explain captions; effects depend on model and metric ---


def _not_alone(found: Material, seed: int) -> list[Claim]:
    made, drawn = [], {}
    for model, frame in found.captions.items():
        of = moments(frame, DROP, (BERT,), seed=seed)
        if of is None or BERT not in of.names:
            continue
        shared = {"model": label(model), "n": of.n, "table": "correlations", "caveat": f"{CAPACITY}; {LIMITS}"}
        by = [name for name in (*DISTORTIONS.values(), *BEFORE) if name in of.names]
        for outcome, words in ((DROP, "of the loss of CLIPScore"), (BERT, "of BERTScore between the two captions")):
            made.append(
                states(
                    f"audit.not_alone_{'clip' if outcome == DROP else 'bert'}.{slug(model)}",
                    f"The reconstruction's cosines and errors together explain less than a quarter {words}",
                    "high(R^2) < .25",
                    *explained(of, outcome, by),
                    **shared,
                )
            )
        drop, bert = (size(correlation(of, COSINE, outcome)) for outcome in (DROP, BERT))
        drawn[model] = bert
        made.append(
            differs(
                f"audit.depends_on_metric.{slug(model)}",
                "How much cosine tells depends on the metric: CLIPScore or BERTScore",
                "low(difference of |r|, the larger first) > 0",
                *larger_first(drop, bert),
                **shared,
            )
        )
    for one, other in combinations(drawn, 2):
        made.append(
            differs(
                f"audit.depends_on_model.{slug(one, other)}",
                "How much cosine tells of BERTScore depends on the model",
                "low(difference of |r|, the larger first) > 0",
                *larger_first(drawn[one], drawn[other]),
                model=f"{label(one)}, {label(other)}",
                n=len(found.captions[one]) + len(found.captions[other]),
                table="correlations",
                caveat=f"{CAPACITY}; {LIMITS}",
            )
        )
    return made
