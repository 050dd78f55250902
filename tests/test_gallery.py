"""The gallery: everything that is there is shown, everything that is not is named, and the page opens from the disk."""

import html.parser
import json
import re
import shutil
from urllib.parse import unquote

import pandas as pd
import pytest

from spatialprobes import gallery
from spatialprobes.claims import claim
from spatialprobes.due import complete_marker, statuses
from spatialprobes.record import Record

CURVES = pd.DataFrame({"samples": [0, 100], "group": "colour", "accuracy": [0.2, 0.9], "low": [0.1, 0.8], "high": [0.3, 0.95]})
PARAMETERS = 'model: str = "lab-llava"  # which model\nsize: str = "quick"  # how much\nout: str = ""  # where'


class Model:
    def facts(self):
        return {"model": "lab-llava"}


@pytest.fixture
def root(checkout, tmp_path, monkeypatch):
    """A copy of the checkout for one test."""
    monkeypatch.delenv("SPATIALPROBES_FIGURES", raising=False)
    monkeypatch.setenv("SPATIALPROBES_LAB", str(tmp_path / "none"))
    return shutil.copytree(checkout, tmp_path / "checkout")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with a plan of four runs: complete, stale, failed, missing; and one made by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPATIALPROBES_FIGURES", raising=False)
        patch.setenv("SPATIALPROBES_LAB", "/nowhere")
        yield make_checkout(tmp_path_factory.mktemp("checkout"))


def make_checkout(tmp_path):
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["parameters"]},
        "source": PARAMETERS,
        "outputs": [],
        "execution_count": None,
    }
    notebook = {
        "cells": [cell],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "notebooks").mkdir()
    for name in ("00_quickstart", "03_swap_consistency"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook))
    runs = [
        ("quick-lab", "00_quickstart"),
        ("swap-stale", "03_swap_consistency"),
        ("swap-failed", "03_swap_consistency"),
        ("swap-none", "03_swap_consistency"),
    ]
    plan = [{"name": name, "suite": "lab", "notebook": notebook, "parameters": {"size": "lab"}} for name, notebook in runs]
    (tmp_path / "papermill_runs.yaml").write_text(json.dumps(plan))  # JSON is YAML
    found = statuses(tmp_path)
    fill(tmp_path, "quick-lab", "00_quickstart", found["quick-lab"].hash)
    fill(tmp_path, "swap-stale", "03_swap_consistency", "0" * 16)
    fill(tmp_path, "00_quickstart", "00_quickstart", None)
    failed = tmp_path / "data" / "runs" / "swap-failed" / "failed"
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text(
        json.dumps({"hash": found["swap-failed"].hash, "error": "cell 3: ValueError: <script>", "log": "the log's tail <i>"})
    )
    return tmp_path


def fill(root, run, notebook, hash):
    """What a run leaves: a table, a figure, two claims, the executed notebook, run.json."""
    made = Record(out=root / "data" / "runs" / run, notebook=notebook, title=f"Title of {notebook}", section=int(notebook[:2]),
                  parameters={"model": "lab-llava", "size": "quick", "out": "x"}, vlm=Model())  # fmt: skip
    made.table("curves", CURVES)
    made.figure("training.curves", table="curves", caption=f'Caption <b>&</b> "{run}"')
    common = {"estimate": 4.0, "low": 3.5, "high": 4.5, "n": 1234, "table": "curves"}
    made.claim("norms.ratio", "Vision is <longer>.", rule="low > 3", caveat="at init | 6.6", required=True, **common)
    made.claim("norms.growth", "It grows tenfold.", rule="low > 10", **common)
    (made.folder / f"{notebook}.html").write_text("<html></html>")
    (made.folder / "log.txt").write_text("done")
    if hash is not None:
        done = {"notebook": notebook, "parameters": {"size": "lab"}, "hash": hash, "parts": {}, "volatile": {"seconds": 41.6}}
        (made.folder / "run.json").write_text(json.dumps(done))
        complete_marker(run, hash, root).touch()


