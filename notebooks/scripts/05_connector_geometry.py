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
# # Section 5: how much geometry does a connector change?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/spatialprobes/spatialprobes/blob/main/notebooks/05_connector_geometry.ipynb)
#
# Between the vision tower and the language model stands a connector. The study *Connector-Induced Representation Distortion and
# Semantic Stability in VLMs* ([code](https://github.com/drink36/VLM_Connectors), after
# [Li et al. 2025](https://arxiv.org/abs/2509.11986)) asks what it does to the tower's geometry: are the nearest pictures still
# the nearest, how many directions do a picture's tokens take up, can the tower's output be had back. Here each number has a
# chance level, an interval and a floor that copies of pictures alone would give; and it is asked at both places that can be
# called *before the connector*. In the lab, where it is known what each picture shows, one more question can be answered, which
# the study could not ask: is it *what* or *where* that is lost?
#
# Section 5's second notebook, `06_connector_captions`, asks whether any of this predicts what becomes of captions.

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
out: str = ""  # folder for tables, figures and claims; empty for data/runs/05_connector_geometry
compare: str = "lab-qwen2.5-vl"  # further models, shown the same pictures, to stand beside; names parted by blanks; may be empty
data: str = ""  # folder of pictures, at any depth (the study: 14 folders of food pictures); empty for the lab's scenes
side: int = 0  # pictures are squashed to so many pixels each way; 0 for the lab's own, and for the study's 336 with real models
references: str = "lab-clip lab-dino"  # vision models whose neighbourhoods are compared; names parted by blanks
pool: str = "cls"  # of references: cls or mean
metric: str = "l2"  # of neighbours: l2 (the study's runs) or cosine
prepare: str = "raw"  # pooled vectors: raw (the study), centred or standardised
gallery: str = "all"  # neighbours among all pictures, or among those of the same folder (the study)
ks: str = "5 10 20"  # numbers of neighbours (the study: 10 50 100)
near_copies: float = 0.9999  # cosine of two pictures' reference vectors from which they count as copies
shards: str = "0/1"  # index/count of this job, where extraction is shared out over several into one store
limit_per_shard: int = 0  # most pictures of each folder; 0 for all
store: str = ""  # folder in which tokens are kept; empty for the run's own, which is made anew
reconstructor: str = "lab"  # lab: those that came with the lab models; or a folder of one; empty for none
export: str = ""  # folder to also write results in the study's own layout to; empty for none

# %%
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from spatialprobes import stats
from spatialprobes.probes import (
    connector_export,
    connector_states,
    duplicates,
    neighbours,
    reconstruction_summary,
    similarity,
    spectra,
    where_what,
)
from spatialprobes.probes import references as reference_models
from spatialprobes.probes.reconstruction import Reconstructor, evaluate
from spatialprobes.record import Record
from spatialprobes.seeds import check_seed
from spatialprobes.sources.connector_names import hub_id
from spatialprobes.sources.image_folder import image_folder
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_captions import lab_captioned

# %%
names = """model revision dtype device quantize image_fit batch_size limit seed size compare data side references pool metric
prepare gallery ks near_copies shards limit_per_shard reconstructor""".split()
model, compare = hub_id(model), " ".join(map(hub_id, compare.split()))  # the study's short names stand for hub ids
parameters = {name: globals()[name] for name in names}
SIZES = {"quick": (150, 216, 120), "lab": (600, 864, 300), "full": (10**6, 216, 120)}
if size not in SIZES:
    raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
pictures, singles, read_from = (min(n, limit) if limit else n for n in SIZES[size])  # pictures; of one object; for readouts
stream = 9_000_000 + check_seed(seed)  # scenes that no lab model was trained on
models = [model, *(name for name in compare.split() if name != model)]
counts = tuple(int(k) for k in ks.split()) if all(k.isdigit() for k in ks.split()) else ()
job = tuple(int(part) for part in shards.split("/") if part.isdigit())

