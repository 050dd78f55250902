"""Captions of the same pictures by several arms, which differ in what enters the language model.

    live           the model as it is
    rerun          the same once more, in batches of another size: what changes is the noise of a run
    stored         stored connector outputs put back: any change is the storage's (dtype, order), not the model's
    reconstructed  the native connector's outputs for reconstructed inputs, put in place of the picture's own
    connector      the outputs of another connector

The connector study's captions are "stored" (its `caption_post_direct`) and "reconstructed" (`caption_recon`); it has no control
by which the noise of a run could be told. A drop is a score of the original arm minus that of the changed one throughout: above
zero is worse. Knows pictures, arms and text; knows no scores (`caption_scores.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from spatialprobes.answers import BARS_FROM, check_askable, generate
from spatialprobes.examples import Example, batches
from spatialprobes.features_edit import FeaturesEdit
from spatialprobes.intervene import intervene, replaced
from spatialprobes.probes.caption_store import CaptionStore, digest
from spatialprobes.probes.connector_store import folder_of
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float

ARMS = ("live", "rerun", "stored", "reconstructed", "connector")
COLUMNS = ("key", "cluster", "folder", "stem", "model", "arm", "caption", "words", "tokens", "empty", "cut", "same")
STUDY_REQUEST = "Describe this image in one detailed sentence, focusing on the main objects, attributes, and scene."
THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
VERSION = 1  # of what a stored caption is made by

Features = Mapping[str, "Float[np.ndarray, 'token width'] | Float[Tensor, 'token width']"]


def requested(examples: Sequence[Example], request: str = STUDY_REQUEST) -> list[Example]:
    """The examples, asked for a caption: `request` in place of their questions."""
    return [replace(example, question=request) for example in examples]


def arms(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    post: Features | None = None,
    post_hat: Features | None = None,
    connector: Features | None = None,
    live: bool = True,
    rerun: bool = True,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    system: str | None = "default",
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Greedy captions, one row per arm and example, columns COLUMNS and, with post and post_hat, reproj_mse and reproj_cosine.

    examples: pictures with the request as question (`requested`); their ids are the keys. post, post_hat, connector: what enters
    the language model by key (else by cluster), [token, width] in raster order; each given one is an arm ("stored",
    "reconstructed", "connector"). live, rerun: whether to caption by the model as it is, once and again.
    caption: the text without special tokens, thoughts ("<think>...") and outer blanks. words: parted by blanks; tokens: new ones,
    the end included. empty: no words. cut: max_new_tokens were used up. same: equal to the live caption (missing without one).
    folder: the first part of the key, "" where it has none. reproj_mse, reproj_cosine: see `reprojection`; of the arm
    "reconstructed" alone.
    store: a folder that keeps what was captioned, batch by batch, so that a killed run goes on.
    Raises ValueError for no arm, ids that are not unique, keys without features, features of another shape; PromptError for a
    picture without a request.
    """
    given = {"stored": post, "reconstructed": post_hat, "connector": connector}
    plain = {"live": batch_size, "rerun": other_batch_size(batch_size)}
    wanted = [name for name, on in (("live", live), ("rerun", rerun)) if on]
    wanted += [name for name, features in given.items() if features is not None]
    if not wanted:
        raise ValueError("no arm to caption; live=True, rerun=True, or features for post, post_hat or connector")
    for name in wanted:
        _check_keys(name, given.get(name), examples)
    options = {"max_new_tokens": max_new_tokens, "system": system}
    captioner = Captioner(vlm, options, store)
    frames = []
    for name in wanted:
        size = plain.get(name, batch_size)
        frames.append(captioner.arm(examples, name, size, given.get(name)))
    frame = with_same(pd.concat(frames, ignore_index=True))
    if post is not None and post_hat is not None:
        frame = _with_reprojection(frame, examples, post, post_hat)
    return frame


class Captioner:
    """Captions batch by batch, each kept as soon as it is made. options: of `answers.generate`, the same for all."""

    def __init__(self, vlm: VLM, options: Mapping[str, Any], store: str | Path | None):
        self.vlm, self.options = vlm, dict(options)
        facts = {} if store is None else {"captions": VERSION, "model": vlm.facts(), **self.options}  # hashing weights takes time
        self.store = CaptionStore(store, facts)

    def arm(self, examples: Sequence[Example], name: str, batch_size: int, features: Features | None) -> pd.DataFrame:
        """One arm's rows. features: in place of the pictures' own, where they are given."""
        check_askable(self.vlm, examples)
        frames = []
        for chunk in shown(batches(examples, batch_size), name):
            held = None if features is None else {one.id: of_example(features, one) for one in chunk}
            frames.append(self.batch(chunk, name, held))
        return described(pd.concat(frames, ignore_index=True), examples, name, self.vlm.name)

    def batch(self, chunk: Sequence[Example], name: str, features: Mapping[str, Any] | None) -> pd.DataFrame:
        """[key, caption, tokens, cut] of one batch, read from the store where it is there."""
        asked = [part for one in chunk for part in (one.id, one.question or "")]
        made_from = digest(asked, () if features is None else features.values())
        edit = None if features is None else replaced(features)
        return self.store.kept(name, made_from, lambda: self._captioned(chunk, edit))

    def _captioned(self, chunk: Sequence[Example], edit: FeaturesEdit | None) -> pd.DataFrame:
        with intervene(self.vlm, features=edit) if edit is not None else nullcontext():
            found = generate(self.vlm, chunk, batch_size=len(chunk), prefix_cache=False, **self.options)
        cut = found["tokens"] >= self.options["max_new_tokens"]
        return pd.DataFrame({"key": found["id"], "caption": found["text"].map(cleaned), "tokens": found["tokens"], "cut": cut})


