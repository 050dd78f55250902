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
# # Quick start: does a vision-language model need to know *where*?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/spatialprobes/spatialprobes/blob/main/notebooks/00_quickstart.ipynb)
#
# A few minutes with one small model. The default, `lab-llava`, is a real `LlavaForConditionalGeneration` with 1.3 million
# parameters, trained from nothing on a rendered world whose every detail is known. We look at that world, ask about a picture,
# shuffle the model's vision tokens and ask again, compare how long vision and text vectors are, and see where a word attends.
# Every number below is about the model that the parameters name, or is said to be about its untrained twin. A section near the
# end says how to go on with a real checkpoint.

# %%
# In Colab, install the library; anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    source = "git+https://github.com/spatialprobes/spatialprobes"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"spatialprobes[notebooks] @ {source}"], check=True)

# %% tags=["parameters"]
model: str = "lab-llava"  # a lab model, a folder, or a hub id such as llava-hf/llava-1.5-7b-hf
revision: str = ""  # of a hub id; empty for the newest
dtype: str = "auto"  # auto, float32, float16 or bfloat16
device: str = "auto"  # auto, cpu, cuda or cuda:1
quantize: str = ""  # empty, 8bit or 4bit (language model only)
batch_size: int = 64  # prompts run at once
limit: int = 0  # most questions of each group; 0 for no limit
seed: int = 0  # of pictures, questions, permutations and resampling
size: str = "quick"  # quick | lab | full: how many questions; quick is for Colab, lab for `make figures`
out: str = ""  # folder for tables, figures and claims; empty for data/runs/00_quickstart
draws: int = 3  # permutations of each picture's vision tokens
inits: int = 5  # random initialisations that the norms are compared with; each needs the memory of a second model

# %%
from spatialprobes.probes import grounding, norms, permutation, psi
from spatialprobes.record import Record
from spatialprobes.vlm import VLM
from spatialprobes.worlds import lab, lab_language, lab_questions

names = "model revision dtype device quantize batch_size limit seed size draws inits".split()
parameters = {name: globals()[name] for name in names}
SIZES = {"quick": (100, 30), "lab": (250, 100), "full": (1000, 1000)}  # semantic, spatial questions of each group
if size not in SIZES:
    raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
count = {kind: min(n, limit) if limit else n for kind, n in zip(("semantic", "spatial"), SIZES[size], strict=True)}
stream = 5_000_000 + seed  # scenes that no lab model was trained on

# %% [markdown]
# ## The model
#
# `VLM.load` takes a lab name, a folder or a hub id; whatever follows is the same code for all of them.

# %%
vlm = VLM.load(model, revision=revision, dtype=dtype, device=device, quantize=quantize)
run = Record(out=out, notebook="00_quickstart", title="Quick start", section=0, parameters=parameters, vlm=vlm)
vlm.facts()

# %% [markdown]
# **What did it learn, and when?** A lab model comes with a card and with its accuracy over training, on scenes that it was not
# trained on. (A model from elsewhere has neither, and this cell says so.)

# %%
from spatialprobes.lab_cards import read_card, read_curve

if vlm.source.kind == "lab":
    curve = read_curve(vlm.source.path)
    chances = {name: group.chance for name, group in lab_questions.GROUPS.items()}
    run.table("curve", curve.assign(chance=curve["group"].map(chances)))
    says = "Accuracy on fresh scenes over the pictures seen in stage 2, by question group."
    run.figure("training.curves", table="curve", caption=says)
else:
    print(f"{vlm.name} has no training curve here")

# %% [markdown]
# ## Its world
#
# **What is in a picture?** Two to four shapes, no colour and no shape twice, each at a known place and depth (nearer is
# larger). The caption below each picture is written by the world, not by the model.

# %%
import numpy as np
import pandas as pd

from spatialprobes.images import png_bytes

scenes = [lab.scene(stream, i, perspective=(0.0, 0.5)) for i in range(4)]
captions = [lab_language.caption(s, np.random.default_rng([stream, i])) for i, s in enumerate(scenes)]
rows = [{"png": png_bytes(lab.picture(s)), "title": f"scene {i}", "text": c} for i, (s, c) in enumerate(zip(scenes, captions))]
run.table("world", pd.DataFrame(rows))
run.figure(
    "scenes.gallery", table="world", caption="Four scenes of the lab's world, with the captions that the world gives them."
)

# %% [markdown]
# ## Ask about a picture
#
# **Can the model tell what there is, and where?** One picture, seven questions, greedy answers.

