"""Where things are on the disk: the checkout's root, the lab's models, what runs write.

Knows folders, not what is in them. A checkout is told by `papermill_runs.yaml` at its root; a plain install (wheel, Colab) has
none, works in the current folder and carries the lab inside the package.
"""

import os
from pathlib import Path

MARK = "papermill_runs.yaml"
PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """The nearest parent of the current folder, else of the package, that holds papermill_runs.yaml; None outside a checkout."""
    for start in (Path.cwd(), PACKAGE):
        for folder in (start, *start.parents):
            if (folder / MARK).is_file():
                return folder
    return None


def root() -> Path:
    """The checkout's root, or the current folder outside a checkout."""
    return checkout() or Path.cwd()


def lab_folder(base: Path | None = None) -> Path:
    """The lab models' folder: SPATIALPROBES_LAB, else `data/lab` of the checkout (or of `base`), else the package's copy."""
    if override := os.environ.get("SPATIALPROBES_LAB"):
        return Path(override)
    found = base or checkout()
    return found / "data" / "lab" if found else PACKAGE / "data" / "lab"


def run_folder(run: str, base: Path | None = None) -> Path:
    """Where the run's executed notebook, tables and claims are: `data/runs/<run>`."""
    return (base or root()) / "data" / "runs" / run


def figure_folder(run: str, base: Path | None = None) -> Path:
    """Where the run's figures go: `figures/<run>`, or `$SPATIALPROBES_FIGURES/<run>` while a run is under way."""
    if override := os.environ.get("SPATIALPROBES_FIGURES"):
        return Path(override) / run
    return (base or root()) / "figures" / run
