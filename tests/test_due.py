"""What makes a run due, and what does not: the hash follows what can change a result and nothing else."""

import json
import os

import nbformat
import pytest
from toy import WRITE, checkout, notebook

from spatialprobes import due, runs

PLAN = """\
- {name: a, suite: lab, notebook: toy}
- {name: b, suite: lab, notebook: toy, needs: [a], parameters: {model: org/real}}
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("SPATIALPROBES_LAB", raising=False)
    return checkout(tmp_path, PLAN)


def hashes(root):
    """Hash of every run by name."""
    return {name: status.hash for name, status in due.statuses(root).items()}


def pretend_complete(root, name):
    """Leave what a completed run leaves."""
    status = due.statuses(root)[name]
    folder = root / "data" / "runs" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"hash": status.hash, "parts": status.parts}))
    due.complete_marker(name, status.hash, root).touch()


def test_complete_needs_record_and_marker(root):
    assert {status.state for status in due.statuses(root).values()} == {"missing"}
    pretend_complete(root, "a")
    assert due.statuses(root)["a"].state == "complete"
    (root / "data" / "runs" / "a" / "run.json").write_text("{")
    assert due.statuses(root)["a"].state == "missing"


def test_a_run_whose_files_are_gone_is_not_complete(root):
    pretend_complete(root, "a")
    table = root / "data" / "runs" / "a" / "tables" / "x.parquet"
    table.parent.mkdir()
    table.write_text("x")
    record = json.loads((root / "data/runs/a/run.json").read_text()) | {
        "files": ["data/runs/a/tables/x.parquet", "figures/a/x.png"]
    }
    (root / "data/runs/a/run.json").write_text(json.dumps(record))
    assert due.statuses(root)["a"].why == "1 of its files are gone, such as figures/a/x.png"
    (root / "figures" / "a").mkdir(parents=True)
    (root / "figures" / "a" / "x.png").write_text("x")
    assert due.statuses(root)["a"].state == "complete"
    table.unlink()
    assert due.statuses(root)["a"].state == "stale"


def test_a_run_says_which_of_its_needs_failed(root):
    found = due.statuses(root)
    assert found["a"].why == "no results yet" and found["b"].why == "no results yet"
    left = root / "data" / "runs" / "a" / "failed"
    left.mkdir(parents=True)
    (left / "failed.json").write_text(json.dumps({"hash": found["a"].hash, "parts": found["a"].parts, "error": "no"}))
    assert due.statuses(root)["b"].why == "no results yet; it needs a, which failed"
    pretend_complete(root, "b")
    assert due.statuses(root)["b"].state == "complete"


LIBRARY, LAB = "lib/spatialprobes/toy.py", "data/lab/lab-toy"
TWIN = WRITE.replace("x.txt", "y.txt")


def rewrite(path, old, new):
    """Replace text in a file that must hold it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def add_outputs(root):
    path = root / "notebooks" / "toy.ipynb"
    book = nbformat.read(path, 4)
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="hello")]
    book.cells[2].execution_count = 7
    book.metadata["widgets"] = {}
    nbformat.write(book, path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: rewrite(root / LIBRARY, "  # one", "  # two"),
        lambda root: rewrite(root / LIBRARY, '"""One."""', '"""Another."""'),
        lambda root: rewrite(root / LIBRARY, '"""Doc."""\n\n\n', ""),
        lambda root: rewrite(root / LIBRARY, "return 1", "return (  1)"),
        lambda root: os.utime(root / LIBRARY, (1, 1)),
        lambda root: os.utime(root / LAB / "config.json", (1, 1)),
        lambda root: rewrite(root / "requirements.lock", "# pins", "# the pins"),
        lambda root: rewrite(root / "papermill_runs.yaml", "- {name: a", "# a comment\n- {name: a"),
        lambda root: (root / "lib/spatialprobes/cli.py").write_text("x = 1"),
        lambda root: (root / LAB / ".cache").write_text("x"),
        add_outputs,
    ],
)
def test_what_can_not_change_a_result_makes_no_run_due(root, edit):
    before = hashes(root)
    edit(root)
    assert hashes(root) == before