# %%
from spatialprobes.answers import answer

pd.set_option("display.max_colwidth", 80, "display.width", 160)
chosen = scenes[0]
rng = np.random.default_rng([stream, 99])
groups = [
    "semantic.color",
    "semantic.existence",
    "relation.horizontal",
    "relation.vertical",
    "bin.column",
    "bin.row",
    "2ds.shape_color_abs",
]
questions = [q for group in groups if (q := lab_questions.ask(chosen, group, rng))]
asked = [e for i, q in enumerate(questions) for e in lab_questions.as_examples(chosen, q, f"demo-{i}")]
first = answer(vlm, asked, batch_size=batch_size)
first.assign(question=[e.question for e in asked])[["question", "expected", "answer"]]

# %% [markdown]
# ## Shuffle its vision tokens and ask again
#
# **Does the order of the vision tokens matter?** Between connector and language model, the tokens of the picture change places;
# the language model's positions stay. Every token is still there. What is lost is their order, and with it which were
# neighbours; what a token itself carries about its place stays.

# %%
from spatialprobes.intervene import intervene, random_permutations

n_tokens = len(vlm.vision_features(asked[:1])[0])
with intervene(vlm, permute=random_permutations(n_tokens, 1, seed=seed)[0]):
    again = answer(vlm, asked, batch_size=batch_size)
both = pd.DataFrame({"question": [e.question for e in asked], "expected": first["expected"], "in place": first["answer"],
                     "shuffled": again["answer"]})  # fmt: skip
both

# %% [markdown]
# One picture proves nothing. So: many fresh pictures, one question each, several permutations, and intervals that resample
# pictures. *Semantic* questions ask what is there, *spatial* ones where it is; far or close, which shows as size, is left to
# the later sections. The scenes are flat: in perspective the smaller object tends to be the higher one, so that size would tell
# about place. (An interval is never narrower than what so many pictures can exclude, even where all answers agree.)

# %%
semantic = lab_questions.examples(count["semantic"], stream, lab_questions.of_kind("semantic"), perspective=0.0)
spatial = lab_questions.examples(count["spatial"], stream + 1_000_000, lab_questions.of_kind("spatial"), perspective=0.0)
answers = permutation.measure(vlm, semantic + spatial, draws=draws, batch_size=batch_size, seed=seed)
answers = run.table("answers", answers, seed=seed)
table = lab_questions.GROUPS
chance = {name: group.chance if group.chance_where is None else group.chance_where for name, group in table.items()}
accuracy = run.table("permutation", permutation.summary(answers, chance, seed), seed=seed)
run.figure("permutation.accuracy", table="permutation",
           caption="Accuracy by question group, vision tokens in place and permuted (bootstrap over pictures). Chance: of "
                   "semantic questions, the best answer that ignores the picture; of spatial ones, the best answer by someone "
                   "who knows which objects there are, but not where.")  # fmt: skip

# %%
for kind, rule, says in (
    ("semantic", "high(drop) < .02", "Permuting the vision tokens costs semantic questions less than two points of accuracy."),
    ("spatial", "low(drop) > .25", "Permuting the vision tokens costs spatial questions more than 25 points of accuracy."),
):
    part = answers[answers["kind"] == kind]
    drop = psi.if_above_chance(permutation.drop(part, seed), part, chance, seed)  # who knows nothing has nothing to lose
    in_place = part.loc[part["condition"] == permutation.ORIGINAL, "correct"].mean()
    run.claim(f"permutation.{kind}", says, rule=rule, estimate=drop.estimate, low=drop.low, high=drop.high, n=drop.clusters,
              table="answers", required=True, caveat=f"accuracy with the tokens in place: {in_place:.3f}")  # fmt: skip
    print(f"{kind}: accuracy drop {drop.estimate:.3f} [{drop.low:.3f}, {drop.high:.3f}] over {drop.clusters} pictures")
unread = 1 - answers.groupby("condition", sort=False)["parsed"].mean()
print("answers that could not be read:", unread.round(3).to_dict())

# %% [markdown]
# **Reading.** Where the two marks of a group coincide, the answer does not depend on the order of the tokens. Where the
# permuted one falls to the tick, it does no better than someone who knows what there is, but not where. The pooled drop depends
# on the mix of groups: a yes-or-no group can lose half a point at most, one with six answers five sixths. A drop means little
# for a model whose answers are poor with the tokens in place: look at that accuracy first. Where it is not above chance, the
# claims say nothing.

