"""Where models come from, at which revision, and that whatever is wrong with one is a single line that says what would do."""

import json
import shutil
import socket

import pytest
import torch
from tiny import examples, save_llava

from spatialprobes import loading
from spatialprobes.loading import ModelError, choose_device, find_model
from spatialprobes.vlm import VLM


@pytest.fixture
def damaged(tiny_llava, tmp_path):
    """A copy of the tiny LLaVA in which a file was changed: name -> new text (None: deleted)."""

    def damage(name, text=None):
        folder = shutil.copytree(tiny_llava, tmp_path / "damaged")
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)
        return str(folder)

    return damage


def configured(folder, part, **values):
    config = json.loads((folder / "config.json").read_text())
    config[part] |= values
    return json.dumps(config)


def line(name, **options):
    with pytest.raises(ModelError) as caught:
        VLM.load(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders that are broken


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("text_config", {"intermediate_size": 96}, r"6 of its weights, such as .*mlp.*: \(64, 128\) in the file, \(64, 96\)"),
        ("vision_config", {"image_size": 64}, r"position_embedding.weight: \(37, 64\) in the file, \(65, 64\)"),
        ("text_config", {"num_hidden_layers": 1}, r"9 weights of layers that its config.json lacks, such as .*layers\.1\."),
        ("text_config", {"num_hidden_layers": 3}, r"lacks 9 of its weights, such as .*layers\.2\."),
        ("text_config", {"num_attention_heads": 5}, r"cannot be read .*not a multiple of the number of attention heads"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(tiny_llava, damaged, capfd, part, value, said):
    import re

    found = line(damaged("config.json", configured(tiny_llava, part, **value)), device="cpu")
    assert re.search(said, found), found
    assert "damaged" in found
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "there is none"),
        ("{% for x in %}", "Expected an expression"),
        ("{{ messages.foo.bar }}", "no attribute 'foo'"),
        ("{{ messages[0]['content'][-1]['text'] }}", "writes 0 image placeholders '<image>'"),
        ("<image> <image> {{ messages[0]['content'][-1]['text'] }}", "writes 2 image placeholders"),
        ("<image> hello", "does not write the question"),
    ],
)
def test_a_chat_template_that_is_missing_or_broken(damaged, template, said):
    found = line(damaged("chat_template.jinja", template), device="cpu")
    assert said in found
    assert "chat_template.jinja that writes the picture" in found


def test_a_tokenizer_that_raises_what_it_likes(damaged):
    assert "cannot be read" in line(damaged("tokenizer.json", "{}"), device="cpu")


# Names, devices and options


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 5000, "File name too long"),
        ("~nosuchuser/model", "Could not determine home directory"),
        ("org/" + "x" * 300, "unknown model 'org/xxx"),
        ("", "name is empty"),
        (" ", "name is empty"),
    ],
)
def test_names_that_no_model_could_have(name, said):
    found = line(name)
    assert said in found
    assert len(found) < 600  # it lists the lab's models, and shortens a long name


def test_a_weights_root_that_cannot_be(monkeypatch):
    monkeypatch.setenv("SPATIALPROBES_WEIGHTS", "~nosuchuser/weights")
    assert "home directory" in line("some-org/some-model")


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_devices_that_are_not_there(tiny_llava, device):
    if device != "meta" and torch.get_device_module(device).is_available():
        pytest.skip(f"{device} is there")
    found = line(str(tiny_llava), device=device)
    assert f"device {device!r}" in found
    assert "auto, cpu, cuda" in found
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("options", [{"dtype": "float31"}, {"quantize": "2bit"}])
def test_wrong_options_are_said_of_the_option_not_of_the_files(tiny_llava, options):
    ((option, value),) = options.items()
    found = line(str(tiny_llava), **options)
    assert found.startswith(f"{option} {value!r} is unknown")


