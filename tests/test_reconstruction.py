"""Reconstruction: what is measured is the definition, what is kept is the best, what is evaluated changes nothing."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from spatialprobes.capture import capture
from spatialprobes.families import reconstructors
from spatialprobes.probes import reconstruction
from spatialprobes.probes import reconstruction_data as data
from spatialprobes.probes.reconstruction import Reconstructor, agreement, evaluate, through_connector, train
from spatialprobes.probes.reconstruction_summary import summary
from spatialprobes.train import EachSteps
from spatialprobes.train_best import Schedule, fit_best, warmup_cosine
from spatialprobes.vlm import VLM

N, PRE, POST = 40, (12, 6), (3, 9)
SHORT = Schedule(epochs=3, batch_size=4, accumulation=2, lr=3e-3, warmup=2)
SMALL = {"hidden": 8, "layers": 3, "heads": 2}


def connected(n=N, seed=0):
    """E_pre, and E_post made of it cell by cell, linear but for noise; means far from 0, one dimension that never moves."""
    rng = np.random.default_rng(seed)
    pre = rng.normal(size=(n, *PRE)) * np.geomspace(0.1, 10, PRE[1]) + np.linspace(-50, 50, PRE[1])
    pre[..., 2] = 7.25
    mixed = pre.reshape(n, POST[0], -1) @ np.random.default_rng(99).normal(size=(4 * PRE[1], POST[1]))
    post = mixed + 0.1 * rng.normal(size=mixed.shape)
    return pre.astype(np.float32), post.astype(np.float32)


KEYS = [f"{i:09d}" for i in range(N)]
GROUPS = np.arange(N) // 2  # each picture twice


@pytest.fixture(scope="module")
def pairs():
    return connected()


@pytest.fixture(scope="module")
def made(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("recon")
    return train(*pairs, KEYS, kind="sequence", out=out, groups=GROUPS, schedule=SHORT, model="toy", **SMALL)


def places(made, part):
    return [KEYS.index(key) for key in made.keys[part]]


# --- the split ---


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_split_keeps_duplicates_together_and_does_not_hang_on_the_order(labels, seed, random):
    keys = [f"k{i:02d}" for i in range(len(labels))]
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="at least 2 are needed"):
            data.split(keys, np.array(labels), 0.3, seed)
        return
    held = data.split(keys, np.array(labels), 0.3, seed)
    assert held.any() and not held.all()
    by_label = {}
    for label, one in zip(labels, held.tolist(), strict=True):
        assert by_label.setdefault(label, one) == one
    order = list(range(len(keys)))
    random.shuffle(order)
    renamed = {label: name for name, label in enumerate(random.sample(sorted(set(labels)), len(set(labels))))}
    again = data.split([keys[i] for i in order], np.array([renamed[labels[i]] for i in order]), 0.3, seed)
    assert again.tolist() == held[order].tolist()


def test_a_split_holds_out_the_share_that_is_asked():
    rng = np.random.default_rng(0)
    keys, groups = [f"{i}" for i in range(2000)], rng.integers(0, 900, 2000)
    for share in (0.1, 0.2, 0.5):
        assert data.split(keys, groups, share, 3).mean() == pytest.approx(share, abs=0.01)
    splits = {tuple(data.split(keys, groups, 0.2, seed)) for seed in range(4)}
    assert len(splits) == 4
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="is no share between 0 and 1"):
            data.split(keys, groups, wrong)
    with pytest.raises(ValueError, match="1999 group labels for 2000 keys"):
        data.split(keys, groups[1:])


# --- statistics and baselines ---


def test_statistics_are_numpys_in_float64_even_far_from_zero():
    rng = np.random.default_rng(0)
    pre = (1e5 + rng.normal(size=(700, 3, 4)) * [1e-1, 1.0, 10.0, 0.0]).astype(np.float32)  # sums of squares would cancel
    post = rng.normal(size=(700, 2, 5)).astype(np.float32)
    train_on = np.arange(0, 700, 2)
    found = data.statistics(pre, post, train_on)
    for side, vectors in (("pre", pre), ("post", post)):
        flat = vectors[train_on].reshape(-1, vectors.shape[-1]).astype(np.float64)
        assert np.allclose(getattr(found, f"{side}_mean"), flat.mean(0), rtol=1e-12)
        assert np.allclose(getattr(found, f"{side}_std"), flat.std(0), rtol=1e-9)
    assert float(found.pre_std[3]) == 0
    back = found.raw(found.standardised(torch.tensor(pre[:5]).double(), "pre"))
    assert np.allclose(back, pre[:5], rtol=1e-12)


@pytest.mark.parametrize("in_order", [True, False])
def test_the_linear_baseline_is_ridge_regression(pairs, in_order):
    """Against scikit-learn's Ridge on the same rows (its penalty is on the sum over rows, ours on their mean)."""
    from sklearn.linear_model import Ridge

    pre, post = pairs
    fit_on, check_on = np.arange(28), np.arange(28, N)
    scales = data.statistics(pre, post, fit_on)
    linear = data.linear_baseline(pre, post, fit_on, check_on, scales, in_order)
    target = scales.standardised(torch.tensor(pre), "pre").numpy().astype(np.float64)
    read = scales.standardised(torch.tensor(post), "post").numpy().astype(np.float64)
    if in_order:
        x, y = read.reshape(-1, POST[1]), target.reshape(N * POST[0], -1)
        rows, offset = slice(0, 28 * POST[0]), np.zeros((1, PRE[0], PRE[1]))
    else:
        offset = target[:28].mean(0, keepdims=True)
        x, y, rows = read.mean(1), (target - offset).mean(1), slice(0, 28)
    count = len(x[rows])
    errors = {}
    for ridge in data.RIDGES:
        fitted = Ridge(alpha=ridge * count, fit_intercept=False).fit(x[rows], y[rows])
        guessed = fitted.predict(x)
        guessed = guessed.reshape(target.shape) if in_order else offset + guessed[:, None]
        errors[ridge] = ((guessed - target)[28:] ** 2).mean(), guessed
    best = min(errors, key=lambda ridge: errors[ridge][0])
    assert linear.ridge == best
    ours = linear(torch.tensor(read).float()).numpy()
    assert np.allclose(ours, errors[best][1], atol=1e-3)


