"""Which maps are shown? The best, the median and the worst by a stated metric, and the table that the figure is drawn from.

The rule stands for every figure: an example's value is the mean of its words' maps, each against its own object, and nothing is
chosen by eye. Knows maps, scores and pictures; no model and no figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.images import open_image, png_bytes
from spatialprobes.probes.map_scores import METRICS

if TYPE_CHECKING:
    from spatialprobes.probes.map_records import Panels

RANKS = ("best", "median", "worst")
ROLES = ("subject", "reference")
EDGES = ("x_min", "y_min", "x_max", "y_max")
FRAME = ("scale_x", "scale_y", "shift_x", "shift_y")


def choose(scores: pd.DataFrame, metric: str = "lift", *, ranks: Sequence[str] = RANKS, each: int = 1) -> pd.DataFrame:
    """The examples to show: [rank, place, example, metric, value, n], `each` of every rank.

    scores: a table of `map_scores.score`, of one definition and one aggregate. value: the mean over the subject's and the
    reference's word of the metric on their own boxes; examples that lack one of them are no candidates. place: in the order from
    best (0) to worst, by value and then by id; n: candidates. The median is the lower one of an even number; `each` counts from
    the end of the order, and around the median. None stands twice: of few examples, some ranks have fewer.
    Raises KeyError for a metric that is not in the table, ValueError for one that has no better or worse, an unknown rank, each
    below 1, a map that stands twice, and where no example has both values.
    """
    if wrong := [rank for rank in ranks if rank not in RANKS]:
        raise ValueError(f"rank {wrong[0]!r} is unknown; one of {', '.join(map(repr, RANKS))}")
    if each < 1:
        raise ValueError(f"each={each} must be at least 1")
    if metric not in set(scores["metric"]):
        raise KeyError(f"no scores of {metric!r}; there: {', '.join(map(str, scores['metric'].unique()))}")
    if not METRICS[metric].better:
        raise ValueError(f"{metric!r} says nothing of better or worse; take a metric that does, such as 'lift'")
    own = scores[(scores["metric"] == metric) & scores["role"].isin(ROLES)]
    own = own[own["role"].astype(str) == own["target"].astype(str)].astype({"example": object, "role": object})
    if own.duplicated(["example", "role"]).any():
        raise ValueError(f"a map of {own.loc[own.duplicated(['example', 'role']), 'example'].iloc[0]!r} stands twice")
    values = own.pivot(index="example", columns="role", values="value").reindex(columns=list(ROLES)).dropna().mean(axis=1)
    if values.empty:
        raise ValueError(f"no example has {metric!r} of both words on their own boxes")
    order = values.rename("value").reset_index()
    order = order.sort_values(["value", "example"], ascending=[METRICS[metric].better == "lower", True], ignore_index=True)
    count, rows, taken = len(order), [], set()
    middle = sorted(range(count), key=lambda place: (abs(place - count // 2), place))
    candidates = {"best": range(count), "median": middle, "worst": range(count - 1, -1, -1)}
    for rank in ranks:
        for place in [place for place in candidates[rank] if place not in taken][:each]:
            taken.add(place)
            rows.append({"rank": rank, "place": place, **order.loc[place].to_dict()})
    return pd.DataFrame(rows).assign(metric=metric, n=count)[["rank", "place", "example", "metric", "value", "n"]]


def cells(panels: Panels, examples: Sequence[Example], chosen: pd.DataFrame) -> pd.DataFrame:
    """The table of `plots.head_maps.overlays`: every cell of every map of the chosen examples.

    Columns: example, word, role, row, col, weight, png (the picture's bytes), subject_x_min, ... reference_y_max (fractions of
    the picture), scale_x, scale_y, shift_x, shift_y, and the columns of `chosen` (a table of `choose`). A word that stands for
    two roles of an example is told apart by the role. Raises KeyError for an example that is not given or has no map.
    """
    known = {example.id: example for example in examples}
    frames = []
    for row in chosen.to_dict("records"):
        name = row["example"]
        own = np.flatnonzero(panels.index["example"].astype(str) == name)
        if name not in known or not len(own):
            raise KeyError(f"example {name!r} was chosen, but {'has no map' if name in known else 'is not among those given'}")
        index = panels.index.iloc[own]
        twice = index["word"].duplicated(keep=False)
        words = index["word"].where(~twice, index["word"] + " (" + index["role"] + ")")
        shared = {"png": png_bytes(open_image(known[name].image)), **_edges(known[name]), **row}
        for place, word, one in zip(own, words, index.to_dict("records"), strict=True):
            panel = panels.maps[place]
            at_row, at_col = np.divmod(np.arange(panel.size), panel.shape[1])
            labels = {"word": word, "role": one["role"], **{name: one[name] for name in FRAME}}
            frames.append(pd.DataFrame({"row": at_row, "col": at_col, "weight": panel.ravel()}).assign(**shared, **labels))
    return pd.concat(frames, ignore_index=True)


def _edges(example: Example) -> dict[str, float]:
    """The boxes of the first two objects, NaN for one that is not there."""
    boxes = [one.box for one in example.objects[: len(ROLES)]]
    boxes += [(np.nan,) * 4] * (len(ROLES) - len(boxes))
    return {
        f"{role}_{edge}": value for role, box in zip(ROLES, boxes, strict=True) for edge, value in zip(EDGES, box, strict=True)
    }
