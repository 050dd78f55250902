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
# # Section 3, over training: which comes first, the answer or the direction?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/spatialprobes/spatialprobes/blob/main/notebooks/03_swap_over_scales.ipynb)
#
# A series of checkpoints of one model, from before it was trained on places to after. For each: accuracy, consistency of the
# groups' directions and alignment of height with depth (`03_swap_consistency` says what these are), on pairs of
# one stream. With `runs`, nothing is measured here and no model is loaded: tables and vectors are those that runs of
# `03_swap_consistency` left, with as many pairs as each of them had.

# %%
# In Colab, install the library; anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    source = "git+https://github.com/spatialprobes/spatialprobes"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"spatialprobes[notebooks] @ {source}"], check=True)

# %% tags=["parameters"]
series: str = ""  # checkpoints, each as label and model joined by an equals sign, by blanks; empty for four of lab-llava
runs: str = ""  # names of the runs that measured them, in the same order; empty: they are measured here
revision: str = ""  # of hub ids; empty for the newest
processor: str = ""  # folder or hub id whose processor all of them use; empty for each its own
dtype: str = "auto"  # auto, float32, float16 or bfloat16
device: str = "auto"  # auto, cpu, cuda or cuda:1
quantize: str = ""  # empty, 8bit or 4bit (language model only)
batch_size: int = 64  # prompts run at once
limit: int = 0  # most pairs of each category, and most quads; 0 for no limit
seed: int = 0  # of scenes, permutations and resampling
size: str = "quick"  # quick | lab | full: how many pairs; says nothing where `runs` are given
out: str = ""  # folder for tables, figures and claims; empty for data/runs/03_swap_over_scales
title: str = "Swap pairs over training"  # for the gallery

# %%
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from spatialprobes import paths
from spatialprobes.images import enlarged
from spatialprobes.pairs import GROUPS, quads_with_pictures, with_pictures
from spatialprobes.probes import swap, swap_accuracy, swap_alignment, swap_between, swap_measures, swap_projection, swap_results
from spatialprobes.record import Record
from spatialprobes.seeds import check_seed
from spatialprobes.series import parse, same_layers, tables_of_runs
from spatialprobes.vlm import VLM
from spatialprobes.worlds import lab_pairs

# %%
series = series or "vanilla=lab-llava-vanilla 25600=lab-llava-25600 38400=lab-llava-38400 76800=lab-llava"
names = "series runs revision processor dtype device quantize batch_size limit seed size".split()
parameters = {name: globals()[name] for name in names}
SIZES = {"quick": (25, 40), "lab": (120, 200), "full": (500, 1000)}
if size not in SIZES:
    raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
if limit and limit < 10:
    raise ValueError(f"limit is {limit}; it must be 0, or at least 10 pairs, which an interval needs")
many, quads_wanted = (min(n, limit) if limit else n for n in SIZES[size])  # pairs a category, quads
stream = 7_000_000 + check_seed(seed)  # scenes that no lab model was trained on
checkpoints = parse(series)
named = runs.split()
if len(set(named)) < len(named):
    raise ValueError(f"runs names a run twice: {runs}")
if named and len(named) != len(checkpoints):
    raise ValueError(f"runs names {len(named)} runs for a series of {len(checkpoints)} checkpoints; one for each is wanted")
by_label = dict(zip((part.partition("=")[0].partition(":")[0] for part in series.split()), named))  # in the order given
measured_by = [by_label[one.label] for one in checkpoints] if named else []
run = Record(out=out, notebook="03_swap_over_scales", title=title, section=3, parameters=parameters)
pd.DataFrame(checkpoints)

# %% [markdown]
# ## The measures of every checkpoint

# %%
NAMES = ("accuracy", "consistency", "alignment")


def measure(one):
    """The tables of one checkpoint, its states, and what the model says of itself; the same pairs for all."""
    vlm = VLM.load(one.model, revision=revision, processor=processor, dtype=dtype, device=device, quantize=quantize)
    side = 48 if vlm.source.kind == "lab" else 336
    pairs = with_pictures(lab_pairs.lab_pairs(many, stream), partial(enlarged, side=side))
    quads = quads_with_pictures(lab_pairs.lab_quads(quads_wanted, stream + 1), partial(enlarged, side=side))
    real = swap.extract(vlm, pairs, batch_size=batch_size, seed=seed)
    vertical, distance, of_quads = swap.extract_quads(vlm, quads, batch_size=batch_size, seed=seed)
    tables = (
        swap_accuracy.accuracy(real.answers, seed=seed),
        swap_measures.consistency(real.states, real.answers, seed=seed),
        pd.concat([swap_alignment.alignment(vertical, distance, seed=seed), swap_between.between(vertical, distance, of_quads)]),
    )
    return dict(zip(NAMES, tables)), real.states, vlm.facts()


# %%
def labelled(frames):
    """One table of all checkpoints, with the columns scale and samples."""
    said = [frame.assign(scale=one.label, samples=one.samples) for one, frame in zip(checkpoints, frames)]
    return pd.concat(said, ignore_index=True)


