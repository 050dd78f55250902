# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     formats: ipynb,scripts//py:percent
#     notebook_metadata_filter: kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Section 5: does connector geometry predict captions?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/spatialprobes/spatialprobes/blob/main/notebooks/06_connector_captions.ipynb)
#
# The second half of *Connector-Induced Representation Distortion and Semantic Stability in VLMs*
# ([code](https://github.com/drink36/VLM_Connectors)). If what a connector changes were to matter, captions should suffer where
# much is changed. So the vision tokens are put back as they were stored, or as they come out of a reconstruction, or damaged on
# purpose, and what the model writes then is compared with what it wrote before. Two controls come first, which the study lacks:
# how far do captions differ when nothing is changed but the batch, and when the very same tokens are put back? In the lab a
# caption can also be held against the scene itself: which objects does it name, and where does it put them?
#
# At the end the study's own results are read and computed again, from a checkout of its repository, or from files in its layout.

# %%
# In Colab, install the library; anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    source = "git+https://github.com/spatialprobes/spatialprobes"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"spatialprobes[notebooks] @ {source}"], check=True)

# %% tags=["parameters"]
model: str = "lab-llava"  # a lab model, a folder, a hub id, or the study's name of one: llava, idefics2, qwen2.5vl or qwen3.5
revision: str = ""  # of a hub id; empty for the newest
dtype: str = "auto"  # auto, float32, float16 or bfloat16
device: str = "auto"  # auto, cpu, cuda or cuda:1
quantize: str = ""  # empty, 8bit or 4bit (language model only)
image_fit: str = "native"  # native, pad, crop or squash: what is done to a picture before the model's processor
batch_size: int = 32  # pictures run at once
limit: int = 0  # most pictures; 0 for what `size` says
seed: int = 0  # of scenes and resampling
size: str = "quick"  # quick | lab | full: how many pictures; quick is for Colab, lab for `make figures`
out: str = ""  # folder for tables, figures and claims; empty for data/runs/06_connector_captions
data: str = ""  # folder of pictures, each perhaps with a caption in a text file of its stem; empty for the lab's scenes
request: str = ""  # for a caption; empty for what lab models learnt, and for the study's with pictures of a folder
max_new_tokens: int = 0  # of a caption; 0 for 64 in the lab and the study's 256 with pictures of a folder
side: int = 0  # pictures are squashed to so many pixels each way; 0 for the lab's own, and for the study's 336 with real models
reconstructor: str = "lab"  # lab: the one that came with the lab model; or a folder; empty for none
connector: str = "lab"  # an alternative connector: lab, where one came with the lab model; or a folder; empty for none
clip: str = "lab-clip"  # for CLIPScore (the study: openai/clip-vit-base-patch16)
bert: str = "lab-clip"  # text encoder for BERTScore: lab-clip's text half, any encoder's folder, or roberta-large (the study)
masks: str = "0.3 0.5 0.7"  # shares of tokens that are masked
ranks: str = "0.01 0.05 0.1 0.2 0.3 0.5"  # shares of the greatest rank that are kept; above 1: ranks
rotations: str = "0.3 1"  # how far tokens are turned, 0 to 1
perturbation_seed: int = 1337  # of masks and rotations (the study's)
metric: str = "l2"  # of neighbours: l2 or cosine
k: int = 10  # neighbours
published: str = ""  # folder of results in the study's layout; empty for the lab's own in data/samples/vlm_connectors
store: str = ""  # folder in which tokens and captions are kept, so that a killed run goes on; empty for the run's own, made anew
export: str = ""  # folder to also write results in the study's own layout to; empty for none