class Links(html.parser.HTMLParser):
    """Targets of all links and pictures, the text, and whether tags are balanced."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.words, self.open, self.alts = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.targets += [attrs[name] for name in ("href", "src") if name in attrs]
        self.alts += [attrs["alt"]] if tag == "img" else []
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_every_link_is_relative_and_leads_somewhere(root):
    page = gallery.build(root)
    assert page == root / "figures" / "index.html"
    found = Links(page.read_text())
    assert found.open == []
    outside = [target for target in found.targets if not target.startswith("#")]
    assert any(target.endswith(".png") for target in outside) and any(target.endswith(".parquet") for target in outside)
    for target in outside:
        assert "://" not in target and not target.startswith("/")
        assert (page.parent / unquote(target)).is_file(), target
    anchors = {target[1:] for target in found.targets if target.startswith("#")}
    assert all(f'id="{anchor}"' in page.read_text() for anchor in anchors) and anchors == {"section-0", "section-3"}


def test_the_page_moves_with_the_checkout(root, tmp_path_factory):
    gallery.build(root)
    moved = tmp_path_factory.mktemp("moved") / "a b"
    shutil.copytree(root, moved)
    page = moved / "figures" / "index.html"
    assert str(root) not in page.read_text()
    targets = [target for target in Links(page.read_text()).targets if not target.startswith("#")]
    assert all((page.parent / unquote(target)).is_file() for target in targets)


def test_states_claims_and_parameters_are_told_in_words(root):
    text = gallery.build(root).read_text()
    found = Links(text)
    words = " ".join(" ".join(found.words).split())
    assert "Runs: 1 complete, 1 stale, 1 failed, 1 missing, 1 by hand." in words
    assert "✓ holds 1" in words and "✗ fails 1" in words  # of complete runs alone
    assert "4 [3.5, 4.5]" in words and "low > 3" in words and "1,234" in words and "at init | 6.6" in words
    assert "not run yet" in words and "run by hand, outside the plan" in words
    assert "Failed: cell 3: ValueError: <script>" in words and "the log's tail <i>" in words
    assert "stale: the code, notebook or parameters have changed since" in words
    assert "41.6" not in words and "42 s" in words
    assert 'Caption <b>&</b> "quick-lab"' in words and 'Caption <b>&</b> "quick-lab"' in found.alts
    assert "<script>" not in text and "<b>" not in text
    assert text.index('id="quick-lab"') < text.index('id="00_quickstart"')  # the plan's results first


def test_missing_pieces_are_named(root):
    (root / "figures" / "quick-lab" / "training-curves.png").unlink()
    (root / "figures" / "swap-stale" / "training-curves.png").write_bytes(b"no picture")
    (root / "data" / "runs" / "swap-stale" / "tables" / "curves.parquet").unlink()
    (root / "data" / "runs" / "swap-stale" / "claims.json").write_text("[{]")
    (root / "data" / "runs" / "swap-stale" / "03_swap_consistency.html").unlink()
    words = " ".join(" ".join(Links(gallery.build(root).read_text()).words).split())
    assert "training-curves.png is missing" in words and "training-curves.png is broken" in words
    assert "table curves of figure training-curves is missing" in words
    assert "claims.json: Expecting" in words and "(no executed notebook)" in words


def test_a_broken_plan_or_an_empty_checkout_still_gives_a_page(root, tmp_path):
    (root / "papermill_runs.yaml").write_text("- name: x\n  notebok: 00_quickstart\n")
    words = " ".join(Links(gallery.build(root).read_text()).words)
    assert "The plan cannot be read." in words and "notebok" in words and "quick-lab" in words
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "No run has left anything yet" in gallery.build(empty).read_text()


def test_building_twice_gives_the_same_page(root):
    assert gallery.build(root).read_bytes() == gallery.build(root).read_bytes()


def test_claims_for_the_readme_are_those_of_complete_runs(root):
    text = gallery.claims_markdown(root)
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    assert len(rows) == 3  # the head and the two claims of the one complete run
    assert "Vision is &lt;longer&gt;.<br>*at init \\| 6.6*" in rows[1] and "**holds**" in rows[1] and "**fails**" in rows[2]
    for name, said in (("swap-stale", "Stale"), ("swap-failed", "Failed"), ("swap-none", "Not run yet")):
        assert re.search(rf"^{said}[^:]*: .*`{name}`", text, re.MULTILINE)
    shutil.rmtree(root / "data" / "runs" / "quick-lab")
    assert gallery.claims_markdown(root).startswith("No run of the plan is complete yet.")


def test_a_claim_of_several_runs_stands_once_with_the_largest_n(root, monkeypatch):
    def made(n, model):
        return claim("norms.ratio", "Longer.", "low > 3", 5, 4, 6, n, model, "norms")

    def shown(claims):
        return gallery.Shown("a", root, root, "complete", "", "notebook", claims=claims)

    runs = [shown([made(30, "m"), made(20, "other")]), shown([made(150, "m")]), shown([made(100, "m")])]
    monkeypatch.setattr(gallery, "collect", lambda root: (runs, ""))
    rows = [line for line in gallery.claims_markdown(root).split("\n") if line.startswith("| Longer")]
    assert len(rows) == 1 and re.findall(r"(\w+): 5 \[4, 6\], (\d+), \*\*holds\*\*", rows[0]) == [("m", "150"), ("other", "20")]


def test_claims_of_one_id_by_two_rules_both_stand(root, monkeypatch):
    claims = [claim("norms.ratio", "Longer.", rule, 5, 4, 6, n, "m", "norms") for rule, n in (("low > 3", 30), ("low > 5", 150))]
    runs = [gallery.Shown("a", root, root, "complete", "", "notebook", claims=claims)]
    monkeypatch.setattr(gallery, "collect", lambda root: (runs, ""))
    text = gallery.claims_markdown(root)
    assert "`low > 3` | m: 5 [4, 6], 30, **holds**" in text and "`low > 5` | m: 5 [4, 6], 150, **inconclusive**" in text
