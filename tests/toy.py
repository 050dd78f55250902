"""A checkout in miniature for the run engine's tests: one notebook, a library of one module, the real Snakefile and profiles."""

import shutil
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = """\
model: str = "lab-toy"  # a lab name, a folder or a hub id
size: str = "quick"  # quick | lab: how much to do
scale: float = 1.0  # factor
kind: "Literal['mean', 'median'] | None" = None  # which average
heads: list[int] = [0]  # heads to look at
wait: float = 0.0  # seconds to sleep
fail: bool = False  # raise an error
out: str = ""  # folder for the results
"""
WRITE = """\
import os, pathlib, time
folder = pathlib.Path(out)
(folder / "tables").mkdir(parents=True, exist_ok=True)
(folder / "tables" / "x.txt").write_text(f"{size} {scale}")
figures = pathlib.Path(os.environ["SPATIALPROBES_FIGURES"]) / folder.name
figures.mkdir(parents=True, exist_ok=True)
(figures / "x.png").write_text("picture")
print("threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
time.sleep(wait)"""
FAIL = """\
if fail:
    raise ValueError("on purpose")"""


def notebook(path: Path, parameters: str = PARAMETERS, write: str = WRITE) -> None:
    """A notebook with a parameters cell, a cell that writes a table and a figure, and one that fails if asked."""
    code = nbformat.v4.new_code_cell
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    book.cells = [
        nbformat.v4.new_markdown_cell("# Toy"),
        code(parameters, metadata={"tags": ["parameters"]}),
        code(write),
        code(FAIL),
    ]
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def checkout(folder: Path, plan: str) -> Path:
    """A checkout in `folder` with this text as its papermill_runs.yaml."""
    notebook(folder / "notebooks" / "toy.ipynb")
    (folder / "papermill_runs.yaml").write_text(plan)
    (folder / "lib" / "spatialprobes").mkdir(parents=True)
    (folder / "lib" / "spatialprobes" / "toy.py").write_text('"""Doc."""\n\n\ndef one():\n    """One."""\n    return 1  # one\n')
    (folder / "requirements.lock").write_text("# pins\ntorch==2.13.0\n")
    lab = folder / "data" / "lab" / "lab-toy"
    lab.mkdir(parents=True)
    (lab / "config.json").write_text("{}")
    (lab / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../shared/w.safetensors"}}')
    (lab.parent / "shared").mkdir()
    (lab.parent / "shared" / "w.safetensors").write_bytes(b"weights")
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    return folder
