"""The run plan: papermill_runs.yaml, read and checked against the notebooks' own typed parameters.

A run is what one entry of the plan asks for: a notebook, parameters, and the runs that it needs. All faults of the file are told
at once, each with its line and the nearest legal name. Which runs are due is due.py's, executing them is execute.py's; what a
notebook computes is no concern of theirs.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import paths
from .params import Parameter, ParameterError, check_value, nearest, read_parameters

SUITES = ("lab", "full")
KEYS = {"name": str, "suite": str, "notebook": str, "parameters": dict, "needs": list, "resources": dict}
REQUIRED = ("name", "suite", "notebook")
KIND = {str: "text", dict: "a mapping", list: "a list"}
DEEPEST = 20  # mappings and lists within one another
AMOUNTS = {"gpu": 0, "mem_gb": 1e-3, "minutes": 1e-3}
TAKEN = ("readme", "index.html")  # of figures/, where each run has a folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class PlanError(ValueError):
    """Everything that is wrong with papermill_runs.yaml, one line a fault, each with file and line."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Resources:
    """What a run asks of a scheduler: GPUs, memory in GiB, wall time in minutes."""

    gpu: int = 0
    mem_gb: float = 4
    minutes: float = 10


@dataclass(frozen=True)
class Run:
    """One entry of the plan; `line` is where it begins in the file, `parameters` what it sets beside the notebook's defaults."""

    name: str
    suite: str
    notebook: str
    parameters: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    resources: Resources = Resources()
    line: int = 0


def load(root: Path | None = None) -> dict[str, Run]:
    """The plan of a checkout by run name, in the file's order. Raises PlanError with all faults at once."""
    root = root or paths.root()
    file = root / paths.MARK
    try:
        text = file.read_text(encoding="utf-8")
        _check_depth(text)
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise PlanError([f"{file}: not there. Runs are made in a clone of the repository: change into it"]) from error
    except UnicodeDecodeError as error:
        raise PlanError([f"{paths.MARK}:1: not UTF-8 text: {error}"]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise PlanError([f"{paths.MARK}:{mark.line + 1 if mark else 1}: {getattr(error, 'problem', None) or error}"]) from error
    if top is None or (isinstance(top, yaml.SequenceNode) and not top.value):
        return {}
    if not isinstance(top, yaml.SequenceNode):
        raise PlanError([f"{paths.MARK}:{top.start_mark.line + 1}: the plan is a list of runs, each begins with `- name:`"])
    faults: list[str] = []
    plan: dict[str, Run] = {}
    lines: dict[tuple[str, str], int] = {}
    notebooks = _Notebooks(root)
    for node in top.value:
        run = _entry(node, notebooks, faults, lines)
        if run is not None and run.name in plan:
            faults.append(f"{_at(run.line)} run {run.name!r} is there already, in line {plan[run.name].line}")
        elif run is not None:
            plan[run.name] = run
    faults += _graph_faults(plan, lines)
    if faults:
        raise PlanError(sorted(dict.fromkeys(faults), key=lambda fault: int(fault.split(":")[1])))
    return plan


def select(plan: Mapping[str, Run], suite: str = "", only: str = "") -> list[str]:
    """The names of the suite's runs that match the glob `only`, and of all they need, needs first.

    Raises ValueError for a suite or a glob that no run matches, naming what there is.
    """
    if suite and suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}{nearest(suite, SUITES)}; legal: {', '.join(SUITES)}")
    names = [name for name, run in plan.items() if suite in ("", run.suite)]
    chosen = fnmatch.filter(names, only) if only else names
    if not chosen:
        asked = " and ".join(filter(None, [only and f"matches {only!r}", suite and f"is in suite {suite!r}"]))
        raise ValueError(f"no run {asked or 'is planned'}{nearest(only, plan)}; runs: {', '.join(plan) or 'none'}")
    order: dict[str, None] = {}

    def add(name: str) -> None:
        for need in plan[name].needs:
            add(need)
        order[name] = None

    for name in chosen:
        add(name)
    return list(order)


def _check_depth(text: str) -> None:
    """Raises PlanError for text nested too deeply for anything to read it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise PlanError([f"{_at(event.start_mark.line + 1)} nested more than {DEEPEST} deep; a run's values are plain"])


class _Notebooks:
    """The parameters of each notebook that the plan names, read once."""

    def __init__(self, root: Path):
        self.folder = root / "notebooks"
        self.read: dict[str, dict[str, Parameter]] = {}
        self.told: set[str] = set()

    def parameters(self, name: str) -> dict[str, Parameter]:
        """Raises ValueError for an unknown notebook, or for one whose parameters can't be read (once: then it is told)."""
        if name not in self.read:
            file = self.folder / f"{name}.ipynb"
            if not file.is_file():
                names = sorted(path.stem for path in self.folder.glob("*.ipynb"))
                raise ValueError(
                    f"unknown notebook {name!r}{nearest(name, names) or '; legal: ' + (', '.join(names) or 'none yet')}"
                )
            self.read[name] = read_parameters(file)
        return self.read[name]


def _at(line: int) -> str:
    return f"{paths.MARK}:{line}:"