# %%
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from spatialprobes import stats
from spatialprobes.audit import audit
from spatialprobes.images import open_image
from spatialprobes.paths import lab_folder, root
from spatialprobes.probes import (
    caption_prediction,
    caption_scores,
    caption_summary,
    captions,
    connector_export,
    connector_reading,
    connector_states,
    connector_training,
    duplicates,
    lab_captions,
    neighbours,
    perturbation,
    reconstruction,
    spectra,
)
from spatialprobes.record import Record
from spatialprobes.seeds import check_seed
from spatialprobes.sources.connector_names import hub_id
from spatialprobes.sources.image_folder import image_folder
from spatialprobes.vlm import VLM

# %%
names = """model revision dtype device quantize image_fit batch_size limit seed size data request max_new_tokens side
reconstructor connector clip bert masks ranks rotations perturbation_seed metric k published""".split()
model = hub_id(model)  # the study's short names stand for hub ids
parameters = {name: globals()[name] for name in names}
SIZES = {"quick": (80, 40), "lab": (300, 120), "full": (2000, 5000)}
if size not in SIZES:
    raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
pictures, perturbed = (min(n, limit) if limit else n for n in SIZES[size])  # captioned by arms; under perturbations
stream = 9_000_000 + check_seed(seed)  # the scenes of 05_connector_geometry, on which no lab model was trained


def numbers(text):
    """The numbers in a parameter; none where it holds anything else."""
    parts = text.split()
    return [float(part) for part in parts] if all(part.replace(".", "", 1).isdigit() for part in parts) else []


levels = {
    "mask_zero": numbers(masks),
    "mask_mean": numbers(masks)[1:2],
    "low_rank": numbers(ranks),
    "orthogonal": numbers(rotations),
}

# %%
LEGAL = {  # what would end the notebook later is refused now
    "limit": ("0, or at least 40, which neighbours and intervals need", limit == 0 or limit >= 40),
    "batch_size": ("at least 1", batch_size > 0),
    "side": ("0, or at least 28 pixels", side == 0 or side >= 28),
    "max_new_tokens": ("0 or more", max_new_tokens >= 0),
    "data": ("empty, or a folder that is there", not data or Path(data).is_dir()),
    "masks": ("shares from 0 to 1, parted by blanks", bool(numbers(masks)) and max(numbers(masks)) <= 1),
    "ranks": ("shares or ranks above 0, parted by blanks", bool(numbers(ranks)) and min(numbers(ranks)) > 0),
    "rotations": ("amounts from 0 to 1, parted by blanks", bool(numbers(rotations)) and max(numbers(rotations)) <= 1),
    "metric": ("l2 or cosine", metric in ("l2", "cosine")),
    "k": (f"from 1, below the {pictures} pictures", 0 < k < pictures),
    "reconstructor": ("lab, empty, or a folder", reconstructor in ("lab", "") or Path(reconstructor).is_dir()),
    "connector": ("lab, empty, or a folder", connector in ("lab", "") or Path(connector).is_dir()),
    "published": ("empty, or a folder that is there", not published or Path(published).is_dir()),
    "export": ("a folder, there or not yet", not export or Path(export).is_dir() or not Path(export).exists()),
}
if wrong := [name for name, (_, right) in LEGAL.items() if not right]:
    raise ValueError(f"{wrong[0]} is {globals()[wrong[0]]!r}; it must be {LEGAL[wrong[0]][0]}")

# %% [markdown]
# ## Captions, and what is stored
#
# **What does the model write, and from what?** E_post, what the language model is given for a picture, is stored once; everything
# below writes from stored or changed tokens, so that nothing but them differs.

# %%
options = {"dtype": dtype, "device": device, "quantize": quantize, "image_fit": image_fit}
vlm = VLM.load(model, revision=revision, **options)
run = Record(out=out, notebook="06_connector_captions", title="Connector geometry and captions", section=5,
             parameters=parameters, vlm=vlm)  # fmt: skip
lab = vlm.source.kind == "lab"
if data:
    shown, unreadable = image_folder(data)
    shown = captions.requested(shown[:pictures], request or captions.STUDY_REQUEST)
    print(f"{len(shown)} pictures, {len(unreadable)} unreadable", *unreadable[:3], sep="; ")
