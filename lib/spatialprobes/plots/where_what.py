"""Where and what before and after a connector, from the table of `probes.where_what.summary`.

Knows tables; knows nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.plots import colour, need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = ("view", "factor", "form", "site", "value", "low", "high", "chance")
SITES = {"pre": "before", "pre_normed": "before, normed", "post": "after"}
VIEWS = {"neighbours": "neighbours alike\n(share beyond chance)", "decoding": "read linearly\n(share right; $R^2$)"}
FORMS = {"tokens": "all tokens", "pooled": "mean over tokens"}
FACTORS = {"what": "what (same thing; colour)", "where": "where (same cell; centre, $R^2$)"}


def before_after(frame: pd.DataFrame) -> Figure:
    """A panel a view and form (all tokens, their mean); bars by site for what and where, with intervals and chance (line).

    Needs view, factor, form, site, value, low, high, chance. Raises ValueError for missing columns.
    """
    need(frame, COLUMNS, "where_what.before_after")
    sites = [site for site in SITES if site in set(frame["site"])]
    figure = new_figure("two", 4.2)
    axes = figure.subplots(2, 2, sharex=True, squeeze=False)
    width = 0.8 / len(FACTORS)
    for row, view in enumerate(VIEWS):
        for column, form in enumerate(FORMS):
            axis = axes[row, column]
            for place, factor in enumerate(FACTORS):
                part = frame[(frame["view"] == view) & (frame["form"] == form) & (frame["factor"] == factor)]
                part = part.set_index("site").reindex(sites)
                x = np.arange(len(sites)) + (place - 0.5) * width
                error = np.array([part["value"] - part["low"], part["high"] - part["value"]])
                axis.bar(x, part["value"], width * 0.92, yerr=error, color=colour(factor, place), label=FACTORS[factor],
                         error_kw={"elinewidth": 0.8, "capsize": 1.5})  # fmt: skip
                axis.hlines(part["chance"], x - width / 2, x + width / 2, colors="black", linestyles=":", linewidth=1,
                            label="chance" if not place else None)  # fmt: skip
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set_xticks(range(len(sites)), [SITES[site] for site in sites])
            axis.set_ylim(min(-0.08, float(frame["low"].min()) - 0.03), 1.05)
            if not row:
                axis.set_title(FORMS[form])
            if not column:
                axis.set_ylabel(VIEWS[view])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
