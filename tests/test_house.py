"""The house: pins agree, targets do what they say, the wheel carries the lab, imports point one way."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import house
import jupytext
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from toy import ROOT, notebook

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {canonicalize_name(pin.partition("==")[0]): pin.partition("==")[2] for pin in house.locked()}


def test_lock_and_environment_say_the_same():
    assert house.locked() and house.disagreements(house.locked(), house.conda_pins()) == []
    written = yaml.safe_load((ROOT / "environment.yaml").read_text())
    assert written["name"] == "spatialprobes" and "python=3.11" in written["dependencies"]
    assert (ROOT / "environment.yaml").read_text() == house.environment(house.locked())


def test_the_lock_is_plain_pins():
    for pin in house.locked():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin), pin
    assert not {"pip", "setuptools", "spatialprobes"} & PINS.keys()
    assert PINS["torch"] == "2.13.0" and {"hatchling", "editables"} <= PINS.keys()


def test_every_declared_dependency_is_pinned_within_its_bounds():
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), text


def test_what_is_installed_is_what_is_locked():
    assert {name: version(name).partition("+")[0] for name in PINS} == PINS


def test_disagreements_name_pin_and_file():
    assert house.disagreements(["a==1", "b==1"], ["a==1", "b==2"]) == [
        "only in requirements.lock: b==1",
        "only in environment.yaml: b==2",
    ]


def pair(folder, **changes):
    """A notebook and its twin as jupytext writes it, the twin's text changed."""
    notebook(folder / "notebooks" / "toy.ipynb")
    (folder / "notebooks" / "scripts").mkdir()
    text = jupytext.writes(nbformat.read(folder / "notebooks" / "toy.ipynb", 4), fmt="py:percent")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "notebooks" / "scripts" / "toy.py").write_text(text)


def test_a_notebook_and_its_twin_are_in_sync(tmp_path):
    pair(tmp_path)
    assert house.unpaired(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"Toy": "Toys"}, "differ from cell 1 on"),
        ({"if fail": "if not fail"}, "differ from cell 4 on"),
        ({' tags=["parameters"]': ""}, "differ from cell 2 on"),
        ({"kernelspec": "nothing"}, "names no kernelspec python3"),
    ],
)
def test_a_twin_that_drifted_is_told(tmp_path, changes, fault):
    pair(tmp_path, **changes)
    (told,) = house.unpaired(tmp_path)
    assert fault in told


def test_one_without_the_other_is_told(tmp_path):
    pair(tmp_path)
    (tmp_path / "notebooks" / "toy.ipynb").rename(tmp_path / "notebooks" / "other.ipynb")
    assert [told.split()[0] for told in house.unpaired(tmp_path)] == ["notebooks/other.ipynb", "notebooks/scripts/toy.py"]


def test_jupytext_pairs_by_the_folders_and_keeps_kernel_and_tags(tmp_path):
    notebook(tmp_path / "notebooks" / "toy.ipynb")
    (tmp_path / "jupytext.toml").write_text((ROOT / "jupytext.toml").read_text())
    subprocess.run(
        [sys.executable, "-m", "jupytext", "--sync", "notebooks/toy.ipynb"], cwd=tmp_path, check=True, capture_output=True
    )
    twin = (tmp_path / "notebooks" / "scripts" / "toy.py").read_text()
    assert 'tags=["parameters"]' in twin and "name: python3" in twin
    assert house.unpaired(tmp_path) == []


def test_an_unused_gpu_is_told_and_a_used_one_is_not(monkeypatch):
    import torch

    monkeypatch.setattr(house, "gpu_present", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "can't use it" in house.gpu_left_unused() and torch.__version__ in house.gpu_left_unused()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert house.gpu_left_unused() is None
    monkeypatch.setattr(house, "gpu_present", lambda: False)
    assert house.gpu_left_unused() is None


def make(*words, folder=ROOT, **environment):
    """The finished `make WORDS`."""
    known = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, env={**known, **environment})


def test_make_alone_says_what_each_target_does():
    text = make().stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    assert {"install", "figures", "redraw", "test", "check", "lab", "bench", "jupyter", "clean"} <= set(phony)
    for target in phony:
        assert re.search(rf"^  make {target} +\w", text, flags=re.MULTILINE), target


def test_make_figures_passes_its_options_on():
    done = make("--dry-run", "figures", "SUITE=full", "ONLY=swap-*", "JOBS=2", "PROFILE=slurm")
    assert "figures --suite 'full' --only 'swap-*' --jobs '2' --profile 'slurm'" in done.stdout


def test_make_clean_keeps_the_committed_figures(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in (
        "figures/readme/a.png",
        "figures/run/b.png",
        "figures/index.html",
        "data/runs/run/run.json",
        "data/lab/m/config.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for folder in ("lib/__pycache__", "tests", "benchmarks", "notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    for _ in range(2):
        assert make("clean", folder=tmp_path).returncode == 0
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["Makefile", "data/lab/m/config.json", "figures/readme/a.png"]
    assert not (tmp_path / "lib" / "__pycache__").exists()


@pytest.mark.parametrize("python", ["", sys.executable.replace("python", "nopython")])
def test_make_install_without_a_python_says_what_would_do(tmp_path, python):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "requirements.lock").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    done = make("install", f"PYTHON={python}", folder=tmp_path)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    if not python:
        assert "install Python 3.11, 3.12 or 3.13, or pass PYTHON=" in done.stdout + done.stderr


@pytest.mark.parametrize(("figures", "test", "status"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
def test_ci_runs_both_commands_and_fails_if_either_fails(tmp_path, figures, test, status):
    main = tmp_path / "main"
    (main / ".ci").mkdir(parents=True)
    (main / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    real = tmp_path / "shared" / "data"
    real.mkdir(parents=True)
    recipe = "\t@echo $@ $(SPATIALPROBES_REAL_DATA) >> log; exit {}\n"
    (main / "Makefile").write_text(f"figures:\n{recipe.format(figures)}test:\n{recipe.format(test)}")
    known = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "SPATIALPROBES_REAL_DATA")
    }
    done = subprocess.run(["sh", str(main / ".ci" / "run")], cwd=tmp_path, capture_output=True, env=known)
    assert done.returncode == status
    assert (main / "log").read_text().splitlines() == [f"figures {real.resolve()}", f"test {real.resolve()}"]


def test_the_wheel_carries_library_and_lab(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "lib", source / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data" / "lab", source / "data" / "lab")
    for name in ("a-model/config.json", "shared/weights.safetensors"):
        (source / "data" / "lab" / name).parent.mkdir(exist_ok=True)
        (source / "data" / "lab" / name).write_text("{}")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("spatialprobes/")}
        archive.extractall(tmp_path / "installed")
    library = {path.relative_to(source / "lib").as_posix() for path in (source / "lib" / "spatialprobes").rglob("*.py")}
    lab = {f"spatialprobes/{path.relative_to(source).as_posix()}" for path in (source / "data").rglob("*") if path.is_file()}
    assert library | lab == names
    code = "from spatialprobes import paths; print(paths.checkout()); print(paths.lab_folder())"
    elsewhere = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=True)
    checkout, folder = said.stdout.split()
    assert (
        checkout == "None" and Path(folder) == tmp_path / "installed" / "spatialprobes" / "data" / "lab" and Path(folder).is_dir()
    )


def test_imports_point_one_way():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
