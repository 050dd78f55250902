"""Executing runs: one by papermill, all that are due by Snakemake.

A run works in a folder of its own and takes its target's place in one rename, run.json and the completion marker already inside:
killed at any moment, it leaves all of its results or the old ones. A failed run keeps what it got as far as, in `failed/` beside
the old results; those of another hash are told as stale. Knows plans, files and processes, no models.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import paths
from .due import Status, complete_marker, files_gone, statuses
from .params import nearest
from .runs import load

TAIL = 40  # lines of a failed run's log that are shown


class RunFailed(RuntimeError):
    """A run did not complete; the message is the reason in one line, `log` the end of its log, `folder` what it left."""

    def __init__(self, reason: str, log: str = "", folder: Path | None = None):
        super().__init__(reason)
        self.log, self.folder = log, folder


def execute(name: str, root: Path | None = None, expect: str = "", force: bool = False) -> bool:
    """Execute one run of the plan if it is due (or if `force`); False where its results were complete already.

    expect: the hash that the caller planned with; another one is an error, so that nothing is filed under a wrong name.
    Raises RunFailed when the notebook or a need fails, PlanError for a bad plan, ValueError for an unknown run.
    """
    root = root or paths.root()
    plan = load(root)
    if name not in plan:
        raise ValueError(f"unknown run {name!r}{nearest(name, plan)}; runs: {', '.join(plan) or 'none'}")
    status = statuses(root, plan)[name]
    if expect and expect != status.hash:
        raise RunFailed(f"{name}: code, notebook or parameters changed while it waited; start again")
    with _locked(root / "data" / "runs" / f".lock-{name}"):
        if not force and _already_complete(status, root):
            complete_marker(name, status.hash, root).touch()
            return False
        found = statuses(root, plan) if status.run.needs else {}
        incomplete = [need for need in status.run.needs if found[need].state != "complete"]
        if incomplete:
            raise RunFailed(
                f"{name}: needs {', '.join(incomplete)}, not complete; `spatialprobes figures --only {name}` runs them first"
            )
        _execute(status, root)
    return True


def execute_due(
    names: Sequence[str], root: Path, jobs: int | None = None, profile: str = "local", keep_going: bool = True
) -> dict[str, Status]:
    """Execute the named runs that are due, needs first, `jobs` at a time, by Snakemake; where all of them stand afterwards.

    profile: a folder of profiles/. In `local` two jobs are the default (the lab's models are too small for two threads to pay),
    one where there is one processor, and its threads are divided among the jobs; another profile has its own number of jobs and
    asks for two threads each. Raises ValueError for an unknown profile.
    """
    before = statuses(root)
    due = [name for name in names if before[name].state != "complete"]
    if not due:
        return {name: before[name] for name in names}
    folder = root / "profiles" / profile
    if not (folder / "config.yaml").is_file():
        legal = sorted(path.parent.name for path in (root / "profiles").glob("*/config.yaml"))
        raise ValueError(f"unknown profile {profile!r}; legal: {', '.join(legal) or 'none, profiles/ is empty'}")
    if profile == "local":
        jobs = jobs or min(2, processors())
        threads = max(1, processors() // jobs)
        gpus = max(1, *(before[name].run.resources.gpu for name in due))
        at_once = ["--cores", str(threads * jobs), "--resources", f"gpu={gpus}", "--config", f"threads={threads}"]
    else:
        at_once = ["--jobs", str(jobs)] if jobs else []
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--directory", str(root), "--nolock"]
    command += ["--profile", str(folder), *at_once]
    command += ["--keep-going"] if keep_going else []
    command += ["--", *(str(complete_marker(name, before[name].hash, root).relative_to(root)) for name in due)]
    for name in due:  # a marker of results that were lost since would tell Snakemake that there is nothing to do
        complete_marker(name, before[name].hash, root).unlink(missing_ok=True)
    with _locked(root / "data" / "runs" / ".lock"):
        subprocess.run(command, cwd=root, check=False)
    after = statuses(root)
    return {name: after[name] for name in names}


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _already_complete(status: Status, root: Path) -> bool:
    """Whether run.json tells of this hash. The marker is for Snakemake, which removes it before it calls us."""
    try:
        record = json.loads((paths.run_folder(status.run.name, root) / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return record.get("hash") == status.hash and not files_gone(record, root)


def _execute(status: Status, root: Path) -> None:
    """Work in a fresh folder, then put results and figures in place; on failure, keep the remains in `failed/`."""
    run, target = status.run, paths.run_folder(status.run.name, root)
    work, drawn = target.parent / ".work" / run.name, root / "figures" / ".work" / run.name
    for folder in (work, drawn):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    started, clock = datetime.now(UTC), time.monotonic()
    record = {
        "name": run.name,
        "suite": run.suite,
        "notebook": run.notebook,
        "parameters": run.parameters,
        "needs": list(run.needs),
        "hash": status.hash,
        "parts": status.parts,
    }
    try:
        with _environment(run.suite, drawn.parent), _output_to(work / "log.txt"):
            _papermill(status, work, root)
        _html(work / f"{run.notebook}.ipynb", run.name)
    except Exception as error:
        reason, tail, kept = _reason(error), "", None
        try:
            tail = _end_log(work / "log.txt", error)
            _write_json(work / "failed.json", {**record, "error": reason, "log": tail, "started": started.isoformat()})
            _replace(work, target / "failed")
            kept = target / "failed"
        except OSError as second:  # no room: the reason must come through all the same
            reason = f"{reason}; nor could its remains be kept: {second}"
        shutil.rmtree(drawn, ignore_errors=True)
        raise RunFailed(f"{run.name}: {reason}", tail, kept) from error
    record["volatile"] = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "host": platform.node(),
        "papermill": importlib.metadata.version("papermill"),
    }
    record["files"] = _files(work, target, root) + _files(drawn, root / "figures" / run.name, root)
    _write_json(work / "run.json", record)
    (work / complete_marker(run.name, status.hash, root).name).touch()
    _replace(drawn, root / "figures" / run.name)
    _replace(work, target)


def _files(folder: Path, final: Path, root: Path) -> list[str]:
    """What stands in `folder`, by the paths from the root that it will have in `final`; logs aside, which say nothing new."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
    return [(final.relative_to(root) / path).as_posix() for path in files]


def _papermill(status: Status, work: Path, root: Path) -> None:
    """Execute the notebook into `work`, saving it as it goes, its output and papermill's words in log.txt."""
    import papermill

    run = status.run
    where, final = (path.relative_to(root).as_posix() for path in (work, paths.run_folder(run.name, root)))
    executed = work / f"{run.notebook}.ipynb"
    handler = logging.FileHandler(work / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    loggers = [logging.getLogger("papermill"), logging.getLogger("papermill.translators")]
    loggers[0].addHandler(handler)
    levels = [logger.level for logger in loggers]
    loggers[0].setLevel(logging.INFO)
    loggers[1].setLevel(logging.ERROR)  # it warns of every type that it can't show
    try:
        papermill.execute_notebook(
            str(root / "notebooks" / f"{run.notebook}.ipynb"),
            str(executed),
            parameters={**run.parameters, "out": where},
            kernel_name="python3",
            cwd=str(root),
            progress_bar=False,
            log_output=True,
            autosave_cell_every=30,
            start_timeout=120,
        )
    finally:
        loggers[0].removeHandler(handler)
        handler.close()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for path in (executed, work / "record.json"):  # they say where the results are, not where they were made
            if path.exists():
                text = path.read_text(encoding="utf-8").replace(where, final)
                path.write_text(text.replace(json.dumps(f"{root}/")[:-1], '"'), encoding="utf-8")


def _html(executed: Path, title: str) -> None:
    """The executed notebook as one page, beside it."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_filename(str(executed), resources={"metadata": {"name": title}})
    executed.with_suffix(".html").write_text(page, encoding="utf-8")


def _end_log(log: Path, error: Exception) -> str:
    """Write the error at the end of the log, and return the log's tail."""
    text = str(error) if hasattr(error, "ename") else "".join(traceback.format_exception(error))
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"{text.strip()}\n")
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])


def _reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    name = getattr(error, "ename", None)
    if name:
        arrows = re.findall(r"^-+> \d+ +(.*)$", str(error), flags=re.MULTILINE)  # the lines of code that the traceback points at
        source = arrows[0] if arrows else str(error.source)
        what = " ".join(str(error.evalue).split()) or "no message"
        return f"In [{error.exec_count}] (`{source.strip()[:60]}`): {name}: {what}"
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


@contextlib.contextmanager
def _environment(suite: str, figures: Path) -> Iterator[None]:
    """What the notebook's process sees: figures aside until the run succeeds, no download in the lab suite, few progress bars."""
    ours = {
        "SPATIALPROBES_FIGURES": str(figures),
        "TQDM_MININTERVAL": "10",
        "PYTHONHASHSEED": "0",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    if suite == "lab":
        ours["HF_HUB_OFFLINE"] = "1"
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send what processes write past Python to the log too: a kernel that crashes says why on its standard error alone."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            for target, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, target)
                os.close(copy)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system frees when its process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that holds {path.name}", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write_json(path: Path, value: Any) -> None:
    """Write, sync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)


def _replace(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`. Killed in between, there is no target, hence nothing that looks complete."""
    old = new.with_name(f"{new.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