if measured_by:
    read = {name: [tables_of_runs([one], name) for one in measured_by] for name in NAMES}
    facts = [frame.attrs["provenance"]["model"][0] for frame in read["accuracy"]]
    for one, name, known in zip(checkpoints, measured_by, facts):
        if Path(known["model"]).name != Path(one.model).name:
            raise ValueError(f"run {name!r} measured {known['model']}, and {one.label} of the series is {one.model}")
    folders = [swap_results.read(paths.run_folder(one) / "study") for one in measured_by]
    states = [folder.vectors.get(one.label, next(iter(folder.vectors.values()))) for one, folder in zip(checkpoints, folders)]
else:
    found = [measure(one) for one in checkpoints]
    read = {name: [tables[name] for tables, _, _ in found] for name in NAMES}
    states, facts = [states for _, states, _ in found], [facts for _, _, facts in found]
about = [SimpleNamespace(facts=lambda known=known: known) for known in facts]
tables = {name: run.table(name, labelled(frames), vlm=about, seed=seed) for name, frames in read.items()}
same_layers(tables["consistency"])

# %% [markdown]
# ## Accuracy
#
# **When are both questions of a pair answered right?** Guessing each question gets a quarter of the pairs; answering the two
# differently, without a look at the picture, up to half.

# %%
run.figure("swap_scales.trajectory", table="accuracy",
           caption="Share of pairs with both answers right against the samples seen in training, with 95% intervals over "
                   "pictures.")  # fmt: skip

# %% [markdown]
# ## Directions

# %%
run.figure("swap_scales.by_layer", table="consistency",
           caption="Sign-corrected consistency by layer, a line for each checkpoint.")  # fmt: skip
run.figure("swap_scales.by_layer", table="alignment", name="swap-scales-alignment", measure="between_pictures",
           caption="Mean cosine of the vertical delta of one picture and the distance delta of another, turned to above and "
                   "far, by layer, a line for each checkpoint.")  # fmt: skip

# %%
numbered = [layer for layer in states[-1].layers if isinstance(layer, int)]
shown = numbered[round(0.75 * (len(numbered) - 1))]
basis = swap_projection.fit(states[-1], [shown])
points = [swap_projection.projection(one, [shown], reference=basis) for one in states]
run.table("projection", labelled(points), vlm=about, seed=seed)
run.figure("swap_pca.plane", table="projection",
           caption="Deltas of the pairs on the first two principal components of the last checkpoint, a panel for each "
                   "checkpoint, on the same axes.")  # fmt: skip
run.figure("swap_pca.space", table="projection",
           caption="The same on the first three principal components.")  # fmt: skip

# %% [markdown]
# ## Which comes first?
#
# **Does the direction appear before the right answers, with them, or after?** Accuracy (share of pairs with both answers right)
# and consistency at one layer, against the samples seen.

# %%
layers = sorted({layer for layer in tables["consistency"]["layer"] if str(layer).isdecimal()}, key=int)
deep = layers[round(0.75 * (len(layers) - 1))]  # where the claims are made: chosen before anything was measured
right = tables["accuracy"]
right = right[(right["category"] == "") & (right["member"] == "both") & (right["by"] == "generate")].assign(measure="accuracy")
alike = tables["consistency"]
alike = alike[
    (alike["layer"] == deep) & (alike["measure"] == "group") & (alike["variant"] == "all") & (alike["control"] == "none")
]
alike = alike.assign(measure="consistency").rename(columns={"of": "group"})
columns = ["scale", "samples", "group", "measure", "estimate", "low", "high", "chance", "n", "clusters"]
emergence = pd.concat([right.reindex(columns=columns), alike.reindex(columns=columns)], ignore_index=True)
emergence = run.table("emergence", emergence.assign(layer=deep), vlm=about, seed=seed)
run.figure("swap_scales.emergence", table="emergence",
           caption=f"Share of pairs with both answers right, and consistency of the deltas at layer {deep}, against the samples "
                   f"seen in training.")  # fmt: skip

# %%
for group, (one, other) in GROUPS.items():
    of_group = emergence[emergence["group"] == group]
    accurate = of_group[of_group["measure"] == "accuracy"].set_index("scale")
    before = [scale for scale in accurate.index if accurate.loc[scale, "low"] <= accurate.loc[scale, "chance"]]
    if not before:
        print(f"{group}: above chance at every checkpoint")
        continue
    row = of_group[(of_group["measure"] == "consistency") & (of_group["scale"] == before[-1])].iloc[0]
    run.claim(f"emergence.{group}", f"Before the model answers {one} and {other} above chance, its deltas share no direction.",
              rule="high < .1", estimate=row.estimate, low=row.low, high=row.high, n=int(row.clusters), table="emergence",
              model=checkpoints[-1].model, caveat=f"layer {deep}, checkpoint {before[-1]}")  # fmt: skip
    print(
        f"{group}: last not above chance at {before[-1]}, where consistency is {row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]"
    )

# %% [markdown]
# **Reading.** The claims ask one side only: whether a direction came before the answers; the figure shows the other. Few
# checkpoints stand close to the step, so that "together" means between the same two. A direction without right answers would be
# one that the model has and does not use; right answers without a direction would be a computation that is not linear in this
# state.

# %% [markdown]
# ## Verdicts
#
# Rules were fixed before the results were seen; a verdict is computed from rule and interval.

# %% tags=["nbval-check-output"]
print(run.verdicts().to_string(index=False))