def test_wrong_options_are_said_before_anything_is_asked_of_the_hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(loading, "_reachable", lambda: pytest.fail("asked"))
    assert "float31" in line("org/name", dtype="float31")


# The hub


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The hub's cache with org/name at two revisions, each with weights of its own; the network is not used."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    store = cache / "models--org--name"
    (store / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate([("main", "a" * 40), ("v1", "b" * 40)]):
        save_llava(store / "snapshots" / commit, seed=seed)
        (store / "refs" / name).write_text(commit)
    return store


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_is_loaded_from_the_cache_at_its_revision(cached, monkeypatch, offline):
    """Also where nobody switched the hub off and it just cannot be reached."""
    if not offline:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(loading.socket, "create_connection", _refuse)
    main, first = VLM.load("org/name", device="cpu"), VLM.load("org/name", revision="v1", device="cpu")
    assert not torch.equal(main.text_embeddings(), first.text_embeddings())
    expected = VLM.load(str(cached / "snapshots" / ("b" * 40)), device="cpu")
    assert torch.equal(first.text_embeddings(), expected.text_embeddings())
    assert [one.facts()["revision"] for one in (main, first)] == ["a" * 40, "b" * 40]
    assert first.source.revision == "v1"
    batch = first.encode(examples(1))
    assert torch.equal(first.forward(batch).logits, expected.forward(batch).logits)


def test_a_revision_that_is_not_there_is_named(cached):
    assert "'org/name' at revision 'v2'" in line("org/name", revision="v2")


def test_revision_is_passed_on_with_every_part(monkeypatch, cached):
    asked = []
    for kind in ("AutoConfig", "AutoProcessor", "AutoModelForImageTextToText"):
        module = loading if kind == "AutoConfig" else __import__("spatialprobes.families.base", fromlist=[kind])
        plain = getattr(module, kind).from_pretrained

        def passing(where, *args, plain=plain, kind=kind, **options):
            asked.append((kind, options.get("revision"), options.get("trust_remote_code")))
            return plain(where, *args, **options)

        monkeypatch.setattr(getattr(module, kind), "from_pretrained", passing)
    VLM.load("org/name", revision="v1", device="cpu")
    assert {kind for kind, *_ in asked} == {"AutoConfig", "AutoProcessor", "AutoModelForImageTextToText"}
    assert {(revision, trusted) for _, revision, trusted in asked} == {("b" * 40, False)}


def test_a_revision_is_of_the_hub_alone(tiny_llava):
    assert find_model(str(tiny_llava), "v1").revision is None
    assert find_model("org/name", "v1").revision == "v1"


def test_a_hub_that_cannot_be_reached_is_asked_once_and_said(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []
    monkeypatch.setattr(loading.socket, "create_connection", lambda place, timeout: asked.append((place, timeout)) or _refuse())
    monkeypatch.setattr(loading, "getproxies", dict)
    found = line("some-org/some-model")
    assert "the hub cannot be reached and it is not in the cache" in found
    assert "SPATIALPROBES_WEIGHTS" in found
    assert asked == [(("huggingface.co", 443), loading.REACH)]


def test_a_hub_that_can_be_reached_is_used(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://{place}")
        monkeypatch.setattr(loading, "getproxies", dict)
        assert loading._reachable()
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert not loading._reachable()
        for proxy in (f"http://{place}", place):  # what stands between counts, whether it is a URL or not
            monkeypatch.setattr(loading, "getproxies", lambda proxy=proxy: {"http": proxy})
            monkeypatch.setattr(loading, "proxy_bypass", lambda host: False)
            assert loading._reachable()
        monkeypatch.setattr(loading, "proxy_bypass", lambda host: True)
        assert not loading._reachable()


def test_a_folder_needs_no_hub(tiny_llava, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(loading, "_reachable", lambda: pytest.fail("asked"))
    assert VLM.load(str(tiny_llava), device="cpu").source.kind == "folder"


def _refuse(*args, **kwargs):
    raise OSError("no way")
