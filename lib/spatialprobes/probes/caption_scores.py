"""How good a caption is, by models that compare: CLIPScore against the picture, BERTScore against another caption.

CLIPScore by both conventions in use, by name: `clipscore_100` is max(100 cos, 0), the connector study's and torchmetrics';
`clipscore_hessel` is 2.5 max(cos, 0), of Hessel et al. 2021. BERTScore (Zhang et al. 2020) by torchmetrics, without idf and
without rescaling to a baseline: values of one encoder compare with one another alone. An empty caption scores 0 and is counted.
Knows captions in tables (`captions.py`, `perturbation.py`); what is made of the scores is `caption_summary.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from spatialprobes.digests import identity
from spatialprobes.examples import Example, batches
from spatialprobes.images import open_image
from spatialprobes.loading import ModelError, Source, choose_device, find, quiet

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

BERT = ("precision", "recall", "f1")
OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl")  # positions begin behind the padding's


# ---- CLIPScore ----
@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model with its processors, in float32. Made by `clip`."""

    source: Source
    model: nn.Module
    image_processor: Any
    tokenizer: Any

    @property
    def name(self) -> str:
        return self.source.path.name if self.source.kind == "folder" else self.source.name

    def facts(self) -> dict[str, str]:
        return {"model": self.name, **identity(self.source)}

    @torch.no_grad()
    def image_vectors(self, examples: Sequence[Example], batch_size: int = 64) -> Float[Tensor, "example width"]:
        """The embedding of each example's whole picture, of length 1, on the CPU."""
        found = []
        for chunk in batches(examples, batch_size):
            shown = [open_image(example.image) for example in chunk]
            pixels = self.image_processor(images=shown, return_tensors="pt")["pixel_values"].to(self.model.device)
            found.append(_unit(self.model.get_image_features(pixel_values=pixels).pooler_output))
        return torch.cat(found)

    @torch.no_grad()
    def text_vectors(
        self, texts: Sequence[str], batch_size: int = 256
    ) -> tuple[Float[Tensor, "text width"], Bool[np.ndarray, " text"]]:
        """The embedding of each text, of length 1, on the CPU; and which were cut at the model's number of positions."""
        most = self.model.config.text_config.max_position_embeddings
        rows, cut = tokenized(self.tokenizer, texts, most)
        found = []
        for chunk in batches(rows, batch_size):
            inputs = padded(chunk, self.tokenizer.pad_token_id or 0)
            on_device = {name: value.to(self.model.device) for name, value in inputs.items()}
            found.append(_unit(self.model.get_text_features(**on_device).pooler_output))
        return torch.cat(found), np.array(cut)


def clip(name: str = "lab-clip", revision: str | None = None, device: str = "auto") -> Clip:
    """A CLIP model for CLIPScore: a lab name, a folder, or a hub id (the study's is openai/clip-vit-base-patch16).

    Raises ModelError, in one line, for what cannot be loaded and for a model of another kind.
    """
    source, model = _loaded(name, revision, device)
    if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
        raise ModelError(f"model {name!r} is a {type(model).__name__}, which embeds no picture with a text; give a CLIP model")
    where = str(source.path or source.name)
    images = AutoImageProcessor.from_pretrained(where, **source.options())
    return Clip(source, model, images, AutoTokenizer.from_pretrained(where, **source.options()))


