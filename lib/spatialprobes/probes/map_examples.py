"""Which maps are shown: best, median and worst by a stated metric, as a table that `plots/head_maps.py` draws.

No picture is picked by hand. Knows maps, scores and boxes; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.images import open_image, png_bytes
from spatialprobes.probes.maps import Panels

RANKS = {"best": 1.0, "median": 0.5, "worst": 0.0}
FRAME = ("scale_x", "scale_y", "shift_x", "shift_y")
EDGES = ("x_min", "y_min", "x_max", "y_max")


def chosen(scores: pd.DataFrame, *, metric: str = "lift", role: str = "subject") -> pd.DataFrame:
    """The examples with the best, the median and the worst value of a metric: [rank, example, metric, value].

    scores: of `map_scores.score`; the role's own map against its own target. The median is the value of which half of the others
    are no larger; an example stands once, so few examples give fewer ranks. Raises ValueError where no such value is known.
    """
    own = scores[(scores["role"] == role) & (scores["target"] == role) & (scores["metric"] == metric)]
    own = own.dropna(subset="value").sort_values(["value", "example"], kind="stable")
    if own.empty:
        raise ValueError(f"no map of {role!r} has a value of {metric!r}")
    rows = [own.iloc[round(share * (len(own) - 1))] for share in RANKS.values()]
    table = pd.DataFrame({"rank": list(RANKS), "example": [r["example"] for r in rows], "value": [r["value"] for r in rows]})
    return table.assign(metric=metric).drop_duplicates("example")[["rank", "example", "metric", "value"]]


def cells(panels: Panels, examples: Sequence[Example], chosen: pd.DataFrame) -> pd.DataFrame:
    """The maps of the chosen examples, one row per cell, with picture and boxes: what `plots.head_maps.overlays` draws.

    Columns: rank, example, metric, value, word, row, col, weight (sums to 1 over a map), scale_x, scale_y, shift_x, shift_y, png,
    and subject_x_min ... reference_y_max (fractions of the picture; NaN where the example names no such object).
    Raises KeyError for a chosen example that is not among the examples.
    """
    known = {example.id: example for example in examples}
    frames = []
    for _, pick in chosen.iterrows():
        example = known[pick["example"]]
        boxes = zip(("subject", "reference"), (*(one.box for one in example.objects[:2]), *[(np.nan,) * 4] * 2), strict=False)
        shared = {**pick.to_dict(), "png": png_bytes(open_image(example.image))}
        shared |= {f"{role}_{edge}": at for role, box in boxes for edge, at in zip(EDGES, box, strict=True)}
        for place in np.flatnonzero((panels.index["example"] == example.id).to_numpy()):
            weights, line = panels.maps[place], panels.index.iloc[place]
            row, col = np.divmod(np.arange(weights.size), weights.shape[1])
            about = {"word": line["word"], **{name: line[name] for name in FRAME}}
            frames.append(pd.DataFrame({**shared, **about, "row": row, "col": col, "weight": weights.ravel()}))
    return pd.concat(frames, ignore_index=True)
