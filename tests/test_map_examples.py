"""Which maps are shown is a rule: best, median and worst of a metric, each with its picture and both boxes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spatialprobes.examples import Example, Object
from spatialprobes.plots import head_maps
from spatialprobes.probes import map_examples
from spatialprobes.probes.map_records import Panels

BOXES = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))


def scores(values, metric="lift"):
    """Of each example the mean of both words on their own boxes; what is on the other's box is larger, and must not count."""
    rows = []
    for i, value in enumerate(values):
        for role, own in (("subject", value - 1), ("reference", value + 1)):
            for target in ("subject", "reference"):
                rows.append((f"e{i}", role, target, metric, own if role == target else 99.0))
    frame = pd.DataFrame(rows, columns=["example", "role", "target", "metric", "value"])
    return frame.astype(dict.fromkeys(["example", "role", "target", "metric"], "category"))


def panels(names, words=("red circle", "left")):
    grid = np.arange(6.0).reshape(2, 3) / 15
    frame = {"rows": 2, "cols": 3, "scale_x": 1.0, "scale_y": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    roles = list(zip(words, ("subject", "relation"), strict=True))
    index = [{"example": name, "word": word, "role": role, **frame} for name in names for word, role in roles]
    return Panels(pd.DataFrame(index), [grid] * len(index))


def examples(count, boxes=BOXES):
    things = [Object(name, (0.5, 0.5), box) for name, box in zip(("red circle", "blue cross"), boxes, strict=False)]
    return [Example(f"e{i}", Image.new("RGB", (9, 6), (i, 0, 0)), objects=things) for i in range(count)]


def test_best_median_and_worst_of_the_own_boxes():
    picks = map_examples.choose(scores([3.0, 1.0, np.nan, 5.0, 2.0, 4.0]))
    assert picks.set_index("rank")["value"].to_dict() == {"best": 5.0, "median": 3.0, "worst": 1.0}
    assert picks["example"].tolist() == ["e3", "e0", "e1"] and picks["place"].tolist() == [0, 2, 4] and set(picks["n"]) == {5}


def test_the_best_distance_is_the_smallest():
    picks = map_examples.choose(scores([3.0, 1.0, 2.0], "distance"), "distance")
    assert picks["example"].tolist() == ["e1", "e2", "e0"]
    with pytest.raises(ValueError, match="'entropy_share' says nothing of better or worse"):
        map_examples.choose(scores([1.0], "entropy_share"), "entropy_share")


@given(st.lists(st.integers(0, 4).map(float), min_size=1, max_size=12), st.integers(1, 3))
def test_no_example_stands_twice_and_ties_go_by_id(values, each):
    picks = map_examples.choose(scores(values), each=each)
    assert picks["example"].is_unique and len(picks) == min(3 * each, len(values))
    order = sorted(range(len(values)), key=lambda i: (-values[i], f"e{i}"))
    assert [f"e{order[place]}" for place in picks["place"]] == picks["example"].tolist()
    assert picks.iloc[0]["value"] == max(values) and picks["rank"].iloc[0] == "best"


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(KeyError, match="no scores of 'auc'; there: lift"):
        map_examples.choose(scores([1.0]), "auc")
    with pytest.raises(ValueError, match="no example has 'lift' of both words"):
        map_examples.choose(scores([1.0]).query("role == 'subject'"))
    with pytest.raises(ValueError, match="a map of 'e0' stands twice"):
        map_examples.choose(pd.concat([scores([1.0]), scores([1.0])]))
    with pytest.raises(ValueError, match="rank 'nicest' is unknown"):
        map_examples.choose(scores([1.0]), ranks=["nicest"])
    with pytest.raises(ValueError, match="each=0"):
        map_examples.choose(scores([1.0]), each=0)


def test_cells_are_the_maps_in_raster_order_and_can_be_drawn():
    picks = map_examples.choose(scores([3.0, 1.0, 2.0]))
    table = map_examples.cells(panels(["e0", "e1", "e2"]), examples(3), picks)
    assert len(table) == 3 * 2 * 6
    one = table[(table["example"] == "e1") & (table["word"] == "left")]
    assert np.allclose(one.sort_values(["row", "col"])["weight"], np.arange(6) / 15)
    assert one["rank"].eq("worst").all() and one["reference_x_min"].eq(0.5).all() and one["subject_y_max"].eq(0.5).all()
    assert len([ax for ax in head_maps.overlays(table).axes if len(ax.images)]) == 9
    with pytest.raises(KeyError, match="'e0' was chosen, but is not among those given"):
        map_examples.cells(panels(["e0"]), examples(0), picks.head(1))
    with pytest.raises(KeyError, match="'e2' was chosen, but has no map"):
        map_examples.cells(panels(["e0"]), examples(3), picks[picks["example"] == "e2"])


def test_one_word_for_two_roles_is_told_apart_and_a_missing_box_is_unknown():
    picks = map_examples.choose(scores([3.0]))
    table = map_examples.cells(panels(["e0"], ("circle", "circle")), examples(1, BOXES[:1]), picks)
    assert list(dict.fromkeys(table["word"])) == ["circle (subject)", "circle (relation)"]
    assert table["reference_x_min"].isna().all() and table["subject_x_max"].eq(0.5).all()
