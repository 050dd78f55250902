"""What a notebook leaves behind: tables with provenance, figures drawn from those tables, claims with their verdicts.

One `Record` a notebook. It writes into the run's folder (tables/*.parquet, figures.json, claims.json) and the figures folder; it
reads every table back from the disk before drawing, so that `make redraw` must give the same figure. Knows no measure and no
model, of which it wants only `facts()`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from spatialprobes import __version__, paths, plots
from spatialprobes.claims import Claim, claim, save_claims
from spatialprobes.due import library_parts
from spatialprobes.tables import canonical_json, provenance, read_provenance, read_table, save_table, sidecar, write_atomically

NAME = re.compile(r"[A-Za-z0-9_]+([.\-][A-Za-z0-9_]+)*")
WHERE = ("out",)  # a parameter that says where, not what: it may differ between equal tables


def peak_memory_gb() -> float | None:
    """Peak resident memory of this process in GB (10^9 bytes); None where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Record:
    """The record of one notebook.

    out: the run's folder; empty means `data/runs/<notebook>`. Its last part is the run's name, and the figures of
    `<base>/data/runs/<run>` go to `<base>/figures/<run>` (or where the run engine says), those of any other folder to its
    own `figures/`. notebook: the file's stem.
    title, section: for the gallery (section 0 is the quick start). parameters: the notebook's own, as it ran.
    vlm: the model the tables are about, where they are about one; each table and claim may name another.
    """

    def __init__(
        self, *, out: str | Path = "", notebook: str, title: str, section: int, parameters: Mapping[str, Any], vlm: Any = None
    ):
        _check_name("notebook", notebook)
        self.folder = (Path(out) if str(out) else paths.run_folder(notebook)).resolve()  # the notebook may change folder later
        self.run = self.folder.name
        self.figure_folder = _figure_folder(self.folder)
        self.notebook, self.title, self.section, self.vlm = notebook, title, section, vlm
        self.parameters = {name: value for name, value in parameters.items() if name not in WHERE}
        self.claims: dict[str, Claim] = {}
        self.drawn: dict[str, plots.Drawn] = {}
        self.started = time.perf_counter()
        facts = {"notebook": notebook, "title": title, "section": section, "parameters": dict(parameters), "model": self.model}
        write_atomically(self.folder / "record.json", (canonical_json(facts) + "\n").encode())
        plots.save_drawn([], self.folder)  # what an earlier run left must not pass for this one's
        save_claims([], self.folder / "claims.json")
        for left in (self.folder / "tables").glob("*.parquet"):
            sidecar(left).unlink(missing_ok=True)
            left.unlink()

    @property
    def model(self) -> str:
        """The model's name; empty without one."""
        return "" if self.vlm is None else plots.model_name({"model": self.vlm.facts()})

    def table(self, name: str, frame: pd.DataFrame, *, vlm: Any = None, **facts: Any) -> pd.DataFrame:
        """Save `frame` as tables/<name>.parquet and return it as read back.

        facts: stable ones beyond the parameters (seed, data hash, definition). vlm: the model of this table, or a list of
        several, if not the record's.
        Raises ValueError for a name that is none or a frame that is not tidy.
        """
        _check_name("table", name)
        about = self.vlm if vlm is None else vlm
        stable = {"notebook": self.notebook, "parameters": self.parameters, "table": name, "code": _code()} | facts
        known = provenance(about, **stable)
        volatile = {
            "seconds_since_start": round(time.perf_counter() - self.started, 3),
            "peak_memory_gb": peak_memory_gb(),
            "host": platform.node(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        path = save_table(frame, self.folder / "tables" / f"{name}.parquet", known, volatile)
        return read_table(path)

    def figure(self, plot: str, *, table: str, caption: str, name: str | None = None, **options: Any) -> None:
        """Draw a saved table with `spatialprobes.plots.<plot>`, save PNG and PDF, note it in figures.json, show it in the
        notebook.

        name: of the files; by default the function's ("permutation.accuracy" gives permutation-accuracy). Drawing under the same
        name again replaces the figure, unless another table stands behind it: then ValueError asks for a name. Options must be
        plain values (JSON), since the figure is drawn again from them.
        """
        name = plot.replace(".", "-") if name is None else name
        _check_name("figure", name)
        if not caption.strip():
            raise ValueError(f"figure {name}: the caption is empty")
        if (before := self.drawn.get(name)) and before.table != table:
            raise ValueError(f"figure {name} is already drawn from table {before.table!r}; pass name=... to keep both")
        plain = json.loads(
            canonical_json(options)
        )  # what figures.json will give back, so that this drawing and a redrawing agree
        one = plots.Drawn(name=name, plot=plot, table=table, caption=caption, options=plain)
        image, _ = plots.draw_from_table(one, self.folder, self.figure_folder)
        self.drawn[name] = one
        plots.save_drawn(list(self.drawn.values()), self.folder)
        _show(image, caption)

    def claim(
        self,
        id: str,
        statement: str,
        *,
        rule: str,
        estimate: float,
        low: float,
        high: float,
        n: int,
        table: str,
        model: str = "",
        caveat: str | None = None,
        required: bool = False,
    ) -> Claim:
        """Note a claim; its verdict follows from `rule` (see `spatialprobes.claims`).

        A claim that fails stops nothing; it is shown failing.
        table: the name of a table saved before, in which the numbers can be checked. model: by default the record's.
        Raises ValueError for fields that mean nothing, FileNotFoundError for a table that is not there.
        """
        read_provenance(self.folder / "tables" / f"{table}.parquet")
        made = claim(id, statement, rule, estimate, low, high, n, model or self.model, table, caveat, required)
        self.claims[id] = made
        save_claims(self.claims.values(), self.folder / "claims.json")
        return made

    def verdicts(self) -> pd.DataFrame:
        """The claims so far as [claim, rule, verdict], one row each in the order noted: what a test of the notebook compares."""
        save_claims(self.claims.values(), self.folder / "claims.json")
        rows = [(one.id, one.rule, one.verdict) for one in self.claims.values()]
        return pd.DataFrame(rows, columns=["claim", "rule", "verdict"])


def _figure_folder(folder: Path) -> Path:
    standard = folder.parts[-3:-1] == ("data", "runs")
    if standard or os.environ.get("SPATIALPROBES_FIGURES"):
        return paths.figure_folder(folder.name, folder.parents[2] if standard else None)
    return folder / "figures"


@cache
def _code() -> dict[str, str]:
    """The library's version, and the hash of its syntax trees: comments and layout don't count."""
    parts = canonical_json(library_parts(paths.root()))
    return {"spatialprobes": __version__, "library": hashlib.sha256(parts.encode()).hexdigest()[:16]}


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{what} name {name!r}: letters, digits and _ joined by '.' or '-', since it becomes a file's name")


def _show(image: Path, caption: str) -> None:
    """The saved picture and its caption inline, where there is a notebook to show them in."""
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython
    from IPython.display import Image, Markdown, display

    if get_ipython() is not None:
        display(Image(data=image.read_bytes(), format="png", width=720, alt=caption), Markdown(f"*{caption}*"))