def _pairs(node: yaml.MappingNode, faults: list[str]) -> dict[str, tuple[Any, yaml.Node, int]]:
    """Key -> (value, its node, the key's line) of a mapping; keys that are no text or come twice are faults."""
    builder = yaml.constructor.SafeConstructor()
    found: dict[str, tuple[Any, yaml.Node, int]] = {}
    own: set[str] = set()  # keys written here, not merged in by `<<`
    try:
        builder.flatten_mapping(node)
    except yaml.YAMLError as error:
        faults.append(f"{_at(node.start_mark.line + 1)} {getattr(error, 'problem', None) or error}")
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        try:
            key, value = (builder.construct_document(part) for part in (key_node, value_node))
        except (yaml.YAMLError, ValueError) as error:
            faults.append(f"{_at(line)} {getattr(error, 'problem', None) or error}")
            continue
        if not isinstance(key, str):
            faults.append(f"{_at(line)} the key {key!r} is not text")
        elif key in own:
            faults.append(f"{_at(line)} {key!r} is there already, in line {found[key][2]}")
        else:
            found[key] = (value, value_node, line)
            if node.start_mark.index <= key_node.start_mark.index < node.end_mark.index:
                own.add(key)
    return found


def _entry(node: yaml.Node, notebooks: _Notebooks, faults: list[str], lines: dict[tuple[str, str], int]) -> Run | None:
    """One run, its faults noted in `faults` and the lines of its needs in `lines`; None where it has no usable name."""
    start = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        faults.append(f"{_at(start)} a run is a mapping that begins with `- name:`")
        return None
    pairs = _pairs(node, faults)
    faults += [f"{_at(start)} the run has no {key!r}" for key in REQUIRED if key not in pairs]
    for key, (value, _, line) in list(pairs.items()):
        if key not in KEYS:
            faults.append(f"{_at(line)} unknown key {key!r}{nearest(key, KEYS) or '; legal: ' + ', '.join(KEYS)}")
        elif not isinstance(value, KEYS[key]):
            faults.append(f"{_at(line)} {key}: {value!r} is not {KIND[KEYS[key]]}")
            del pairs[key]
    value = {key: pair[0] for key, pair in pairs.items()}
    name = value.get("name", "")
    if "name" in pairs and (not NAME.fullmatch(name) or name in TAKEN):
        rule = f"letters, digits, dot, dash, underscore, and not {' or '.join(TAKEN)}"
        faults.append(f"{_at(pairs['name'][2])} name: {name!r} can't name a folder of results: {rule}")
    if "suite" in pairs and value["suite"] not in SUITES:
        near = nearest(value["suite"], SUITES)
        faults.append(f"{_at(pairs['suite'][2])} unknown suite {value['suite']!r}{near}; legal: {', '.join(SUITES)}")
    if "notebook" in pairs:
        _check_parameters(value["notebook"], pairs, notebooks, faults)
    resources = _resources(pairs["resources"][1], faults) if "resources" in pairs else Resources()
    needs = []
    if "needs" in pairs:
        for need, need_node in zip(value["needs"], pairs["needs"][1].value, strict=True):
            lines[name, str(need)] = need_node.start_mark.line + 1
            needs.append(str(need))
    if not name:
        return None
    suite, notebook = value.get("suite", ""), value.get("notebook", "")
    return Run(name, suite, notebook, value.get("parameters", {}), tuple(needs), resources, start)


def _check_parameters(notebook: str, pairs: Mapping[str, tuple], notebooks: _Notebooks, faults: list[str]) -> None:
    """Note each parameter that the notebook does not take, and each value that it can't."""
    try:
        legal = notebooks.parameters(notebook)
    except ParameterError as error:
        if notebook not in notebooks.told:
            faults += [f"{_at(pairs['notebook'][2])} {problem}" for problem in error.problems]
        notebooks.told.add(notebook)
        return
    except ValueError as error:
        faults.append(f"{_at(pairs['notebook'][2])} {error}")
        return
    if "parameters" in pairs:
        for key, (value, _, line) in _pairs(pairs["parameters"][1], faults).items():
            if key == "out":
                faults.append(f"{_at(line)} out: where a run writes is decided by its name")
            elif fault := check_value(legal, key, value):
                faults.append(f"{_at(line)} {notebook}: {fault}")


def _resources(node: yaml.MappingNode, faults: list[str]) -> Resources:
    """The resources of an entry; unknown keys and values that are no sensible amounts are faults."""
    given = {}
    for key, (value, _, line) in _pairs(node, faults).items():
        whole = key == "gpu"
        if key not in AMOUNTS:
            faults.append(f"{_at(line)} unknown resource {key!r}{nearest(key, AMOUNTS) or '; legal: ' + ', '.join(AMOUNTS)}")
        elif isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not AMOUNTS[key] <= value < 1e6:
            what = "a whole number, 0 or more" if whole else "a number above 0"
            faults.append(f"{_at(line)} {key}: {value!r} is not {what}")
        else:
            given[key] = value
    return Resources(**given)


def _graph_faults(plan: Mapping[str, Run], lines: Mapping[tuple[str, str], int]) -> list[str]:
    """Needs that no run answers to, and cycles, each cycle told once with its path."""
    faults = []
    for run in plan.values():
        for need in run.needs:
            if need not in plan:
                near = nearest(need, plan) or "; runs: " + ", ".join(plan)
                faults.append(f"{_at(lines[run.name, need])} {run.name} needs {need!r}, which is no run{near}")
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = (*path[path.index(name) :], name)
            faults.append(f"{_at(lines[cycle[-2], name])} runs need each other in a circle: {' -> '.join(cycle)}")
        elif name in plan and name not in done:
            for need in plan[name].needs:
                walk(need, (*path, name))
            done.add(name)

    for name in plan:
        walk(name, ())
    return faults