def clipscore_100(cosine: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """max(100 cos, 0)."""
    return np.maximum(100 * np.asarray(cosine), 0)


def clipscore_hessel(cosine: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """2.5 max(cos, 0) (Hessel et al. 2021, 3; w = 2.5)."""
    return 2.5 * np.maximum(np.asarray(cosine), 0)


# ---- BERTScore ----
@dataclass(frozen=True, eq=False)
class Bert:
    """A text encoder for BERTScore, in float32. layer: whose hidden states are compared, None the last. Made by `bert`."""

    source: Source
    model: nn.Module
    tokenizer: Any
    positions: int
    layer: int | None

    @property
    def name(self) -> str:
        """As it is to be reported: values of different encoders do not compare."""
        own = self.source.path.name if self.source.kind == "folder" else self.source.name
        half = " text" if self.model.config.model_type.startswith("clip") else ""
        return f"BERTScore({own}{half}{'' if self.layer is None else f', layer {self.layer}'})"

    def facts(self) -> dict[str, str]:
        return {"model": self.name, **identity(self.source)}

    def states(self, model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, "text token width"]:
        """Hidden states of a batch; the last ones are those behind the encoder's own last norm."""
        deep = self.layer is not None
        out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=deep)
        return out.hidden_states[self.layer] if deep else out.last_hidden_state

    def scores(
        self, candidates: Sequence[str], references: Sequence[str], batch_size: int = 64
    ) -> tuple[Float[np.ndarray, "pair score"], Bool[np.ndarray, " pair"]]:
        """[precision, recall, F1] of each candidate against its reference; and which pairs were cut at the encoder's positions.

        A token that is unlike every one of the other text counts 0, not less (torchmetrics' zeros for start and end stand beside
        them). 0 where either text is empty: torchmetrics has no value for those. Raises ValueError for columns of unequal length.
        """
        if len(candidates) != len(references):
            raise ValueError(f"{len(candidates)} candidates for {len(references)} references; one of each a pair")
        found, cut = np.zeros((len(candidates), len(BERT))), np.zeros(len(candidates), bool)
        places = [i for i, pair in enumerate(zip(candidates, references, strict=True)) if all(text.strip() for text in pair)]
        if not places:
            return found, cut
        ones, ones_cut = tokenized(self.tokenizer, [candidates[i] for i in places], self.positions)
        others, others_cut = tokenized(self.tokenizer, [references[i] for i in places], self.positions)
        cut[places] = np.array(ones_cut) | np.array(others_cut)
        for chunk in batches_in_order(list(map(len, ones)), list(map(len, others)), batch_size):
            rows = [places[i] for i in chunk]
            found[rows] = self._batch([ones[i] for i in chunk], [others[i] for i in chunk])
        return found, cut

    def _batch(self, candidates: list[list[int]], references: list[list[int]]) -> Float[np.ndarray, "pair score"]:
        """Of pairs in the order of `batches_in_order`, as many at a time as torchmetrics leaves in it: its sort may move ties."""
        from torchmetrics.functional.text.bert import bert_score  # seconds, only where it is used

        inputs = [padded(rows, self.tokenizer.pad_token_id or 0) for rows in (candidates, references)]
        orders = [one["attention_mask"].sum(1).argsort() for one in inputs]  # as torchmetrics sorts
        if not all(torch.equal(order, torch.arange(len(order))) for order in orders):
            half = len(candidates) // 2
            parts = (self._batch(candidates[:half], references[:half]), self._batch(candidates[half:], references[half:]))
            return np.concatenate(parts)
        out = bert_score(
            *inputs, model=self.model, user_tokenizer=self.tokenizer, user_forward_fn=self.states, device=self.model.device,
            batch_size=len(candidates), idf=False, rescale_with_baseline=False,
        )  # fmt: skip
        return torch.stack([torch.as_tensor(out[name]).reshape(-1) for name in BERT], dim=1).double().numpy()


def bert(name: str = "lab-clip", revision: str | None = None, device: str = "auto", layer: int | None = None) -> Bert:
    """A text encoder for BERTScore: of lab-clip its text half; a folder or hub id of any encoder (the study's: roberta-large).

    layer: whose hidden states are compared, from 0, what enters the first block; None: the last (bert-score takes layer 17 of
    roberta-large). A sentence encoder's folder does as well; only its hidden states are used.
    Raises ModelError, in one line, for what cannot be loaded, and for a layer that is not there.
    """
    source, model = _loaded(name, revision, device)
    model = getattr(model, "text_model", model)
    tokenizer = AutoTokenizer.from_pretrained(str(source.path or source.name), **source.options())
    config = model.config
    if layer is not None and not 0 <= layer <= config.num_hidden_layers:
        raise ModelError(f"layer={layer} of {name!r} is not there; 0 to {config.num_hidden_layers}")
    positions = config.max_position_embeddings
    if config.model_type in OFFSET:
        positions -= config.pad_token_id + 1
    return Bert(source, model, tokenizer, min(positions, tokenizer.model_max_length), layer)


def batches_in_order(ones: Sequence[int], others: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places of pairs of texts of these lengths, in batches within which neither the ones nor the others get shorter.

    torchmetrics (1.9) sorts both sides of a batch by length, each for itself, and puts neither back into its place: it compares
    texts of different pairs unless they are sorted already. So they are; pairs go into as few runs as there can be.
    """
    runs: list[list[int]] = []
    for i in sorted(range(len(ones)), key=lambda i: (ones[i], others[i])):
        run = next((run for run in runs if others[run[-1]] <= others[i]), None)
        if run is None:
            runs.append(run := [])
        run.append(i)
    return [chunk for run in runs for chunk in batches(run, batch_size)]


# ---- tables ----
def score(
    frame: pd.DataFrame,
    examples: Sequence[Example],
    *,
    clip: Clip | None = None,
    bert: Bert | None = None,
    against: str = "live",
    batch_size: int = 64,
) -> pd.DataFrame:
    """The table of captions with their scores, from the columns key, model, arm and caption.

    With clip: clipscore_100, clipscore_hessel, clipscore_gt (of the picture's own caption, ``meta["caption"]``, by the 100
    convention; missing without one), clipscore_model, clipscore_cut (the text was cut at the model's positions).
    With bert: bertscore_precision, _recall, _f1 against the caption of arm `against` (missing for that arm itself, and where it
    has none), bertscore_gt_precision, _recall, _f1 against the picture's own caption, bertscore_model, bertscore_cut.
    An empty caption scores 0. Pictures and distinct texts are embedded once each.
    Raises ValueError for a key without its example, and where neither clip nor bert is given.
    """
    if clip is None and bert is None:
        raise ValueError("nothing to score with; clip=clip(...), bert=bert(...), or both")
    known = {example.id: example for example in examples}
    if lacking := [key for key in dict.fromkeys(frame["key"]) if key not in known]:
        raise ValueError(f"no example {lacking[0]!r} ({len(lacking)} of {frame['key'].nunique()} keys lack one)")
    references = [known[key].meta.get("caption") or "" for key in frame["key"]]
    if clip is not None:
        frame = _with_clip(frame, [known[key] for key in dict.fromkeys(frame["key"])], references, clip, batch_size)
    if bert is not None:
        originals = frame[frame["arm"] == against].set_index(["model", "key"])["caption"]
        found = originals.reindex(pd.MultiIndex.from_frame(frame[["model", "key"]])).tolist()
        found = [None if arm == against or pd.isna(one) else one for one, arm in zip(found, frame["arm"], strict=True)]
        frame = _with_bert(frame, found, references, bert, batch_size)
    return frame


def _with_clip(
    frame: pd.DataFrame, examples: Sequence[Example], references: Sequence[str], clip: Clip, batch_size: int
) -> pd.DataFrame:
    row = {example.id: i for i, example in enumerate(examples)}
    shown = clip.image_vectors(examples, batch_size)[[row[key] for key in frame["key"]]]
    texts = list(dict.fromkeys([*frame["caption"], *references]))
    vectors, cut = clip.text_vectors(texts)
    place = {text: i for i, text in enumerate(texts)}

    def cosines(own: Sequence[str]) -> Float[np.ndarray, " n"]:
        found = (shown * vectors[[place[text] for text in own]]).sum(-1).double().numpy()
        return np.where([bool(text.strip()) for text in own], found, 0.0)

    cosine = cosines(frame["caption"])
    there = [bool(text) for text in references]
    return frame.assign(
        clipscore_100=clipscore_100(cosine),
        clipscore_hessel=clipscore_hessel(cosine),
        clipscore_gt=np.where(there, clipscore_100(cosines(references)), np.nan),
        clipscore_cut=[bool(cut[place[text]]) for text in frame["caption"]],
        clipscore_model=clip.name,
    )


def _with_bert(
    frame: pd.DataFrame, originals: Sequence[str | None], references: Sequence[str], bert: Bert, batch_size: int
) -> pd.DataFrame:
    captions = frame["caption"].tolist()
    cut = np.zeros(len(frame), bool)
    added = {}
    for name, others in (("bertscore", originals), ("bertscore_gt", [text or None for text in references])):
        pairs = list(zip(captions, others, strict=True))
        distinct = list(dict.fromkeys(pair for pair in pairs if pair[1] is not None))
        found, found_cut = bert.scores([one for one, _ in distinct], [other for _, other in distinct], batch_size)
        place = {pair: i for i, pair in enumerate(distinct)}
        values = [found[place[pair]] if pair in place else np.full(len(BERT), np.nan) for pair in pairs]
        cut |= [pair in place and bool(found_cut[place[pair]]) for pair in pairs]
        added |= {f"{name}_{part}": [value[i] for value in values] for i, part in enumerate(BERT)}
    return frame.assign(**added, bertscore_cut=cut, bertscore_model=bert.name)


# ---- texts to tensors ----
def tokenized(tokenizer: Any, texts: Sequence[str], most: int) -> tuple[list[list[int]], list[bool]]:
    """Ids of each text between the tokenizer's own start and end, at most `most` of them; and which texts were cut.

    Written out, since a tokenizer need not put start and end there by itself (lab-clip's does not).
    Raises ValueError for a tokenizer that has none.
    """
    start, end = (
        next((one for one in names if one is not None), None)
        for names in ((tokenizer.cls_token_id, tokenizer.bos_token_id), (tokenizer.sep_token_id, tokenizer.eos_token_id))
    )
    if start is None or end is None:
        raise ValueError(f"{type(tokenizer).__name__} has no token that starts, or none that ends, a text")
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    return [[start, *row[: most - 2], end] for row in ids], [len(row) > most - 2 for row in ids]


def padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """input_ids and attention_mask of rows, padded at the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _unit(output: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    return (output / output.norm(dim=-1, keepdim=True)).float().cpu()


def _loaded(name: str, revision: str | None, device: str) -> tuple[Source, nn.Module]:
    source = find(name, revision)
    where = str(source.path or source.name)
    try:
        with quiet(source.kind == "lab"):
            model = AutoModel.from_pretrained(where, dtype=torch.float32, **source.options())
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return source, model.eval().requires_grad_(False).to(choose_device(device))