else:
    shown = lab_captions.lab_captioned(pictures, stream)
    shown = captions.requested(shown, request) if request else shown
length = max_new_tokens or (256 if data else 64)
kept = Path(store) if store else run.folder / "kept"
if not store:
    shutil.rmtree(kept, ignore_errors=True)

# %%
squash = side or (None if lab else 336)
exactly = "bfloat16" if str(vlm.model.dtype).endswith("bfloat16") else "float32"  # what the model runs in loses nothing
how = {"side": squash, "dtype": exactly, "batch_size": batch_size}
states = connector_states.extract(vlm, shown, kept / "states", **how)
shown = [one for one in shown if one.id in set(states.keys)]
if squash:  # the model is to see what was stored, opened when it is used
    shown = [
        replace(one, image=partial(lambda of: connector_reading.squashed(open_image(of), squash), one.image)) for one in shown
    ]
keys = [one.id for one in shown]
if len(keys) <= k:
    raise ValueError(f"{len(keys)} pictures could be read; k={k} neighbours need more")
post = dict(zip(keys, states.vectors("post", keys)[:], strict=True))
own = Path(reconstructor) if reconstructor not in ("", "lab") else None
if reconstructor == "lab" and lab:
    own = lab_folder() / "reconstructors" / model
post_hat, back = None, None
if own is not None and own.is_dir():
    there = reconstruction.Reconstructor.load(own)
    before = states.vectors(there.site, keys)
    back = reconstruction.evaluate(there, before, states.vectors("post", keys), keys)
    through = reconstruction.through_connector(vlm, there.predict(states.vectors("post", keys)), there.site)
    post_hat = dict(zip(keys, through, strict=True))
print(f"{len(keys)} pictures; reconstructor: {own.name if post_hat else 'none'}")

# %% [markdown]
# **An alternative connector**, where one is at hand: an invertible one for LLaVA, cross-attention for Idefics2, trained in the
# native one's place through the frozen language model. The Qwens' towers were trained together with their connectors, so nothing
# else can take their place.

# %%
found = [Path(connector)] if connector not in ("", "lab") else []
if connector == "lab" and lab:
    found = sorted((lab_folder() / "connectors").glob(f"{model}-*"))
other = None
if found:
    alternative = connector_training.OtherConnector.load(found[0])
    with connector_training.swapped(vlm, alternative):
        exported = connector_states.extract(vlm, shown, kept / "other", **how | {"side": None})
    other = dict(zip(keys, exported.vectors("post", keys)[:], strict=True))
print("alternative connector:", found[0].name if found else "none")

# %%
arms = captions.arms(vlm, shown, post=post, post_hat=post_hat, connector=other, max_new_tokens=length, batch_size=batch_size,
                     store=kept / "captions" if store else None)  # fmt: skip
judge = {"clip": caption_scores.clip(clip, device=device), "bert": caption_scores.bert(bert, device=device)}
scored = caption_scores.score(arms, shown, **judge, against="stored")
if not data:
    scored = lab_captions.measure(scored, shown)
scored = run.table("captions", caption_summary.drops(scored, base="stored"), seed=seed)
summary = run.table("caption_summary", caption_summary.summary(scored, seed=seed), seed=seed)
for arm, text in scored[scored["key"] == keys[0]][["arm", "caption"]].itertuples(index=False):
    print(f"{arm:>14}: {text[:110]}")

# %% [markdown]
# ## What does a change of tokens do to captions?
#
# **Nothing changed, changed back, or changed.** `rerun` is the same model again in batches of another size; `stored` has the very
# tokens put back that stood there; `reconstructed` those that the connector makes of a reconstructed E_pre. A drop is always
# *before minus after*: positive is worse. CLIPScore is 100 max(cos, 0); Hessel et al.'s 2.5 max(cos, 0) is a column too.
# BERTScore is of the encoder named, without rescaling, and not to be compared with another encoder's.

