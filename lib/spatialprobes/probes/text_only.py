"""Does the language model alone bind a relation word to its entities? Attention from the word to both, without a picture.

A caption is read, and its counterfactual, in which the entities are exchanged and the relation reversed: both say the same. What
is the same in both (a preference for the first or the second mention) is positional, what turns with the entities is content.
The study's score adds the two asymmetries by place, which is twice the positional part, and so cannot show what it was made for.

Content is not yet binding. "left" and "right" are two words, any two words may look at first and second mentions differently,
and in a random model they do. The control is the same pair with two words that have no direction (``pairs(...,
words="neutral")``): `against_neutral` says by how much the content of relation words exceeds it.

A relation word sees only what stands before it. In a clause ("a red circle left of a blue square .") that is the first entity
alone: put such a sentence into the published caption (``pairs(..., form="published")``), or ask the last token (query="end").
Knows no pictures and no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch

from spatialprobes.capture import capture
from spatialprobes.examples import Example, batches
from spatialprobes.probes.caption_pairs import CaptionPair, Statement, pairs, unparsed
from spatialprobes.probes.paired_columns import columns, excess
from spatialprobes.spans import Spans
from spatialprobes.stats import benjamini_hochberg
from spatialprobes.text_prompts import Template, encode_text
from spatialprobes.vlm import VLM
from spatialprobes.worlds.shapeworld_questions import OPPOSITE

__all__ = [
    "CaptionPair",
    "against_neutral",
    "as_published",
    "measure",
    "oriented",
    "pairs",
    "published_pairs",
    "split",
    "unparsed",
]

Entity = Literal["phrase", "shape"]
Query = Literal["relation", "end"]
COLUMNS = (
    "pair", "cluster", "relation", "member", "layer", "head", "to_first", "to_second", "asymmetry", "chance_first",
    "chance_second", "first_tokens", "second_tokens", "entity",
)  # fmt: skip
SPLIT = (
    "positional", "positional_low", "positional_high", "positional_p", "positional_q", "content", "content_low", "content_high",
    "p", "q", "positional_chance", "content_chance", "n", "clusters",
)  # fmt: skip
_ENDS = {"": "mean", "_low": "low", "_high": "high", "_p": "p"}


def measure(
    vlm: VLM,
    pairs: Sequence[CaptionPair],
    *,
    layers: Sequence[int] | str = "all",
    entity: Entity = "phrase",
    query: Query = "relation",
    template: Template = "chat",
    system: str | None = "default",
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Attention from the relation word to both entities of each caption: a row per pair, member, layer and head.

    Columns: `COLUMNS`. member: 1 the caption, 2 its counterfactual. relation: of the pair, as member 1 says it. to_first,
    to_second: the attention on all tokens of the entity mentioned first and second, summed over them, the mean over the tokens
    of the relation word ("left" of "left of"); an entity that is mentioned again is meant where it is mentioned first.
    asymmetry: to_first - to_second. chance_*: the same if attention were even over all tokens up to the relation word.
    first_tokens, second_tokens: how many tokens were summed.
    entity: "phrase" ("red circle") or "shape", its last word alone (the study's). query: whose attention it is, "relation" or
    "end", the last token of the text. template: "chat" (the study's for Qwen2-VL) or "raw" (for LLaVA). layers: blocks of the
    language model, from 0; "all" are those that have attention maps.
    Nothing is drawn: ``seed`` is there because every probe takes one.
    Raises ValueError without pairs, for an unknown choice, and where the relation stands before an entity, which it cannot see.
    """
    for name, value, legal in (("entity", entity, get_args(Entity)), ("query", query, get_args(Query))):
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; one of {', '.join(map(repr, legal))}")
    if not pairs:
        raise ValueError("no pairs were given")
    asked = [(pair, number) for pair in pairs for number in (1, 2)]
    blind = [pair for pair, number in asked if query == "relation" and not _sees_both(pair.members[number - 1])]
    if blind:
        raise ValueError(
            f"{blind[0].members[0].text!r}: the relation stands before an entity, its attention on that is 0 by construction (in "
            f"{len(blind)} of {len(asked)} texts); use pairs(..., form='published') or query='end'"
        )
    frames = []
    for chunk in batches(asked, batch_size):
        texts = [Example(f"{pair.id}/{number}", None, pair.members[number - 1].text) for pair, number in chunk]
        batch = encode_text(vlm, texts, template=template, system=system)
        places = [
            _places(spans, pair.members[number - 1], entity, query)
            for spans, (pair, number) in zip(batch.spans, chunk, strict=True)
        ]
        longest = max(len(asking) for asking, _, _ in places)  # shorter ones repeat their last token; cut off again below
        at = [asking + asking[-1:] * (longest - len(asking)) for asking, _, _ in places]
        with capture(vlm, attention_rows=layers, at=at) as got:
            vlm.forward(batch, logits_to_keep=1)
        rows = torch.stack(list(got.rows.values()), dim=1).double()  # [text, layer, head, row, key]
        for own, spans, where, (pair, number) in zip(rows, batch.spans, places, chunk, strict=True):
            frames.append(_table(own, list(got.rows), spans, where, pair, number))
    return pd.concat(frames, ignore_index=True).assign(entity=entity)[list(COLUMNS)]