# %%
LEGAL = {  # what would end the notebook later is refused now
    "limit": ("0, or at least 100, which copies, folds and intervals need", limit == 0 or limit >= 100),
    "batch_size": ("at least 1", batch_size > 0),
    "side": ("0, or at least 28 pixels", side == 0 or side >= 28),
    "data": ("empty, or a folder that is there", not data or Path(data).is_dir()),
    "pool": ("cls or mean", pool in ("cls", "mean")),
    "metric": ("l2 or cosine", metric in ("l2", "cosine")),
    "prepare": ("raw, centred or standardised", prepare in ("raw", "centred", "standardised")),
    "gallery": ("all or folder", gallery in ("all", "folder")),
    "ks": (f"numbers from 1, below the {pictures} pictures", bool(counts) and min(counts) > 0 and max(counts) < pictures),
    "near_copies": ("above 0, at most 1", 0 < near_copies <= 1),
    "shards": ("index/count, such as 0/4", len(job) == 2 and 0 <= job[0] < job[1]),
    "limit_per_shard": ("0 or more", limit_per_shard >= 0),
    "reconstructor": ("lab, empty, or a folder", reconstructor in ("lab", "") or Path(reconstructor).is_dir()),
    "export": ("a folder, there or not yet", not export or Path(export).is_dir() or not Path(export).exists()),
}
if wrong := [name for name, (_, right) in LEGAL.items() if not right]:
    raise ValueError(f"{wrong[0]} is {globals()[wrong[0]]!r}; it must be {LEGAL[wrong[0]][0]}")

# %% [markdown]
# ## What stands before and after
#
# **Which vectors are compared?** E_pre is what the tower hands over, E_post what the language model is given. Only tower and
# connector are run. *Before* has two meanings: the tower's residual stream (`pre`), and what the last norm makes of it
# (`pre_normed`). The connectors of the Qwens and of Idefics2 read the normed form, LLaVA's the stream itself; the study hooked
# Idefics2 behind its norm, but the Qwens before theirs, where a few giant directions drown all others. Both are kept, and what a
# connector is compared with is what it reads. Class tokens are part of neither.

# %%
options = {"dtype": dtype, "device": device, "quantize": quantize, "image_fit": image_fit}
vlm = VLM.load(model, revision=revision, **options)
run = Record(out=out, notebook="05_connector_geometry", title="Connector geometry", section=5, parameters=parameters, vlm=vlm)
if data:
    shown, unreadable = image_folder(data)
    shown = shown[:pictures]
    print(f"{len(shown)} pictures, {len(unreadable)} unreadable", *unreadable[:3], sep="; ")
else:
    shown = lab_captioned(pictures, stream)
kept = Path(store) if store else run.folder / "states"
if not store:
    shutil.rmtree(kept, ignore_errors=True)


# %%
def extracted(one, examples, what):
    """The tokens of these pictures at every site, before and after the connector of this model."""
    exactly = "bfloat16" if str(one.model.dtype).endswith("bfloat16") else "float32"  # what the model runs in loses nothing
    how = {"side": side or (None if one.source.kind == "lab" else 336), "dtype": exactly, "batch_size": batch_size}
    part = {"shards": job, "limit_per_shard": limit_per_shard or None} if what == "pictures" else {}
    return connector_states.extract(one, examples, kept / one.source.name.replace("/", "--") / what, **how, **part)


loaded = {model: vlm} | {name: VLM.load(name, **options) for name in models[1:]}
states = {name: extracted(one, shown, "pictures") for name, one in loaded.items()}
every = list(loaded.values())  # what the tables are about
reads = {name: "pre" if one.facts()["family"] == "llava" else "pre_normed" for name, one in loaded.items()}  # of the two
everywhere = set.intersection(*(set(one.keys) for one in states.values()))
keys = [one.id for one in shown if one.id in everywhere]  # the order of every matrix below
if len(keys) <= max(counts):
    raise ValueError(f"{len(keys)} pictures could be read; ks={ks!r} needs more than {max(counts)}")
