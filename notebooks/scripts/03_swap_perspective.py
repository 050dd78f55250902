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
# # Section 3, perspective: a biased model, or biased data?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/spatialprobes/spatialprobes/blob/main/notebooks/03_swap_perspective.ipynb)
#
# In photographs what is higher is mostly farther away. If a model's direction of *above* aligns with its direction of *far*, it
# may have learnt that from its data, it may follow the pictures that it is asked about, or it may be the model's own. The
# published models differ in all of these at once. The lab can part them: three models, trained alike on the same questions, in
# worlds where height says nothing about depth (perspective 0), something (.5), all (1); and each is asked about pictures of all
# three worlds.

# %%
# In Colab, install the library; anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    source = "git+https://github.com/spatialprobes/spatialprobes"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"spatialprobes[notebooks] @ {source}"], check=True)

# %% tags=["parameters"]
models: str = "lab-llava-perspective-0 lab-llava-perspective-0.5 lab-llava-perspective-1"  # lab models, each of one perspective
worlds: str = "0 0.5 1"  # perspectives of the pictures that they are asked about
dtype: str = "auto"  # auto, float32, float16 or bfloat16
device: str = "auto"  # auto, cpu, cuda or cuda:1
batch_size: int = 64  # prompts run at once
limit: int = 0  # most quads of each world; 0 for no limit
seed: int = 0  # of scenes, permutations and resampling
size: str = "quick"  # quick | lab | full: how many quads
out: str = ""  # folder for tables, figures and claims; empty for data/runs/03_swap_perspective

# %%
import pandas as pd

from spatialprobes.lab_cards import read_card
from spatialprobes.probes import swap, swap_accuracy, swap_alignment, swap_between
from spatialprobes.record import Record
from spatialprobes.seeds import check_seed
from spatialprobes.vlm import VLM
from spatialprobes.worlds import lab_pairs

# %%
parameters = {name: globals()[name] for name in "models worlds dtype device batch_size limit seed size".split()}
SIZES = {"quick": 60, "lab": 400, "full": 2000}
if size not in SIZES:
    raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
if limit and limit < 10:
    raise ValueError(f"limit is {limit}; it must be 0, or at least 10 quads, which an interval needs")
count = min(SIZES[size], limit) if limit else SIZES[size]
stream = 8_000_000 + check_seed(seed)  # scenes that no lab model was trained on
asked = [float(one) for one in str(worlds).split()]
if not all(0 <= one <= 1 for one in asked) or not {0.0, 1.0} <= set(asked) or len(models.split()) < 2:
    legal = "at least two of each are compared, worlds between 0 and 1, both of these among them"
    raise ValueError(f"models is {models!r}, worlds {worlds!r}; {legal}")
vlms = [VLM.load(name, dtype=dtype, device=device) for name in models.split()]
run = Record(out=out, notebook="03_swap_perspective", title="Perspective: model or data", section=3, parameters=parameters)

# %% [markdown]
# ## The worlds
#
# **How strongly does each world tie height to depth?** Over the quads: how much more often above goes with far than not
# (*tied*), and the correlations of the two differences.

# %%
quads = {world: lab_pairs.lab_quads(count, stream, perspective=world) for world in asked}
tied = [lab_pairs.correlation(some, seed=seed).assign(world=world) for world, some in quads.items()]
tied = run.table("worlds", pd.concat(tied, ignore_index=True), seed=seed)
print(tied.pivot(index="world", columns="measure", values="estimate").round(3).to_string())
of_world = tied[tied["measure"] == "pearson"].set_index("world")["estimate"]


# %%
def perspective_of(vlm):
    """The one perspective of the world in which a lab model was trained."""
    known = read_card(vlm.source.path)["recipe"]["perspective"] if vlm.source.kind == "lab" else []
    if len(known) != 1:
        raise ValueError(f"models: {vlm.name} was not trained in a world of one perspective")
    return float(known[0])


# %%
trained = {perspective_of(vlm): vlm for vlm in vlms}
if not {0.0, 1.0} <= set(trained):
    raise ValueError(f"models: of worlds of perspective {sorted(trained)}; 0 and 1 must be among them, which the claims compare")
held, rows, right = {}, [], []
for own, vlm in trained.items():
    for world, some in quads.items():
        vertical, distance, answers = swap.extract_quads(vlm, some, batch_size=batch_size, seed=seed)
        held[own, world] = (vertical, distance, answers)
        about = {"trained": own, "asked": world, "model": vlm.name}
        rows.append(swap_alignment.alignment(vertical, distance, seed=seed).assign(**about))
        rows.append(swap_between.between(vertical, distance, answers).assign(**about))
        right.append(swap_accuracy.accuracy(answers, seed=seed).assign(**about))
aligned = run.table("alignment", pd.concat(rows, ignore_index=True), vlm=vlms, seed=seed)
accuracy = run.table("accuracy", pd.concat(right, ignore_index=True), vlm=vlms, seed=seed)
both = accuracy[(accuracy["category"] == "") & (accuracy["member"] == "both") & (accuracy["by"] == "generate")]
print(both.pivot(index=["trained", "group"], columns="asked", values="estimate").round(3).to_string())