# %%
shown_scores = ["clipscore_100", "lab_recall", "lab_where"] if not data else ["clipscore_100", "bertscore_gt_f1"]
run.figure("captions.scores", table="caption_summary", value=[one for one in shown_scores if one in set(summary["value"])],
           caption="Scores of captions by what stands in the places of the picture's tokens, with 95% intervals "
                   "over pictures; empty captions count as 0.")  # fmt: skip
line = summary[summary["empties"] == "as 0"].pivot(index="arm", columns="value", values="estimate")
columns = [
    c for c in ("same", "empty", "words", "clipscore_100", "bertscore_f1", "lab_recall", "lab_invented", "lab_where") if c in line
]
print(line[columns].round(3).to_string())
noise = scored[scored["arm"].isin(["rerun", "stored"])]["same"].astype(float)

# %% [markdown]
# **Reading.** Whatever `rerun` and `stored` change is noise, and a change below it is none. The lab's own scores say which part
# of a caption suffered: objects (`lab_recall`, `lab_invented`), or their places (`lab_where`, of which one half is chance).

# %% [markdown]
# ## Perturbations
#
# **How much can be taken away?** Tokens are masked (zeros, or the picture's mean token), brought to a low rank, or turned. The
# study's levels are shares of the largest possible rank, which differ from connector to connector: .01 is rank 6 for LLaVA and
# rank 1 for the others. Rank, retained energy and relative error can stand on the x axis instead. Empty captions count as 0, and
# are counted; the study left them out, so that its curves are of those that survived.

# %%
plan = perturbation.plan(**{kind: at for kind, at in levels.items() if at})
changed = perturbation.measure(vlm, shown[:perturbed], plan, seed=perturbation_seed, max_new_tokens=length, batch_size=batch_size,
                               store=kept / "perturbed" if store else None)  # fmt: skip
changed = caption_scores.score(changed, shown[:perturbed], **judge)
if not data:
    changed = lab_captions.measure(changed, shown[:perturbed])
changed = run.table("perturbed", caption_summary.drops(changed), seed=seed)
curves = run.table("perturbation_curves", perturbation.curves(changed, seed=seed), seed=seed)
for axis, name in (("level", "perturbation-curves"), ("relative_error", "perturbation-by-error")):
    run.figure("perturbation.curves", table="perturbation_curves", x=axis, name=name,
               caption="Drop of CLIPScore (before minus after) against how much was changed, with 95% intervals "
                       "over pictures; below, the share of empty captions.")  # fmt: skip
some = curves[(curves["value"] == "clipscore_100_drop") & (curves["empties"] == "as 0")]
print(
    some[["kind", "level", "estimate", "low", "high", "empty", "rank", "retained_energy", "relative_error"]]
    .round(3)
    .to_string(index=False)
)

# %% [markdown]
# **Reading.** Same level, other damage: compare curves at equal relative error before calling one kind worse than another.

# %% [markdown]
# ## Does geometry predict captions?
#
# **Do those captions suffer whose pictures were changed most?** Picture by picture: what the connector did to a picture's
# neighbourhood, its effective rank, how well its E_pre is read back, how far the reconstructed tokens are from the stored ones;
# against what became of its caption. Correlations are raw, and with the score before (a caption that scores high can only lose)
# and the change of length held constant (BERTScore follows length). q is over all of them.

# %%
copies = duplicates.exact(states.digests(keys))
read = "pre" if vlm.facts()["family"] == "llava" else "pre_normed"  # what the connector reads
sides = [states.pooled(site, keys) for site in (read, "post")]
kept_near = neighbours.measure(*sides, keys, ks=(k,), metric=metric, duplicates=copies)[["key", "knor", "displacement"]]
ranks_post = spectra.measure(states.vectors("post", keys), keys)[["key", "effective_rank"]]
facts = kept_near.merge(ranks_post, on="key")
if back is not None:
    facts = facts.merge(back[["key", "mse", "cosine"]].rename(columns={"mse": "mse_pre", "cosine": "cosine_pre"}), on="key")
