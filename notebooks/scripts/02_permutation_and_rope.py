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
# # Section 2: where does position live, and what destroys it?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/spatialprobes/spatialprobes/blob/main/notebooks/02_permutation_and_rope.ipynb)
#
# The diagnostics of *Beyond Semantics* (Qi, Liu, Tang and Zhu 2025, arXiv 2503.17349), each with intervals and controls: token
# norms, hidden norms, permutation of the vision tokens, sensitivity to rotary positions (RoPE), attention shares, the balance
# of heads, and attention maps of words. Where the published definition misleads, both forms are here. The same cells run on
# LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3.5 and Idefics2; what a family lacks (a grid, attention maps of linear layers) is said and
# left out.
#
# Every number below is about the model that the parameters name. The pictures are the lab's rendered scenes, unless `images`
# names others; a real model sees them enlarged and out of its distribution, so look at its accuracy in place first.

# %%
# In Colab, install the library; anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    source = "git+https://github.com/spatialprobes/spatialprobes"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"spatialprobes[notebooks] @ {source}"], check=True)

# %% tags=["parameters"]
model: str = "lab-llava"  # a lab model, a folder, or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct
revision: str = ""  # of a hub id; empty for the newest
dtype: str = "auto"  # auto, float32, float16 or bfloat16
device: str = "auto"  # auto, cpu, cuda or cuda:1
quantize: str = ""  # empty, 8bit or 4bit (language model only)
variants: str = ""  # further models to set beside it, separated by blanks; all are held in memory
image_fit: str = "native"  # native, pad, crop or squash: what is done to a picture before the model's processor
batch_size: int = 64  # prompts run at once
limit: int = 0  # most questions of each group, and most pictures; 0 for no limit
seed: int = 0  # of pictures, questions, permutations and resampling
size: str = "quick"  # quick | lab | full: how many questions; quick is for Colab, lab for `make figures`
out: str = ""  # folder for tables, figures and claims; empty for data/runs/02_permutation_and_rope
images: str = ""  # folder of pictures for norms, RoPE, shares and maps; empty for the lab's scenes
captions: str = ""  # a COCO captions file about the pictures of that folder; empty for none
prompt: str = "Describe the image."  # what is asked about the pictures of `images`
word: str = ""  # of the answers about `images`, whose attention is drawn; empty for none. In the lab, the first shape named
inits: int = 3  # random initialisations that norms are compared with; each needs the memory of a second model
draws: int = 3  # permutations of each picture's vision tokens
delta: float = 1.0  # positions by which the RoPE probe moves the vision tokens; negative moves them away
answer_tokens: int = 8  # most tokens of an answer to a question; models that like to talk need more
pixels: int = 0  # side of the lab's pictures; 0 for their own 48 with a lab model, enlarged to 336 with any other
axis: str = "all"  # of M-RoPE: all, temporal, height or width; all for models with one axis
answers_in_place: str = ""  # file of answers with the tokens in place (JSONL, CSV or parquet), to take the index from
answers_permuted: str = ""  # the same questions answered with the tokens permuted
export: str = ""  # folder to also write runs in the study's own layout to; empty for none
study_runs: str = ""  # run folders in that layout to set beside, separated by blanks

# %%
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from PIL.Image import Resampling

from spatialprobes import stats
from spatialprobes.probes import balance, grounding, hidden_norms, norms, permutation, positions, psi, published, rope
from spatialprobes.record import Record
from spatialprobes.seeds import check_seed
from spatialprobes.sources import diagnostics
from spatialprobes.vlm import VLM
from spatialprobes.worlds import lab_questions

# %%
names = """model revision dtype device quantize variants image_fit batch_size limit seed size images captions prompt word inits
draws delta answer_tokens pixels axis answers_in_place answers_permuted study_runs""".split()
parameters = {name: globals()[name] for name in names}
SIZES = {"quick": (100, 16, 8, 24), "lab": (100, 60, 40, 120), "full": (500, 500, 200, 1000)}
if size not in SIZES:
    raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
many, some, few, pictures = (min(n, limit) if limit else n for n in SIZES[size])  # semantic, spatial, structured; pictures
stream = 6_000_000 + check_seed(seed)  # scenes that no lab model was trained on