shapes = [(name, site, *one.vectors(site).shape[1:], one.grids[site]) for name, one in states.items() for site in one.sites]
print(pd.DataFrame(shapes, columns=["model", "site", "tokens", "width", "grid"]).to_string(index=False))

# %% [markdown]
# ## Copies first
#
# **Does a picture come more than once?** Copies are neighbours in every space. Half of the study's pictures have an exact copy in
# their folder; without any geometry being kept, that alone gives an overlap of .17 at ten neighbours. So copies are found before
# anything is compared: exact ones by their pixels, near ones by a reference model.

# %%
embedded = {name: reference_models.embed(name, shown, pool=pool, device=device) for name in references.split()}
exact = duplicates.exact(states[model].digests(keys))
copies = exact
if embedded:
    copies = duplicates.joined(exact, duplicates.near(next(iter(embedded.values())).of(keys), near_copies))
many = duplicates.multiplicity(copies)
print(f"{len(keys)} pictures: {(duplicates.multiplicity(exact) > 1).mean():.1%} have an exact copy, "
      f"{(many > 1).mean():.1%} an exact or near one; largest group {many.max()}")  # fmt: skip

# %% [markdown]
# **What copies do, shown.** Half of the vectors are written twice, as they are in the study's pictures; nothing else changes.

