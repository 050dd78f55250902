"""A processor that comes from another model than the weights: does it fit them?

Fine-tuned checkpoints are often saved without one and take that of the model they began from. A wrong one raises nothing by
itself as long as its token ids exist: the model is then asked in words it never learned. Knows models and processors, no probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from spatialprobes.examples import Example
from spatialprobes.loading import ModelError

if TYPE_CHECKING:
    from spatialprobes.vlm import VLM


def check_processor(vlm: VLM) -> None:
    """Raises ModelError where the model takes another's processor (`source.base`) that does not fit it.

    Checked: every word has an embedding, the image token is the model's own, and a picture gets as many places in the prompt as
    the model makes vision tokens of it.
    """
    if (base := vlm.source.base) is None:
        return
    which = f"model {vlm.name!r}: the processor of {base.name!r} does not fit it"
    words, rows = max(vlm.tokenizer.get_vocab().values()) + 1, len(vlm.text_embeddings())
    if words > rows:
        raise ModelError(f"{which}: its vocabulary has {words:,} tokens, the model {rows:,} embeddings")
    placeholder, expected = vlm.family.image_token(vlm.processor), vlm.family.image_token_id(vlm.model)
    if (found := vlm.tokenizer.get_vocab().get(placeholder)) != expected:
        where = "is no token of it" if found is None else f"has the id {found} in it"
        raise ModelError(f"{which}: the image token {placeholder!r} {where}, in the model's config.json {expected}")
    _check_picture(vlm, which)


def _check_picture(vlm: VLM, which: str) -> None:
    grey = Example(id="a grey picture", image=Image.new("RGB", (64, 64), (128, 128, 128)), question=None)
    try:
        prepared, _ = vlm.pictures([grey])
        features = len(vlm.vision_features([grey])[0])
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, KeyError) as error:  # what towers raise for pixels they were not made for
        raise ModelError(f"{which}: a picture cannot be run: {' '.join(str(error).split())[:300]}") from error
    places = prepared.tokens[0].count(vlm.family.image_token_id(vlm.model))
    if places != features:
        raise ModelError(f"{which}: it writes {places} image tokens for a picture of which the model makes {features}")
