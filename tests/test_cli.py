"""The command line: help says type, default and meaning of everything; faults are one line and exit 2; runs that fail give 1."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy import ROOT, checkout
from typer.main import get_command
from typer.testing import CliRunner

from spatialprobes import execute
from spatialprobes.cli import app
from spatialprobes.params import read_parameters

COMMANDS = sorted(get_command(app).commands)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def call(*words):
    """The result of `spatialprobes WORDS`."""
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def root(tmp_path, monkeypatch):
    checkout(tmp_path, "- {name: one, suite: lab, notebook: toy}\n- {name: two, suite: full, notebook: toy, needs: [one]}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_gives_type_default_and_meaning_of_every_option(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    for parameter in get_command(app).commands[command].params:
        if parameter.name == "help":
            continue
        entry = re.search(
            rf"(?:^|\s){re.escape(parameter.opts[-1] if parameter.opts[-1].startswith('--') else parameter.name)}\b.*", text
        )
        assert entry, f"{parameter.name} is not in the help of {command}"
        assert parameter.help and parameter.help.split()[0] in entry[0]
        if not getattr(parameter, "is_flag", False):
            assert "<" in entry[0], f"{parameter.name} of {command} shows no type"
        assert parameter.required or "[default:" in entry[0], f"{parameter.name} of {command} shows no default"


def test_the_top_help_names_every_command_and_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help']; from spatialprobes.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("module", ["paths", "params", "runs", "due", "execute", "cli"])
def test_the_run_engine_imports_without_torch(module):
    code = f"import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import spatialprobes.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figures", "--suite", "labs"], "unknown suite 'labs'; nearest: lab; legal: lab, full"),
        (["figures", "--only", "on"], "no run matches 'on' and is in suite 'lab'; nearest: one; runs: one, two"),
        (["figures", "--profile", "slrum"], "unknown profile 'slrum'; legal: local, slurm"),
        (["run", "noe"], "unknown run 'noe'; nearest: one; runs: one, two"),
        (["params", "toi"], "unknown notebook 'toi'; nearest: toy; there are: toy"),
        (["runs", "--suite", "x"], "unknown suite 'x'; legal: lab, full"),
    ],
)
def test_a_fault_is_one_line_and_exit_2(root, words, message):
    result = call(*words)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"spatialprobes: {message}"
    assert "Traceback" not in result.output


def test_debug_shows_where_an_error_came_from(root):
    result = call("--debug", "run", "noe")
    assert isinstance(result.exception, ValueError) and result.exit_code == 1


@pytest.mark.parametrize("words", [["figures", "--jobs", "0"], ["figurs"], ["run"], ["figures", "--jobs", "two"]])
def test_wrong_usage_is_exit_2(words):
    assert call(*words).exit_code == 2


def test_a_bad_plan_shows_every_fault(root):
    (root / "papermill_runs.yaml").write_text("- {name: a, suite: la, notebook: toy}\n- {name: b, suite: lab, notebook: tox}\n")
    result = call("runs")
    assert result.exit_code == 2
    assert "papermill_runs.yaml:1: unknown suite" in result.stderr and "papermill_runs.yaml:2: unknown notebook" in result.stderr


def test_outside_a_checkout_it_says_what_would_do(tmp_path, monkeypatch):
    from spatialprobes import paths

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    result = call("runs")
    assert result.exit_code == 2 and "Runs are made in a clone of the repository" in result.stderr


def test_runs_lists_where_each_run_stands(root):
    result = call("runs")
    assert [line.split()[:4] for line in result.stdout.splitlines()] == [
        ["one", "lab", "toy", "missing"],
        ["two", "full", "toy", "missing"],
    ]


def test_params_shows_type_default_and_meaning(root):
    lines = call("params", "toy").stdout.splitlines()
    assert "size: str = 'quick'  # quick | lab: how much to do" in lines
    assert "kind: Literal['mean', 'median'] | None = None  # which average" in lines


def test_dry_run_says_what_is_due_and_why_and_does_nothing(root, monkeypatch):
    monkeypatch.setattr(execute, "execute_due", None)
    result = call("figures", "--suite", "full", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["one: due, no results yet", "two: due, no results yet", "2 of 2 runs due"]
    assert not (root / "data" / "runs").exists()


def test_run_executes_once(root):
    first, again = call("run", "one"), call("run", "one")
    assert first.exit_code == 0 and "one: done in" in first.stdout
    assert again.exit_code == 0 and "one: complete already" in again.stdout


def test_a_failed_run_gives_1_and_its_log(root):
    (root / "papermill_runs.yaml").write_text("- {name: one, suite: lab, notebook: toy, parameters: {fail: true}}\n")
    result = call("run", "one")
    assert result.exit_code == 1
    assert result.stderr.startswith('FAILED one: In [4] (`raise ValueError("on purpose")`): ValueError: on purpose\n')
    assert "  | ValueError: on purpose" in result.stderr


def test_figures_builds_the_gallery_also_when_a_run_failed(root, monkeypatch):
    gallery = pytest.importorskip("spatialprobes.gallery", reason="the gallery is not there")
    built = []
    monkeypatch.setattr(gallery, "build", built.append)
    monkeypatch.setattr(execute, "execute_due", lambda names, root, *rest: execute.statuses(root))
    result = call("figures")
    assert result.exit_code == 1 and built == [root]
    assert "NOT COMPLETE one: no results yet" in result.stderr
    assert f"0 of 1 runs complete. Gallery: {root / 'figures' / 'index.html'}" in result.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_help_shows_type_default_and_meaning_of_each_parameter(notebook: Path):
    done = subprocess.run([sys.executable, "-m", "papermill", "--help-notebook", str(notebook)], capture_output=True, text=True)
    text = " ".join(done.stdout.split())
    parameters = read_parameters(notebook)
    assert done.returncode == 0 and parameters
    for parameter in parameters.values():
        default = re.escape(" ".join(repr(parameter.default).replace("'", '"').split()))
        assert parameter.meaning
        assert re.search(rf"{parameter.name}: {re.escape(parameter.annotation)} \(default {default}\) ", text), parameter.name
        assert " ".join(parameter.meaning.split()) in text


def test_lab_trains_the_models_asked_for(tmp_path, monkeypatch):
    from spatialprobes import lab

    asked = []
    monkeypatch.setattr(lab, "train_zoo", lambda *words, **options: asked.append((words, options)) or [tmp_path / "lab-llava"])
    words = ("lab", "--model", "lab-llava-seed1", "--model", "lab-text", "--out", str(tmp_path))
    assert call(*words).stdout == f"{tmp_path / 'lab-llava'}\n"
    assert call("lab", "--again").exit_code == 0
    assert asked[0] == ((("lab-llava-seed1", "lab-text"), tmp_path), {"again": False})
    assert asked[1][0][0] == () and asked[1][1] == {"again": True}


def test_a_failed_run_is_told_also_where_the_gallery_cannot_be_written(root, monkeypatch):
    from spatialprobes import gallery

    def refuse(root):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(gallery, "build", refuse)
    monkeypatch.setattr(execute, "execute_due", lambda names, root, *rest: __import__("spatialprobes.due").due.statuses(root))
    result = call("figures")
    assert result.exit_code == 1
    assert "NOT COMPLETE one: no results yet" in result.stderr and "Read-only file system" in result.stderr
    assert "0 of 1 runs complete." in result.stdout


def test_lab_says_at_once_that_a_file_is_no_folder(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialprobes.lab", None)  # nothing may be trained, or even imported
    (root / "taken").write_text("x")
    for out in ("taken", "taken/models"):
        result = call("lab", "--out", out)
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and f"--out '{out}' is no folder" in line
    assert call("lab", "--seed", "-1").exit_code == 2


def test_redraw_and_gallery_work_where_torch_cannot_be_imported(root):
    for command in ("redraw", "gallery"):
        code = f"import sys; sys.modules['torch'] = None; sys.argv[1:] = ['{command}']; from spatialprobes.cli import app; app()"
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"Gallery: {root / 'figures' / 'index.html'}" in done.stdout
    assert "one" in (root / "figures" / "index.html").read_text()
