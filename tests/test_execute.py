"""The run engine on a toy notebook: what success, failure and a kill leave behind, and that nothing else is run again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from toy import checkout

from spatialprobes import due
from spatialprobes.execute import RunFailed, execute, execute_due, processors

PLAN = """\
- {name: first, suite: lab, notebook: toy, parameters: {size: lab}}
- {name: second, suite: lab, notebook: toy, needs: [first], parameters: {scale: 2}}
- {name: broken, suite: lab, notebook: toy, parameters: {fail: true}}
- {name: after-broken, suite: lab, notebook: toy, needs: [broken]}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A checkout whose runs were all asked for, two at a time; and what Snakemake and the runs printed."""
    root = checkout(tmp_path_factory.mktemp("ran"), PLAN)
    names = list(due.statuses(root))
    code = f"from pathlib import Path; from spatialprobes.execute import *; execute_due({names}, Path('.'), jobs=2)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    return root, done.stdout + done.stderr


def test_a_completed_run_leaves_all_of_its_results(ran):
    root, _ = ran
    folder = root / "data" / "runs" / "first"
    status = due.statuses(root)["first"]
    assert status.state == "complete"
    assert sorted(path.name for path in folder.iterdir()) == [
        f".complete-{status.hash}", "log.txt", "run.json", "tables", "toy.html", "toy.ipynb",
    ]  # fmt: skip
    assert (folder / "tables" / "x.txt").read_text() == "lab 1.0"
    assert (root / "figures" / "first" / "x.png").read_text() == "picture"
    record = json.loads((folder / "run.json").read_text())
    assert record["hash"] == status.hash and record["parameters"] == {"size": "lab"} and record["volatile"]["seconds"] > 0


def test_the_executed_notebook_names_its_final_place_and_no_machine_path(ran):
    root, _ = ran
    text = (root / "data" / "runs" / "first" / "toy.ipynb").read_text()
    assert 'out = \\"data/runs/first\\"' in text and ".work" not in text and str(root) not in text
    page = (root / "data" / "runs" / "first" / "toy.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "threads" in page


def test_threads_are_divided_among_the_jobs(ran):
    root, _ = ran
    share = max(1, processors() // 2)
    assert f"threads {share}\n" in (root / "data" / "runs" / "first" / "log.txt").read_text()


def test_needs_come_first(ran):
    root, _ = ran
    first, second = (
        json.loads((root / "data" / "runs" / name / "run.json").read_text())["volatile"] for name in ("first", "second")
    )
    assert first["started"] < second["started"]
    assert (root / "data" / "runs" / "first" / "run.json").stat().st_mtime < (
        root / "data" / "runs" / "second" / "toy.ipynb"
    ).stat().st_mtime


def test_a_failed_run_shows_its_log_and_leaves_nothing_that_looks_complete(ran):
    root, printed = ran
    found = due.statuses(root)
    assert found["broken"].state == "failed"
    assert found["broken"].why == 'last attempt failed: In [4] (`raise ValueError("on purpose")`): ValueError: on purpose'
    assert found["after-broken"].state == "missing"
    folder = root / "data" / "runs" / "broken"
    assert [path.name for path in folder.iterdir()] == ["failed"]
    assert {"toy.ipynb", "log.txt", "failed.json"} <= {path.name for path in (folder / "failed").iterdir()}
    assert not (root / "figures" / "broken").exists() and list((root / "figures" / ".work").iterdir()) == []
    assert "FAILED broken: In [4]" in printed and "ValueError: on purpose" in (folder / "failed" / "log.txt").read_text()
    assert "  | ValueError: on purpose" in printed


def test_what_is_complete_is_not_run_again(ran):
    root, _ = ran
    stamp = (root / "data" / "runs" / "second" / "run.json").stat().st_mtime_ns
    assert execute("second", root) is False
    assert {status.state for status in execute_due(["first", "second"], root).values()} == {"complete"}
    assert (root / "data" / "runs" / "second" / "run.json").stat().st_mtime_ns == stamp


def test_lost_files_are_noticed_and_made_again(tmp_path):
    root = checkout(tmp_path, "- {name: one, suite: lab, notebook: toy}\n")
    execute("one", root)
    record = json.loads((root / "data/runs/one/run.json").read_text())
    assert record["files"] == [f"data/runs/one/{name}" for name in ("tables/x.txt", "toy.html", "toy.ipynb")] + [
        "figures/one/x.png"
    ]
    for lost in ("figures/one/x.png", "data/runs/one/tables/x.txt"):
        (root / lost).unlink()
        assert due.statuses(root)["one"].state == "stale"
        assert execute_due(["one"], root)["one"].state == "complete"
        assert (root / lost).is_file()


def test_a_lost_marker_is_restored_without_running(ran):
    root, _ = ran
    status = due.statuses(root)["first"]
    due.complete_marker("first", status.hash, root).unlink()
    assert due.statuses(root)["first"].state == "stale"
    assert execute("first", root) is False
    assert due.statuses(root)["first"].state == "complete"


def test_a_run_whose_need_is_not_complete_is_refused(ran):
    root, _ = ran
    with pytest.raises(RunFailed, match="after-broken: needs broken, not complete"):
        execute("after-broken", root)


def test_a_run_that_changed_while_it_waited_is_refused(ran):
    root, _ = ran
    with pytest.raises(RunFailed, match="changed while it waited"):
        execute("first", root, expect="0" * 16)


def test_unknown_names_are_told_with_the_nearest(ran):
    root, _ = ran
    with pytest.raises(ValueError, match="unknown run 'frist'; nearest: first; runs: first, second"):
        execute("frist", root)
    with pytest.raises(ValueError, match="unknown profile 'slrum'; legal: local, slurm"):
        execute_due(["broken"], root, profile="slrum")


def test_after_a_failed_attempt_the_old_results_are_told_as_old_and_a_success_clears_the_failure(tmp_path):
    root = checkout(tmp_path, "- {name: one, suite: lab, notebook: toy}\n")
    execute("one", root)
    (root / "papermill_runs.yaml").write_text("- {name: one, suite: lab, notebook: toy, parameters: {fail: true}}\n")
    with pytest.raises(RunFailed, match="on purpose"):
        execute("one", root)
    assert due.statuses(root)["one"].state == "failed"
    assert (root / "data/runs/one/tables/x.txt").exists() and (root / "figures/one/x.png").exists()
    (root / "papermill_runs.yaml").write_text("- {name: one, suite: lab, notebook: toy, parameters: {size: lab}}\n")
    assert due.statuses(root)["one"].state == "stale"
    execute("one", root)
    assert due.statuses(root)["one"].state == "complete" and not (root / "data/runs/one/failed").exists()
    assert len(list((root / "data/runs/one").glob(".complete-*"))) == 1


def test_a_full_disk_fails_the_run_in_one_line(tmp_path, monkeypatch):
    from spatialprobes import execute as module

    def no_room(*_):
        raise OSError(28, "No space left on device")

    root = checkout(tmp_path, "- {name: one, suite: lab, notebook: toy}\n")
    monkeypatch.setattr(module, "_html", no_room)
    with pytest.raises(RunFailed, match=r"^one: OSError: \[Errno 28\] No space left on device$"):
        execute("one", root)
    assert due.statuses(root)["one"].state == "failed"
    monkeypatch.setattr(module, "_write_json", no_room)
    with pytest.raises(RunFailed, match="No space left on device; nor could its remains be kept"):
        execute("one", root)
    assert not (root / "data/runs/one/run.json").exists() and not (root / "figures/one").exists()


def children(pid):
    """Process ids below this one, by /proc."""
    found = []
    for path in (p for p in os.listdir("/proc") if p.isdigit()):
        try:
            with open(f"/proc/{path}/stat") as stream:
                parent = int(stream.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(path), *children(int(path))]
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes to kill in /proc")
def test_a_killed_run_is_not_complete_and_the_next_call_completes_it(tmp_path):
    root = checkout(tmp_path, "- {name: one, suite: lab, notebook: toy, parameters: {wait: 60}}\n")
    code = "from pathlib import Path; from spatialprobes.execute import *; execute_due(['one'], Path('.'))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (root / "figures" / ".work" / "one" / "x.png").exists():  # the notebook is in its sleep
        assert process.poll() is None
        time.sleep(0.05)
    for pid in [*children(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert due.statuses(root)["one"].state == "missing"
    assert not (root / "figures" / "one").exists()
    assert not list((root / "data" / "runs").glob("one/.complete-*"))
    (root / "papermill_runs.yaml").write_text("- {name: one, suite: lab, notebook: toy}\n")
    found = execute_due(["one"], root)
    assert found["one"].state == "complete"
    assert (root / "data/runs/one/tables/x.txt").read_text() == "quick 1.0"
