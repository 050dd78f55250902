"""A notebook's parameters: read from the cell tagged `parameters`, and values checked against them.

papermill's own inspection drops `str | None`, `Literal[...]` and the like without a word and takes any value for any name, so the
cell is read by `ast` and values are checked by pydantic, strictly: an int is a legal float, a bool is no int, "1" is no number.
papermill's help shows plain types only, so where a text has few legal values, the comment may begin with them:
`size: str = "quick"  # quick | lab: how much to do`. Knows cells and types, not what a parameter does.
"""

import ast
import difflib
import io
import json
import tokenize
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from .seeds import SEEDS

PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "None": None, "Any": Any}
CONTAINERS = {"list": list, "dict": dict, "tuple": tuple, "set": set, "List": list, "Dict": dict, "Tuple": tuple}


class ParameterError(ValueError):
    """What is wrong with a notebook's parameters or with values for them; `problems` holds one line for each fault."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Parameter:
    """One parameter: `annotation` as written, `type` as pydantic takes it, `line` in its cell (from 1)."""

    name: str
    annotation: str
    type: Any
    default: Any
    meaning: str
    line: int
    choices: tuple[str, ...] = ()

    def fault(self, value: Any) -> str | None:
        """Why the value is not legal, in a few words that name what would be; None where it is."""
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            return f"{value!r} is not plain data (text, number, bool, null, list, mapping)"
        try:
            TypeAdapter(self.type).validate_json(text, strict=True)
        except ValidationError as error:
            reasons = dict.fromkeys(entry["msg"].lower() for entry in error.errors())
            return f"{value!r} is not {self.annotation} ({'; '.join(reasons)}){nearest(value, literals(self.type))}"
        if self.name == "seed" and isinstance(value, int) and not 0 <= value < SEEDS:
            return f"{value!r} is no seed: whole numbers from 0 to {SEEDS - 1} are"
        if self.choices and value not in self.choices:
            return f"{value!r} is none of {', '.join(self.choices)}{nearest(value, self.choices)}"
        return None


def nearest(value: Any, legal: Iterable[Any]) -> str:
    """`; nearest: NAME` with the legal name closest to the value, or nothing where none is close."""
    names = [name for name in legal if isinstance(name, str)]
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.5) if isinstance(value, str) else []
    return f"; nearest: {close[0]}" if close else ""


def literals(kind: Any) -> tuple[Any, ...]:
    """The values named by the `Literal[...]` in a type, at any depth."""
    if getattr(kind, "__origin__", None) is Literal:
        return kind.__args__
    return tuple(value for part in getattr(kind, "__args__", ()) for value in literals(part))


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of the notebook's cell tagged `parameters`, by name and in order; none if there is no such cell.

    Raises ParameterError for a file that is no notebook and for a cell that holds anything but typed, literal assignments.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
        source = "".join(tagged[0]["source"]) if tagged else ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError([f"{notebook} is not a notebook: {error or type(error).__name__}"]) from error
    try:
        return parse_parameters(source)
    except ParameterError as error:
        raise ParameterError(f"{notebook}, cell tagged parameters, {problem}" for problem in error.problems) from error


def parse_parameters(source: str) -> dict[str, Parameter]:
    """The parameters of a cell's source. Raises ParameterError with the line of every statement that is no parameter."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError([f"line {error.lineno}: {error.msg}"]) from error
    comments = _comments(source)
    found: dict[str, Parameter] = {}
    problems = []
    for statement in statements:
        try:
            parameter = _parameter(statement, comments)
            if parameter.name in found:
                raise ValueError(f"{parameter.name} is there already, in line {found[parameter.name].line}")
            found[parameter.name] = parameter
        except SyntaxError as error:  # in an annotation that is quoted
            problems.append(f"line {statement.lineno}: {error.msg}: {error.text}")
        except ValueError as error:
            problems.append(f"line {statement.lineno}: {error}")
    if problems:
        raise ParameterError(problems)
    return found


def check_value(parameters: Mapping[str, Parameter], name: str, value: Any) -> str | None:
    """Why `name=value` is not legal here, with the nearest legal name; None where it is."""
    if name not in parameters:
        return f"unknown parameter {name!r}{nearest(name, parameters) or '; legal: ' + ', '.join(parameters)}"
    fault = parameters[name].fault(value)
    return f"{name}: {fault}" if fault else None


def _parameter(statement: ast.stmt, comments: dict[int, str]) -> Parameter:
    """The parameter that a statement `name: type = literal  # meaning` declares; ValueError for any other statement."""
    text = ast.unparse(statement).splitlines()[0]
    if isinstance(statement, ast.Assign):
        raise ValueError(f"`{text}` has no type: write `name: type = default  # meaning`")
    if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value):
        raise ValueError(f"`{text}` is not of the form `name: type = default  # meaning`; derived values belong in the next cell")
    name = statement.target.id
    annotation = statement.annotation
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    try:
        default = ast.literal_eval(statement.value)
    except ValueError as error:
        raise ValueError(f"the default of {name}, `{ast.unparse(statement.value)}`, is not a literal") from error
    comment = next((comments[line] for line in (statement.end_lineno, statement.lineno) if line in comments), "")
    choices = _choices(comment, default)
    found = Parameter(name, ast.unparse(annotation), _type(annotation), default, comment, statement.lineno, choices)
    plain = list(default) if isinstance(default, tuple | set) else default
    if fault := found.fault(plain):
        raise ValueError(f"the default of {name}: {fault}")
    return found


def _type(node: ast.expr) -> Any:
    """The type that an annotation's tree spells, from a closed list of names: nothing of the notebook is evaluated."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in PLAIN:
            return PLAIN[name]
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in CONTAINERS:
            return CONTAINERS[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left) | _type(right)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inside):
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            if name == "Literal":
                return Literal[tuple(ast.literal_eval(part) for part in parts)]
            if name == "Optional":
                return _type(parts[0]) | None
            if name == "Union":
                return reduce(or_, [_type(part) for part in parts])
            if name in CONTAINERS:
                kinds = [... if isinstance(part, ast.Constant) and part.value is ... else _type(part) for part in parts]
                return types.GenericAlias(CONTAINERS[name], tuple(kinds))
    legal = [*PLAIN, *CONTAINERS, "Literal", "Optional", "Union"]
    raise ValueError(
        f"type `{ast.unparse(node)}` is not understood{nearest(ast.unparse(node), legal)}; legal: {', '.join(legal)}"
    )


def _comments(source: str) -> dict[int, str]:
    """The comment of each line that has one, without its `#`."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def _choices(comment: str, default: Any) -> tuple[str, ...]:
    """The legal values that a comment `a | b | c: meaning` begins with, if the default is one of them."""
    values = tuple(word.strip() for word in comment.partition(":")[0].split("|"))
    return values if len(values) > 1 and default in values and all(value and " " not in value for value in values) else ()
