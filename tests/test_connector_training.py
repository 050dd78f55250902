"""Training another connector: what the loss is, what of the model stays, that a kill costs nothing, that it runs in its place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import picture
from torch.nn import functional as F

from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.probes import connector_training
from spatialprobes.probes.connector_training import IGNORED, CaptionData, OtherConnector, swapped, train
from spatialprobes.train import EachSteps
from spatialprobes.train_best import Schedule
from spatialprobes.vlm import VLM

CAPTIONS = ["a red circle", "a blue square left of a green cross .", "yes", "the red cross is above a green circle"]
SHORT = Schedule(epochs=3, batch_size=4, accumulation=1, lr=1e-2, warmup=2, patience=6)
N = 16


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_idefics2"])
def vlm(request):
    return VLM.load(str(request.getfixturevalue(request.param)))


@pytest.fixture(scope="module")
def described():
    """Pictures whose caption goes with them: of four kinds, three of each repeated with other noise."""
    return [Example(f"p{i:02d}", picture(i % 4), "what is in the picture ?", CAPTIONS[i % 4]) for i in range(N)]


@pytest.fixture(scope="module")
def vectors(vlm, described):
    with capture(vlm, connector="pre_norm") as got:
        vlm.vision_features(described)
    return torch.stack(got.connector_input).numpy(), torch.stack(got.connector_output).numpy()


@pytest.fixture(scope="module")
def made(vlm, described, vectors, tmp_path_factory):
    return train(vlm, vectors[0], described, out=tmp_path_factory.mktemp("made"), schedule=SHORT, layers=1)


def native(vlm, weight=0.0, regulariser="mse"):
    """The loss module around the model's own connector."""
    return connector_training._ThroughLanguageModel(vlm, vlm.family.part(vlm.model, "connector"), "pre", regulariser, weight)


def test_the_loss_is_the_cross_entropy_of_each_captions_tokens(vlm, described, vectors):
    """One prompt at a time, unpadded, through the tower: its caption's and its end's log-probabilities, found word by word."""
    data = CaptionData(vlm, vectors[0], None, described[:4])
    batch = data.collate([data[i] for i in range(4)])
    assert bool((batch["inputs"]["attention_mask"] == 0).any())  # padded, on the left
    total = count = 0
    for example in described[:4]:
        one = vlm.encode([example], answers=True)
        ids, logits = one.input_ids[0], vlm.forward(one).logits[0].log_softmax(-1)
        words = vlm.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        begins = next(i for i in range(len(ids), 0, -1) if ids[i : i + len(words)].tolist() == words)
        ends = begins + len(words) + 1
        assert int(ids[ends - 1]) in vlm._ends
        total -= sum(float(logits[place - 1, ids[place]]) for place in range(begins, ends))
        count += ends - begins
    assert int((batch["labels"] != IGNORED).sum()) == count
    with torch.no_grad():
        loss = native(vlm).eval()(**batch)["loss"]
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_the_loss_falls_and_the_best_weights_are_kept(vlm, described, vectors, tmp_path):
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    made = train(
        vlm, vectors[0], described, out=tmp_path, schedule=replace(SHORT, epochs=6, batch_size=2), validation=0.25, layers=2
    )
    losses = [row["loss"] for row in made.about["history"]]
    assert made.about["best_loss"] == min(losses) < 0.9 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())
    held = [example for example in described if example.id in made.about["keys"]["validation"]]
    assert len(held) + len(made.about["keys"]["train"]) == N and not {e.id for e in held} & {*made.about["keys"]["train"]}
    places = [described.index(example) for example in held]
    data = CaptionData(vlm, vectors[0], None, described)
    through = connector_training._ThroughLanguageModel(vlm, made.module, "pre", "mse", 0.0).eval()
    with torch.no_grad():
        found = float(through(**data.collate([data[i] for i in places]))["loss"])
    assert found == pytest.approx(made.about["best_loss"], rel=1e-4)


class Killed(Exception):
    pass


def test_a_killed_training_ends_as_an_uninterrupted_one(vlm, described, vectors, made, tmp_path):
    def run(die_at=None):
        def act(step, _):
            if step == die_at:
                raise Killed

        return train(vlm, vectors[0], described, out=tmp_path, schedule=SHORT, layers=1, callbacks=[EachSteps(1, act)])

    with pytest.raises(Killed):
        run(die_at=5)  # step 3 is on the disk, 4 and 5 are lost
    with pytest.raises(ValueError, match=r"another training \(design differ\)"):
        train(vlm, vectors[0], described, out=tmp_path, schedule=SHORT, layers=2)
    resumed = run()
    assert resumed.about == made.about
    assert all(torch.equal(value, resumed.module.state_dict()[name]) for name, value in made.module.state_dict().items())


def test_a_regulariser_of_no_weight_is_none_and_others_hold_geometry(vlm, described, vectors, made, tmp_path):
    pre, post = vectors
    options = {"schedule": SHORT, "layers": 1}
    off = train(vlm, pre, described, out=tmp_path / "off", post=post, regulariser="distances", weight=0.0, **options)
    assert all(torch.equal(a, b) for a, b in zip(made.module.parameters(), off.module.parameters(), strict=True))
    held = train(vlm, pre, described, out=tmp_path / "held", post=post, weight=30.0, **options)
    far = [float(np.mean([(a - b).square().mean() for a, b in zip(one.post(vlm, pre), torch.tensor(post), strict=True)]))
           for one in (made, held)]  # fmt: skip
    assert far[1] < 0.9 * far[0]


