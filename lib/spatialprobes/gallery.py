"""The gallery: one static page of every figure, claim and table that the runs left, by section and model.

It opens from the disk (relative links, no script) and is built from files alone. What is missing, failed or stale is shown as
such, never left out. Knows what `record.py` and the run engine write; computes nothing.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spatialprobes import paths
from spatialprobes.claims import Claim, load_claims, markdown
from spatialprobes.due import statuses
from spatialprobes.plots import Drawn, load_drawn, model_name
from spatialprobes.tables import read_provenance, write_atomically

SCALE = 0.65  # of a figure's dots: its small print is then as large as the page's
SIGNS = {"holds": "✓", "fails": "✗", "inconclusive": "?"}  # beside the word and the colour
STATES = {
    "complete": "complete",
    "stale": "stale: the code, notebook or parameters have changed since",
    "failed": "failed",
    "missing": "not run yet",
    "by hand": "run by hand, outside the plan",
}


def build(root: str | Path, out: str | Path | None = None) -> Path:
    """Write the page to `out` (default `<root>/figures/index.html`) and return its path. Raises OSError when the disk refuses."""
    root = Path(root)
    out = Path(out) if out is not None else root / "figures" / "index.html"
    shown, problem = collect(root)
    return write_atomically(out, _page(shown, problem, out.parent).encode())


def claims_markdown(root: str | Path) -> str:
    """The claims of every complete run of the plan as one GitHub table, and below it which runs are not complete and why.

    Where several runs make one claim about one model, that which rests on the largest n stands for them.
    """
    shown, problem = collect(Path(root))
    by_claim: dict[tuple[str, ...], Claim] = {}
    for claim in (claim for run in shown if run.state == "complete" for claim in run.claims):
        same = (claim.id, claim.statement, claim.rule, claim.model)
        known = by_claim.get(same)
        if known is None or claim.n > known.n:
            by_claim[same] = claim
    claims = list(by_claim.values())
    lines = [markdown(claims)] if claims else ["No run of the plan is complete yet.\n"]
    for state, said in STATES.items():
        if names := [f"`{run.name}`" for run in shown if run.state == state and state not in ("complete", "by hand")]:
            lines.append(f"{said[0].upper()}{said[1:]}: {', '.join(names)}\n")
    return "\n".join(lines + ([f"The plan cannot be read: {problem}\n"] if problem else []))


def collect(root: Path) -> tuple[list[Shown], str]:
    """Every run of the plan and every run folder, by section, model and name; and what is wrong with the plan, if anything."""
    problem, planned = "", {}
    if (root / paths.MARK).is_file():
        try:
            planned = statuses(root)
        except (ValueError, OSError) as error:  # the page must say what there is even where the plan is broken
            problem = str(error)
    folders = {path.name: path for path in sorted((root / "data" / "runs").glob("[!.]*")) if path.is_dir()}
    shown = []
    for name in [*planned, *(name for name in folders if name not in planned)]:
        folder = folders.get(name, paths.run_folder(name, root))
        state, why = (planned[name].state, planned[name].why) if name in planned else ("by hand", "")
        notebook = planned[name].run.notebook if name in planned else ""
        shown.append(_look(name, folder, paths.figure_folder(name, root), state, why, notebook))
    return sorted(shown, key=lambda run: (run.section, run.state == "by hand", run.model, run.name)), problem


def _look(name: str, folder: Path, figures: Path, state: str, why: str, notebook: str) -> Shown:
    """Gather what a run left; whatever is not there or cannot be read becomes a problem in words."""
    run = Shown(name, folder, figures, state, why, notebook)
    record, done, failed = (
        _json(path, run) for path in (folder / "record.json", folder / "run.json", folder / "failed" / "failed.json")
    )
    run.notebook = record.get("notebook") or notebook or done.get("notebook", "")
    run.title = record.get("title") or re.sub(r"^\d+_", "", run.notebook or name).replace("_", " ").capitalize()
    number = re.match(r"\d+", run.notebook)
    run.section = int(record.get("section", number.group() if number else 99))
    run.model = str(record.get("model", ""))
    run.parameters = {**record.get("parameters", {}), **done.get("parameters", {})}
    run.parameters.pop("out", None)
    run.seconds = done.get("volatile", {}).get("seconds")
    if state == "failed":
        run.error, run.log = str(failed.get("error", "no reason recorded")), str(failed.get("log", ""))
    for what, read, keep in (("claims.json", load_claims, "claims"), ("figures.json", load_drawn, "drawn")):
        if (folder / what).is_file():
            try:
                setattr(run, keep, read(folder / what if what == "claims.json" else folder))
            except ValueError as error:
                run.problems.append(str(error))
        elif record:
            run.problems.append(f"{what} is missing")
    run.tables = sorted((folder / "tables").glob("*.parquet"))
    known = {table.stem for table in run.tables}
    run.problems += [f"table {one.table} of figure {one.name} is missing" for one in run.drawn if one.table not in known]
    run.problems += [f"table {one.table} of claim {one.id} is missing" for one in run.claims if one.table not in known]
    return run


def _json(path: Path, run: Shown) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        run.problems.append(f"{path.name} cannot be read: {error}")
        return {}


def _page(shown: list[Shown], problem: str, base: Path) -> str:
    verdicts = Counter(claim.verdict for run in shown if run.state == "complete" for claim in run.claims)
    states = Counter(run.state for run in shown)
    sections: dict[int, list[Shown]] = {}
    for run in shown:
        sections.setdefault(run.section, []).append(run)
    links = "".join(f'<a href="#section-{number}">{_escape(runs[0].title)}</a>' for number, runs in sections.items())
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state]) or "none"
    judged = "".join(f"<li>{_badge(name, SIGNS[name])} {verdicts[name]}</li>" for name in SIGNS)
    body = [
        "<header><h1>Spatial Probes</h1><p>Where things are in vision-language models. "
        f"Runs: {counts}. Claims of the complete runs:</p>"
        f'<ul class="counts">{judged}</ul><nav>{links}</nav></header>'
    ]
    if problem:
        body.append(f'<div class="problem"><strong>The plan cannot be read.</strong><pre>{_escape(problem)}</pre></div>')
    if not shown:
        body.append("<p>No run has left anything yet: <code>make figures</code> makes them.</p>")
    for number, runs in sections.items():
        label = "Quick start" if number == 0 else f"Section {number}" if number < 99 else "Elsewhere"
        title = runs[0].title if runs[0].title != label else ""
        body.append(f'<section id="section-{number}"><h2>{label}{": " + _escape(title) if title else ""}</h2>')
        body += [_run(run, base) for run in runs]
        body.append("</section>")
    foot = "<footer><p>95% intervals. A lab result is a result about the lab model.</p></footer>"
    return PAGE.replace("<!--body-->", "\n".join([*body, foot]))


def _run(run: Shown, base: Path) -> str:
    model = f'<span class="model">{_escape(run.model)}</span>' if run.model else ""
    parts = [f'<article id="{_escape(run.name)}"><h3>{_escape(run.name)} {model} {_badge(run.state, "")}</h3>']
    notes = [STATES[run.state]] if run.state != "complete" else []
    notes += [run.why] if run.why and run.state not in ("failed", "missing") else []
    if run.state == "failed":
        earlier = " What stands below is from an earlier attempt." if run.drawn or run.claims else ""
        parts.append(f'<div class="problem"><strong>Failed:</strong> {_escape(run.error)}.{earlier}')
        parts.append(f"<details><summary>log</summary><pre>{_escape(run.log)}</pre></details></div>" if run.log else "</div>")
    elif notes:
        parts.append(f'<p class="note">{_escape("; ".join(notes))}</p>')
    if run.problems:
        parts.append('<ul class="problem">' + "".join(f"<li>{_escape(line)}</li>" for line in run.problems) + "</ul>")
    parts.append(_links(run, base))
    if run.claims:
        parts.append(_claims(run, base))
    parts += [_figure(run, one, base) for one in run.drawn]
    if run.tables:
        parts.append(_tables(run, base))
    if run.state == "by hand":  # a reader's own trial, or a test's: there, but not in the way of the plan's results
        parts[1:] = ["<details><summary>show</summary>", *parts[1:], "</details>"]
    return "\n".join([*parts, "</article>"])


def _links(run: Shown, base: Path) -> str:
    page, notebook, log = (run.folder / name for name in (f"{run.notebook}.html", f"{run.notebook}.ipynb", "log.txt"))
    known = [("executed notebook", page), ("as .ipynb", notebook), ("log", log)]
    if run.state == "failed":
        known += [("failed notebook", run.folder / "failed" / notebook.name), ("its log", run.folder / "failed" / "log.txt")]
    links = [f'<a href="{_href(path, base)}">{label}</a>' for label, path in known if path.is_file()]
    if not page.is_file() and run.state in ("complete", "stale"):
        links.append("(no executed notebook)")
    if run.seconds is not None:
        links.append(f"{float(run.seconds):.0f} s")
    rows = "".join(
        f"<tr><th>{_escape(key)}</th><td>{_escape(json.dumps(value))}</td></tr>" for key, value in run.parameters.items()
    )
    shown = f'<details><summary>parameters</summary><table class="plain">{rows}</table></details>' if rows else ""
    return f'<p class="links">{" · ".join(links)}</p>{shown}' if links or shown else ""


def _claims(run: Shown, base: Path) -> str:
    def table(one: Claim) -> str:
        path = run.folder / "tables" / f"{one.table}.parquet"
        label = f"table {_escape(one.table)}"
        return f'<a href="{_href(path, base)}">{label}</a>' if path.is_file() else f"({label} is missing)"

    rows = []
    for one in run.claims:
        marks = " <small>(required)</small>" if one.required else ""
        caveat = f'<br><small class="caveat">{_escape(one.caveat)}</small>' if one.caveat else ""
        rows.append(
            f"<tr><td>{_escape(one.statement)}{marks}{caveat}<br><small>{_escape(one.id)} · {table(one)}</small></td>"
            f'<td class="number">{_escape(one.model)}</td>'
            f'<td><code>{_escape(one.rule)}</code></td><td class="number">{_escape(one.interval())}</td>'
            f'<td class="number">{one.n:,}</td><td>{_badge(one.verdict, SIGNS[one.verdict])}</td></tr>'
        )
    head = "<tr><th>claim</th><th>model</th><th>rule, fixed beforehand</th><th>estimate [95%]</th><th>n</th><th>verdict</th></tr>"
    return f'<div class="wide"><table class="claims">{head}{"".join(rows)}</table></div>'


def _figure(run: Shown, one: Drawn, base: Path) -> str:
    png, pdf = run.figures / f"{one.name}.png", run.figures / f"{one.name}.pdf"
    table = run.folder / "tables" / f"{one.table}.parquet"
    caption, links = _escape(one.caption), []
    for label, path in (("PDF", pdf), (f"table {one.table}", table)):
        links.append(
            f'<a href="{_href(path, base)}">{_escape(label)}</a>' if path.is_file() else f"({_escape(label)} is missing)"
        )
    try:
        with Image.open(png) as image:
            width, height = (round(side * SCALE) for side in image.size)
        shown = f'<img src="{_href(png, base)}" alt="{caption}" width="{width}" height="{height}" loading="lazy">'
    except FileNotFoundError:
        shown = f'<p class="problem">{_escape(png.name)} is missing; <code>make redraw</code> draws it from its table.</p>'
    except OSError:
        shown = f'<p class="problem">{_escape(png.name)} is broken; <code>make redraw</code> draws it from its table.</p>'
    about = f"{_escape(one.plot)} · {' · '.join(links)}"
    return f"<figure>{shown}<figcaption>{caption}<br><small>{about}</small></figcaption></figure>"


def _tables(run: Shown, base: Path) -> str:
    rows = []
    for path in run.tables:
        try:
            count, facts = pq.read_metadata(path).num_rows, read_provenance(path)
        except (ValueError, OSError, pa.ArrowInvalid) as error:
            rows.append(f'<tr><td>{_escape(path.name)}</td><td colspan="3" class="problem">{_escape(error)}</td></tr>')
            continue
        pretty = _escape(json.dumps(facts, indent=1, ensure_ascii=False))
        link = f'<a href="{_href(path, base)}">{_escape(path.name)}</a>'
        about = f"<details><summary>provenance</summary><pre>{pretty}</pre></details>"
        rows.append(
            f'<tr><td>{link}</td><td class="number">{count:,} rows</td><td>{_escape(model_name(facts))}</td><td>{about}</td></tr>'
        )
    return f'<details><summary>{len(run.tables)} tables</summary><table class="plain">{"".join(rows)}</table></details>'


def _badge(word: str, sign: str) -> str:
    return f'<span class="badge {_escape(word.replace(" ", "-"))}">{sign} {_escape(word)}</span>'


def _href(path: Path, base: Path) -> str:
    return _escape(quote(Path(os.path.relpath(path, base)).as_posix()))


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


@dataclass
class Shown:
    """What the page knows of one run. `state` is a key of STATES; `problems` are what is missing or broken, in words."""

    name: str
    folder: Path
    figures: Path
    state: str
    why: str
    notebook: str
    title: str = ""
    section: int = 99
    model: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    error: str = ""
    log: str = ""
    claims: list[Claim] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Spatial Probes: figures and claims</title>
<style>
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --link: #0b5cad; }
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1000px; padding: 1.5rem 1.2rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, sans-serif;
}
h1 { margin: 0; font-size: 1.7rem; }
h2 { margin: 2.5rem 0 1rem; padding-bottom: .3rem; border-bottom: 2px solid var(--ink); font-size: 1.35rem; }
h3 { margin: 0 0 .4rem; font-size: 1.1rem; }
a { color: var(--link); }
nav a { margin-right: 1.2rem; }
small, footer, .note, .links { color: var(--soft); font-size: .875rem; }
.note, .links { margin: .3rem 0; }
article { margin: 0 0 2rem; padding: 1rem 1.2rem; border: 1px solid var(--line); border-radius: 8px; }
.model {
  margin-left: .3rem; padding: .1rem .5rem; border: 1px solid var(--line); border-radius: 4px; font-size: .85rem;
  font-weight: 400;
}
.counts { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: .6rem 0; padding: 0; list-style: none; }
.badge {
  padding: .1rem .5rem; border: 1px solid; border-radius: 4px; background: #f6f8fa; font-size: .85rem;
  font-weight: 600; white-space: nowrap;
}
.holds, .complete { color: #00563b; background: #e5f5ef; }
.fails, .failed { color: #98200a; background: #fdece7; }
.inconclusive, .stale { color: #6b4a00; background: #fdf3d8; }
.missing, .by-hand { color: #4b545e; background: #eef1f4; }
.problem { margin: .6rem 0; padding: .5rem .8rem; border-left: 4px solid #98200a; background: #fdece7; overflow-wrap: anywhere; }
ul.problem { padding-left: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
.claims { width: 100%; margin: .8rem 0; }
.claims th, .claims td, .plain td, .plain th {
  padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
}
.claims th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.claims code { white-space: nowrap; }
.number { white-space: nowrap; }
.caveat { color: var(--ink); font-style: italic; }
figure { margin: 1.4rem 0; }
img { max-width: 100%; height: auto; }
figcaption { max-width: 46rem; }
pre {
  max-height: 24rem; overflow: auto; padding: .6rem; background: #f6f8fa; font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere;
}
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
</style>
</head>
<body>
<!--body-->
</body>
</html>
"""
