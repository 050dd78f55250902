"""Which runs are due, and why: the hash of all that can change a run's results, part by part, against what lies on the disk.

A run's hash covers its parameters, its notebook (source, not outputs), the library's code (syntax trees, so comments and times
don't count), the lab models and files it names, the pins, and the hashes of the runs it needs. Knows files; executes nothing.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from . import paths
from .params import read_parameters
from .runs import Run, load, select

# What can't change a result: these only start runs, show them or talk. Editing them makes no run due.
NO_RESULT = ("cli.py", "__main__.py", "chat.py", "gallery.py", "readme.py", "runs.py", "due.py", "params.py")


@dataclass(frozen=True)
class Status:
    """Where a run stands: `state` is complete, stale (results of another hash), failed (its last attempt) or missing.

    `hash` and `parts` are those that the run would have now; `why` says in words what a run that is not complete lacks.
    """

    run: Run
    state: str
    hash: str
    parts: dict[str, Any]
    why: str = ""


def statuses(root: Path | None = None, plan: Mapping[str, Run] | None = None) -> dict[str, Status]:
    """Where every run of the plan stands, by name."""
    root = root or paths.root()
    plan = load(root) if plan is None else plan
    common = {"library": library_parts(root), "packages": _packages(root / "requirements.lock")}
    common["samples"] = _tree(root / "data" / "samples")
    found: dict[str, Status] = {}
    failed: dict[str, list[str]] = {}  # for each run, the failed ones that it waits for, or itself
    for name in select(plan) if plan else []:
        run = plan[name]
        notebook = root / "notebooks" / f"{run.notebook}.ipynb"
        parts = {
            "parameters": run.parameters,
            "notebook": _digest([run.notebook, _cells(notebook)]),
            "data": _named_data(root, run, notebook),
            "needs": {need: found[need].hash for need in run.needs},
            **common,
        }
        found[name] = _status(root, run, parts)
        failed[name] = list(dict.fromkeys(one for need in run.needs for one in failed[need]))
        if found[name].state == "failed":
            failed[name] = [name]
        elif found[name].state != "complete" and failed[name]:
            found[name] = replace(found[name], why=f"{found[name].why}; it needs {', '.join(failed[name])}, which failed")
    return {name: found[name] for name in plan}


def complete_marker(name: str, hash: str, root: Path) -> Path:
    """The file whose presence says, to Snakemake, that the run was completed with this hash."""
    return paths.run_folder(name, root) / f".complete-{hash}"


def files_gone(record: Mapping[str, Any], root: Path) -> list[str]:
    """Files that a run left, by its record, and that are there no more: paths from the root."""
    return [name for name in record.get("files", []) if not (root / name).is_file()]


def library_parts(root: Path) -> dict[str, str]:
    """Hash of each module of the library by path: of its syntax tree without docstrings, so comments and layout don't count."""
    folder = root / "lib" / "spatialprobes"
    folder = folder if folder.is_dir() else paths.PACKAGE
    files = sorted(path for path in folder.rglob("*.py") if path.relative_to(folder).as_posix() not in NO_RESULT)
    return {path.relative_to(folder).as_posix(): _code_hash(path.read_bytes()) for path in files}


@cache
def _code_hash(source: bytes) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # someone is editing: what can't be parsed is told by its bytes
        return hashlib.sha256(source).hexdigest()[:16]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, False
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _status(root: Path, run: Run, parts: dict[str, Any]) -> Status:
    """Compare what the run would be now with what lies on the disk."""
    hash = _digest(parts)
    folder = paths.run_folder(run.name, root)
    done, failed = _record(folder / "run.json"), _record(folder / "failed" / "failed.json")
    gone = files_gone(done, root)
    if done.get("hash") == hash and not gone and complete_marker(run.name, hash, root).exists():
        return Status(run, "complete", hash, parts)
    if failed.get("hash") == hash:
        return Status(run, "failed", hash, parts, f"last attempt failed: {failed.get('error', 'no reason recorded')}")
    if failed and not done:
        return Status(
            run, "failed", hash, parts, f"last attempt failed, since then {_difference(failed.get('parts', {}), parts)}"
        )
    if done:
        why = _difference(done.get("parts", {}), parts)
        lost = f"{len(gone)} of its files are gone, such as {gone[0]}" if gone else "its completion marker is gone"
        return Status(run, "stale", hash, parts, why or lost)
    return Status(run, "missing", hash, parts, "no results yet")


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two runs' parts, in words: `library changed: vlm.py; parameters changed: size`."""
    changes = []
    for part in new:
        before, now = old.get(part), new[part]
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            changes.append(f"{part} changed: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}")
        else:
            changes.append(f"{part} changed")
    return "; ".join(changes)


def _record(path: Path) -> dict[str, Any]:
    """A JSON record, empty where there is none or where it can't be read: then the run is not complete."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cells(notebook: Path) -> list[Any]:
    """What of a notebook decides its results and its page: kind, source and tags of the cells, not outputs or counts."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [[cell["cell_type"], "".join(cell["source"]), cell.get("metadata", {}).get("tags", [])] for cell in cells]


def _named_data(root: Path, run: Run, notebook: Path) -> dict[str, str]:
    """Hash of each lab model and of each path inside the checkout that the run's parameters name, or the notebook's code, and of
    what stands beside such a model in a folder that the code names (its reconstructor, another connector).

    A model named by hub id or kept outside the checkout is told by its name and revision alone: hashing it would mean reading it.
    """
    defaults = {name: parameter.default for name, parameter in read_parameters(notebook).items()}
    texts = set(_texts({**defaults, **run.parameters}))
    values = texts | {word for text in texts for word in re.split(r"[\s=]+", text)}  # several by blanks, or label=model
    lab = paths.lab_folder(root)
    models = [folder.name for folder in sorted(lab.iterdir()) if (folder / "config.json").is_file()] if lab.is_dir() else []
    code = "\n".join(source for kind, source, tags in _cells(notebook) if kind == "code" and "parameters" not in tags)
    named = {name: lab / name for name in models if name in values or re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code)}
    for beside in sorted(path.parent for path in lab.glob("*/*/config.json") if path.parent.parent.name in code):
        if any(beside.name == name or beside.name.startswith(f"{name}-") for name in models if name in named):
            named[f"{beside.parent.name}/{beside.name}"] = beside
    for value in sorted(value for value in values if "/" in value and not value.startswith("/")):
        path = root / value
        if os.path.exists(path) and root.resolve() in path.resolve().parents:  # False too for what no name could be
            named[value] = path
    return {name: _tree(path) for name, path in named.items()}


def _texts(value: Any) -> Iterable[str]:
    """Every text in nested parameters."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _texts(part)


def _tree(path: Path) -> str:
    """Hash of a file, or of a folder's files and of the shards elsewhere that its index.json point to."""
    files = (
        [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    )
    for index in [file for file in files if file.name.endswith(".index.json")]:
        shards = sorted(set(_record(index).get("weight_map", {}).values()))
        files += [shard for name in shards if (shard := (index.parent / name).resolve()).is_file() and shard not in files]
    return _digest([[file.name, _file_hash(file, file.stat().st_size, file.stat().st_mtime_ns)] for file in files])


@cache
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _packages(lock: Path) -> str:
    """Hash of the pins, comments aside."""
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    return _digest([pin for line in lines if (pin := line.partition("#")[0].strip())])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