# %% [markdown]
# ## Does it read height for depth?
#
# **What does a model say where above does not go with far?** There an answer by height is wrong: the share of distance questions
# that are answered as height would have it is 0 for a model that reads depth, 1 for one that reads height.

# %%
by_height = []
for (own, world), (vertical, distance, answers) in held.items():
    if (vertical.signs != distance.signs).sum() > 1:
        found = swap_between.answered_by_height(vertical, distance, answers, seed=seed)
        by_height.append({"trained": own, "asked": world, **found._asdict()})
by_height = run.table("by_height", pd.DataFrame(by_height), vlm=vlms, seed=seed)
print(by_height.round(3).to_string(index=False))

# %%
least, most, flat = min(trained), max(trained), min(asked)
row = by_height[(by_height["trained"] == most) & (by_height["asked"] == flat)].iloc[0]
run.claim("perspective.answers", "The model of the world in which height is depth answers far and close by height where both "
          "come apart.", rule="low > .5", estimate=row.estimate, low=row.low, high=row.high, n=int(row.clusters),
          table="by_height", model=trained[most].name, caveat=f"pictures of perspective {flat:g}")  # fmt: skip
row = by_height[(by_height["trained"] == least) & (by_height["asked"] == flat)].iloc[0]
run.claim("perspective.answers_free", "The model of the flat world does not.", rule="high < .1", estimate=row.estimate,
          low=row.low, high=row.high, n=int(row.clusters), table="by_height", model=trained[least].name,
          caveat=f"pictures of perspective {flat:g}")  # fmt: skip

# %% [markdown]
# ## Does the alignment follow the world that taught the model?
#
# **Between pictures** (the vertical delta of one, the distance delta of another) nothing is shared but directions. Deltas are
# turned to above and far by what the model *answered*: a model that says far of what is higher says it in some direction, right
# or not. *Corrected* turns them by the right answers.

# %%
every = (aligned["control"] == "none") & (aligned["variant"] == "all")
kept = aligned[every & (aligned["measure"] == swap_between.MEASURE)]
taught = kept.assign(perspective=kept["trained"], world_correlation=kept["trained"].map(of_world))
for definition in ("answered", "corrected"):
    for world in asked:
        name = f"{definition}_{world:g}".replace(".", "_")
        part = taught[(taught["asked"] == world) & (taught["definition"] == definition)]
        run.table(name, part, vlm=vlms, seed=seed)
        run.figure("swap_perspective.alignment", table=name, name=name.replace("_", "-"),
                   caption=f"Mean cosine of the vertical delta of one picture and the distance delta of another, turned by what "
                           f"was {'answered' if definition == 'answered' else 'right'}, against the correlation of height and "
                           f"distance in the world that taught the model; asked about perspective {world:g}.")  # fmt: skip

# %% [markdown]
# ## Model or data?

# %%
layers = held[next(iter(held))][0].layers
deep = layers[round(0.75 * (len(layers) - 1))]  # where the claims are made: chosen before anything was measured
of_deep = kept[(kept["layer"] == deep) & (kept["definition"] == "answered")].set_index(["trained", "asked"])
print(of_deep["estimate"].unstack("asked").round(3).to_string())
for own, rule, id, says in (
    (most, "low > .1", "perspective.taught", "The model of the world in which height is depth says far in the direction of "
     "above, also where pictures are flat."),
    (least, "high < .1", "perspective.untaught", "The model of the flat world does not, even where height is depth."),
):  # fmt: skip
    row = of_deep.loc[(own, flat if own == most else max(asked))]
    run.claim(id, says, rule=rule, estimate=row.estimate, low=row.low, high=row.high, n=int(row.clusters), table="alignment",
              model=trained[own].name, caveat=f"layer {deep}")  # fmt: skip
    print(f"{id}: {row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]")

# %% [markdown]
# **Within quads**, as the study measures it, the same model asked about three worlds:

# %%
of_quads = aligned[every & (aligned["measure"] == "per_sample_mean") & (aligned["definition"] == "corrected")]
within = of_quads[of_quads["layer"] == deep].set_index(["trained", "asked"])["estimate"].unstack("asked")
print(within.round(3).to_string())
of_flat = of_quads[of_quads["trained"] == least]
of_flat = of_flat.assign(perspective=of_flat["asked"], world_correlation=of_flat["asked"].map(of_world))
run.table("within_quads", of_flat, vlm=trained[least], seed=seed)
run.figure("swap_perspective.alignment", table="within_quads", name="within-quads",
           caption=f"Mean cosine of the two deltas of each quad, of the model taught by perspective {least:g}, against the "
                   f"correlation of height and distance in the pictures that it is asked about (the marks).")  # fmt: skip

# %% [markdown]
# **Reading.** If all four claims hold, the alignment is taught by the world and carried by the model; where the last fails,
# pictures add to it on their own. One model a world: how much another seed would differ is not known. Within quads the alignment
# follows the pictures that a model is asked about, whatever it has learnt: it cannot tell a biased model from biased data.

# %% [markdown]
# ## Verdicts
#
# A verdict is computed from rule and interval. These rules were written after a first look at the model of perspective 1 alone:
# deltas turned by the right answers cannot see a model that reads height for depth. The other models had not been asked.

# %% tags=["nbval-check-output"]
print(run.verdicts().to_string(index=False))
