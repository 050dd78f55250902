"""The README's figures, claims table and table of lab models, brought up to date from complete runs and from the models' cards,
so that it shows nothing that was not run.

Knows the gallery's reading of runs and the cards; computes nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from spatialprobes.gallery import claims_markdown, collect
from spatialprobes.tables import write_atomically

CLASSES = ("semantic", "relation", "2ds", "bin", "corner")  # of question groups; the first part of their names


def refresh(root: Path) -> list[Path]:
    """Write the tables between their marks in README.md; copy to figures/readme/ the PNGs that it shows and that look different.

    Returns what was written. Raises ValueError where the README lacks a mark or no run of the plan is complete.
    """
    complete = [run for run in collect(root)[0] if run.state == "complete"]
    if not complete:
        raise ValueError("no run of the plan is complete; `make figures` first")
    readme = root / "README.md"
    text = between(readme.read_text(), "claims", claims_markdown(root))
    text = between(text, "lab", lab_markdown(root / "data" / "lab"))
    written = [write_atomically(readme, text.encode())]
    folder = root / "figures" / "readme"
    folder.mkdir(parents=True, exist_ok=True)
    for run in complete:
        for figure in sorted(run.figures.glob("*.png")):
            copy = folder / f"{run.name}-{figure.name}"
            if copy.name in text and not (copy.is_file() and same_picture(figure, copy)):
                written.append(Path(shutil.copyfile(figure, copy)))
    return written


def same_picture(first: Path, second: Path) -> bool:
    """Whether two files show the same pixels; their provenance may differ."""
    with Image.open(first) as one, Image.open(second) as other:
        return one.size == other.size and one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


def between(text: str, name: str, content: str) -> str:
    """The text with `content` between the marks of this name. Raises ValueError where they are missing."""
    begin, end = f"<!-- {name}: written by `spatialprobes readme` -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"README.md lacks the marks {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def lab_markdown(folder: Path) -> str:
    """One row per card of a VLM of the lab: the worst group of each class of questions, and which bars were missed."""
    head = ["model", "pictures seen", "minutes", *CLASSES, "vision / text norm, start → now"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    missed = []
    cards = [json.loads(path.read_text()) for path in folder.glob("*/card.json")]
    cards = [card for card in cards if "norms" in card]  # the ancestors are no VLMs
    for card in sorted(cards, key=_place):
        found, norms = card["accuracy"], card["norms"]
        worst = [min(group["accuracy"] for name, group in found.items() if name.split(".")[0] == one) for one in CLASSES]
        cells = [f"`{card['name']}`", f"{card['samples']:,}", f"{card['minutes']:.0f}", *(f"{value:.3f}" for value in worst)]
        start = norms.get("start", norms.get("vanilla"))
        cells.append(f"{start['ratio']:.1f} → {norms['now']['ratio']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
        below = [(group, bar) for group, bar in card["bars"].items() if found[group]["accuracy"] < bar]
        missed += [f"- {card['name']}: {group} is {found[group]['accuracy']:.3f}, under its bar of {bar}" for group, bar in below]
    return "\n".join([*lines, "", *missed])


def _place(card: dict) -> tuple:
    """LLaVA first, its worlds of one perspective after its seeds; over training."""
    name = card["name"]
    return "llava" not in name, "perspective" in name, card["seed"], card["samples"], name