after = scored[scored["arm"] == ("reconstructed" if post_hat else "rerun")].merge(facts, on="key")
predictors = [c for c in ("knor", "displacement", "effective_rank", "mse_pre", "cosine_pre", "reproj_mse", "reproj_cosine")
              if c in after and after[c].notna().all()]  # fmt: skip
outcomes = [c for c in ("clipscore_100_drop", "bertscore_f1", "lab_recall_drop", "lab_where_drop") if c in after]
controls = {"baseline": ["clipscore_100_base"], "baseline, length": ["clipscore_100_base", "words_changed"]}
after["copies"] = copies

# %%
related = caption_prediction.correlate(after, predictors, outcomes, controls=controls, duplicates="copies", seed=seed)
related = run.table("prediction", related, seed=seed)
run.figure("caption_prediction.forest", table="prediction", rows="all", outcome="clipscore_100_drop",
           caption="Correlations of what was done to a picture's tokens with what became of its caption: raw, "
                   "with the score before held constant, and with the change of length; 95% intervals over "
                   "pictures.")  # fmt: skip
shown_rows = related[(related["kind"] == "pearson") & (related["rows"] == "all")]
print(shown_rows.pivot(index="predictor", columns=["outcome", "controls"], values="r").round(2).to_string())
print(f"{(related['q'] < 0.05).sum()} of {related['q'].notna().sum()} have q < .05")

# %% [markdown]
# **Reading.** A correlation that goes away when the score before is held constant was regression to the mean. One that stays says
# that the two go together in these pictures, not that the connector's change is the cause.

# %% [markdown]
# ## The study's layout
#
# **The same numbers in the study's files and names**, for those who compare with its code, and for the audit that follows.
# (Geometry and reconstruction are exported by `05_connector_geometry`.)

# %%
for folder in (run.folder / "study", export):
    if folder:
        label = model.rpartition("/")[2]
        written = connector_export.perturbation(folder, label, changed, perturbation_seed)
        written += [connector_export.captions(folder, label, scored)] if post_hat else []
        print(len(written), "files in", "study/ of the run's folder" if folder != export else export)
if not store:
    shutil.rmtree(kept)  # tokens are large, and quickly had again

# %% [markdown]
# ## The study's results, read again
#
# **What do the published files say?** The same tables, digit by digit, from files in the study's layout, and beside them what the
# study left out: copies, the score before, length, empty captions, run noise. From a checkout of the authors' repository this is
# the command `spatialprobes published vlm-connectors SOURCE --out DIR`, which writes tables and figures. Here it reads what a lab
# run left in that layout, unless `published` names a folder.

# %%
sample = Path(published) if published else root() / "data" / "samples" / "vlm_connectors"
again = audit(sample, seed=seed)
print(f"{len(again.tables)} tables, {len(again.missing)} files missing or mended, {len(again.claims)} claims")
rows = [(one.id, one.rule, one.verdict) for one in again.claims]
print(pd.DataFrame(rows, columns=["claim", "rule", "verdict"]).to_string(index=False))

# %% [markdown]
# **Reading.** These verdicts are about the files read, not about the model above.

# %% [markdown]
# ## Claims
#
# What the study says of captions, for the model at hand. The rules were written before the lab's results of this size were seen.


# %%
def claimed(id, statement, rule, found, table, caveat):
    """A claim from an interval."""
    plain = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
    run.claim(id, statement, rule=rule, table=table, caveat=caveat, **plain)
    print(f"{id}: {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")


