"""Parameters read from a cell and checked: against the types as written, and against what papermill itself reads."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import PARAMETERS, notebook

from spatialprobes.params import ParameterError, check_value, parse_parameters, read_parameters


def test_reads_names_types_defaults_and_meanings(tmp_path):
    notebook(tmp_path / "toy.ipynb")
    found = read_parameters(tmp_path / "toy.ipynb")
    assert list(found) == ["model", "size", "scale", "kind", "heads", "wait", "fail", "out"]
    assert found["kind"].annotation == "Literal['mean', 'median'] | None" and found["kind"].default is None
    assert found["size"].choices == ("quick", "lab") and found["size"].meaning == "quick | lab: how much to do"
    assert found["scale"].line == 3 and found["heads"].default == [0]


def test_agrees_with_papermill_where_papermill_sees_anything(tmp_path):
    import papermill

    notebook(tmp_path / "toy.ipynb")
    seen = papermill.inspect_notebook(str(tmp_path / "toy.ipynb"))
    ours = read_parameters(tmp_path / "toy.ipynb")
    assert set(seen) <= set(ours)
    for name, entry in seen.items():
        assert entry["help"] == ours[name].meaning
        assert eval(entry["default"]) == ours[name].default


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [0, -3], [True, 1.0, "1", None]),
        ("float", [1, 0.5], [True, "1", None]),
        ("bool", [True], [1, "true"]),
        ("str", ["", "x"], [1, None, ["x"]]),
        ("str | None", ["x", None], [3]),
        ("'list[int] | None'", [[1, 2], [], None], [[1, "a"], [True], 3]),
        ("Literal['a', 'b']", ["a"], ["c", None]),
        ("Optional[Literal[1, 2]]", [1, None], [3, "1"]),
        ("dict[str, float]", [{"x": 1}], [{"x": "y"}, [1]]),
        ("tuple[int, ...]", [[1, 2]], [["a"]]),
        ("Union[int, list[str]]", [1, ["a"]], ["a"]),
    ],
)
def test_values_are_checked_strictly(annotation, good, bad):
    default = repr(tuple(good[0]) if "tuple" in annotation else good[0])
    parameters = parse_parameters(f"x: {annotation} = {default}  # meaning")
    assert [check_value(parameters, "x", value) for value in good] == [None] * len(good)
    for value in bad:
        assert check_value(parameters, "x", value).startswith(f"x: {value!r} is not ")


def test_faults_name_the_nearest_legal_value():
    parameters = parse_parameters(PARAMETERS)
    assert check_value(parameters, "szie", "lab") == "unknown parameter 'szie'; nearest: size"
    assert check_value(parameters, "size", "quik") == "size: 'quik' is none of quick, lab; nearest: quick"
    assert check_value(parameters, "kind", "medan").endswith("; nearest: median")
    assert "not plain data" in check_value(parameters, "model", {1, 2})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = 1", "line 1: `a = 1` has no type"),
        ("a: int = 1\na: int = 2", "line 2: a is there already, in line 1"),
        ("a: int", "line 1: `a: int` is not of the form"),
        ("import os", "line 1: `import os` is not of the form"),
        ("a: str = str(1)", "line 1: the default of a, `str(1)`, is not a literal"),
        ("a: int = 'x'", "line 1: the default of a: 'x' is not int"),
        ("a: flota = 1.0", "line 1: type `flota` is not understood; nearest: float"),
        ("a: int =", "line 1: invalid syntax"),
        ("a: 'int |' = 1", "line 1: "),
        ("a: size | whole: int = 1", "line 1: "),
    ],
)
def test_a_cell_that_holds_anything_else_is_refused(source, message):
    with pytest.raises(ParameterError) as caught:
        parse_parameters(source)
    assert str(caught.value).startswith(message)


def test_all_faults_of_a_cell_are_told_at_once():
    with pytest.raises(ParameterError) as caught:
        parse_parameters("a = 1\nb: int = 'x'\nc: str = 'y'\nd = 2")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 1", "line 2", "line 4"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": 3}', '{"cells": [3]}', "not json"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, text):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(ParameterError, match="is not a notebook"):
        read_parameters(tmp_path / "x.ipynb")


def test_a_notebook_without_the_cell_has_no_parameters(tmp_path):
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": []}))
    assert read_parameters(tmp_path / "x.ipynb") == {}


@given(st.one_of(st.integers(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=3), st.none()))
def test_any_literal_is_legal_for_its_own_type(value):
    kind = {int: "int", bool: "bool", str: "str", list: "list[int]", type(None): "None"}[type(value)]
    parameter = parse_parameters(f"x: {kind} = {value!r}")["x"]
    assert parameter.default == value and parameter.fault(value) is None
