"""ShapeWorld's two-shape worlds as examples with a relation: what a probe is given, for generated worlds and for those of files.

``objects`` are subject and reference, boxes cut to the picture; ``meta`` holds the words of both, the relation of subject to
reference, the relation's word as it stands in the text ("" where it does not), the published caption, and whether the subject
comes first in the world (the study took the world's order for the caption's). Knows worlds and words; knows nothing of files
and models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from spatialprobes.examples import Example, Object
from spatialprobes.seeds import check_seed
from spatialprobes.worlds.shapeworld import RELATIONS, Entity, TwoShapes, picture, world
from spatialprobes.worlds.shapeworld_questions import ASKED, OPPOSITE, caption, statement

Form = Literal["question", "caption"]


def examples(count: int, seed: int, *, form: Form = "question", twins: bool = False) -> list[Example]:
    """The first ``count`` worlds of stream ``seed``, each relation as likely.

    form: "question" names the two shapes and asks for the relation, one of left, right, above, below. "caption" is the published
    caption as a whole, its answer included (the study gives it to the model as it stands).
    twins: after every example also the one about the same world with subject and reference exchanged.
    id: "shapeworld-<seed>-<index>", its twin's with "-twin"; cluster: the world.
    Raises ValueError for a count below 1, what is no seed, or an unknown form.
    """
    check_count(count)
    check_seed(seed)
    out = []
    for index in range(count):
        shown, id = world(seed, index), f"shapeworld-{seed}-{index}"
        image = partial(picture, shown)
        if not twins:
            out.append(example(id, shown, image, form=form))
            continue
        other = exchanged(shown)
        out.append(example(id, shown, image, form=form, twin=f"{id}-twin"))
        out.append(example(f"{id}-twin", other, image, form=form, cluster=id, twin=id))
    return out


def example(
    id: str,
    shown: TwoShapes,
    image: Path | Callable[[], Image.Image],
    *,
    form: Form = "question",
    cluster: str = "",
    twin: str | None = None,
) -> Example:
    """What is asked (or stated) about a world, in the form that `examples` describes. cluster: the id if empty.

    Raises ValueError for an unknown form.
    """
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}; it must be one of {', '.join(get_args(Form))}")
    subject, reference = shown.pair
    said = caption(subject, reference, shown.relation)
    asked = form == "question"
    return Example(
        id=id,
        image=image,
        question=f"{statement(subject, reference)} {ASKED}" if asked else said,
        answer=shown.relation,
        choices=list(RELATIONS),
        category=shown.relation,
        group="relation.asked" if asked else "relation.caption",
        cluster=cluster or id,
        objects=[seen(subject), seen(reference)],
        twin=twin,
        meta={
            "subject": subject.name,
            "reference": reference.name,
            "relation": shown.relation,
            "word": "" if asked else shown.relation,
            "caption": said,
            "world_order": shown.subject == 0,
        },
    )


def seen(entity: Entity) -> Object:
    """The entity with its box cut to the picture: an extent may reach a little over the border."""
    box = tuple(min(max(edge, 0.0), 1.0) for edge in entity.box)
    return Object(entity.name, entity.centre, box)


def exchanged(shown: TwoShapes) -> TwoShapes:
    """The same world, said from the other shape."""
    return TwoShapes(shown.entities, 1 - shown.subject, OPPOSITE[shown.relation])


def check_count(count: int, name: str = "count") -> None:
    """Raises ValueError, naming it, for what is no whole number of at least 1."""
    if isinstance(count, bool) or not hasattr(count, "__index__") or count < 1:
        raise ValueError(f"{name} is {count!r}; it must be a whole number of at least 1")
