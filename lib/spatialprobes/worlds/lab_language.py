"""The lab's words: one vocabulary, one chat template, one caption grammar.

Every trained lab model depends on the order of ``VOCABULARY``; later needs take a spare token, they never reorder it.
Knows scenes; knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spatialprobes.worlds.lab import COLOURS, SHAPES, Scene, Thing

SYSTEM_PROMPT = "you are a helpful assistant . look at the picture and answer the question ."
CAPTION_REQUEST = "describe the picture ."
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>", "<image>")
ROLES = ("user:", "assistant:")
SPARE = 24

_WORDS = """
. , ? ! - ( ) yes no not and or of to the a an is are there it in on at with from
you helpful assistant user look picture image answer question describe
0 1 2 3 4 5 6 7 8 9
red green blue yellow purple cyan magenta gray black white orange pink
circle square triangle cross rectangle ellipse pentagon semicircle star diamond
left right above under below beneath top bottom middle center
far close farther closer near nearby distant next adjacent beside between behind front
corner column row side one thing object objects shape shapes color size
what where which how many anything something nothing
compared relative relation relationship spatial position than first second two three four
small large big bigger smaller same different does do can see contain contains they them this that side-by-side
""".split()
VOCABULARY: tuple[str, ...] = (*SPECIAL, *ROLES, *dict.fromkeys(_WORDS), *(f"<spare{i}>" for i in range(SPARE)))
ID: dict[str, int] = {word: i for i, word in enumerate(VOCABULARY)}

RELATION_WORDS = ("left of", "right of", "above", "under")

# The system message may be given, left out (then the default stands) or empty (then there is none).
CHAT_TEMPLATE = (
    "{{ bos_token }} "
    "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = '" + SYSTEM_PROMPT + "' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- if system is not string -%}{%- set system = system | map(attribute='text') | join(' ') -%}{%- endif -%}"
    "{%- if system -%}{{ ' ' + system }}{%- endif -%}"
    "{%- for message in turns -%}"
    "{{ ' ' + message['role'] + ':' }}"
    "{%- if message['content'] is string -%}{{ ' ' + message['content'] }}{%- else -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}{{ ' <image>' }}{%- endfor -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}{{ ' ' + part['text'] }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{ ' ' + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' assistant:' }}{%- endif -%}"
)


def ids(text: str) -> list[int]:
    """Token ids of words parted by spaces. Raises KeyError for a word outside the vocabulary."""
    return [ID[word] for word in text.split()]


@dataclass(frozen=True)
class Clause:
    """One sentence of a caption: subject, relation and reference as named in it."""

    subject: str
    relation: str
    reference: str

    def __str__(self) -> str:
        return f"a {self.subject} {self.relation} a {self.reference} ."


def relation(a: Thing, b: Thing) -> str:
    """Where a is, seen from b, along the axis on which they lie farther apart."""
    if abs(a.x - b.x) >= abs(a.y - b.y):
        return "left of" if a.x < b.x else "right of"
    return "above" if a.y < b.y else "under"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that names every object, in random order and two by two; an odd one out is set beside the first."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    pairs = [(things[i], things[i + 1]) for i in range(0, len(things) - 1, 2)]
    if len(things) % 2:
        pairs.append((things[-1], things[0]))
    return " ".join(str(Clause(a.name, relation(a, b), b.name)) for a, b in pairs)


def parse_caption(text: str) -> list[Clause]:
    """The clauses of a caption; ``" ".join(map(str, parse_caption(c))) == c``. Raises ValueError naming what does not fit."""
    words, clauses, i = text.split(), [], 0

    def take(legal: tuple[str, ...]) -> str:
        nonlocal i
        if i >= len(words) or words[i] not in legal:
            found = words[i] if i < len(words) else "the end"
            raise ValueError(f"caption {text!r}: word {i + 1} is {found!r}; it must be one of {', '.join(legal)}")
        i += 1
        return words[i - 1]

    while i < len(words):
        names = []
        for part in range(2):
            take(("a",))
            names.append(f"{take(tuple(COLOURS))} {take(SHAPES)}")
            if part == 0:
                word = take(("left", "right", "above", "under"))
                if word in ("left", "right"):
                    word += " " + take(("of",))
        take((".",))
        clauses.append(Clause(names[0], word, names[1]))
    if not clauses:
        raise ValueError("the caption is empty")
    return clauses


def true_of(clause: Clause, scene: Scene) -> bool:
    """Whether both objects are in the scene and stand in the relation (on its axis, the larger distance or not)."""
    named = {thing.name: thing for thing in scene.things}
    if clause.subject not in named or clause.reference not in named:
        return False
    a, b = named[clause.subject], named[clause.reference]
    return {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "under": a.y > b.y}[clause.relation]
