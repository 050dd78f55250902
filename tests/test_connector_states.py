"""Connector states: what is read is what the model computes, in raster order; kept, resumed, shared out without a changed bit."""

import hashlib
import os
import signal
import subprocess
import sys
import tracemalloc
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import picture

from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.fingerprints import FingerprintError
from spatialprobes.images import ImageError
from spatialprobes.intervene import intervene
from spatialprobes.probes import connector_batches, connector_states
from spatialprobes.probes.connector_reading import prepared, read, run
from spatialprobes.probes.connector_states import SITES, ConnectorStates, extract, folder_of, shared_out
from spatialprobes.store import Store, StoreError
from spatialprobes.vlm import VLM

QUESTION = "what color is the circle ?"


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture(scope="module")
def family(tiny_family):
    return VLM.load(str(tiny_family))


def pictures(n, size=(48, 48), folders=2):
    """Examples in `folders` folders in turn, that draw their picture when it is wanted."""
    return [
        Example(f"{i % folders:05d}/{i:09d}.png", lambda i=i: picture(i, size), QUESTION, answer="red", choices=["red"])
        for i in range(n)
    ]


def content(states: ConnectorStates):
    """All that it returns, as bytes."""
    found = {"keys": states.keys, "grids": states.grids, "unreadable": states.unreadable, "digests": states.digests()}
    for site in states.sites:
        arrays = (np.asarray(states.vectors(site)), states.pooled(site), states.rounding(site))
        found[site] = [(array.shape, array.tobytes()) for array in arrays]
    return found


def files(states: ConnectorStates):
    """What the shards hold, by content; their names end at random."""
    shards = (states.store.path / "shards").glob("*.safetensors")
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in shards)


# ---- what is read ----
@pytest.mark.parametrize("size", [(48, 48), (72, 40)])
def test_every_site_is_what_the_model_computes(family, tmp_path, size):
    """E_post is the family's own image features, E_pre what `capture` reads in a whole forward of the same batch."""
    shown = [replace(one, image=one.image()) for one in pictures(5, size, folders=1)]
    states = extract(family, shown, tmp_path, dtype="float32", batch_size=8)
    kept = {site: np.asarray(states.vectors(site)) for site in SITES}
    with torch.no_grad():
        expected = {"post": torch.stack(family.vision_features(shown))}
        for site, name in (("pre", "pre_norm"), ("pre_normed", "post_norm")):
            with capture(family, connector=name) as got:
                family.forward(family.encode(shown))
            expected[site] = torch.stack(got.connector_input)
    for site in SITES:
        assert np.array_equal(kept[site], expected[site].numpy()), site
        assert states.pooled(site) == pytest.approx(kept[site].mean(1), abs=1e-5)
        assert kept[site].std() > 0 and (states.rounding(site) == 0).all()
    spans = family.encode(shown[:1]).spans[0]
    assert states.grids["post"] == spans.grid
    rows, columns = states.grids["pre"]
    assert rows * columns == kept["pre"].shape[1]  # patches alone: no class token
    if spans.grid is not None:
        assert len(kept["post"][0]) == len(spans.vision) == rows * columns // states.merge**2


@pytest.mark.parametrize("fit", ["native", "pad", "crop", "squash"])
def test_pictures_without_prompts_are_those_with_them(family, fit):
    shown = [Example(f"{i}", picture(i, size)) for i, size in enumerate([(48, 48), (72, 40)])]
    before, family.image_fit = family.image_fit, fit
    try:
        expected, which = family.pictures(shown)
        found = prepared(family, shown)
    finally:
        family.image_fit = before
    assert found.grids is None and found.which == which  # made without prompts, grids still to be told by a run
    assert found.inputs.keys() == expected.inputs.keys()
    assert all(torch.equal(found.inputs[name], value) for name, value in expected.inputs.items())


