"""Which maps are shown is a rule: best, median and worst of a metric, each with its picture and both boxes."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spatialprobes.examples import Example, Object
from spatialprobes.plots import head_maps
from spatialprobes.probes import map_examples
from spatialprobes.probes.map_records import Panels

BOXES = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))


def scores(values):
    rows = [(f"e{i}", "subject", target, "lift", v if target == "subject" else 99.0) for i, v in enumerate(values)
            for target in ("subject", "reference")]  # fmt: skip
    return pd.DataFrame(rows, columns=["example", "role", "target", "metric", "value"])


def panels(names):
    grid = np.arange(6.0).reshape(2, 3) / 15
    index = [{"map": i, "example": name, "word": word, "role": role, "rows": 2, "cols": 3, "scale_x": 1.0, "scale_y": 1.0,
              "shift_x": 0.0, "shift_y": 0.0}
             for i, name in enumerate(names) for word, role in (("red circle", "subject"), ("left", "relation"))]  # fmt: skip
    return Panels(pd.DataFrame(index), [grid] * len(index))


def examples(count):
    things = [Object(name, (0.5, 0.5), box) for name, box in zip(("red circle", "blue cross"), BOXES, strict=True)]
    return [Example(f"e{i}", Image.new("RGB", (9, 6), (i, 0, 0)), objects=things) for i in range(count)]


def test_best_median_and_worst_of_the_own_box():
    picks = map_examples.chosen(scores([3.0, 1.0, np.nan, 5.0, 2.0, 4.0]))
    assert picks.set_index("rank")["value"].to_dict() == {"best": 5.0, "median": 3.0, "worst": 1.0}
    assert picks["example"].tolist() == ["e3", "e0", "e1"]


def test_few_examples_stand_once():
    assert map_examples.chosen(scores([2.0]))["rank"].tolist() == ["best"]
    assert len(map_examples.chosen(scores([2.0, 1.0]))) == 2
    with pytest.raises(ValueError, match="'lift'"):
        map_examples.chosen(scores([np.nan]))


def test_cells_are_the_maps_in_raster_order_and_can_be_drawn():
    picks = map_examples.chosen(scores([3.0, 1.0, 2.0]))
    table = map_examples.cells(panels(["e0", "e1", "e2"]), examples(3), picks)
    assert len(table) == 3 * 2 * 6
    one = table[(table["example"] == "e1") & (table["word"] == "left")]
    assert np.allclose(one.sort_values(["row", "col"])["weight"], np.arange(6) / 15)
    assert one["rank"].eq("worst").all() and one["reference_x_min"].eq(0.5).all() and one["subject_y_max"].eq(0.5).all()
    assert len(head_maps.overlays(table).axes) >= 9
    with pytest.raises(KeyError):
        map_examples.cells(panels(["e0"]), examples(0), picks.head(1))


def test_without_a_reference_its_box_is_unknown():
    one = examples(1)[0]
    alone = Example("e0", one.image, objects=one.objects[:1])
    table = map_examples.cells(panels(["e0"]), [alone], map_examples.chosen(scores([3.0])))
    assert table["reference_x_min"].isna().all() and table["subject_x_max"].eq(0.5).all()