# %% [markdown]
# ## Norms
#
# **Are vision vectors as long as word vectors where both enter the language model?** In LLaVA-1.5 the vision tokens are far
# longer (Beyond Semantics, figure 3). A ratio means little without its beginning, so the same architecture with random
# weights stands beside it.

# %%
sample = semantic[:100]
trained = norms.measure(vlm, sample, batch_size=batch_size)
untrained = (norms.untrained(vlm, seed + k) for k in range(inits))
twins = [norms.measure(twin, sample, when=norms.INITIAL, batch_size=batch_size) for twin in untrained]
starts = [norms.vision_to_text(twin, seed).estimate for twin in twins]
lengths = run.table("norms", pd.concat([trained, *twins[:1]], ignore_index=True), seed=seed)
run.figure("norms.distributions", table="norms",
           caption="L2 norms of what enters the language model: vision tokens after the connector, and the embeddings of the "
                   "questions' words; the trained model, and the same architecture with random weights (one draw).")  # fmt: skip

# %%
now = norms.vision_to_text(lengths[lengths["when"] == norms.TRAINED], seed)
caveat = (
    f"with random weights {min(starts):.1f} to {max(starts):.1f} ({inits} initialisations)"
    if starts
    else "no untrained twin was asked for"
)
if vlm.source.kind == "lab":  # its card knows how it began: trained tower and words, untrained connector
    caveat += f"; before stage 1, behind an untrained connector, {read_card(vlm.source.path)['norms']['start']['ratio']:.1f}"
run.claim("norms.ratio", "Vision tokens enter the language model more than three times as long as words.", rule="low > 3",
          estimate=now.estimate, low=now.low, high=now.high, n=now.clusters, table="norms", required=True,
          caveat=caveat)  # fmt: skip
print(f"vision / text: {now.estimate:.2f} [{now.low:.2f}, {now.high:.2f}]; {caveat}")

# %% [markdown]
# **Reading.** The rule asks about the gap, not about its cause. Set the ratio beside its beginnings: as far as they exceed 3
# too, the gap is a matter of how embeddings and connector are initialised and of how long a tower's vectors are, not of what
# the connector learnt.

# %% [markdown]
# ## Where a word attends
#
# **Which patches does the name of an object attend to?** The attention of the word's tokens on the picture, averaged over
# heads, for each layer; each panel sums to 1. The outline is the object that the word names. Two pictures are an illustration;
# intervals and controls for such maps belong to section 4.

# %%
looked = [e for e in spatial if e.group == "relation.horizontal"][:2]
named = {e.id: next(o for o in e.objects if set(e.meta["subject"].split()) - {"one"} <= set(o.name.split())) for e in looked}
maps = grounding.measure(vlm, looked, {e.id: [e.meta["subject"]] for e in looked}, batch_size=batch_size)
last = maps["layer"].max()
maps = maps[maps["layer"].isin({0, last // 3, 2 * last // 3, last})]
maps["png"] = maps["example"].map({e.id: png_bytes(e.image()) for e in looked})
for side, column in enumerate(("x_min", "y_min", "x_max", "y_max")):
    maps[column] = maps["example"].map({id: thing.box[side] for id, thing in named.items()})
maps["word"] += ", layer " + maps.pop("layer").astype(str)
maps["example"] = maps["example"].map({e.id: f"picture {i}" for i, e in enumerate(looked, 1)})
run.table("heatmap", maps, seed=seed)
asked_of = " ".join(f"Picture {i}: {e.question.replace(' ?', '?')}" for i, e in enumerate(looked, 1))
run.figure("heatmap.overlay", table="heatmap", label="share of the attention on the picture",
           caption=f"Where the first object's name attends, by layer (mean over heads). {asked_of}")  # fmt: skip

# %% [markdown]
# ## Go on with a real checkpoint
#
# The same notebook, another model: change the first parameter and run all cells, or in a terminal
#
# ```
# papermill notebooks/00_quickstart.ipynb out.ipynb -p model llava-hf/llava-1.5-7b-hf -p quantize 4bit
# spatialprobes chat --model llava-hf/llava-1.5-7b-hf --image-file photo.jpg --permute
# ```
#
# The weights of a 7B model alone are 14 GB in half precision, 4 GB in 4-bit; set `inits` to 0 or 1 there. The pictures of the
# lab's world are small and flat; a real model sees them enlarged and out of its distribution: read its accuracy in place first.

# %% [markdown]
# ## Verdicts
#
# Rules were fixed before the results were seen; a verdict is computed from rule and interval.

# %% tags=["nbval-check-output"]
print(run.verdicts().to_string(index=False))