def test_the_connector_run_by_hand_leads_from_one_site_to_the_next(family):
    """A window order that was left in, or undone on one side alone, would pair tokens of different cells."""
    shown, model = pictures(2, (72, 40)), family.model
    reading = read(family, shown)
    connector = family.family.part(model, "connector")
    norm = {"llava": "vision_tower.post_layernorm", "idefics2": "vision_model.post_layernorm"}.get(family.family.model_type)
    norm = model.model.get_submodule(norm) if norm else getattr(connector, family.family.connector_norm)
    for i in range(2):
        pre, normed, post = (reading.tokens[site][i] for site in SITES)
        with torch.no_grad():
            assert torch.allclose(norm(pre), normed, atol=1e-5)
            if family.family.model_type == "idefics2":
                seen = torch.ones(1, len(normed), dtype=torch.bool)
                assert torch.allclose(connector(normed[None], attention_mask=seen)[0], post, atol=1e-4)
            else:
                assert torch.allclose(connector(pre).reshape(post.shape), post, atol=1e-4)


def test_tokens_stand_where_their_patches_are(family, tmp_path):
    """A picture with one cell changed moves the first layer of what the connector reads most there, by `places`."""
    plain = picture(0, (72, 40))
    changed = plain.copy()
    changed.paste((255, 0, 0), (64, 8, 72, 16))  # the last cell of the second row, of 8 pixels
    shown = [Example("a", plain), Example("b", changed)]
    states = extract(family, shown, tmp_path, dtype="float32")
    grid = states.grids["pre"]
    if family.family.model_type == "llava":  # of a wide picture it sees the middle alone
        assert grid == (6, 6)
        return
    assert grid == ((10, 18) if states.merge == 2 else (4, 8))
    moved = np.linalg.norm(np.diff(np.asarray(states.vectors("pre")), axis=0)[0], axis=1)
    by_place = np.zeros(len(moved))
    by_place[states.places("pre")] = moved
    row, column = np.unravel_index(by_place.argmax(), grid)
    assert (row // 2, column // 2) == (1, 8) if states.merge == 2 else column == grid[1] - 1
    if states.merge == 2:
        where = moved.argmax() // 4
        assert states.places("post").tolist() == list(range(45)) and where == 1 * 9 + 8


def test_bfloat16_keeps_what_rounding_says(vlm, tmp_path):
    exact = extract(vlm, pictures(4), tmp_path / "exact", dtype="float32")
    states = extract(vlm, pictures(4), tmp_path / "half")
    for site in SITES:
        full = torch.from_numpy(np.asarray(exact.vectors(site)))
        kept = np.asarray(states.vectors(site))
        assert np.array_equal(kept, full.bfloat16().float().numpy())
        lost = np.linalg.norm((kept - full.numpy()).reshape(4, -1), axis=1) / np.linalg.norm(full.numpy().reshape(4, -1), axis=1)
        assert states.rounding(site) == pytest.approx(lost, rel=1e-4)
        assert (states.rounding(site) > 0).all() and (states.rounding(site) < 2**-8).all()
        assert states.pooled(site) == pytest.approx(kept.mean(1), abs=1e-5)
    sizes = [sum(path.stat().st_size for path in (tmp_path / name / "shards").iterdir()) for name in ("exact", "half")]
    assert sizes[0] > 1.8 * sizes[1]


def test_bfloat16_loses_nothing_of_a_model_that_runs_in_it(tiny_llava, tmp_path):
    vlm = VLM.load(str(tiny_llava), dtype="bfloat16")
    states = extract(vlm, pictures(3), tmp_path)
    features = torch.stack(vlm.vision_features(pictures(3, folders=1)))
    by_key = dict(zip([one.id for one in pictures(3)], features.float().numpy(), strict=True))
    kept = {key: row for keys, rows in states.vectors("post").blocks(2) for key, row in zip(keys, rows, strict=True)}
    assert states.keys == sorted(by_key) and (states.rounding("post") == 0).all()
    assert by_key["00001/000000001.png"] == pytest.approx(kept["00001/000000001.png"], abs=0.02)  # other batches round otherwise


def test_vectors_are_read_as_an_array_is(vlm, tmp_path):
    states = extract(vlm, pictures(7), tmp_path, batch_size=3)
    whole = np.asarray(states.vectors("post"))
    lazy = states.vectors("post")
    assert lazy.shape == whole.shape == (7, 36, 64) and len(lazy) == 7 and whole.dtype == lazy.dtype
    for index in (0, -1, slice(2, 5), slice(None, None, 3), [6, 0, 0], np.array([1, 3]), slice(0, 0)):
        assert np.array_equal(lazy[index], whole[index]), index
    blocks = list(lazy.blocks(4))
    assert [keys for keys, _ in blocks] == [states.keys[:4], states.keys[4:]]
    assert np.array_equal(np.concatenate([rows for _, rows in blocks]), whole)
    some = states.keys[5:2:-1]
    assert np.array_equal(np.asarray(states.vectors("post", some)), whole[5:2:-1])
    assert np.array_equal(states.pooled("post", some), states.pooled("post")[5:2:-1])
    with pytest.raises(KeyError, match="1 of 2 examples, first 'nobody'"):
        states.vectors("post", [states.keys[0], "nobody"])[:]
    with pytest.raises(IndexError):
        lazy[7]


def test_only_the_sites_asked_for_are_kept(vlm, tmp_path):
    states = extract(vlm, pictures(2), tmp_path, sites=["post"])
    assert states.sites == ("post",) and states.grids == {"post": (6, 6)}
    assert {site for site, _ in states.store.groups()} == {"post", "pooled.post", "grid", "rounding", "picture"}
    with pytest.raises(ValueError, match="site 'pre' was not extracted; there: post"):
        states.vectors("pre")


def test_equal_pictures_have_equal_digests(vlm, tmp_path):
    shown = [Example("a", picture(0)), Example("b", picture(1)), Example("c", lambda: picture(0))]
    digests = extract(vlm, shown, tmp_path).digests()
    assert digests[0] == digests[2] != digests[1] and len(digests[0]) == 64


# ---- kept and resumed ----
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(vlm, tmp_path, monkeypatch):
    whole = extract(vlm, pictures(10), tmp_path / "whole", batch_size=3)
    runs = []

    def stops(vlm, batch, sites):
        runs.append(batch.which)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return run(vlm, batch, sites)

    monkeypatch.setattr(connector_batches, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        extract(vlm, pictures(10), tmp_path / "stopped", batch_size=3)
    assert len(connector_states.open(tmp_path / "stopped")) == 5
    resumed = extract(vlm, pictures(10), tmp_path / "stopped", batch_size=3)
    assert [len(each) for each in runs] == [3, 2, 3, 3, 2]  # what was there is not run again, what was stopped is
    assert content(resumed) == content(whole) == content(connector_states.open(tmp_path / "stopped"))
    assert files(resumed) == files(whole)
    extract(vlm, pictures(10), tmp_path / "stopped", batch_size=3)
    assert len(runs) == 5


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tiny import picture
from spatialprobes.examples import Example
from spatialprobes.probes.connector_states import extract
from spatialprobes.vlm import VLM
renamed, rename = [], os.replace
def replace(source, target):
    renamed.append(target)
    if len(renamed) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = replace
extract(VLM.load(sys.argv[2]), [Example(f"{i}", picture(i)) for i in range(6)], sys.argv[3], batch_size=2)
"""


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(vlm, tiny_llava, tmp_path):
    """Killed between the second shard and its index: files get their names in turn, the fingerprint first."""
    arguments = [Path(__file__).parent, tiny_llava, tmp_path / "killed"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    assert connector_states.open(tmp_path / "killed").keys == ["0", "1", "2", "3"]
    shown = [Example(f"{i}", picture(i)) for i in range(6)]
    resumed = extract(vlm, shown, tmp_path / "killed", batch_size=2)
    whole = extract(vlm, shown, tmp_path / "whole", batch_size=2)
    assert content(resumed) == content(whole) and files(resumed) == files(whole)
    assert any("was stopped between shard and index" in line for line in resumed.reports)


@pytest.mark.parametrize("together", [True, False])
def test_jobs_do_together_what_one_does(vlm, tmp_path, together):
    """In one store the bytes are those of one job; in several, each picture is in one of them."""
    whole = extract(vlm, pictures(11), tmp_path / "whole", batch_size=2)
    parts = [
        extract(vlm, pictures(11), tmp_path / ("one" if together else str(i)), batch_size=2, shards=(i, 3)) for i in (2, 0, 1)
    ]
    if together:
        assert content(parts[-1]) == content(whole) and files(parts[-1]) == files(whole)
        return
    assert sorted(key for part in parts for key in part.keys) == whole.keys
    for part in parts:
        assert np.array_equal(part.vectors("pre")[:], whole.vectors("pre", part.keys)[:])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 4),
    st.none() | st.integers(1, 40),
    st.none() | st.integers(1, 12),
)
def test_sharing_out(folders, batch_size, count, limit, limit_per_shard):
    """Each picture once, in order; batches of one folder; limits of folders, then of all, whoever does the work."""
    shown = [Example(f"{folder}/{i}", image=None) for i, folder in enumerate(folders)]
    parts = [shared_out(shown, batch_size, (i, count), limit, limit_per_shard) for i in range(count)]
    whole = shared_out(shown, batch_size, (0, 1), limit, limit_per_shard)
    assert [parts[i % count][i // count] for i in range(len(whole))] == whole and sum(map(len, parts)) == len(whole)
    assert all(len({folder_of(one.id) for one in batch}) == 1 and 1 <= len(batch) <= batch_size for batch in whole)
    taken = Counter(folder_of(one.id) for batch in whole for one in batch)
    by_folder = {folder: min(n, limit_per_shard or n) for folder, n in Counter(folders).items()}
    assert sum(taken.values()) == min(sum(by_folder.values()), limit or len(shown))
    for folder in taken:
        ids = [one.id for batch in whole for one in batch if folder_of(one.id) == folder]
        assert ids == [one.id for one in shown if folder_of(one.id) == folder][: len(ids)]
        assert len(ids) <= by_folder[folder]


def test_a_larger_limit_goes_on(vlm, tmp_path):
    small = extract(vlm, pictures(9), tmp_path, batch_size=2, limit=4)
    assert small.keys == [f"00000/{i:09d}.png" for i in (0, 2, 4, 6)]
    before = small.vectors("post")[:].tobytes()
    large = extract(vlm, pictures(9), tmp_path, batch_size=2, limit_per_shard=4)
    assert len(large) == 8 and large.vectors("post", small.keys)[:].tobytes() == before
    assert [large.folder(key) for key in large.keys] == ["00000"] * 4 + ["00001"] * 4
    assert folder_of("no folder") == ""


def test_unreadable_pictures_are_listed_and_looked_at_again(vlm, tmp_path):
    shown = [replace(one, image=tmp_path / f"{i}.png") for i, one in enumerate(pictures(5, folders=1))]
    for i in (0, 2, 4):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"not a picture" * 200)
    states = extract(vlm, shown, tmp_path / "s", batch_size=2)
    assert states.keys == [shown[i].id for i in (0, 2, 4)]
    assert [(one.example, one.name) for one in states.unreadable] == [(shown[i].id, str(tmp_path / f"{i}.png")) for i in (1, 3)]
    assert states.unreadable[0].reason == "no such file" and "not an image of a known kind" in states.unreadable[1].reason
    assert connector_states.open(tmp_path / "s").unreadable == states.unreadable
    assert extract(vlm, shown, tmp_path / "s", batch_size=2).unreadable == states.unreadable
    picture(1).save(tmp_path / "1.png")
    mended = extract(vlm, shown, tmp_path / "s", batch_size=2)
    assert mended.keys == [shown[i].id for i in (0, 1, 2, 4)] and [one.example for one in mended.unreadable] == [shown[3].id]
    with pytest.raises(ImageError, match=r"3\.png: not an image"):
        extract(vlm, shown, tmp_path / "s", batch_size=2, on_error="raise")
    (tmp_path / "none").mkdir()
    nothing = extract(vlm, [Example("x" * 2000, tmp_path / ("n" * 200))], tmp_path / "none")
    assert len(nothing) == 0 and nothing.unreadable[0].reason
    with pytest.raises(ValueError, match="holds no picture yet"):
        _ = nothing.grids


def test_a_picture_that_the_processor_refuses_is_listed(tiny_qwen2_vl, tmp_path):
    vlm = VLM.load(str(tiny_qwen2_vl))
    shown = [Example("a", picture(0)), Example("line", picture(1, (900, 2))), Example("b", picture(2))]
    states = extract(vlm, shown, tmp_path / "s")
    assert states.keys == ["a", "b"] and [one.example for one in states.unreadable] == ["line"]
    assert "900 x 2 pixels are refused by the processor" in states.unreadable[0].reason
    with pytest.raises(ImageError, match="the picture of line"):
        extract(vlm, shown, tmp_path / "t", on_error="raise")


# ---- what is refused ----
def test_another_model_or_other_options_are_refused(vlm, tiny_llava_grouped, tmp_path):
    extract(vlm, pictures(2), tmp_path)
    with pytest.raises(FingerprintError, match="weights_sha256"):
        extract(VLM.load(str(tiny_llava_grouped)), pictures(2), tmp_path)
    for options, named in (
        ({"sites": ["pre"]}, "sites"),
        ({"dtype": "float32"}, "dtype"),
        ({"batch_size": 8}, "batch_size"),
        ({"side": 48}, "side"),
    ):
        with pytest.raises(FingerprintError, match=named):
            extract(vlm, pictures(2), tmp_path, **options)
    Store.open(tmp_path / "other", {"what": "maps"})
    (tmp_path / "other" / "shards" / "theirs.safetensors").write_bytes(b"not ours")
    with pytest.raises(FingerprintError):
        extract(vlm, pictures(2), tmp_path / "other")
    assert (tmp_path / "other" / "shards" / "theirs.safetensors").exists()
    with pytest.raises(StoreError, match="holds 'maps', not connector states"):
        connector_states.open(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        connector_states.open(tmp_path / "nowhere")


def test_one_store_holds_one_grid(tiny_qwen2_5_vl, tmp_path):
    vlm = VLM.load(str(tiny_qwen2_5_vl))
    shown = [Example("a", picture(0)), Example("b", picture(1, (72, 40)))]
    with pytest.raises(
        ValueError, match=r"'b': 10 x 18 patches and 5 x 9 tokens; 'a' has 12 x 12 patches and 6 x 6 tokens.*side="
    ):
        extract(vlm, shown, tmp_path / "s")
    extract(vlm, shown[:1], tmp_path / "s")
    with pytest.raises(ValueError, match="'b': 10 x 18 patches"):
        extract(vlm, shown, tmp_path / "s", batch_size=32)
    squashed = extract(vlm, shown, tmp_path / "t", side=48)
    assert squashed.grids == {"pre": (12, 12), "pre_normed": (12, 12), "post": (6, 6)}


def test_latents_have_no_grid_and_a_side_keeps_their_tower_at_one(tiny_idefics2, tmp_path):
    """Idefics2's processor enlarges small pictures; with a side it takes them as they are, and afterwards as before."""
    vlm = VLM.load(str(tiny_idefics2))
    shown = [Example("a", picture(0, (8, 8))), Example("b", picture(1, (40, 64)))]
    with pytest.raises(ValueError, match="'b': 8 x 5 patches; 'a' has 2 x 2 patches"):
        extract(vlm, shown, tmp_path / "s")
    before = vlm.processor.image_processor.to_json_string()
    states = extract(vlm, shown, tmp_path / "t", side=32)
    assert vlm.processor.image_processor.to_json_string() == before
    assert states.grids == {"pre": (4, 4), "pre_normed": (4, 4), "post": None} and states.vectors("post").shape == (2, 10, 64)
    small = extract(vlm, shown, tmp_path / "small", side=8)
    assert small.grids["pre"] == (1, 1)
    with pytest.raises(ValueError, match="the tokens of 'post' have no grid"):
        states.places("post")


def test_numbers_that_are_none_are_refused_by_name(tiny_llava, tmp_path):
    vlm = VLM.load(str(tiny_llava))
    with torch.no_grad():
        vlm.model.model.multi_modal_projector.linear_2.bias[3] = torch.nan
    with pytest.raises(ValueError, match=r"'00000/000000000\.png': 36 of 2,304 numbers at site 'post' are NaN or infinite"):
        extract(vlm, pictures(4), tmp_path, batch_size=2)
    assert connector_states.open(tmp_path).keys == []


def test_an_intervention_is_not_stored_as_if_it_were_the_model(vlm, tmp_path):
    with (
        pytest.raises(ValueError, match="an intervention on the picture's tokens is open"),
        intervene(vlm, permute=torch.arange(36).flip(0)),
    ):
        extract(vlm, pictures(2), tmp_path)


def test_another_picture_under_the_same_id_is_refused(vlm, tmp_path):
    extract(vlm, pictures(4), tmp_path)
    other = [replace(one, image=lambda: picture(99)) for one in pictures(4)]
    with pytest.raises(StoreError, match=r"holds another picture under '00000/000000000\.png'"):
        extract(vlm, other, tmp_path)


def test_a_truncated_shard_is_reported_and_made_again(vlm, tmp_path):
    whole = extract(vlm, pictures(6), tmp_path / "whole", batch_size=2)
    states = extract(vlm, pictures(6), tmp_path / "cut", batch_size=2)
    shard = sorted((tmp_path / "cut" / "shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    found = connector_states.open(tmp_path / "cut")
    assert len(found.reports) == 1 and shard.name in found.reports[0] and "damaged" in found.reports[0]
    with pytest.raises(ValueError, match=rf"{shard.name}: damaged: [\d,]+ bytes where its header announces"):
        np.asarray(found.vectors("post"))
    mended = extract(vlm, pictures(6), tmp_path / "cut", batch_size=2)
    assert content(mended) == content(whole) and states.keys == mended.keys
    assert any(line.startswith("set aside") for line in mended.reports) and shard.with_suffix(".damaged").exists()
    assert not connector_states.open(tmp_path / "cut").reports[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ["mid"]}, "site 'mid' is unknown; 'pre', 'pre_normed', 'post'"),
        ({"sites": []}, "at least one of"),
        ({"sites": ["pre", "pre"]}, "each once"),
        ({"dtype": "float16"}, "dtype='float16' is unknown"),
        ({"shards": (2, 2)}, r"shards=\(2, 2\): \(index, count\) with 0 <= index < count"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"limit_per_shard": True}, "limit_per_shard=True must be at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"side": 0}, "side=0 must be at least 1 pixel"),
        ({"on_error": "skip"}, "on_error='skip' is unknown"),
    ],
)
def test_bad_options_are_named(vlm, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        extract(vlm, pictures(2), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_bad_ids_are_named(vlm, tmp_path):
    with pytest.raises(ValueError, match="two examples have the id 'a'"):
        extract(vlm, [Example("a", picture(0)), Example("a", picture(1))], tmp_path)
    with pytest.raises(ValueError, match="ids are strings; 7 is int"):
        extract(vlm, [Example(7, picture(0))], tmp_path)
    with pytest.raises(ValueError, match="no examples"):
        extract(vlm, [], tmp_path)


def test_no_more_than_three_batches_are_held(vlm, tmp_path, monkeypatch):
    """One that is opened, one that is run, one that is written; and of what is read by blocks, one block."""
    made, most = [], Counter()

    def watched(name):
        function = getattr(connector_batches, name)

        def act(*args):
            made.append((name, weakref.ref(result := function(*args))))
            most[name] = max(most[name], sum(kind == name and ref() is not None for kind, ref in made))
            return result

        return act

    for name in ("opened", "computed"):
        monkeypatch.setattr(connector_batches, name, watched(name))
    states = extract(vlm, pictures(24), tmp_path, batch_size=2)
    assert len(made) == 24 and max(most.values()) <= 3
    assert not any(ref() for _, ref in made)
    tracemalloc.start()
    for _ in states.vectors("post").blocks(2):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = 24 * 36 * 64 * 4
    assert peak < whole / 2


def test_a_model_of_no_written_family_is_read_where_its_parts_are_proved(tmp_path):
    """Gemma 3, discovered: its tower's grid is pooled 2 x 2, and stands as `places` says."""
    from unknown import save_gemma3

    vlm = VLM.load(str(save_gemma3(tmp_path / "gemma3")))
    shown = [Example(f"{i}", picture(i, (64, 64)), QUESTION) for i in range(3)]
    states = extract(vlm, shown, tmp_path / "s", dtype="float32")
    with capture(vlm, connector="post_norm") as got:
        vlm.forward(vlm.encode(shown))
    assert np.array_equal(states.vectors("pre_normed")[:], torch.stack(got.connector_input).numpy())
    assert np.array_equal(states.vectors("post")[:], torch.stack(vlm.vision_features(shown)).numpy())
    assert states.grids == {"pre": (8, 8), "pre_normed": (8, 8), "post": (4, 4)} and states.merge == 2