# %%
LEGAL = {  # what would end the notebook later is refused now
    "limit": ("0, or at least 2 pictures, which an interval needs", limit == 0 or limit > 1),
    "batch_size": ("at least 1", batch_size > 0),
    "draws": ("at least 1", draws > 0),
    "inits": ("at least 0", inits >= 0),
    "delta": ("a finite number of positions, not 0", math.isfinite(delta) and delta != 0),
    "captions": ("a file about the pictures of images: name that folder too", bool(images) or not captions),
    "answers_permuted": ("given together with answers_in_place, or neither", bool(answers_in_place) == bool(answers_permuted)),
    "export": ("a folder, there or not yet", not export or Path(export).is_dir() or not Path(export).exists()),
}
if wrong := [name for name, (_, right) in LEGAL.items() if not right]:
    raise ValueError(f"{wrong[0]} is {globals()[wrong[0]]!r}; it must be {LEGAL[wrong[0]][0]}")

# %% [markdown]
# ## The models
#
# `model` is what the claims are about; `variants`, if any, stand beside it in tables and figures.

# %%
options = {"dtype": dtype, "device": device, "quantize": quantize, "image_fit": image_fit}
vlm = VLM.load(model, revision=revision, **options)
main = vlm.facts()["model"]
every = [vlm, *(VLM.load(name, **options) for name in variants.split())]
vlms = {one.facts()["model"]: one for one in every}
theirs = [diagnostics.read_run(folder) for folder in study_runs.split()]
vlm.family.rotary(vlm.model).speeds(axis)  # an axis that the model lacks is refused here
if len(vlms) < len(every):
    raise ValueError(f"two models are called the same: model {model!r}, variants {variants!r}")
run = Record(out=out, notebook="02_permutation_and_rope", title="Permutation and RoPE", section=2, parameters=parameters, vlm=vlm)
vlm.facts()


# %%
side = pixels or (48 if vlm.source.kind == "lab" else 336)


def lab_examples(count, shift, groups):
    """Fresh flat scenes of the lab, enlarged (pixel by pixel) to what a real model can see."""
    found = lab_questions.examples(count, stream + shift, groups, perspective=0.0)
    if side == 48:
        return found
    return [replace(one, image=partial(enlarged, one.image)) for one in found]


def enlarged(picture):
    """The picture with pixels repeated."""
    return picture().resize((side, side), Resampling.NEAREST)


# %%
def of_each(measure, *about, **how):
    """The measure of every model, one table with a column `model`."""
    return pd.concat([measure(one, *about, **how).assign(model=name) for name, one in vlms.items()], ignore_index=True)


def by_model(summary, frame, **how):
    """The summary of each model's rows, one table with a column `model`."""
    return pd.concat([summary(part, **how).assign(model=name) for name, part in frame.groupby("model", sort=False)])


# %% [markdown]
# **Pictures and prompts.** For norms, RoPE, shares and maps the study asks for a description of COCO pictures. Here: scenes of
# the lab and its own request for a caption, or the pictures of `images` with `prompt`.

# %%
from spatialprobes.sources.coco import coco
from spatialprobes.sources.image_folder import image_folder

if images:
    found, left_out = coco(captions, images, limit=pictures, seed=seed) if captions else image_folder(images)
    print(f"{len(found)} pictures, {len(left_out)} left out")
    shown = [replace(example, question=prompt) for example in found[:pictures]]
    if len(shown) < 2:
        raise ValueError(f"images is {images!r}: {len(shown)} pictures, and an interval needs 2")
else:
    shown = lab_examples(pictures, 2_000_000, ["caption"])
groups = lab_questions.GROUPS.values()
chance = {group.name: group.chance if group.chance_where is None else group.chance_where for group in groups}

# %% [markdown]
# ## Token norms
#
# **How long are vision vectors beside word vectors where both enter the language model?** In LLaVA-1.5 vision tokens are 10 to
# 1,000 long and words about 0.8 (Beyond Semantics, figure 3). A long vector is a loud one: in a pre-norm decoder what attention
# adds to it counts for less.