# %%
twice = np.concatenate([np.arange(len(keys)), np.arange(len(keys) // 2)])
labels = twice.copy()
doubled = [str(i) for i in range(len(twice))]
shown_twice = []
for what, groups, drop in (("with copies", labels, False), ("copies dropped", labels, True)):
    sides = [states[model].pooled(site, keys)[twice] for site in ("pre", "post")]
    one = neighbours.measure(*sides, doubled, ks=counts, metric=metric, duplicates=groups, deduplicate=drop)
    shown_twice.append(neighbours.summary(one, seed=seed).assign(pictures=what))
planted = run.table("planted_copies", pd.concat(shown_twice, ignore_index=True), seed=seed)
print(planted[["pictures", "k", "knor", "low", "high", "chance", "floor", "excess"]].round(3).to_string(index=False))

# %% [markdown]
# ## Neighbourhoods
#
# **Are the nearest pictures still the nearest?** k-nearest-neighbour overlap (KNOR): of a picture's k nearest others before the
# connector, the share that are among its k nearest after it; pictures stand as the mean of their tokens. 1 where nothing moved,
# k / (N - 1) by chance. *Excess* is what there is beyond the floor of copies. Rank displacement: by how many places a neighbour
# moves, k where it leaves the list.

# %%
common = {"ks": counts, "metric": metric, "prepare": prepare, "gallery": gallery, "duplicates": copies}
measured = [
    neighbours.measure(one.pooled(site, keys), one.pooled("post", keys), keys, **common).assign(model=name, comparison=site)
    for name, one in states.items()
    for site in ("pre", "pre_normed")
]
overlaps = run.table("overlaps", pd.concat(measured, ignore_index=True), vlm=every, seed=seed)
by = ("model", "comparison")
summary = run.table("overlap_summary", neighbours.summary(overlaps, by, seed=seed), vlm=every, seed=seed)
run.figure("geometry.knor", table="overlap_summary",
           caption="Share of a picture's k nearest neighbours that the connector keeps, E_pre before and behind "
                   "the norm in front of it, with 95% intervals over pictures; dotted: chance.")  # fmt: skip
print(summary[[*by, "k", "knor", "low", "high", "chance", "floor", "excess", "displacement"]].round(3).to_string(index=False))

# %% [markdown]
# **Beside other models.** A neighbourhood may change towards something: how well do the pictures' neighbours before and after the
# connector agree with those of a vision model that has nothing to do with it? A reference that shares its tower with the model
# (lab-clip is lab-llava's) favours what stands before the connector; one trained without labels (lab-dino, DINOv2) is the neutral
# anchor.

# %%
aligned = [
    neighbours.measure(found.of(keys), one.pooled(site, keys), keys, **common).assign(model=name, reference=reference, site=site)
    for reference, found in embedded.items()
    for name, one in states.items()
    for site in one.sites
]
toward, gains = pd.DataFrame(), pd.DataFrame()
if aligned:
    to_references = run.table("reference_overlaps", pd.concat(aligned, ignore_index=True), vlm=every, seed=seed)
    by = ("model", "reference", "site")
    toward = run.table("reference_summary", neighbours.summary(to_references, by, seed=seed), vlm=every, seed=seed)
    run.figure("geometry.bars", table="reference_summary", bar="site",
               caption="Neighbours before and behind the connector against those of models that have nothing to "
                       "do with it, with 95% intervals over pictures; dotted: chance.")  # fmt: skip
    wide = toward[toward["k"] == max(counts)].pivot(index=["model", "reference"], columns="site", values="knor")
    print(f"KNOR with the reference at k = {max(counts)}", wide.round(3), sep="\n")

# %% [markdown]
# **Reading.** Compare each bar with its chance level and with its floor. That neighbours change says nothing about what they
# changed by; see *where or what* below. With raw vectors and l2, a site with a few giant directions is ranked by those alone
# (`pre` of the real Qwens): before speaking of reorganisation look at `pre_normed`, and at `prepare="standardised"`.

# %% [markdown]
# ## Spectra
#
# **How many directions do a picture's tokens take up?** Singular values of each picture's token matrix, its mean token taken
# away. Effective rank as the study has it is the exponential of the entropy of *energies* (squared singular values); Roy and
# Vetterli's (2007) is that of the singular values themselves; both are in the table. The largest possible rank is the smaller of
# tokens and width, which differs before and after, so the normalised form stands beside.

# %%
found = {(name, site): spectra.collect(one.vectors(site, keys), keys) for name, one in states.items() for site in one.sites}
by_picture = [one.table().assign(model=name, site=site) for (name, site), one in found.items()]
ranks = run.table("spectra", pd.concat(by_picture, ignore_index=True), vlm=every, seed=seed)
means = [spectra.spectrum(one.singular_values).assign(model=name, site=site) for (name, site), one in found.items()]
run.table("mean_spectra", pd.concat(means, ignore_index=True), vlm=every, seed=seed)
run.figure("spectra.curves", table="mean_spectra",
           caption="Mean energy spectrum of a picture's tokens before and behind the connector; bands: where 95% "
                   "of pictures lie.")  # fmt: skip
run.table("spectra_summary", spectra.summary(ranks, ("model", "site"), seed=seed), vlm=every, seed=seed)
run.figure("spectra.bars", table="spectra_summary",
           caption="What is read off the spectra before and behind the connector, with 95% intervals over "
                   "pictures.")  # fmt: skip
columns = ["effective_rank", "effective_rank_normalized", "top1_energy_ratio", "top10_energy_ratio", "mean_pairwise_cosine"]
print(ranks.groupby(["model", "site"], sort=False)[columns].mean().round(3))

# %% [markdown]
# ## Similarity of the whole
#
# **Are the two spaces alike beyond neighbours?** The correlation of pairwise distances (the study's, Pearson; and Spearman's),
# and linear CKA, biased as it is mostly used and unbiased (with fewer pictures than dimensions the biased one is large for any
# two spaces).

# %%
alike = [
    similarity.measure(one.pooled(site, keys), one.pooled("post", keys), prepare=prepare, clusters=copies, seed=seed).assign(
        model=name, comparison=site
    )
    for name, one in states.items()
    for site in ("pre", "pre_normed")
]
similar = run.table("similarity", pd.concat(alike, ignore_index=True), vlm=every, seed=seed)
run.figure("geometry.similarity", table="similarity",
           caption="Likeness of the spaces before and behind the connector by correlation of distances and by "
                   "linear CKA, with 95% intervals.")  # fmt: skip
print(similar.pivot(index=["model", "comparison"], columns=["measure", "metric"], values="estimate").round(3).to_string())

# %% [markdown]
# ## What or where?
#
# **Does the connector keep where things are better or worse than what they are?** Here the lab's world is asked, whatever
# pictures were measured above: pictures of one object, every thing in every cell, and ordinary scenes. Are a picture's neighbours
# those that show the same *thing*, or those that show something in the same *place*? Can the colour, can the place of a shape be
# read off linearly? Once with all tokens, once with their mean, on which every number above is made.

# %%
one_object, scenes = where_what.single_objects(singles, stream), where_what.scenes(read_from, stream)
near, decoded = [], []
for name, one in loaded.items():
    sides = []
    for what, these in (("singles", one_object), ("scenes", scenes)):
        some = extracted(one, these, what)
        sides.append({site: some.vectors(site, [picture.id for picture in these]) for site in some.sites})
    near.append(where_what.neighbours(sides[0], one_object, k=5).assign(model=name))
    decoded.append(where_what.decoding(sides[1], scenes, seed=seed).assign(model=name))
near = run.table("where_what_neighbours", pd.concat(near, ignore_index=True), vlm=every, seed=seed)
decoded = run.table("where_what_decoded", pd.concat(decoded, ignore_index=True), vlm=every, seed=seed)

# %%
both = [(name, near[near["model"] == name], decoded[decoded["model"] == name]) for name in loaded]
views = pd.concat([where_what.summary(a, b, seed=seed).assign(model=name) for name, a, b in both], ignore_index=True)
run.table("where_what", views, vlm=every, seed=seed)
changes = [where_what.kept(a, b, reads[name], seed=seed).assign(model=name) for name, a, b in both]
kept_of = run.table("where_what_kept", pd.concat(changes, ignore_index=True), vlm=every, seed=seed)
run.table("where_what_here", views[views["model"] == model].drop(columns="model"), seed=seed)
run.figure("where_what.before_after", table="where_what_here",
           caption="What and where before and after the connector: pictures of one object whose neighbours show "
                   "the same thing, or something in the same cell, beyond chance; colour and place of each shape "
                   "read linearly from scenes; with 95% intervals over pictures.")  # fmt: skip
print("after minus before", kept_of.round(3).to_string(index=False), sep="\n")

# %% [markdown]
# **Reading.** The mean over tokens, on which neighbourhoods, distances and CKA are measured here as in the study, knows what is
# in the picture and next to nothing of where: *no measure of pooled vectors can say whether a connector keeps places.* With all
# tokens kept apart, places are there on both sides.

# %% [markdown]
# ## Can the tower's output be had back?
#
# **A network is trained to make E_pre of E_post.** What it cannot make may be lost, or only be out of its reach, so it stands
# beside two baselines: the mean (R^2 = 0) and a linear map. Pictures that it was trained on are not among these.

# %%
back = []
for name, one in states.items():
    lab_own = Path(loaded[name].source.path).parent / "reconstructors" / name if loaded[name].source.kind == "lab" else None
    folder = lab_own if reconstructor == "lab" else Path(reconstructor) if reconstructor and name == model else None
    if folder is None or not folder.is_dir():
        print(f"{name}: no reconstructor" + (f" at {folder}" if folder else ""))
        continue
    there = Reconstructor.load(folder)
    rows = evaluate(there, one.vectors(there.site, keys), one.vectors("post", keys), keys)
    back.append(rows.assign(model=name))
if back:
    rebuilt = run.table("reconstruction", pd.concat(back, ignore_index=True), vlm=every, seed=seed)
    run.table("reconstruction_summary", reconstruction_summary.summary(rebuilt, seed=seed), vlm=every, seed=seed)
    run.figure("reconstruction.scores", table="reconstruction_summary",
               caption="Variance of E_pre that is read back from E_post, by the trained reconstructor and by a "
                       "linear map, with 95% intervals over pictures; the mean token's is 0.")  # fmt: skip
    print(rebuilt.groupby("model", sort=False)[["r2", "r2_linear", "cosine", "cosine_linear", "cosine_mean"]].mean().round(3))
    assert (rebuilt["part"] == "new").all(), "a picture of the training is among those that are judged"

# %% [markdown]
# **Reading.** R^2 is of standardised vectors, 0 for the mean. Cosine is of raw ones: where all tokens share a direction the mean
# alone comes near 1, so read it against `cosine_mean`. That a larger network would not read back more is not shown.

# %% [markdown]
# ## The study's layout
#
# **The same numbers in the study's files and names**, as its scripts write them: raw vectors, neighbours within a folder.

# %%
SHORT = ("dinov3", "dino", "clip")  # what the study calls its references
named = {next((short for short in SHORT if short in name), name): there.of(keys) for name, there in embedded.items()}
space = {site: states[model].pooled(site, keys) for site in ("pre", "post")}
pairs = {"pre_post": (space["pre"], space["post"])}
pairs |= {f"{short}_{site}": (vectors, space[site]) for short, vectors in named.items() for site in space}
within = {"ks": counts, "metric": metric, "gallery": "folder", "few": "shorten"}
near_by = {what: neighbours.measure(*both, keys, **within) for what, both in pairs.items()}
folders = pd.Series([connector_export.place(key)[0] for key in keys])
alike_by = {
    (what, folder): similarity.distance_correlation(a[own], b[own], metric, seed=seed).estimate
    for what, (a, b) in pairs.items()
    for folder, own in folders.groupby(folders).indices.items()
}

# %%
tables = {site: found[model, site].table() for site in space}
values = {site: found[model, site].singular_values for site in space}
for folder in (run.folder / "study", export):
    if folder:
        label = model.rpartition("/")[2]
        written = connector_export.geometry(folder, label, near_by, tables, values, alike_by, metric=metric)
        if back and model in set(rebuilt["model"]):
            written += connector_export.reconstruction(folder, label, rebuilt[rebuilt["model"] == model])
        print(len(written), "files in", "study/ of the run's folder" if folder != export else export)
if not store:
    shutil.rmtree(kept)  # tokens are large, and quickly had again

# %% [markdown]
# ## Claims
#
# The study's two findings about geometry, for the models at hand, and what the lab adds. The rules were written before the lab's
# results of this size were seen, but for two: those about what and where (`geometry.pooled_blind`, `geometry.where_what`) were
# written after a first look at lab-llava and lab-qwen2.5-vl.


# %%
def claimed(id, statement, rule, found, table, caveat):
    """A claim from an interval."""
    plain = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
    run.claim(id, statement, rule=rule, table=table, caveat=caveat, **plain)
    print(f"{id}: {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")


most = max(counts)
seen = overlaps[(overlaps["comparison"] == overlaps["model"].map(reads)) & (overlaps["k"] == most)]
of = seen.pivot(index="key", columns="model", values="knor")
plain = [name for name in loaded if loaded[name].facts()["family"] in ("llava", "idefics2")]
qwens = [name for name in loaded if loaded[name].facts()["family"].startswith("qwen")]
if plain and qwens:
    more = stats.bootstrap((of[plain].mean(axis=1) - of[qwens].mean(axis=1)).to_numpy(), None, seed=seed)
    claimed("geometry.families", "LLaVA and Idefics2 keep more of the pictures' neighbours than the Qwens.", "low > 0", more,
            "overlaps", f"KNOR at {most}, E_pre as it is read; {', '.join(plain)} and {', '.join(qwens)}")  # fmt: skip
one = summary[(summary["model"] == model) & (summary["comparison"] == "pre") & (summary["k"] == most)].iloc[0]
beyond = stats.Interval(one.excess, one.excess_low, one.excess_high, int(one.n), int(one.clusters))
claimed("geometry.kept", "Half of the pictures' neighbours or more are kept, beyond what copies alone would keep.", "low > .5",
        beyond, "overlap_summary", f"k = {most}, raw E_pre; chance {one.chance:.3f}, floor {one.floor:.3f}")  # fmt: skip

# %%
anchor = list(embedded)[-1] if embedded else ""
for site, id in (("pre", "geometry.toward"), ("pre_normed", "geometry.toward_normed")):
    if not embedded:
        continue
    own = to_references[(to_references["model"] == model) & (to_references["k"] == most)]
    wide = own[own["reference"] == anchor].pivot(index="key", columns="site", values="knor")
    gain = stats.bootstrap(wide["post"].to_numpy(), None, seed=seed, paired=wide[site].to_numpy())
    which = "the residual stream" if site == "pre" else "the normed stream"
    claimed(id, f"Behind the connector, neighbours are more like {anchor}'s than in {which} before it.", "low > 0", gain,
            "reference_overlaps", f"KNOR at {most}; the study finds it for the Qwens, in the stream")  # fmt: skip

# %%
wide = ranks[ranks["model"] == model].pivot(index="key", columns="site", values="effective_rank")
site_matters = stats.ratio(wide["pre_normed"].to_numpy(), wide["pre"].to_numpy(), keys, keys, seed=seed)
claimed("geometry.norm_site", "Where E_pre is taken hardly matters to its effective rank.", "low > .9 and high < 1.1",
        site_matters, "spectra", "ratio of the means, behind and before the norm")  # fmt: skip
single = near[(near["model"] == model) & (near["site"] == "post") & (near["factor"] == "where") & (near["form"] == "pooled")]
unknown = stats.bootstrap((single["share"] - single["chance"]).to_numpy(), None, seed=seed)
claimed("geometry.pooled_blind", "Neighbours by mean-pooled E_post do not say where an object is.", "low > -.05 and high < .05",
        unknown, "where_what_neighbours", "share of neighbours in the same cell, minus chance; one object a picture")  # fmt: skip
line = kept_of[(kept_of["model"] == model) & (kept_of["form"] == "tokens") & (kept_of["factor"] == "where - what")].iloc[0]
kept_where = stats.Interval(line.change, line.low, line.high, int(line.n), int(line.n))
claimed("geometry.where_what", "The connector favours where over what: neighbours by all tokens.", "low > 0", kept_where,
        "where_what_kept", "change of the share of neighbours alike, beyond chance: place minus thing")  # fmt: skip

# %%
if back and model in set(rebuilt["model"]):
    own = rebuilt[rebuilt["model"] == model]
    variance = stats.bootstrap(own["r2"].to_numpy(), None, seed=seed)
    claimed("geometry.read_back", "Half of E_pre's variance or more can be read back from E_post.", "low > .5", variance,
            "reconstruction", f"linear map: {own['r2_linear'].mean():.2f}; a floor on what is kept, not a ceiling")  # fmt: skip

# %% [markdown]
# ## Limits
#
# As the study states them, and ours. None of this says which model is best. E_pre is a reference, not the truth. The Qwens'
# towers were trained with their connectors, LLaVA's was not. CLIP's and DINO's neighbourhoods are two views, not what pictures
# mean; a reference that shares its tower with a model favours it. A reconstructor's capacity and its few pictures bound what it
# reads back. Means over tokens are blind to places. Overlap hangs on the gallery: intervals are over pictures asked about, the
# gallery given. The lab's pictures hold two to four flat objects; its connectors stand between small models. In the lab no
# picture has a copy.

# %% [markdown]
# ## Verdicts

# %% tags=["nbval-check-output"]
print(run.verdicts().to_string(index=False))