same = scored[scored["arm"] == "rerun"]["same"].astype(float).to_numpy()
claimed("captions.noise", "Run again in other batches, the model writes the same captions.", "low > .95",
        stats.bootstrap(same, None, seed=seed, bounds=(0, 1)), "captions",
        "share of identical captions; the study's own runs agree for .79 (LLaVA) and .47 (Qwen2.5-VL)")  # fmt: skip
put_back = scored[scored["arm"] == "live"]["same"].astype(float).to_numpy()
claimed("captions.identity", "With its stored tokens put back, the model writes what it wrote.", "low > .95",
        stats.bootstrap(put_back, None, seed=seed, bounds=(0, 1)), "captions", "the control that the study lacks")  # fmt: skip

# %%
if post_hat:
    lost = scored[scored["arm"] == "reconstructed"]
    fall = stats.bootstrap(lost["clipscore_100_drop"].to_numpy(), None, seed=seed)
    claimed("captions.drop", "Captions from reconstructed tokens score lower.", "low > 0", fall, "captions",
            f"CLIPScore by {clip}, 100 max(cos, 0)")  # fmt: skip
    if not data:
        what, where = (lost[name].to_numpy() for name in ("lab_recall_drop", "lab_where_drop"))
        both = np.isfinite(where)
        claimed("captions.where_first", "They lose places before they lose objects.", "low > 0",
                stats.bootstrap(where[both], None, seed=seed, paired=what[both]), "captions",
                "drop of true relations minus drop of objects named")  # fmt: skip

# %%
pearson = related[(related["kind"] == "pearson") & (related["rows"] == "all") & (related["outcome"] == "clipscore_100_drop")]
for id, predictor, rule, statement in (
    ("captions.cosine", "reproj_cosine", "high < -.2", "Where reconstructed tokens point elsewhere, captions score lower."),
    ("captions.knor", "knor", "low > -.2 and high < .2", "Neighbours, kept or not, do not say how a caption fares."),
):  # fmt: skip
    row = pearson[(pearson["predictor"] == predictor) & (pearson["controls"] == "baseline")]
    if len(row) and np.isfinite(row.iloc[0]["low"]):  # none where too few captions changed to draw others from
        one = row.iloc[0]
        claimed(id, statement, rule, stats.Interval(one.r, one.low, one.high, int(one.n), int(one.n)), "prediction",
                f"correlation of {predictor} with the drop of CLIPScore, score before held constant")  # fmt: skip

# %%
at = changed[changed["kind"].isin(["low_rank", "mask_zero"])].set_index(["kind", "level"])["clipscore_100_drop"]
middle = levels["mask_zero"][len(levels["mask_zero"]) // 2]
small, half = at.loc["low_rank"].loc[min(levels["low_rank"])], at.loc["mask_zero"].loc[middle]
noise_of = changed[changed["arm"] == "rerun"]["clipscore_100_drop"].to_numpy()
for id, drop, statement, caveat in (
    ("captions.low_rank", small, "Brought to the lowest rank, tokens give worse captions.", f"level {min(levels['low_rank']):g}"),
    ("captions.mask", half, "With the middle share of tokens masked, captions are worse.", "zeros; empty captions count as 0"),
):
    claimed(id, statement, "low > 0", stats.bootstrap(drop.to_numpy(), None, seed=seed, paired=noise_of), "perturbed",
            f"drop of CLIPScore beyond that of a second run; {caveat}")  # fmt: skip

# %% [markdown]
# ## Limits
#
# As the study states them, and ours. This says nothing about which model is best. E_pre is a reference, not the truth; what a
# reconstructor cannot give back may not be lost. CLIPScore and BERTScore are proxies, and by lab-clip they are those of a small
# model that never saw other pictures; in the lab the grades against the scene are exact, and come first. One caption by hand a
# picture is one of many true ones. Perturbations do not exhaust the ways in which a connector can fail.

# %% [markdown]
# ## Verdicts

# %% tags=["nbval-check-output"]
print(run.verdicts().to_string(index=False))
