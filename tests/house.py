"""The house's own checks: lock and environment.yaml say the same, notebooks and twins are in sync, a GPU is not left unused.

`python tests/house.py lock` writes both from the present environment, `... check` is part of `make check`, `... gpu` warns.
Knows files and tools, nothing of vision-language models.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
NOT_PINNED = {"pip", "setuptools", "wheel", "spatialprobes"}
LOCK_HEAD = """\
# Every package this was built and tested with. Written by `make lock`; `make install` installs it.
# No local version (+cpu, +cu130), no hash: one file serves CPU and CUDA builds of torch; `make help` says how to choose.
"""
ENVIRONMENT_HEAD = """\
# The same pins as requirements.lock, for conda and mamba: `conda env create -f environment.yaml && conda activate spatialprobes`,
# then `pip install --no-deps --no-build-isolation -e .`. Written by `make lock`; `make check` compares the two.
"""


def frozen() -> list[str]:
    """`name==version` of every installed package but pip and ours, without local versions."""
    found = {}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        if re.sub(r"[-_.]+", "-", name).lower() not in NOT_PINNED:
            found[name.lower()] = f"{name}=={package.version.partition('+')[0]}"
    return [found[name] for name in sorted(found)]


def locked(path: Path = ROOT / "requirements.lock") -> list[str]:
    """The pins of a requirements file, comments and blank lines left out."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def environment(pins: list[str]) -> str:
    """The text of environment.yaml for these pins."""
    pip = "".join(f"      - {pin}\n" for pin in pins)
    return (
        f"{ENVIRONMENT_HEAD}name: spatialprobes\nchannels:\n  - conda-forge\n  - nodefaults\n"
        f"dependencies:\n  - python=3.11\n  - pip\n  - pip:\n{pip}"
    )


def conda_pins(path: Path = ROOT / "environment.yaml") -> list[str]:
    """The pip pins of environment.yaml."""
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    return next((entry["pip"] for entry in dependencies if isinstance(entry, dict) and "pip" in entry), [])


def disagreements(lock: list[str], conda: list[str]) -> list[str]:
    """One line for each pin that only one of the two files has."""
    return [f"only in requirements.lock: {pin}" for pin in sorted(set(lock) - set(conda))] + [
        f"only in environment.yaml: {pin}" for pin in sorted(set(conda) - set(lock))
    ]


def unpaired(root: Path = ROOT) -> list[str]:
    """One line for each notebook and twin that differ, or that lack the other; outputs and execution counts aside."""
    import jupytext

    problems = []
    notebooks = {path.stem: path for path in (root / "notebooks").glob("*.ipynb")}
    twins = {path.stem: path for path in (root / "notebooks" / "scripts").glob("*.py")}
    for name in sorted(notebooks.keys() | twins.keys()):
        if name not in twins:
            problems.append(f"notebooks/{name}.ipynb has no twin notebooks/scripts/{name}.py: run `make sync`")
        elif name not in notebooks:
            problems.append(f"notebooks/scripts/{name}.py has no notebook notebooks/{name}.ipynb: run `make sync`")
        else:
            pair = [jupytext.read(path) for path in (notebooks[name], twins[name])]
            cells = [[(cell.cell_type, cell.source.strip(), cell.metadata.get("tags", [])) for cell in b.cells] for b in pair]
            if cells[0] != cells[1]:
                n = next((i for i, (a, b) in enumerate(zip(*cells, strict=False)) if a != b), min(map(len, cells)))
                problems.append(f"notebooks/{name}.ipynb and its twin differ from cell {n + 1} on: run `make sync`")
            if pair[1].metadata.get("kernelspec", {}).get("name") != "python3":
                problems.append(f"notebooks/scripts/{name}.py names no kernelspec python3, so papermill would find no kernel")
    return problems


def gpu_present() -> bool:
    """Whether the machine has an NVIDIA GPU, asked without torch."""
    if Path("/dev/nvidia0").exists():
        return True
    return bool(shutil.which("nvidia-smi")) and subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.startswith(
        b"GPU"
    )


def gpu_left_unused() -> str | None:
    """A warning when the machine has an NVIDIA GPU that torch can't use, else None."""
    if not gpu_present():
        return None
    import torch

    if torch.cuda.is_available():
        return None
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return (
        f"WARNING: this machine has an NVIDIA GPU, but torch {torch.__version__} ({build}) can't use it: all runs on the CPU. "
        "`make help` says how to install a CUDA build."
    )


def main(task: str) -> int:
    """Do one of `lock`, `check`, `gpu`; the exit status."""
    if task == "lock":
        pins = frozen()
        (ROOT / "requirements.lock").write_text(LOCK_HEAD + "".join(f"{pin}\n" for pin in pins))
        (ROOT / "environment.yaml").write_text(environment(pins))
        return 0
    if task == "gpu":
        if warning := gpu_left_unused():
            print(f"\033[1;33m{warning}\033[0m" if sys.stderr.isatty() else warning, file=sys.stderr)
        return 0
    problems = disagreements(locked(), conda_pins()) + unpaired()
    print("\n".join(problems) or "requirements.lock and environment.yaml agree; notebooks and twins are in sync")
    return 1 if problems else 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["lock"], ["check"], ["gpu"]):
        sys.exit("usage: python tests/house.py lock | check | gpu")
    sys.exit(main(sys.argv[1]))
