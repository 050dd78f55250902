"""Claims: a sentence, a rule fixed before the result is seen, and a verdict that the rule decides.

A rule compares an end of the interval, or the estimate, with a number: "low > 3", "high(accuracy drop) < .02",
"low > -.01 and high < .01". The words in brackets are for the reader. It is parsed, never evaluated, and says

- holds, when every comparison is true of what it names;
- fails, when for some comparison the whole interval lies on the wrong side (for "low > 3": high <= 3);
- inconclusive otherwise, and whenever an estimate or an end that is needed is NaN.

Knows nothing of how a number was measured; the table it names does.
"""

from __future__ import annotations

import difflib
import html
import json
import math
import operator
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from spatialprobes.tables import canonical_json, write_atomically

Verdict = Literal["holds", "fails", "inconclusive"]
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
ID = re.compile(r"[a-z0-9_]+([.\-][a-z0-9_]+)*")
CLAUSE = re.compile(r"(?P<name>[a-z]+)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.I)
GRAMMAR = "low, high or estimate, words in brackets if wanted, < <= > or >=, a number; several joined by 'and'"


def claim(
    id: str,
    statement: str,
    rule: str,
    estimate: float,
    low: float,
    high: float,
    n: int,
    model: str,
    table: str,
    caveat: str | None = None,
    required: bool = False,
) -> Claim:
    """A claim with its verdict computed from the rule.

    id: "probe.what". n: what the interval rests on (rows, or pictures). model: which model it is about. table: the table's name.
    caveat: what the reader must know beside it. required: the section stands or falls with it.
    Raises ValueError naming the field: a rule that is no rule, an id that is none, n < 0, low <= estimate <= high broken, an
    infinity.
    """
    return Claim(id, statement, rule, float(estimate), float(low), float(high), n, model, table, caveat, required)


def parse_rule(rule: str) -> list[Clause]:
    """The comparisons of a rule, in order. Raises ValueError naming the part that is none."""
    clauses = []
    for part in re.split(r"\band\b", re.sub(r"([a-z]+)\s*\([^()]*\)", r"\1", rule)):  # without the words in brackets
        part = part.strip()
        found = CLAUSE.fullmatch(part)
        if found is None:
            raise ValueError(f"rule {rule!r}: {part!r} is not a comparison; legal: {GRAMMAR}")
        if found["name"] not in ("low", "high", "estimate"):
            near = difflib.get_close_matches(found["name"], ["low", "high", "estimate"], n=1)
            raise ValueError(f"rule {rule!r}: {found['name']!r} is not low, high or estimate" + (f"; {near[0]}?" if near else ""))
        clauses.append(Clause(found["name"], found["sign"], float(found["number"])))
    return clauses


def judge(rule: str, estimate: float, low: float, high: float) -> Verdict:
    """What `rule` says of an interval; see the module's text for the three verdicts."""
    verdicts = [clause.verdict(estimate, low, high) for clause in parse_rule(rule)]
    if "fails" in verdicts:
        return "fails"
    return "inconclusive" if "inconclusive" in verdicts else "holds"


def save_claims(claims: Iterable[Claim], path: str | Path) -> Path:
    """Write claims as a JSON list, in the order given, with their verdicts for readers of the file."""
    rows = ",\n ".join(canonical_json(one.to_dict()) for one in claims)
    return write_atomically(path, f"[{rows}]\n".encode())


def load_claims(path: str | Path) -> list[Claim]:
    """Claims from `save_claims`; each verdict is computed anew. Raises ValueError naming the file if one differs."""
    try:
        return [Claim.from_dict(row) for row in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def markdown(claims: Iterable[Claim]) -> str:
    """A GitHub table, a row a claim (one id, statement and rule; in the order of their first): what is claimed, by which rule,
    with which result for each model. A caveat that all share stands once."""
    lines = ["| claim | rule | model: estimate [95% interval], n, verdict |", "|---|---|---|"]
    alike: dict[tuple[str, str, str], list[Claim]] = {}  # a verdict stands beside no other rule than its own
    for one in claims:
        alike.setdefault((one.id, one.statement, one.rule), []).append(one)
    for same in alike.values():
        first, shared = same[0], len({one.caveat for one in same}) == 1
        statement = html.escape(first.statement, quote=False)
        statement += _caveat(first, "<br>") if shared else ""
        results = [
            f"{one.model}: {one.interval()}, {one.n:,}, **{one.verdict}**" + ("" if shared else _caveat(one, " ")) for one in same
        ]
        cells = [statement, f"`{first.rule}`", "<br>".join(results)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _caveat(one: Claim, before: str) -> str:
    return f"{before}*{html.escape(one.caveat, quote=False)}*" if one.caveat else ""


@dataclass(frozen=True)
class Clause:
    """One comparison of a rule."""

    name: str
    sign: str
    number: float

    def verdict(self, estimate: float, low: float, high: float) -> Verdict:
        """holds if true of what is named; fails if true of no value from low to high; else inconclusive."""
        if any(math.isnan(value) for value in (estimate, low, high)):
            return "inconclusive"
        compare = COMPARE[self.sign]
        if compare({"estimate": estimate, "low": low, "high": high}[self.name], self.number):
            return "holds"
        most_favourable = high if self.sign.startswith(">") else low
        return "inconclusive" if compare(most_favourable, self.number) else "fails"


@dataclass(frozen=True)
class Claim:
    """See `claim`, which fills it in. `verdict` follows from the rule and cannot be set."""

    id: str
    statement: str
    rule: str
    estimate: float
    low: float
    high: float
    n: int
    model: str
    table: str
    caveat: str | None = None
    required: bool = False

    def __post_init__(self):
        if not ID.fullmatch(self.id):
            raise ValueError(f"claim id {self.id!r}: lower-case words joined by '.' or '-', as in 'permutation.spatial'")
        for name in ("statement", "model", "table"):
            if not str(getattr(self, name)).strip():
                raise ValueError(f"claim {self.id}: {name} is empty")
        parse_rule(self.rule)
        if isinstance(self.n, bool) or int(self.n) != self.n or self.n < 0:
            raise ValueError(f"claim {self.id}: n={self.n!r} is not a count")
        object.__setattr__(self, "n", int(self.n))  # numpy counts become plain
        values = (self.estimate, self.low, self.high)
        if any(math.isinf(value) for value in values):
            raise ValueError(f"claim {self.id}: estimate {self.estimate:g} [{self.low:g}, {self.high:g}] is not finite")
        if any(math.isnan(value) for value in values):
            note = "no verdict: the estimate or an end of its interval could not be computed"
            if note not in (self.caveat or ""):
                object.__setattr__(self, "caveat", f"{self.caveat}; {note}" if self.caveat else note)
        elif not self.low <= self.estimate <= self.high:
            raise ValueError(f"claim {self.id}: estimate {self.estimate:g} is not in its interval [{self.low:g}, {self.high:g}]")
        elif self.n == 0:
            raise ValueError(f"claim {self.id}: an estimate from n=0")

    @property
    def verdict(self) -> Verdict:
        """holds, fails or inconclusive: what the rule says of the interval."""
        return judge(self.rule, self.estimate, self.low, self.high)

    @property
    def holds(self) -> bool:
        """Whether the verdict is "holds"."""
        return self.verdict == "holds"

    def interval(self) -> str:
        """The estimate with its interval, to three digits: "0.412 [0.377, 0.446]"."""
        if any(math.isnan(value) for value in (self.estimate, self.low, self.high)):
            return "not computed"
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the verdict; NaN, which JSON lacks, becomes None."""
        row = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(self).items()}
        return row | {"verdict": self.verdict}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Claim:
        """The claim of `to_dict`. Raises ValueError for unknown fields and when the stored verdict is not the rule's."""
        row = dict(row)
        stored = row.pop("verdict", None)
        legal = [field.name for field in fields(cls)]
        if unknown := sorted(set(row) - set(legal)):
            raise ValueError(f"claim field {unknown[0]!r} is unknown; legal: {', '.join(legal)}")
        for name in ("estimate", "low", "high"):
            row[name] = math.nan if row[name] is None else float(row[name])
        made = cls(**row)
        if stored is not None and stored != made.verdict:
            raise ValueError(f"claim {made.id}: stored verdict {stored!r}, but its rule says {made.verdict!r}")
        return made
