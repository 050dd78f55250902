"""The run plan: every fault is told with its line and the nearest legal name, all at once; a good plan is read as it stands."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import checkout

from spatialprobes import runs

GOOD = """\
# the plan
- name: a
  suite: lab
  notebook: toy
  parameters: {size: lab, scale: 2, kind: median, heads: [1, 2]}
  resources: {gpu: 0, mem_gb: 1.5, minutes: 2}
- {name: b, suite: lab, notebook: toy, needs: [a]}
- {name: c-full, suite: full, notebook: toy, needs: [b], parameters: {model: org/name}}
"""


def faults(tmp_path, plan):
    """The faults that loading this text tells."""
    checkout(tmp_path, plan)
    with pytest.raises(runs.PlanError) as caught:
        runs.load(tmp_path)
    return caught.value.problems


def test_reads_a_good_plan(tmp_path):
    plan = runs.load(checkout(tmp_path, GOOD))
    assert list(plan) == ["a", "b", "c-full"]
    assert plan["a"] == runs.Run(
        "a", "lab", "toy", {"size": "lab", "scale": 2, "kind": "median", "heads": [1, 2]}, (), runs.Resources(0, 1.5, 2), 2
    )
    assert plan["b"].needs == ("a",) and plan["b"].line == 7


def test_the_empty_plan_has_no_runs(tmp_path):
    assert runs.load(checkout(tmp_path, "# nothing yet\n")) == {}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{name: a, suite: lab, notebok: toy}", ["3: the run has no 'notebook'", "3: unknown key 'notebok'; nearest: notebook"]),
        ("{name: a, suite: lab, notebook: toi}", ["3: unknown notebook 'toi'; nearest: toy"]),
        ("{name: a, suite: ful, notebook: toy}", ["3: unknown suite 'ful'; nearest: full; legal: lab, full"]),
        ("{name: 3, suite: lab, notebook: toy}", ["3: name: 3 is not text"]),
        ("{name: a/b, suite: lab, notebook: toy}", ["3: name: 'a/b' can't name a folder of results: "]),
        ("{name: readme, suite: lab, notebook: toy}", ["3: name: 'readme' can't name a folder of results: "]),
        ("{name: first, suite: lab, notebook: toy}", ["3: run 'first' is there already, in line 2"]),
        ("{name: a, suite: lab, notebook: toy, name: b}", ["3: 'name' is there already, in line 3"]),
        ("{name: a, suite: lab, notebook: toy, parameters: [size]}", ["3: parameters: ['size'] is not a mapping"]),
        ("{name: a, suite: lab, notebook: toy, parameters: {szie: lab}}", ["3: toy: unknown parameter 'szie'; nearest: size"]),
        (
            "{name: a, suite: lab, notebook: toy, parameters: {size: labb}}",
            ["3: toy: size: 'labb' is none of quick, lab; nearest: lab"],
        ),
        (
            "{name: a, suite: lab, notebook: toy, parameters: {kind: mode}}",
            ["3: toy: kind: 'mode' is not Literal['mean', 'median'] | None"],
        ),
        ("{name: a, suite: lab, notebook: toy, parameters: {scale: big}}", ["3: toy: scale: 'big' is not float"]),
        ("{name: a, suite: lab, notebook: toy, parameters: {scale: true}}", ["3: toy: scale: True is not float"]),
        ("{name: a, suite: lab, notebook: toy, parameters: {heads: [1, x]}}", ["3: toy: heads: [1, 'x'] is not list[int]"]),
        (
            "{name: a, suite: lab, notebook: toy, parameters: {model: 2026-01-01}}",
            ["3: toy: model: datetime.date(2026, 1, 1) is not plain"],
        ),
        ("{name: a, suite: lab, notebook: toy, parameters: {out: there}}", ["3: out: where a run writes"]),
        ("{name: a, suite: lab, notebook: toy, parameters: {1: x}}", ["3: the key 1 is not text"]),
        ("{name: a, suite: lab, notebook: toy, needs: frist}", ["3: needs: 'frist' is not a list"]),
        ("{name: a, suite: lab, notebook: toy, needs: [frist]}", ["3: a needs 'frist', which is no run; nearest: first"]),
        ("{name: a, suite: lab, notebook: toy, needs: [[a]]}", ["3: a needs \"['a']\", which is no run"]),
        ("{name: a, suite: lab, notebook: toy, needs: [a]}", ["3: runs need each other in a circle: a -> a"]),
        ("{name: a, suite: lab, notebook: toy, resources: {gpus: 1}}", ["3: unknown resource 'gpus'; nearest: gpu"]),
        ("{name: a, suite: lab, notebook: toy, resources: {gpu: 0.5}}", ["3: gpu: 0.5 is not a whole number, 0 or more"]),
        ("{name: a, suite: lab, notebook: toy, resources: {minutes: 0}}", ["3: minutes: 0 is not a number above 0"]),
        ("{name: a, suite: lab, notebook: toy, resources: {mem_gb: .nan}}", ["3: mem_gb: nan is not a number above 0"]),
        ("just text", ["3: a run is a mapping that begins with `- name:`"]),
        ("{}", ["3: the run has no 'name'", "3: the run has no 'suite'", "3: the run has no 'notebook'"]),
        ("&a {name: a, suite: lab, notebook: toy, needs: [*a]}", ["3: "]),
        (
            "{name: a, suite: lab, notebook: !!python/object:os.system x}",
            ["3: could not determine a constructor", "3: the run has no 'noteb"],
        ),
    ],
)
def test_each_fault_names_its_line_and_what_is_legal(tmp_path, line, expected):
    found = faults(tmp_path, f"# the plan\n- {{name: first, suite: lab, notebook: toy}}\n- {line}\n")
    for text in expected:
        assert any(fault.startswith(f"papermill_runs.yaml:{text}") for fault in found), found
    assert len(found) == len(expected), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs: []\n", "papermill_runs.yaml:1: the plan is a list of runs"),
        ("- {name: a\n- x", "papermill_runs.yaml:2: "),
        ("\t- a", "papermill_runs.yaml:1: "),
        ("- *nowhere", "papermill_runs.yaml:1: "),
        ("a\0b", "papermill_runs.yaml:1: "),
    ],
)
def test_what_is_no_plan_at_all_is_one_fault(tmp_path, text, expected):
    (fault,) = faults(tmp_path, text)
    assert fault.startswith(expected)


@pytest.mark.parametrize("opened", ["[", "{a: "])
def test_a_plan_nested_too_deeply_is_one_fault_with_its_line(tmp_path, opened):
    text = "- name: a\n  suite: lab\n  notebook: toy\n  parameters:\n    heads: "
    (fault,) = faults(tmp_path, text + opened * 5000)
    assert fault.startswith("papermill_runs.yaml:5: nested more than 20 deep")


def test_a_seed_that_is_none_is_a_fault_of_its_line(tmp_path):
    checkout(tmp_path, "")
    from toy import PARAMETERS, notebook

    notebook(tmp_path / "notebooks" / "toy.ipynb", parameters=PARAMETERS + "seed: int = 0  # of what is drawn\n")
    (tmp_path / "papermill_runs.yaml").write_text("- name: a\n  suite: lab\n  notebook: toy\n  parameters:\n    seed: -3\n")
    with pytest.raises(runs.PlanError, match=r"papermill_runs.yaml:5: toy: seed: -3 is no seed"):
        runs.load(tmp_path)


def test_lines_are_those_of_the_faulty_values(tmp_path):
    found = faults(
        tmp_path,
        """\