def _sees_both(statement: Statement) -> bool:
    return statement.relation[0] >= max(statement.first[1], statement.second[1])


def _places(spans: Spans, statement: Statement, entity: str, query: str) -> tuple[list[int], list[int], list[int]]:
    """Tokens that ask, and those of the first and the second entity."""
    asking = spans.characters(*statement.word()) if query == "relation" else spans.user[-1:]
    name = statement.noun if entity == "phrase" else statement.shape
    return asking.tolist(), spans.characters(*name("first")).tolist(), spans.characters(*name("second")).tolist()


def _table(rows: torch.Tensor, layers: list[int], spans: Spans, where: tuple, pair: CaptionPair, number: int) -> pd.DataFrame:
    asking, first, second = where
    attention = rows[:, :, : len(asking)].mean(2).numpy()  # [layer, head, key]
    to_first, to_second = (attention[:, :, entity].sum(-1) for entity in (first, second))
    layer, head = np.meshgrid(layers, np.arange(attention.shape[1]), indexing="ij")
    even = np.mean([1 / (place - spans.start + 1) for place in asking])
    return pd.DataFrame(
        {
            "pair": pair.id,
            "cluster": pair.cluster,
            "relation": pair.relation,
            "member": number,
            "layer": layer.ravel(),
            "head": head.ravel(),
            "to_first": to_first.ravel(),
            "to_second": to_second.ravel(),
            "asymmetry": (to_first - to_second).ravel(),
            "chance_first": len(first) * even,
            "chance_second": len(second) * even,
            "first_tokens": len(first),
            "second_tokens": len(second),
        }
    )