# --- the measures ---


def test_measures_are_their_definitions_one_picture_at_a_time(made, pairs):
    pre, post = pairs
    frame = evaluate(made, pre, post, KEYS, batch_size=7)
    assert list(frame["key"]) == KEYS
    rows = places(made, "train")
    flat = pre[rows].reshape(-1, PRE[1]).astype(np.float64)
    mean, std = flat.mean(0), flat.std(0)
    moves = [0, 1, 3, 4, 5]
    hat = made.predict(post)
    assert hat.shape == pre.shape and np.allclose(hat[..., 2], 7.25)
    for i in (0, 11, N - 1):
        row, error = frame.iloc[i], (hat[i] - pre[i]).astype(np.float64)
        mse = np.mean([np.mean((error[:, d] / std[d]) ** 2) for d in moves])
        assert row["mse"] == pytest.approx(mse, rel=1e-4) and row["r2"] == pytest.approx(1 - mse, abs=1e-4)
        cosine = [hat[i, t] @ pre[i, t] / np.linalg.norm(hat[i, t]) / np.linalg.norm(pre[i, t]) for t in range(PRE[0])]
        assert row["cosine"] == pytest.approx(np.mean(cosine), abs=1e-5)
        assert row["error_raw"] == pytest.approx((error**2).mean(), rel=1e-4)
        assert row["deviation_raw"] == pytest.approx(((pre[i] - mean) ** 2).mean(), rel=1e-4)
        assert row["mse_mean"] == pytest.approx(np.mean(((pre[i] - mean) / std.clip(1e-9))[:, moves] ** 2), rel=1e-4)
        straight = [mean @ pre[i, t] / np.linalg.norm(mean) / np.linalg.norm(pre[i, t]) for t in range(PRE[0])]
        assert row["cosine_mean"] == pytest.approx(np.mean(straight), abs=1e-5)