@pytest.mark.parametrize(
    ("edit", "changed", "why"),
    [
        (lambda root: rewrite(root / LIBRARY, "return 1", "return 2"), "ab", "library changed: toy.py"),
        (lambda root: (root / "lib/spatialprobes/new.py").write_text("x = 1"), "ab", "library changed: new.py"),
        (lambda root: rewrite(root / LIBRARY, "return 1", "return 1 +"), "ab", "library changed: toy.py"),
        (lambda root: rewrite(root / "requirements.lock", "2.13.0", "2.13.1"), "ab", "packages changed"),
        (lambda root: notebook(root / "notebooks/toy.ipynb", write=TWIN), "ab", "notebook changed"),
        (
            lambda root: rewrite(root / "papermill_runs.yaml", "toy}", "toy, parameters: {size: lab}}"),
            "ab",
            "parameters changed: size",
        ),
        (lambda root: rewrite(root / "papermill_runs.yaml", "org/real", "org/other"), "b", "parameters changed: model"),
        (lambda root: rewrite(root / LAB / "config.json", "{}", "{ }"), "ab", "data changed: lab-toy"),
        (lambda root: (root / "data/lab/shared/w.safetensors").write_bytes(b"WEIGHTS"), "ab", "data changed: lab-toy"),
        (
            lambda root: (root / "data" / "samples").mkdir() or (root / "data/samples/x.png").write_text("x"),
            "ab",
            "samples changed",
        ),
    ],
)
def test_what_can_change_a_result_makes_its_runs_due_and_says_why(root, edit, changed, why):
    pretend_complete(root, "a")
    pretend_complete(root, "b")
    before = hashes(root)
    edit(root)
    found = due.statuses(root)
    assert {name for name in before if found[name].hash != before[name]} == set(changed)
    for name in changed:
        assert found[name].state == "stale"
    assert why in found[changed[0]].why
    if changed == "ab":
        assert "needs changed: a" in found["b"].why


def test_a_named_path_of_the_checkout_counts_and_one_outside_does_not(root, tmp_path):
    rewrite(root / "papermill_runs.yaml", "org/real", "data/mine")
    (root / "data" / "mine").mkdir()
    before = hashes(root)
    (root / "data" / "mine" / "x").write_text("x")
    assert hashes(root)["b"] != before["b"] and hashes(root)["a"] == before["a"]
    rewrite(root / "papermill_runs.yaml", "data/mine", "../elsewhere")
    assert due.statuses(root)["b"].parts["data"] == {}


def test_a_lab_model_named_in_the_code_counts(root):
    (root / "data/lab/lab-toy-2").mkdir()
    (root / "data/lab/lab-toy-2/config.json").write_text("{}")
    assert set(due.statuses(root)["b"].parts["data"]) == set()
    notebook(root / "notebooks/toy.ipynb", write=WRITE + '\nmodel_2 = "lab-toy-2"')
    assert set(due.statuses(root)["b"].parts["data"]) == {"lab-toy-2"}
    assert set(due.statuses(root)["a"].parts["data"]) == {"lab-toy", "lab-toy-2"}


@pytest.mark.parametrize("value", ["lab-toy-2 lab-toy", "vanilla=lab-toy-2 last=lab-toy", "lab-toy-2"])
def test_every_lab_model_of_a_parameter_with_several_counts(root, value):
    (root / "data/lab/lab-toy-2").mkdir()
    (root / "data/lab/lab-toy-2/config.json").write_text("{}")
    rewrite(root / "papermill_runs.yaml", "org/real", value)
    before = hashes(root)
    assert "lab-toy-2" in due.statuses(root)["b"].parts["data"]
    (root / "data/lab/lab-toy-2/config.json").write_text("{ }")
    assert hashes(root)["b"] != before["b"] and hashes(root)["a"] == before["a"]


def test_what_stands_beside_a_lab_model_counts_where_the_code_names_its_folder(root):
    for name in ("small/lab-toy", "small/lab-toy-other", "small/lab-toys", "tiny/lab-toy"):
        (root / "data/lab" / name).mkdir(parents=True)
        (root / "data/lab" / name / "config.json").write_text("{}")
    assert set(due.statuses(root)["a"].parts["data"]) == {"lab-toy"}
    notebook(root / "notebooks/toy.ipynb", write=WRITE + '\nfolder = "small"')
    assert set(due.statuses(root)["a"].parts["data"]) == {"lab-toy", "small/lab-toy", "small/lab-toy-other"}


def test_a_failed_attempt_is_told_until_something_changes(root):
    status = due.statuses(root)["a"]
    left = root / "data" / "runs" / "a" / "failed"
    left.mkdir(parents=True)
    (left / "failed.json").write_text(json.dumps({"hash": status.hash, "parts": status.parts, "error": "cell 2: no"}))
    assert due.statuses(root)["a"].state == "failed" and due.statuses(root)["a"].why == "last attempt failed: cell 2: no"
    rewrite(root / LIBRARY, "return 1", "return 2")
    assert due.statuses(root)["a"].why == "last attempt failed, since then library changed: toy.py"


def test_the_plan_of_this_checkout_hashes(monkeypatch):
    from toy import ROOT

    plan = runs.load(ROOT)
    assert list(due.statuses(ROOT, plan)) == list(plan)


@pytest.mark.parametrize("value", ["x" * 300 + "/y", "./", "data/.."])
def test_words_with_a_slash_that_name_nothing_in_the_checkout_are_no_data(root, value):
    rewrite(root / "papermill_runs.yaml", "org/real", value)
    assert due.statuses(root)["b"].parts["data"] == {}
