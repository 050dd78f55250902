"""Quantised models, family by family: the language model's layers in 8 or 4 bit, and nothing that is measured or read off."""

import pytest
import torch
from tiny import examples
from torch import nn
from unknown import save_gemma3

from spatialprobes.vlm import VLM, ModelError

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
FOLDERS = ["tiny_llava", "tiny_qwen2_vl", "tiny_qwen2_5_vl", "tiny_qwen3_5", "tiny_idefics2", "tiny_gemma3"]
KINDS = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
NEAR = {"8bit": 0.98, "4bit": 0.8}  # cosine of the logits: 4 bit is coarse in a random model of width 64
WHOLE = ("in_proj_a", "in_proj_b")  # of Qwen3.5: gates, a number a head


@pytest.fixture(scope="module")
def tiny_gemma3(tmp_path_factory):
    """A family that is discovered."""
    return save_gemma3(tmp_path_factory.mktemp("gemma3"))


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("quantize", KINDS)
def test_the_language_models_layers_are_quantised_and_nothing_else(folder, quantize, request):
    path = str(request.getfixturevalue(folder))
    vlm, whole = VLM.load(path, quantize=quantize, device="cpu"), VLM.load(path, device="cpu")
    kinds = {name: type(module).__name__ for name, module in vlm.model.named_modules() if isinstance(module, nn.Linear)}
    inside = {name for name in kinds if name.startswith(f"{vlm.family.layers}.") and not name.endswith(WHOLE)}
    assert inside and {kinds[name] for name in inside} == {KINDS[quantize]}
    assert not {kinds[name] for name in kinds.keys() - inside} & set(KINDS.values())
    for part in (vlm.family.part(vlm.model, "tower"), vlm.family.part(vlm.model, "connector"), vlm.model.get_output_embeddings()):
        names = {type(module).__name__ for module in part.modules()}
        assert "Linear" in names or vlm.family.model_type == "gemma3"  # whose connector is a bare matrix
        assert not names & set(KINDS.values())
    batch = whole.encode(examples(2))
    features = zip(vlm.vision_features(examples(2)), whole.vision_features(examples(2)), strict=True)
    assert all(torch.equal(one, own) for one, own in features)  # what enters the language model is untouched
    mine, own = (model.forward(batch).logits[:, -1].float() for model in (vlm, whole))
    assert not torch.equal(mine, own)
    assert bool((torch.cosine_similarity(mine, own, dim=-1) > NEAR[quantize]).all())


def test_sizes_that_a_cpu_cannot_multiply_in_4_bit_are_said(tmp_path):
    """Blocks of 64 inputs and 32 outputs; 8 bit does without."""
    from tiny import save_llava
    from transformers import LlavaForConditionalGeneration

    folder = save_llava(tmp_path / "odd")
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    config = model.config
    config.text_config.intermediate_size = 80
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"blocks of 64 inputs and 32 outputs, .*mlp.* has 64 inputs and 80 outputs; use '8bit'"):
        VLM.load(str(folder), quantize="4bit", device="cpu")
    assert VLM.load(str(folder), quantize="8bit", device="cpu").quantize == "8bit"