def test_the_mean_predictor_has_error_one_over_the_training_part(made, pairs):
    frame = evaluate(made, *pairs, KEYS).set_index("key")
    assert frame.loc[made.keys["train"], "mse_mean"].mean() == pytest.approx(1, abs=1e-5)
    assert frame.loc[made.keys["validation"], "mse_mean"].mean() != pytest.approx(1, abs=1e-3)
    assert set(frame.loc[made.keys["train"], "part"]) == {"train"}
    assert set(frame.loc[made.keys["validation"], "part"]) == {"validation"}
    assert frame["cosine_mean"].mean() > 0.95  # one large mean, and cosine says little


def test_a_linear_connector_is_read_back_by_the_linear_baseline(tmp_path):
    """E_post a turned E_pre: all of it comes back. E_post noise: nothing does, and the penalty says so."""
    rng = np.random.default_rng(0)
    pre = rng.normal(size=(N, 5, 6)).astype(np.float32)
    turned = (pre @ np.linalg.qr(rng.normal(size=(6, 6)))[0]).astype(np.float32)
    noise = rng.normal(size=(N, 5, 6)).astype(np.float32)
    for post, low, high in ((turned, 0.99999, 1.0), (noise, -0.2, 0.02)):
        scales = data.statistics(pre, post, np.arange(30))
        linear = data.linear_baseline(pre, post, np.arange(30), np.arange(30, N), scales, True)
        shape = reconstructors.architecture("mlp", (5, 6), (5, 6), hidden=4, layers=2)
        one = Reconstructor(shape, reconstructors.build(shape).eval(), scales, linear, "pre", {}, {})
        assert low < evaluate(one, pre, post, KEYS)["r2_linear"][30:].mean() <= high


# --- training ---


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Slope(nn.Module):
    """Error of y = w x; steps are noted."""

    def __init__(self, w=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x, y):
        return {"loss": (self.w * x - y).square().mean()}


def collate(items):
    x, y = zip(*items, strict=True)
    return {"x": torch.tensor(x), "y": torch.tensor(y)}


def test_the_best_weights_are_kept_where_the_last_are_worse(tmp_path):
    """What is trained on wants slope 5, what is validated wants 1: on its way from 0 it passes by the best."""
    model = Slope()
    plan = Schedule(epochs=12, batch_size=2, accumulation=1, lr=0.2, weight_decay=0.0, warmup=1, patience=12)
    fitted = fit_best(
        model, Items([(1.0, 5.0)] * 4), Items([(1.0, 1.0)] * 3), collate, tmp_path, plan, labels=("y",)
    )  # fmt: skip
    losses = {int(row["step"]): row["loss"] for row in fitted.history}
    assert fitted.best_loss == min(losses.values()) == losses[fitted.best_step]
    assert fitted.best_step < fitted.steps == 24 and losses[24] > 4 * fitted.best_loss
    assert (float(model.w.detach()) - 1) ** 2 == pytest.approx(fitted.best_loss, rel=1e-5)


def test_training_stops_when_patience_is_out(tmp_path):
    plan = Schedule(epochs=50, batch_size=2, accumulation=1, lr=0.2, warmup=1, patience=2)
    fitted = fit_best(Slope(), Items([(1.0, 5.0)] * 4), Items([(1.0, 1.0)]), collate, tmp_path, plan, labels=("y",))
    assert len(fitted.history) < 50
    improved = [row["loss"] for row in fitted.history]
    assert improved.index(min(improved)) == len(improved) - 3