def oriented(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of `measure` in which member 1 always says "left" or "above": pairs that say otherwise have members exchanged.

    "a left of b" and "b right of a" are one pair, counted from either end. Its content changes sign with the end, so that pooled
    over left and right it would cancel; oriented, content is the preference for the left (upper) entity, whatever was said.
    """
    turned = frame["relation"].isin(["right", "below"])
    relation = frame["relation"].where(~turned, frame["relation"].map(OPPOSITE))
    return frame.assign(relation=relation, member=frame["member"].where(~turned, 3 - frame["member"]))


def split(frame: pd.DataFrame, *, by: Sequence[str] = ("layer", "head", "relation"), seed: int = 0) -> pd.DataFrame:
    """Positional and content part of the asymmetry: the columns `by` and `SPLIT`.

    With a1 the asymmetry of the caption and a2 that of its counterfactual: positional = (a1 + a2) / 2, what both share, towards
    the first mention; content = (a1 - a2) / 2, towards the entity that the caption mentions first, wherever it is mentioned. By
    relation it says which end of "left" is preferred; pooled over left and right see `oriented`. Both are 0 for a model that
    favours neither, and that is what p tests (signs flipped by cluster; q: Benjamini-Hochberg over the table). *_chance: the part
    if attention were even over tokens, which is 0 but for entities of unequally many tokens.
    by: among layer, head and relation; what is left out is averaged, pair by pair. Intervals: whole clusters resampled. A group
    of one cluster has an estimate alone.
    Raises ValueError for another `by`, a missing column, and a pair without one of its members or with one twice.
    """
    _check_by(by)
    kept = [name for name in ("layer", "head") if name in by]
    both = _asymmetries(frame)
    groups = both.groupby("relation") if "relation" in by else [("", both)]
    made = pd.concat([_parts(part, kept, seed).assign(relation=relation) for relation, part in groups], ignore_index=True)
    for p, q in (("positional_p", "positional_q"), ("p", "q")):
        known = made[p].notna()  # not so in groups of one cluster
        made[q] = np.nan
        if known.any():
            made.loc[known, q] = benjamini_hochberg(made.loc[known, p].to_numpy())
    return made[[*by, *SPLIT]]


def _parts(both: pd.DataFrame, kept: list[str], seed: int) -> pd.DataFrame:
    """Both parts of the asymmetries, a row for each of what is kept; without what needs the whole table."""
    labels, clusters, (a1, a2, even1, even2) = _by_pair(both, kept)
    positional, content = (columns(part / 2, clusters, seed=seed) for part in (a1 + a2, a1 - a2))
    found = {f"positional{end}": getattr(positional, name) for end, name in _ENDS.items()}
    found |= {f"content{end}": getattr(content, name) for end, name in _ENDS.items()}
    found |= {"positional_chance": (even1 + even2).mean(0) / 2, "content_chance": (even1 - even2).mean(0) / 2}
    return labels.assign(**found, n=content.n, clusters=content.clusters).rename(columns={"content_p": "p"})


def against_neutral(
    frame: pd.DataFrame, control: pd.DataFrame, *, by: Sequence[str] = ("layer", "head", "relation"), seed: int = 0
) -> pd.DataFrame:
    """Content of relation words beside that of words without a direction: [*by, content, control, excess, low, high, n,
    clusters].

    control: a table of `measure` of the same examples' ``pairs(..., words="neutral")``; both oriented, or neither. excess:
    |content| - |control|, with its interval. Which neutral word stands for which direction means nothing, so only the size of its
    content counts; it is one pair of words, and another would give another size: heads of a random model exceed or miss it
    too. What a trained model has of it is to be held against an untrained one. by: as in `split`.
    Raises ValueError as `split`, and where the tables are not of the same pairs, layers and heads.
    """
    _check_by(by)
    kept = [name for name in ("layer", "head") if name in by]
    key = ["pair", "cluster", "relation", "layer", "head"]
    one, other = (_asymmetries(table).sort_values(key, ignore_index=True) for table in (frame, control))
    if not one[key].equals(other[key]):
        raise ValueError("the control is of other pairs, relations, layers or heads; measure both alike")
    rows = []
    for relation in sorted(one["relation"].unique()) if "relation" in by else [None]:
        own = slice(None) if relation is None else one["relation"] == relation
        (labels, clusters, (a1, a2, *_)), (_, _, (b1, b2, *_)) = (_by_pair(table[own], kept) for table in (one, other))
        content, neutral = (a1 - a2) / 2, (b1 - b2) / 2
        found, low, high = excess(content, neutral, clusters, seed=seed)
        made = {"content": content.mean(0), "control": neutral.mean(0), "excess": found, "low": low, "high": high}
        rows.append(labels.assign(relation=relation, **made, n=len(content), clusters=len(set(clusters))))
    return pd.concat(rows, ignore_index=True)[[*by, "content", "control", "excess", "low", "high", "n", "clusters"]]


def _check_by(by: Sequence[str]) -> None:
    legal = ("layer", "head", "relation")
    if wrong := [name for name in by if name not in legal]:
        raise ValueError(f"by={wrong[0]!r} is unknown; among {', '.join(legal)}")


def _by_pair(both: pd.DataFrame, kept: list[str]) -> tuple[pd.DataFrame, np.ndarray, list[np.ndarray]]:
    """What each column is, the cluster of each row, and a1, a2, even1, even2 as [pair, column], means over what is not kept."""
    values = ["a1", "a2", "even1", "even2"]
    wide = both.groupby(["cluster", "pair", *kept])[values].mean().unstack(kept)
    labels = wide["a1"].columns.to_frame(index=False) if kept else pd.DataFrame(index=[0])
    clusters = wide.index.get_level_values("cluster").to_numpy()
    return labels, clusters, [wide[name].to_numpy().reshape(len(wide), -1) for name in values]


def published_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """The study's table of pairs: [pair, relation, kept, asym_s1, asym_s2, symmetry_score], all layers and heads averaged.

    symmetry_score: asym_s1 + asym_s2, the study's ("ideally 0"), twice the positional part. kept: whether both shapes are single
    tokens; the study drops the other pairs. frame: of `measure(..., entity="shape", query="relation")`.
    Raises ValueError for a table of whole phrases.
    """
    if (frame["entity"] != "shape").any():
        raise ValueError("the study reads the shapes' own words: give a table of measure(..., entity='shape')")
    both = _asymmetries(frame)
    single = (frame["first_tokens"] == 1) & (frame["second_tokens"] == 1)
    kept = single.groupby([frame["pair"], frame["relation"]], sort=False).all().rename("kept")
    means = both.groupby(["pair", "relation"], sort=False)[["a1", "a2"]].mean()
    made = pd.concat([kept, means.rename(columns={"a1": "asym_s1", "a2": "asym_s2"})], axis=1).reset_index()
    return made.assign(symmetry_score=made["asym_s1"] + made["asym_s2"])


def as_published(frame: pd.DataFrame) -> pd.DataFrame:
    """The study's summary in one row: [total_pairs, kept_pairs, skipped_pairs, asym_s1, asym_s2, symmetry_score,
    mean_abs_symmetry_score], means over the pairs whose shapes are single tokens; NaN where there are none.

    frame: as for `published_pairs`.
    """
    each = published_pairs(frame)
    kept = each[each["kept"]]
    means = kept[["asym_s1", "asym_s2", "symmetry_score"]].mean()
    counts = {"total_pairs": len(each), "kept_pairs": len(kept), "skipped_pairs": len(each) - len(kept)}
    return pd.DataFrame([{**counts, **means, "mean_abs_symmetry_score": kept["symmetry_score"].abs().mean()}])


def _asymmetries(frame: pd.DataFrame) -> pd.DataFrame:
    """[pair, cluster, relation, layer, head, a1, a2, even1, even2] of a table of `measure`: both members' asymmetries, and what
    they would be if attention were even.
    """
    key = ["pair", "cluster", "relation", "layer", "head"]
    for name in (*key, "member", "asymmetry", "chance_first", "chance_second"):
        if name not in frame.columns:
            raise ValueError(f"the column {name!r} is missing; there: {', '.join(map(str, frame.columns))}")
    if (twice := frame.duplicated(["pair", "layer", "head", "member"])).any():
        raise ValueError(f"pair {frame.loc[twice, 'pair'].iloc[0]!r} stands twice: give one model's rows, and ids that differ")
    values = frame.assign(a=frame["asymmetry"], even=frame["chance_first"] - frame["chance_second"])
    wide = values.pivot(index=key, columns="member", values=["a", "even"])
    if set(frame["member"]) != {1, 2} or wide.isna().any(axis=None):
        raise ValueError("every pair needs member 1, the caption, and member 2, its counterfactual")
    return wide.set_axis([f"{name}{member}" for name, member in wide.columns], axis=1).reset_index()