def shown(chunks: list[list[Example]], what: str) -> Iterable[list[Example]]:
    """The batches, with a bar of progress where they are many."""
    return tqdm(chunks, desc=what, unit="batch", leave=False, disable=len(chunks) < BARS_FROM)


def described(frame: pd.DataFrame, examples: Sequence[Example], arm: str, model: str) -> pd.DataFrame:
    """[key, caption, tokens, cut] with the other columns of COLUMNS but "same", in the order of the examples."""
    found = frame.set_index("key").loc[[one.id for one in examples]]
    captions = found["caption"].tolist()
    words = [len(caption.split()) for caption in captions]
    return pd.DataFrame(
        {
            "key": [one.id for one in examples],
            "cluster": [one.cluster or one.id for one in examples],
            "folder": [folder_of(one.id) for one in examples],
            "stem": [str(one.meta.get("stem", Path(one.id).stem)) for one in examples],
            "model": model,
            "arm": arm,
            "caption": captions,
            "words": words,
            "tokens": found["tokens"].to_numpy(int),
            "empty": [count == 0 for count in words],
            "cut": found["cut"].to_numpy(bool),
        }
    )


def with_same(frame: pd.DataFrame, base: str = "live") -> pd.DataFrame:
    """The table with the column "same": whether a caption equals that of arm `base` of its key and model; missing without one."""
    live = frame[frame["arm"] == base].set_index(["model", "key"])["caption"]
    found = pd.MultiIndex.from_frame(frame[["model", "key"]])
    originals = live.reindex(found).to_numpy()
    same = [pd.NA if pd.isna(one) else one == own for one, own in zip(originals, frame["caption"], strict=True)]
    return frame.assign(same=pd.array(same, dtype="boolean"))


def cleaned(text: str) -> str:
    """A generated text without thoughts, also those that never end, and without outer blanks."""
    return THOUGHTS.sub("", text).strip()


def other_batch_size(batch_size: int) -> int:
    """Another size of batches than this one: half of it, and 2 for 1."""
    return batch_size // 2 if batch_size > 1 else 2


def of_example(features: Features, example: Example) -> Any:
    """An example's features, by its id, else by its cluster. Raises KeyError where there are none."""
    return features[example.id if example.id in features else example.cluster]


def reprojection(post_hat: Float[np.ndarray, "token width"], post: Float[np.ndarray, "token width"]) -> tuple[float, float]:
    """(mse, cosine) of features against the stored ones, in the space of the language model's input and in its raw units.

    mse: mean over tokens and width of the squared difference; cosine: mean over tokens of the cosine. As the connector study's
    reproj_mse_recon and reproj_cosine_recon; an MSE in raw units does not compare over models.
    Raises ValueError for shapes that differ.
    """
    one, other = (torch.as_tensor(array).double().cpu() for array in (post_hat, post))
    if one.shape != other.shape:
        raise ValueError(f"features of shape {tuple(one.shape)} and stored ones of {tuple(other.shape)} do not compare")
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1).mean()
    return float((one - other).square().mean()), float(cosine)


def _with_reprojection(frame: pd.DataFrame, examples: Sequence[Example], post: Features, post_hat: Features) -> pd.DataFrame:
    found = {one.id: reprojection(of_example(post_hat, one), of_example(post, one)) for one in examples}
    none = (np.nan, np.nan)
    pairs = [found[row.key] if row.arm == "reconstructed" else none for row in frame.itertuples()]
    return frame.assign(reproj_mse=[mse for mse, _ in pairs], reproj_cosine=[cosine for _, cosine in pairs])


def _check_keys(arm: str, features: Features | None, examples: Sequence[Example]) -> None:
    if features is None:
        return
    lacking = [one.id for one in examples if one.id not in features and one.cluster not in features]
    if lacking:
        some = ", ".join(map(repr, lacking[:3]))
        raise ValueError(f"arm {arm!r}: no features for {len(lacking)} of {len(examples)} pictures, {some} among them")