def test_the_rate_warms_up_and_falls_over_all_steps_of_the_optimiser(tmp_path):
    """Six items, two a batch, three batches a step: one step an epoch. The cosine ends at its floor with the last of them."""
    factor = warmup_cosine(100, 10, 0.01)
    assert [factor(0), factor(9), factor(10), factor(55), factor(100)] == pytest.approx([0.1, 1, 1, 0.505, 0.01])
    assert all(factor(i) > factor(i + 1) for i in range(10, 100))
    rates, model = [], Slope()
    plan = Schedule(epochs=20, batch_size=2, accumulation=3, lr=1e-3, warmup=500)

    class Noting(EachSteps):
        def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
            rates.append(lr_scheduler.get_last_lr()[0])

    callbacks = [Noting(1, lambda *_: None)]
    fit_best(model, Items([(1.0, 1.0)] * 6), Items([(1.0, 1.0)]), collate, tmp_path, plan, labels=("y",), callbacks=callbacks)
    assert len(rates) == 20
    assert rates[:2] == pytest.approx([1e-3, 1e-3]) and rates[2] < 1e-3  # set for the next step; warm-up held to a tenth, 2 steps
    assert rates[-1] == pytest.approx(1e-5, rel=1e-6)


def test_every_epoch_shows_each_item_once(tmp_path):
    shown = []

    class Noting(Items):
        def __getitem__(self, i):
            shown.append(i)
            return super().__getitem__(i)

    items = Noting([(float(i), 0.0) for i in range(8)])
    fit_best(
        Slope(), items, Items([(1.0, 1.0)]), collate, tmp_path, Schedule(epochs=3, batch_size=2, accumulation=2), labels=("y",)
    )
    epochs = [shown[i : i + 8] for i in range(0, 24, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


class Killed(Exception):
    pass


def test_a_killed_training_ends_as_an_uninterrupted_one(made, pairs, tmp_path):
    def act(step, _):
        if step == 7:
            raise Killed

    options = {"kind": "sequence", "out": tmp_path, "groups": GROUPS, "schedule": SHORT, "model": "toy", **SMALL}
    with pytest.raises(Killed):
        train(*pairs, KEYS, callbacks=[EachSteps(1, act)], **options)
    for other, differs in (({"seed": 1}, "seed, keys"), ({"hidden": 16}, "architecture"), ({"validation": 0.5}, "keys, vectors")):
        with pytest.raises(ValueError, match=rf"checkpoints of another training \({differs}"):
            train(*pairs, KEYS, **options | other)
    resumed = train(*pairs, KEYS, **options)
    assert resumed.about == made.about and resumed.keys == made.keys
    assert all(torch.equal(a, b) for a, b in zip(resumed.module.parameters(), made.module.parameters(), strict=True))


def test_what_is_trained_is_reported(made):
    about = made.about
    assert len(made.keys["train"]) + len(made.keys["validation"]) == N
    assert about["groups"] == {name: len({KEYS.index(key) // 2 for key in made.keys[name]}) for name in made.keys}
    assert about["best_loss"] == min(row["loss"] for row in about["history"]) and about["model"] == "toy"
    assert about["steps"] == SHORT.epochs * SHORT.steps(len(made.keys["train"]))


@pytest.mark.parametrize("kind", reconstructors.KINDS)
def test_each_kind_learns_and_its_validation_loss_is_the_measured_error(kind, pairs, tmp_path):
    plan = Schedule(epochs=6, batch_size=4, accumulation=1, lr=5e-3, warmup=5)
    one = train(*pairs, KEYS, kind=kind, out=tmp_path, schedule=plan, hidden=16, layers=2, heads=2, dropout=0.0)
    losses = [row["loss"] for row in one.about["history"]]
    assert min(losses) < (0.995 if kind == "sequence" else 0.95) * losses[0]  # it must find out which token is whose first
    frame = evaluate(one, *pairs, KEYS)
    assert frame.loc[frame["part"] == "validation", "mse"].mean() == pytest.approx(one.about["best_loss"], rel=1e-4)


# --- files ---


def test_evaluating_other_data_changes_nothing(made, tmp_path):
    folder = made.save(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "statistics.safetensors"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = Reconstructor.load(folder)
    other = connected(12, seed=5)
    frame = evaluate(again, other[0] + 3, other[1] * 2, [f"x{i}" for i in range(12)])
    assert set(frame["part"]) == {"new"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert again.save(tmp_path / "copy") and {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()} == before
    pd.testing.assert_frame_equal(frame, evaluate(made, other[0] + 3, other[1] * 2, [f"x{i}" for i in range(12)]))


def test_half_precision_costs_little(made, pairs, tmp_path):
    half = Reconstructor.load(made.save(tmp_path / "half", half=True))
    whole, rounded = (evaluate(one, *pairs, KEYS) for one in (made, half))
    assert np.allclose(whole["mse"], rounded["mse"], rtol=1e-2) and not np.array_equal(whole["mse"], rounded["mse"])
    assert torch.equal(half.statistics.pre_std, made.statistics.pre_std)
    made.save(tmp_path / "whole")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[1] - sizes[0] == pytest.approx(2 * sum(p.numel() for p in made.module.parameters()), abs=64)


def test_other_folders_are_refused(tmp_path, made):
    with pytest.raises(FileNotFoundError, match=r"no reconstructor there \(config.json is missing\)"):
        Reconstructor.load(tmp_path)
    folder = made.save(tmp_path / "model")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="describes no reconstructor"):
        Reconstructor.load(folder)


# --- bad input ---


def test_data_that_do_not_fit_are_refused(made, pairs, tmp_path):
    pre, post = pairs
    with pytest.raises(ValueError, match="pre holds 40 pictures for 39 keys"):
        train(pre, post, KEYS[1:], kind="mlp", out=tmp_path)
    with pytest.raises(ValueError, match="1 keys stand twice, such as '000000000'"):
        train(pre, post, [KEYS[0], *KEYS[:-1]], kind="mlp", out=tmp_path)
    with pytest.raises(ValueError, match="keys are strings; 7 is int"):
        train(pre, post, [7, *KEYS[1:]], kind="mlp", out=tmp_path)
    with pytest.raises(ValueError, match=r"pre is \[picture, token, width\], not of shape \(40, 72\)"):
        train(pre.reshape(N, -1), post, KEYS, kind="mlp", out=tmp_path)
    with pytest.raises(ValueError, match=r"pre is an array .* of pictures of one size, not list"):
        train(list(pre), post, KEYS, kind="mlp", out=tmp_path)
    with pytest.raises(ValueError, match="site='post' is unknown; 'pre', 'pre_normed'"):
        train(pre, post, KEYS, kind="mlp", out=tmp_path, site="post")
    with pytest.raises(ValueError, match=r"post has \(3, 8\) tokens and width, this reconstructor was made for \(3, 9\)"):
        made.predict(post[..., 1:])
    with pytest.raises(ValueError, match=r"pre has \(12, 5\) tokens and width, this reconstructor gives \(12, 6\)"):
        evaluate(made, pre[..., 1:], post, KEYS)
    broken = post.copy()
    broken[3] = np.inf
    with pytest.raises(ValueError, match="post: 1 of 40 pictures hold NaN or infinities, such as '000000003'"):
        train(pre, broken, KEYS, kind="mlp", out=tmp_path)


def test_sizes_that_cannot_be_are_refused():
    for sizes, message in (
        ({"kind": "tree"}, "kind='tree' is unknown; 'mlp', 'transformer', 'sequence'"),
        ({"kind": "mlp", "post": (5, 3)}, "12 tokens before the connector are no multiple of 5 after it"),
        ({"kind": "sequence", "hidden": 10, "heads": 4}, "hidden=10 is not a multiple of heads=4"),
        ({"kind": "mlp", "layers": 0}, "layers=0 must be at least 1"),
        ({"kind": "mlp", "depth": 1}, "'depth' is no size of a reconstructor"),
    ):
        kind, post = sizes.pop("kind"), sizes.pop("post", POST)
        with pytest.raises(ValueError, match=message):
            reconstructors.architecture(kind, PRE, post, **sizes)


# --- the networks ---


def test_published_sizes_have_the_studys_numbers_of_parameters():
    """27 million for LLaVA's MLP, about 440 million for the sequence models; small ones stay below a million."""
    counts = {}
    for name, kind, pre, post in (
        ("llava", "mlp", (576, 1024), (576, 4096)),
        ("idefics2", "sequence", (576, 1152), (64, 4096)),
    ):
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in reconstructors.build(reconstructors.architecture(kind, pre, post)).parameters())
    assert counts["llava"] == pytest.approx(27e6, rel=0.02)
    assert counts["idefics2"] == pytest.approx(440e6, rel=0.02)
    for kind, post in itertools.product(reconstructors.KINDS, ((36, 128), (144, 128))):
        shape = reconstructors.architecture(kind, (144, 128), post, **reconstructors.SMALL[kind])
        with torch.device("meta"):
            assert sum(p.numel() for p in reconstructors.build(shape).parameters()) < 1e6


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_cells_patches_come_from_its_token(kind):
    """Rows 4j to 4j+3 of E_pre are read from token j: of "mlp" from it alone."""
    shape = reconstructors.architecture(kind, PRE, POST, hidden=8, layers=3, heads=2)
    module = reconstructors.build(shape).eval()
    post = torch.randn(2, *POST, generator=torch.Generator().manual_seed(0))
    changed = post.clone()
    changed[:, 1] += 1
    with torch.no_grad():
        moved = (module(changed) - module(post)).abs().amax((0, 2)) > 1e-6
    assert moved[4:8].all()
    assert moved.tolist() == ([False] * 4 + [True] * 4 + [False] * 4 if kind == "mlp" else [True] * 12)


def test_a_network_is_drawn_from_its_seed_alone():
    shape = reconstructors.architecture("sequence", PRE, POST, **SMALL)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (reconstructors.build(shape, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["places"], other["places"])


def study_names(kind, module):
    """The module's weights under the study's names."""
    back = {ours: theirs for theirs, ours in reconstructors.STUDY_NAMES[kind].items()}
    return {back[name.partition(".")[0]] + name[len(name.partition(".")[0]) :]: v for name, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "meta"),
    [
        ("mlp", {"embed_model": "llava", "model_type": "mlp", "seq_length": 5}),
        ("transformer", {"embed_model": "llava", "model_type": "transformer"}),
        ("sequence", {"embed_model": "qwen2.5vl", "model_type": "mlp", "num_heads": 2}),
    ],
)
def test_a_checkpoint_of_the_study_is_read_by_its_names(kind, meta):
    """Written under the names of its classes; an independent forward from the weights alone gives the same."""
    tokens = 5
    post_tokens = 3 if kind == "sequence" else tokens
    options = {"output_norm": True} if kind == "transformer" else {"activation": "relu"} if kind == "sequence" else {}
    shape = reconstructors.architecture(kind, (tokens, 6), (post_tokens, 9), hidden=8, layers=4, **options,
                                        heads={"mlp": 1, "transformer": 8, "sequence": 2}[kind])  # fmt: skip
    module = reconstructors.build(shape).eval()
    weights = study_names(kind, module)
    read = reconstructors.from_study(weights, meta)
    x = torch.randn(2, post_tokens, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = read(x)
        assert torch.equal(made, module(x)) and made.shape == (2, tokens, 6)
        if kind == "mlp":
            slow = x
            for place in (0, 4, 8):
                slow = F.linear(slow, weights[f"model.{place}.weight"], weights[f"model.{place}.bias"])
                norm = weights[f"model.{place + 1}.weight"], weights[f"model.{place + 1}.bias"]
                slow = F.gelu(F.layer_norm(slow, slow.shape[-1:], *norm))
            slow = F.linear(slow, weights["model.12.weight"], weights["model.12.bias"])
            assert torch.allclose(made, slow, atol=1e-6)
    assert read.shape == shape
    with pytest.raises(ValueError, match=r"'other\.weight' is no weight of a"):
        reconstructors.from_study({**weights, "other.weight": x}, meta)
    name = next(name for name in weights if name.endswith("bias"))
    with pytest.raises(ValueError, match=r"Missing key|missing"):
        reconstructors.from_study({k: v for k, v in weights.items() if k != name}, meta)
    with pytest.raises(ValueError, match="meta names no 'embed_model'"):
        reconstructors.from_study(weights, {})


def test_a_checkpoint_of_the_study_is_measured_like_any_other(pairs, tmp_path):
    pre, post = pairs
    shape = reconstructors.architecture("sequence", PRE, POST, hidden=8, layers=1, heads=2, activation="relu")
    module = reconstructors.build(shape).eval()
    meta = {"embed_model": "idefics2", "model_type": "mlp", "num_heads": 2, "learning_rate": 3e-4}
    scales = {f"{name}_{side}": getattr(np, name)(vectors.reshape(-1, vectors.shape[-1]), 0, dtype=np.float64)
              for side, vectors in (("pre", pre), ("post", post)) for name in ("mean", "std")}  # fmt: skip
    one = Reconstructor.from_study(study_names("sequence", module), meta, scales)
    assert one.site == "pre_normed" and one.about["study"] == meta
    again = Reconstructor.load(one.save(tmp_path / "study"))
    for it in (one, again):
        frame = evaluate(it, pre, post, KEYS)
        assert set(frame["part"]) == {"new"} and frame["mse_linear"].isna().all()
        assert frame["mse_mean"].mean() == pytest.approx(1, abs=1e-5)
    z = torch.tensor((post - scales["mean_post"]) / scales["std_post"]).float()
    with torch.no_grad():
        slow = module(z).numpy() * scales["std_pre"] + scales["mean_pre"]
    assert np.allclose(again.predict(post), slow, rtol=1e-4, atol=1e-4)
    assert set(summary(frame)["by"]) == {"reconstructor", "mean"}


# --- and back ---


def test_agreement_is_the_definition():
    rng = np.random.default_rng(0)
    made, post = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4, 5))
    frame = agreement(list(torch.tensor(made)), post, KEYS[:3])
    for i in range(3):
        cosines = [made[i, t] @ post[i, t] / math.sqrt((made[i, t] ** 2).sum() * (post[i, t] ** 2).sum()) for t in range(4)]
        assert frame["reproj_cosine"][i] == pytest.approx(np.mean(cosines), abs=1e-6)
        assert frame["reproj_mse"][i] == pytest.approx(((made[i] - post[i]) ** 2).mean(), rel=1e-5)
    with pytest.raises(ValueError, match=r"'000000001': \(3, 5\) from the connector, \(4, 5\) stored"):
        agreement([made[0], made[1][:3]], post[:2], KEYS[:2])
    with pytest.raises(ValueError, match="2 and 3 pictures for 3 keys"):
        agreement(made[:2], post, KEYS[:3])


def test_what_is_read_back_goes_through_the_native_connector(tiny_qwen2_5_vl, tmp_path):
    """From a model's own vectors, and its true E_pre agrees wholly with what is stored."""
    vlm, shown = VLM.load(str(tiny_qwen2_5_vl)), examples(12, pictures=12)
    with capture(vlm, connector="pre_norm") as got:
        vlm.vision_features(shown)
    pre, post = (torch.stack(side).numpy() for side in (got.connector_input, got.connector_output))
    keys = [one.id for one in shown]
    one = train(pre, post, keys, kind="mlp", out=tmp_path, schedule=Schedule(epochs=1, batch_size=4), hidden=8, layers=2)
    true = agreement(through_connector(vlm, pre), post, keys)
    assert true["reproj_cosine"].min() > 1 - 1e-6 and true["reproj_mse"].max() < 1e-8 * (post**2).mean()
    hat = through_connector(vlm, one.predict(post), one.site)
    found = agreement(hat, post, keys)
    assert len(hat) == 12 and hat[0].shape == post[0].shape and (found["reproj_mse"] > true["reproj_mse"]).all()
    assert set(reconstruction.SITES) == {"pre", "pre_normed"}