def test_geometry_terms_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    made, stored = ([torch.randn(4, 3, generator=generator) for _ in range(3)] for _ in range(2))
    slow = np.mean([((a - b) ** 2).mean() for a, b in zip(made, stored, strict=True)])
    assert float(connector_training._geometry("mse", made, stored)) == pytest.approx(slow, rel=1e-6)
    pairs = [(0, 1), (0, 2), (1, 2)]
    ours, theirs = (
        np.array([np.linalg.norm(side[i].mean(0).numpy() - side[j].mean(0).numpy()) for i, j in pairs]) for side in (made, stored)
    )
    slow = ((ours / ours.mean() - theirs / theirs.mean()) ** 2).mean()
    assert float(connector_training._geometry("distances", made, stored)) == pytest.approx(slow, rel=1e-5)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    moved = [2.5 * one @ turn + 7 for one in stored]
    assert float(connector_training._geometry("distances", moved, stored)) < 1e-10  # turned, scaled and moved: no other geometry
    line = torch.arange(4.0)[:, None].expand(4, 3)
    stretched = connector_training._stretched(line, 8)
    assert torch.allclose(stretched[1:-1].diff(dim=0), torch.full((5, 3), 0.5))
    assert float(connector_training._geometry("mse", [stretched], [line])) == 0.0


def test_a_model_runs_with_another_connector_and_gets_its_own_back(vlm, described, vectors, made):
    batch = vlm.encode(described[:3])
    plain, words = vlm.forward(batch).logits, vlm.generate(batch, max_new_tokens=4)
    features = made.post(vlm, vectors[0][:3])
    with swapped(vlm, made):
        inside = vlm.vision_features(described[:3])
        with capture(vlm, connector="pre_norm") as got:
            other = vlm.forward(batch).logits
        vlm.generate(batch, max_new_tokens=2)
    for ours, given, exported, kept in zip(got.connector_output, inside, features, made.post(vlm, vectors[0][:3]), strict=True):
        assert torch.allclose(ours, exported, atol=1e-5) and torch.allclose(given, exported, atol=1e-5)
        assert torch.equal(exported, kept)
    assert not torch.allclose(other, plain, atol=1e-2)
    assert torch.equal(vlm.forward(batch).logits, plain) and torch.equal(vlm.generate(batch, max_new_tokens=4), words)
    with pytest.raises(RuntimeError, match="stop"), swapped(vlm, made):
        raise RuntimeError("stop")
    assert torch.equal(vlm.forward(batch).logits, plain)


def test_the_loss_is_that_of_the_model_that_runs_with_it(vlm, described, vectors):
    """Training's short cut past the tower gives the logits that a whole forward with the connector gives."""
    design = connector_training.connectors.design(vlm.model.config, layers=1)
    other = OtherConnector(design, connector_training.connectors.build(design, 3), {})
    data = CaptionData(vlm, vectors[0], None, described[:4])
    with torch.no_grad():
        loss = connector_training._ThroughLanguageModel(vlm, other.module, "pre", "mse", 0.0).eval()(
            **data.collate([data[i] for i in range(4)])
        )["loss"]
    whole = vlm.encode(described[:4], answers=True)
    with swapped(vlm, other):
        logits = vlm.forward(whole).logits
    labels = data.collate([data[i] for i in range(4)])["labels"]
    assert labels.shape == whole.input_ids.shape
    slow = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert float(loss) == pytest.approx(float(slow), rel=1e-5)


def test_a_saved_connector_is_the_same(made, tmp_path):
    made.save(tmp_path / "connector")
    again = OtherConnector.load(tmp_path / "connector")
    assert again.design == made.design and again.about == made.about
    same = zip(again.module.state_dict().values(), made.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert sorted(path.name for path in (tmp_path / "connector").iterdir()) == ["config.json", "model.safetensors"]
    made.save(tmp_path / "connector", half=True)  # in the old one's place
    assert OtherConnector.load(tmp_path / "connector").design == made.design
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(FileNotFoundError, match="no connector there"):
        OtherConnector.load(tmp_path)


def test_what_does_not_fit_is_refused(vlm, described, vectors, tmp_path, tiny_qwen2_5_vl):
    pre, post = vectors
    for options, message in (
        ({"weight": 1.0}, "needs the stored E_post of all 16 pictures; there are none"),
        ({"weight": -1.0}, "weight=-1.0 of the regulariser must be at least 0"),
        ({"regulariser": "knor"}, "regulariser='knor' is unknown; 'mse', 'distances'"),
        ({"site": "post"}, "site='post' is unknown"),
        ({"weight": 1.0, "post": post, "regulariser": "distances", "schedule": Schedule(batch_size=2)}, "at least 3 pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            train(vlm, pre, described, out=tmp_path, **options)
    with pytest.raises(ValueError, match="pre holds 15 pictures for 16 examples"):
        train(vlm, pre[1:], described, out=tmp_path)
    with pytest.raises(ValueError, match="trained together with its merger"):
        train(VLM.load(str(tiny_qwen2_5_vl)), pre, described, out=tmp_path)
    design = connector_training.connectors.design(vlm.model.config)
    other = connector_training.dataclasses.replace(design, pre_width=design.pre_width + 1)
    with pytest.raises(ValueError, match=r"pre_width=\d+ does not fit"), swapped(vlm, OtherConnector(other, None, {})):
        pass