# %%
worded = shown if images else lab_examples(max(2, pictures // 12), 5_000_000, [g for g in lab_questions.GROUPS if g != "caption"])
of_text = {"texts": "captions" if captions else "question", "batch_size": batch_size}
lengths = [norms.measure(one, worded, when=name, **of_text) for name, one in vlms.items()]
lengths = run.table("norms", pd.concat(lengths, ignore_index=True), vlm=every, seed=seed)
quantiles = run.table("norm_quantiles", norms.quantiles(lengths), vlm=every, seed=seed)
run.figure("norms.violins", table="norms",
           caption="L2 norms of what enters the language model: each vision token, and each token of the "
                   "questions (or captions).")  # fmt: skip
print(quantiles.round(2).to_string(index=False))

# %%
now = norms.vision_to_text(lengths[lengths["when"] == main], seed)
starts, ends = [], []
for twin in (norms.untrained(vlm, seed + k) for k in range(inits)):  # one at a time, not quantised
    starts.append(norms.vision_to_text(norms.measure(twin, worded, **of_text), seed).estimate)
    ends.append(hidden_norms.decay(hidden_norms.measure(twin, shown, batch_size=batch_size), seed=seed).estimate)
began = (
    f"with random weights {min(starts):.1f} to {max(starts):.1f} ({inits} initialisations)" if starts else "no twin was asked for"
)
run.claim("norms.ratio", "Vision tokens enter the language model more than three times as long as words.", rule="low > 3",
          estimate=now.estimate, low=now.low, high=now.high, n=now.clusters, table="norms", required=True,
          caveat=began)  # fmt: skip
print(f"vision / text: {now.estimate:.2f} [{now.low:.2f}, {now.high:.2f}]; {began}")

# %% [markdown]
# **Reading.** The claim is about the gap, not its cause: as far as random weights have it too, it is a matter of how embeddings
# and connector are initialised and of how long a tower's vectors are.

# %% [markdown]
# ## Hidden norms
#
# **How far into the network does the gap reach?** Norm of the hidden states by group and layer. The last row of the study's
# figure is after the final norm, another quantity; here it stands apart.

# %%
hidden = run.table("hidden_norms", of_each(hidden_norms.measure, shown, batch_size=batch_size), vlm=every, seed=seed)
run.table("hidden_norm_means", by_model(hidden_norms.summary, hidden, seed=seed), vlm=every, seed=seed)
run.figure("hidden_norms.curves", table="hidden_norm_means",
           caption="Norm of the hidden states by group and layer (0: the input of the first block); after the final norm, "
                   "apart.")  # fmt: skip
forms = ("mean_of_ratios", "ratio_of_means") if len(vlms) == 1 else ("mean_of_ratios",)
ratios = [by_model(hidden_norms.ratio, hidden, how=how, seed=seed) for how in forms]
run.table("hidden_norm_ratios", pd.concat(ratios, ignore_index=True), vlm=every, seed=seed)
run.figure("hidden_norms.ratios", table="hidden_norm_ratios",
           caption="Norm of vision over norm of user text by layer: mean of the pictures' ratios (the study's) and, of one "
                   "model, ratio of the means.")  # fmt: skip

# %%
closing = hidden_norms.decay(hidden[hidden["model"] == main], seed=seed)
began = f"with random weights {min(ends):.2f} to {max(ends):.2f} ({inits} initialisations)" if ends else "no twin was asked for"
run.claim("hidden_norms.decay", "The ratio of vision to text norms at the last layer is less than half of that at the input.",
          rule="high < .5", estimate=closing.estimate, low=closing.low, high=closing.high, n=closing.clusters,
          table="hidden_norms", caveat=began)  # fmt: skip
print(f"ratio at the last layer over ratio at the input: {closing.estimate:.3f} [{closing.low:.3f}, {closing.high:.3f}]; {began}")

# %% [markdown]
# **Reading.** What a block adds is of the size that its weights give, whoever receives it: short vectors grow, long ones stay.
# So the gap closes in a random network too; what is learnt is how soon.

# %% [markdown]
# ## Permutation
#
# **Which answers survive when the vision tokens change places?** The permutation sensitivity index (PSI) is the share of right
# answers that is lost, (accuracy in place - accuracy permuted) / accuracy in place. Beside it stands the index of someone who
# knows what there is, but not where. Scenes are flat, so that size says nothing about height.

# %%
semantic = lab_examples(many, 0, lab_questions.of_kind("semantic"))
spatial = lab_examples(some, 1_000_000, lab_questions.of_kind("spatial"))
asking = {"max_new_tokens": answer_tokens, "batch_size": batch_size, "seed": seed}
answers = run.table("answers", permutation.measure(vlm, semantic + spatial, draws=draws, **asking), seed=seed)
table = run.table("psi", psi.psi_table(answers, chance, seed=seed), seed=seed)
run.figure("permutation.psi", table="psi",
           caption="Permutation sensitivity index by question group (bootstrap over pictures). Tick: the index of permuted "
                   "answers at the chance of someone who knows what there is, but not where.")  # fmt: skip
print(table[["group", "n", "accuracy", "accuracy_permuted", "psi", "low", "high"]].round(3).to_string(index=False))
unread = 1 - answers.groupby("condition", sort=False)["parsed"].mean()
print("answers that could not be read:", unread.round(3).to_dict())

# %%
for kind, says, rule in (
    ("semantic", "Permuting the vision tokens loses less than 2% of the right semantic answers.", "high(PSI) < .02"),
    ("spatial", "Permuting the vision tokens loses more than 25% of the right spatial answers.", "low(PSI) > .25"),
):
    part = answers[answers["kind"] == kind]
    row = psi.psi_table(part, chance, by="kind", seed=seed).iloc[0]
    found = psi.if_above_chance(stats.Interval(row.psi, row.low, row.high, row.n, row.clusters), part, chance, seed)
    run.claim(f"psi.{kind}", says, rule=rule, estimate=found.estimate, low=found.low, high=found.high, n=found.clusters,
              table="answers", required=True, caveat=f"accuracy with the tokens in place: {row.accuracy:.3f}")  # fmt: skip
    print(f"{kind}: PSI {row.psi:.3f} [{row.low:.3f}, {row.high:.3f}], in place {row.accuracy:.3f} {row.note}")

# %% [markdown]
# **Reading.** Read an index only where the accuracy in place is far above chance (where it is not above it, no claim holds),
# and against its tick: at the tick, shuffling took all that place can give.

# %% [markdown]
# **What kind of disorder hurts?** Whole rows or columns change places, blocks of 2 x 2 move or are shuffled within, the picture
# is mirrored, tokens move at most a given number of cells, or only those of the objects, or of the background, change places. A
# mirrored picture turns *left* into *right* and keeps *above*: accuracy can fall far below chance.

# %%
kinds = ("full", "rows", "columns", "blocks:2", "within_blocks:2", "flip_left_right", "flip_up_down", "objects")
near = ("within_radius:1", "within_radius:1.5", "within_radius:2", "within_radius:3", "full")
asked = lab_examples(few, 3_000_000, ("relation.horizontal", "relation.vertical", "bin.column", "bin.row", "semantic.color"))
gridded = vlm.encode(asked[:1]).spans[0].grid is not None
if gridded:
    every_kind = (*kinds, *near[:-1], "background")
    structured = run.table("structured", permutation.measure(vlm, asked, permutations=every_kind, draws=1, **asking), seed=seed)
    indices = run.table("psi_structured_all", psi.psi_table(structured, chance, seed=seed), seed=seed)
    run.table("psi_structured", indices[indices["permutation"].isin(kinds)], seed=seed)
    run.figure("permutation.psi", table="psi_structured", name="permutation-structured",
               caption="Permutation sensitivity index by question group and kind of permutation. Tick: permuted answers at "
                       "the chance of someone who knows what there is, but not where.")  # fmt: skip
else:
    print(f"{vlm.name}: vision tokens without a grid; only the full shuffle has a meaning")

# %%
if gridded:
    graded = structured[structured["permutation"].isin((psi.IN_PLACE, *near))]
    run.table("psi_distance", psi.psi_by_distance(graded, by="group", seed=seed), seed=seed)
    run.figure("permutation.psi_by_distance", table="psi_distance",
               caption="Permutation sensitivity index against the mean distance, in cells, that the vision tokens moved: no "
                       "token further than 1, 1.5, 2 or 3 cells, and without bound.")  # fmt: skip
    aside = indices[indices["permutation"] == "background"]
    print("background alone:", aside.set_index("group")["psi"].round(3).to_dict())

# %%
if len(vlms) > 1:
    by_kind = [psi.psi_table(permutation.measure(one, asked, draws=draws, **asking), chance, "kind", seed)
               .assign(model=name) for name, one in vlms.items()]  # fmt: skip
    by_kind = run.table("psi_models", pd.concat(by_kind, ignore_index=True), vlm=every, seed=seed)
    print(by_kind[["model", "group", "n", "accuracy", "accuracy_permuted", "psi", "low", "high"]].round(3).to_string(index=False))

# %% [markdown]
# **The index from answers that you have.** Two files of answers to the same questions, in the study's layout or with columns
# id, expected and answer, one with the tokens in place and one permuted. Below, the study's own arithmetic: its indices from
# its accuracies, in per cent, as published for LLaVA-1.5-7B (none of it measured here); one of them does not follow.

# %%
if answers_in_place and answers_permuted:
    given = permutation.psi_from_answers(answers_in_place, answers_permuted, seed=seed)
    print(run.table("psi_from_files", given, seed=seed).round(3).to_string(index=False))
else:
    print("no answer files were given (answers_in_place, answers_permuted)")
published.psi_check()[["benchmark", "accuracy", "accuracy_permuted", "psi", "psi_published", "agrees"]].round(2)

# %% [markdown]
# ## Where does the model read place from?
#
# **Order, position ids, or the tokens themselves?** In a decoder with rotary embeddings a token's place is in the phase of its
# key and, through the causal mask, in what it can see; a tower with position embeddings may have written a third copy into the
# token. Each column below moves one and leaves the others.

# %%
unmoved = [one for one in asked if one.group.startswith("semantic")]
row_of_cells = float(vlm.encode(asked[:1]).spans[0].grid[1]) if gridded else 4.0
# in raster order ids have one axis; M-RoPE has one for columns and one for rows
raster = tuple(dict.fromkeys((1.0, row_of_cells / 2, row_of_cells)))
shifts = ((1.0, "width"), (1.0, "height")) if len(vlm.family.position_axes(vlm.model)) > 1 else raster
moved = positions.measure(vlm, spatial + unmoved, shifts=shifts, **asking)
moved = run.table("positions", moved, seed=seed)
run.table("positions_accuracy", permutation.summary(moved, chance, seed), seed=seed)
run.figure("positions.accuracy", table="positions_accuracy",
           caption="Accuracy by question group with tokens or position ids moved. Small: 95% interval.")  # fmt: skip

# %%
place = moved[moved["kind"] == "spatial"]
for condition, id, says, rule in (
    (positions.TOGETHER, "positions.order",
     "Shuffling the tokens together with their position ids costs spatial questions less than two points.", "high(drop) < .02"),
    (positions.ONE, "positions.ids",
     "One position id for all vision tokens costs spatial questions more than 25 points of accuracy.", "low(drop) > .25"),
):  # fmt: skip
    fell = psi.if_above_chance(positions.drop(place, condition, seed), answers[answers["kind"] == "spatial"], chance, seed)
    run.claim(id, says, rule=rule, estimate=fell.estimate, low=fell.low, high=fell.high, n=fell.clusters, table="positions")
    print(f"{condition}: accuracy drop {fell.estimate:.3f} [{fell.low:.3f}, {fell.high:.3f}]")

# %% [markdown]
# **Reading.** What *tokens and ids shuffled together* costs is what the order of the sequence is worth by itself; what *one id
# for all* leaves above chance is in the order or in the tokens, and what still survives when the tokens are shuffled too is in
# the tokens. Where ids in raster order shifted by one spoil the column answers, and shifted by a row's length the row answers
# and no others, the model reads places off the distances between ids; under M-RoPE, a shift of the width ids should spoil the
# columns alone, and one of the height ids the rows.

# %% [markdown]
# ## RoPE sensitivity
#
# **How much does attention on the picture depend on the phase of its keys?** The study turns the captured vision keys by Delta
# positions and scores them anew, layer by layer: alpha_V is the share of the last prompt token's attention on the picture, g_V
# the mean change of its scores per position. The exact derivative, alpha_V (1 - alpha_V) (g_V - g_T), is checked against a
# finite difference. Beside it, the real intervention: the tokens stand Delta positions later and the model runs.

# %%
deltas = tuple(scale * delta for scale in (-4.0, -1.0, 1.0, 4.0))
offline = of_each(rope.measure, shown, deltas=deltas, axis=axis, batch_size=batch_size)
offline = run.table("rope", offline, vlm=every, seed=seed)
at_delta = offline[offline["delta"] == delta]
run.table("rope_layers", by_model(rope.by_layer, at_delta, seed=seed), vlm=every, seed=seed)
run.figure("rope.curves", table="rope_layers",
           caption=f"Change of the scores of vision keys per position, and of the attention on the picture, by layer (mean over "
                   f"heads); vision keys turned by {delta:g} positions.")  # fmt: skip
run.table("rope_heads", by_model(rope.by_head, at_delta, seed=seed), vlm=every, seed=seed)
run.figure("rope.heads", table="rope_heads",
           caption=f"Change of the scores of vision keys per position for every head; vision keys turned by {delta:g} "
                   f"positions.")  # fmt: skip

# %%
ours = at_delta[at_delta["model"] == main]
wrong = rope.derivative_error(ours, seed=seed)
run.claim("rope.derivative", "The exact derivative of the attention on the picture equals its finite difference.",
          rule="high(relative error) < 1e-4", estimate=wrong.estimate, low=wrong.low, high=wrong.high, n=wrong.clusters,
          table="rope", required=True)  # fmt: skip
print(f"derivative against finite difference: relative error {wrong.estimate:.1e}")
if ours["layer"].nunique() > 1:
    early = rope.early_over_late(ours, seed=seed)
    run.claim("rope.early", "Scores of vision keys depend on their phase more than twice as much in the first third of the "
              "layers as in the last.", rule="low(early / late) > 2", estimate=early.estimate, low=early.low, high=early.high,
              n=early.clusters, table="rope")  # fmt: skip
    print(f"|delta g_V|, early over late layers: {early.estimate:.2f} [{early.low:.2f}, {early.high:.2f}]")

# %%
real = rope.rerun(vlm, shown, deltas=deltas, axis=axis, batch_size=batch_size)
both = rope.compare(offline[offline["model"] == main], real)
values = ("delta_alpha_v", "delta_alpha_v_rerun")
run.table("rope_rerun", rope.by_layer(both, values, seed=seed), seed=seed)
run.figure("rope.offline", table="rope_rerun",
           caption="Change of the attention on the picture by layer when its tokens stand Delta positions later: scored anew "
                   "layer by layer, and with the model run, where changes add up.")  # fmt: skip
run.table("rope_sweep", rope.by_delta(both, values, seed=seed), seed=seed)
run.figure("rope.sweep", table="rope_sweep",
           caption="Change of the attention on the picture, mean over layers and heads, against Delta: scored anew, and with the "
                   "model run.")  # fmt: skip

# %% [markdown]
# **Reading.** Scoring anew and running agree in the first layer, where nothing but the keys has changed; behind it they may
# part, and only the second says what the model does. A change of attention *on the picture* is not a change of *where on it*:
# that is what the section before shows. Early against late is about this model: random weights give ratios on either side of 1,
# hence the factor of 2.

# %% [markdown]
# ## Shares and balance
#
# **What does the model look at while it answers?** Attention of every decode step's query on system prompt, picture and user
# text, with and without the system prompt; exact shares, and the study's product of means (*as published*).

# %%
prompts = {"with": "default"} | ({"without": None} if vlm.default_system else {})
attended = [of_each(balance.measure, shown, system=words, max_new_tokens=32, batch_size=min(16, batch_size)).assign(prompt=name)
            for name, words in prompts.items()]  # fmt: skip
attended = pd.concat(attended, ignore_index=True)
rows = []
for (name, asked_with), part in attended.groupby(["model", "prompt"], sort=False):
    for definition in ("corrected", "as_published"):
        found = balance.shares_summary(balance.shares(part, definition=definition), seed)
        rows.append(found.assign(model=f"{name}, {asked_with} system prompt\n{definition.replace('_', ' ')}"))
run.table("shares", pd.concat(rows, ignore_index=True), vlm=every, seed=seed)
run.figure("balance.shares", table="shares",
           caption="Attention on system prompt, picture and user text in per cent, mean over decode steps, heads and layers, "
                   "attention on bos left out, with 95% intervals over pictures.")  # fmt: skip
ours = attended[(attended["prompt"] == "with") & (attended["model"] == main)]
kept = balance.shares_summary(balance.shares(ours, bos="keep"), seed)
print("attention on bos kept:", kept.set_index(["comparison", "group"])["share"].round(3).to_dict())

# %%
heads = attended if len(vlms) == 1 else attended[attended["prompt"] == "with"]
heads = heads.assign(model=heads["model"] + ", " + heads["prompt"] + " system prompt")
run.table("cmb", by_model(lambda part: balance.cmb_summary(balance.cmb(part), seed), heads), vlm=every, seed=seed)
run.figure("balance.cmb", table="cmb", caption="Cross-modality balance of every head, vision / (vision + user text): 1 looks at "
           "the picture alone, 0 at the text alone.")  # fmt: skip

# %% [markdown]
# **Reading.** A share is an average over heads that do different things; the balance shows them apart.

# %% [markdown]
# ## Attention maps of words
#
# **Where does the model look when it says a word?** The row that *emits* a word is that of the token before it: its output
# decides on the word. The study's row is the word's own, one step later, when the word has been read. The outline is the object
# that the word names, where it is known.

# %%
from spatialprobes.images import open_image, png_bytes

said = grounding.with_generated_answers(vlm, shown, batch_size=batch_size)
candidates = {one.id: [word] if images else [thing.name.split()[-1] for thing in one.objects] for one in said}
wanted = {one.id: [w for w in one.answer.lower().split() if w in candidates[one.id]][:1] for one in said}
mapped = vlm.encode(shown[:1]).spans[0].grid is not None
wanted = {id: words for id, words in wanted.items() if words} if mapped else {}
if wanted:
    asks = {"emits": {"row": "emits"}, "query": {"row": "query"}}
    maps = {name: grounding.measure(vlm, said, wanted, part="answer", batch_size=batch_size, **how) for name, how in asks.items()}
    drawn = pd.concat([grounding.mean_map(frame).assign(row_of=name) for name, frame in maps.items()])
else:
    print("no maps:", "no answer has the word" if mapped else "the vision tokens have no grid")

# %%
if wanted:
    two = [one for one in said if one.id in wanted][:2]
    some_maps = drawn[drawn["example"].isin([one.id for one in two])].copy()
    some_maps["png"] = some_maps["example"].map({one.id: png_bytes(open_image(one.image)) for one in two})
    for side, column in enumerate(("x_min", "y_min", "x_max", "y_max")):
        boxes = {
            one.id: next((t.box[side] for t in one.objects if t.name.split()[-1] in wanted[one.id]), float("nan")) for one in two
        }
        some_maps[column] = some_maps["example"].map(boxes)
    some_maps["word"] += some_maps.pop("row_of").map({"emits": ", emitted", "query": ", read"})
    some_maps["example"] = some_maps["example"].map({one.id: f"picture {i}" for i, one in enumerate(two, 1)})
    run.table("maps", some_maps, seed=seed)
    run.figure("heatmap.overlay", table="maps", label="share of the attention on the picture",
               caption="Attention on the picture (mean over heads and layers) of the row that emits the word, and of the "
                       "word's own row.")  # fmt: skip

# %% [markdown]
# **How sharp are the maps?** Normalised entropy, 1 for a flat map, by data set and model (the study's table 8).


# %%
def sharpness(one):
    """Entropy of the map of the first object's name in questions, and of a word in the model's own answers."""
    told = grounding.with_generated_answers(one, shown, batch_size=batch_size)
    known = {e.id: [w for w in e.answer.lower().split() if w in candidates[e.id]][:1] for e in told}
    sets = {"answers": (told, {id: words for id, words in known.items() if words}, "answer")}
    if not images:
        sets["questions"] = (asked, {e.id: [e.meta["subject"]] for e in asked if e.meta["subject"]}, "user")
    found = [grounding.entropy(grounding.published(one, which, words, part=part, batch_size=batch_size)).assign(dataset=name)
             for name, (which, words, part) in sets.items() if words]  # fmt: skip
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["dataset", "cluster"])


# %%
on_grids = [one for one in every if one.encode(shown[:1]).spans[0].grid is not None] if wanted else []
flat = [sharpness(one).assign(model=one.facts()["model"]) for one in on_grids]
flat = pd.concat(flat, ignore_index=True) if flat else pd.DataFrame(columns=["dataset", "model", "cluster"])
flat = flat[flat.groupby(["dataset", "model"])["cluster"].transform("nunique") > 1]  # one picture has no interval
if len(flat):
    flat = run.table("entropy", flat, vlm=on_grids, seed=seed)
    run.table("entropy_summary", grounding.entropy_summary(flat, seed=seed), vlm=on_grids, seed=seed)
    run.figure("heatmap.entropy", table="entropy_summary",
               caption="Normalised entropy of the attention maps of words, as published (the word's own row, mean over heads and "
                       "layers, no system prompt), with 95% intervals over pictures.")  # fmt: skip
else:
    print("no maps of two pictures to compare")

# %% [markdown]
# ## The study's own layout
#
# **Runs that the study's scripts read, and its runs read here.** With `export`, every model's run is written in the study's
# layout (meta.json, preds.json, per_image/, analysis/, and the token norms in vectors.npz); `study_runs` are read from it. The
# published comparison of models labels its lines by the place of a run among the arguments, so that two of them bear each
# other's names; mended, each has its own.

# %%
runs = []
files = {one.id: {"file_name": Path(one.image).name if images else one.id, "caption": one.answer} for one in said}
for name in vlms:
    per_model = {key: frame[frame["model"] == name] for key, frame in (("rope", at_delta), ("hidden", hidden))}
    whole = attended[(attended["model"] == name) & (attended["prompt"] == "with")]
    tables = {"cmb": balance.cmb(whole), "shares": balance.shares(whole), "images": files if name == main else None}
    runs.append(diagnostics.from_tables(Path(name).name, per_model["rope"], hidden=per_model["hidden"], **tables))
for name, one in zip(vlms, runs) if export else ():
    print("wrote", folder := diagnostics.write_run(one, export))
    print("wrote", norms.write_vectors(lengths[lengths["when"] == name], folder / "vectors.npz"))

# %%
ours = {one.name for one in runs}
again = {one.name: f"{one.slug} (read)" for one in theirs if one.name in ours}
theirs = [replace(one, slug=again[one.name], meta={**one.meta, "model_name": again[one.name]}) if one.name in again else one
          for one in theirs]  # fmt: skip
if len(runs) + len(theirs) > 1:
    run.table("compared", diagnostics.by_layer([*runs, *theirs], seed=seed), vlm=every, seed=seed)
    run.figure("diagnostics.comparison", table="compared",
               caption="RoPE sensitivity of several runs by layer, each under its own name.")  # fmt: skip
else:
    print("one run: nothing to compare; name variants or study_runs")
if len(theirs) in (2, 3):  # the published labels are those of three models
    run.table("compared_study", diagnostics.by_layer(theirs, seed=seed), vlm=[], seed=seed)
    run.figure("diagnostics.comparison", table="compared_study", name="comparison-as-published", definition="as_published",
               caption="The same of the study's runs, labelled by their order as published.")  # fmt: skip

# %% [markdown]
# ## Verdicts
#
# Rules were fixed before the results were seen; a verdict is computed from rule and interval.

# %% tags=["nbval-check-output"]
print(run.verdicts().to_string(index=False))