- name: a
  suite: lab
  notebook: toy
  parameters:
    size: lab
    scael: 2
    heads:
      - 1
      - x
  needs:
    - b
    - nowhere
- {name: b, suite: lab, notebook: toy, needs: [a]}
- {name: c, suite: none, notebook: toy}
""",
    )
    assert [int(fault.split(":")[1]) for fault in found] == [6, 7, 12, 13, 14]
    assert "a -> b -> a" in found[3]


def test_a_fault_in_a_notebook_is_told_once_with_both_places(tmp_path):
    checkout(tmp_path, "- {name: a, suite: lab, notebook: toy}\n- {name: b, suite: lab, notebook: toy}\n")
    from toy import notebook

    notebook(tmp_path / "notebooks" / "toy.ipynb", parameters="size = 3\nout: str = ''")
    with pytest.raises(runs.PlanError) as caught:
        runs.load(tmp_path)
    (fault,) = caught.value.problems
    assert fault.startswith("papermill_runs.yaml:1: ") and "toy.ipynb, cell tagged parameters, line 1: `size = 3`" in fault


def test_merge_keys_and_anchors_share_parameters(tmp_path):
    plan = runs.load(
        checkout(
            tmp_path,
            """\
- {name: a, suite: lab, notebook: toy, parameters: &shared {size: lab, scale: 2}}
- {name: b, suite: lab, notebook: toy, parameters: {<<: *shared, scale: 3}}
""",
        )
    )
    assert plan["b"].parameters == {"size": "lab", "scale": 3}


def test_select_takes_suite_glob_and_what_they_need(tmp_path):
    plan = runs.load(checkout(tmp_path, GOOD))
    assert runs.select(plan, "lab") == ["a", "b"]
    assert runs.select(plan, "full") == ["a", "b", "c-full"]
    assert runs.select(plan, only="b*") == ["a", "b"]
    assert runs.select(plan, "lab", "a") == ["a"]
    with pytest.raises(ValueError, match="no run matches 'c-ful' and is in suite 'full'; nearest: c-full; runs: a, b, c-full"):
        runs.select(plan, "full", "c-ful")
    with pytest.raises(ValueError, match="unknown suite 'labs'; nearest: lab"):
        runs.select(plan, "labs")


KEYS = st.sampled_from([*runs.KEYS, "nmae", 3])
VALUES = st.recursive(
    st.one_of(
        st.sampled_from(["a", "b", "toy", "lab", "size", "gpu"]), st.integers(-2, 2), st.booleans(), st.none(), st.floats()
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.sampled_from(["size", "gpu", "minutes"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.dictionaries(KEYS, VALUES, max_size=6) | VALUES, max_size=3))
def test_no_plan_breaks_the_reader(tmp_path, plan):
    if not (tmp_path / "notebooks").exists():
        checkout(tmp_path, "")
    (tmp_path / "papermill_runs.yaml").write_text(yaml.safe_dump(plan))
    try:
        found = runs.load(tmp_path)
    except runs.PlanError as error:
        assert error.problems and all(problem.startswith("papermill_runs.yaml:") for problem in error.problems)
    else:
        assert [run.name for run in found.values()] == [entry["name"] for entry in plan]
