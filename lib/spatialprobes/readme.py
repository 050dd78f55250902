"""The README's figures and claims table, brought up to date from complete runs, so that it shows nothing that was not run.

Knows the gallery's reading of runs; computes nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from spatialprobes.gallery import claims_markdown, collect
from spatialprobes.tables import write_atomically

BEGIN, END = "<!-- claims: written by `spatialprobes readme` -->", "<!-- end of claims -->"


def refresh(root: Path) -> list[Path]:
    """Write the claims table between its two marks in README.md, and copy the PNGs of complete runs to figures/readme/.

    Returns what was written. Raises ValueError where the README lacks the marks or no run of the plan is complete.
    """
    complete = [run for run in collect(root)[0] if run.state == "complete"]
    if not complete:
        raise ValueError("no run of the plan is complete; `make figures` first")
    readme = root / "README.md"
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {BEGIN!r} and {END!r}")
    write_atomically(readme, f"{before}{BEGIN}\n\n{claims_markdown(root).strip()}\n\n{END}{after}".encode())
    written = [readme]
    folder = root / "figures" / "readme"
    folder.mkdir(parents=True, exist_ok=True)
    for run in complete:
        for figure in sorted(run.figure_folder.glob("*.png")):
            written.append(Path(shutil.copyfile(figure, folder / f"{run.name}-{figure.name}")))
    return written
