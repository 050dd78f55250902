"""Connectors: the native one run on given inputs gives what the model gave, another one inverts and reads only what it may."""

import pytest
import torch
from tiny import examples
from tiny_families import LATENTS, mixed
from transformers import Idefics2Config, LlavaConfig, Qwen2_5_VLConfig

from spatialprobes.capture import capture
from spatialprobes.families import connectors
from spatialprobes.probes.reconstruction import SITES, through_connector
from spatialprobes.vlm import VLM


@pytest.fixture(scope="module")
def vlm(tiny_family):
    return VLM.load(str(tiny_family))


def seen(vlm, shown, site):
    """E_pre at a site and E_post of each picture, as the model itself makes them."""
    with capture(vlm, connector=SITES[site]) as got:
        vlm.vision_features(shown)
    return got.connector_input, got.connector_output


@pytest.mark.parametrize("site", ["pre", "pre_normed"])
def test_the_native_connector_gives_what_the_model_gave(vlm, site):
    """Pictures of unequal size in one batch, then one at a time and in other company; LLaVA's have one size."""
    llava = vlm.family.model_type == "llava"
    shown = examples(3) if llava else mixed(3)
    pre, post = seen(vlm, shown, site)
    if llava and site == "pre_normed":
        with pytest.raises(ValueError, match="no norm stands before its weights"):
            through_connector(vlm, pre, site)
        return
    assert len({len(one) for one in pre}) == (1 if llava else 3)
    for batch_size in (3, 2, 1):
        made = through_connector(vlm, pre, site, batch_size)
        assert [one.shape for one in made] == [one.shape for one in post]
        assert all((ours - true).abs().max() < 1e-5 * true.abs().max() for ours, true in zip(made, post, strict=True))
    shuffled = [one[torch.arange(len(one)).roll(1)] for one in pre]
    changed = through_connector(vlm, shuffled, site)
    if vlm.family.model_type == "idefics2":  # a perceiver without places
        assert all(torch.allclose(ours, true, atol=1e-4) for ours, true in zip(changed, post, strict=True))
    else:
        assert all((ours - true).abs().max() > 1e-2 * true.abs().max() for ours, true in zip(changed, post, strict=True))


def test_equal_pictures_may_come_as_one_array(vlm):
    pre, post = seen(vlm, examples(3), "pre")
    made = through_connector(vlm, torch.stack(pre).numpy(), "pre")
    assert all(torch.allclose(ours, true, atol=1e-5, rtol=1e-5) for ours, true in zip(made, post, strict=True))


def test_what_is_not_the_connectors_is_refused(vlm):
    pre, _ = seen(vlm, examples(1), "pre")
    with pytest.raises(ValueError, match="vectors of another model or site"):
        through_connector(vlm, [pre[0][:, :-1]])
    with pytest.raises(ValueError, match="site='pre_norm' is unknown"):
        through_connector(vlm, pre, "pre_norm")
    if "qwen" in vlm.family.model_type:
        with pytest.raises(ValueError, match="143 patches are no multiple of 4"):
            through_connector(vlm, [pre[0][:-1]])
    if vlm.family.model_type == "llava":
        with pytest.raises(ValueError, match="LLaVA's have one size"):
            through_connector(vlm, [pre[0], pre[0][:-1]])


def configuration(kind):
    vision = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
    if kind == "idefics2":
        text = {"model_type": "mistral", "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
        return Idefics2Config(vision_config=vision, text_config=text, perceiver_config={"resampler_n_latents": 5})
    return LlavaConfig(vision_config=vision, text_config={"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2})


def test_sizes_are_the_configurations_and_the_studys_for_its_models():
    """LLaVA-1.5-7B and Idefics2-8B: the study's sizes and, nearly, its numbers of parameters (21 and 446 million)."""
    counted = {}
    for config in (LlavaConfig(), Idefics2Config()):
        config.vision_config.hidden_size = {"llava": 1024, "idefics2": 1152}[config.model_type]
        with torch.device("meta"):
            module = connectors.build(connectors.design(config))
        counted[config.model_type] = sum(p.numel() for p in module.parameters())
    assert counted["llava"] == pytest.approx(21e6, rel=0.01)
    assert counted["idefics2"] == pytest.approx(446e6, rel=0.01)
    plan = connectors.design(configuration("idefics2"), hidden=7, heads=4)
    assert (plan.pre_width, plan.post_width, plan.latents, plan.hidden) == (12, 16, 5, 7)


def test_other_families_and_kinds_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"'qwen2_5_vl': its tower was trained together with its merger.*llava, idefics2"):
        connectors.design(Qwen2_5_VLConfig())
    with pytest.raises(ValueError, match="kind='cross_attention' is not for 'llava'"):
        connectors.design(configuration("llava"), "cross_attention")
    with pytest.raises(ValueError, match="'depth' is no size of a connector; heads, hidden, latents, layers"):
        connectors.design(configuration("llava"), depth=2)
    with pytest.raises(ValueError, match="post_width=16 is not a multiple of heads=3"):
        connectors.design(configuration("idefics2"), heads=3)
    with pytest.raises(ValueError, match="layers=0 must be at least 1"):
        connectors.design(configuration("llava"), layers=0)


def stirred(module, seed=0):
    """Weights far from their initial ones, so that scales are neither 0 nor at their bounds."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_invertible_connector_inverts(layers):
    fresh = connectors.build(connectors.design(configuration("llava"), layers=layers, hidden=9))
    pre = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (fresh.inverse(fresh(pre)) - fresh.normed(pre)).abs().max() < 1e-4
        module, pre = stirred(fresh).double(), pre.double()
        normed, post = module.normed(pre), module(pre)
        assert (module.inverse(post) - normed).abs().max() < 1e-8 * post.abs().max()
        assert (post - normed).abs().max() > 0.1  # the couplings do something
        moved = [(coupling(normed) != normed).any(0).any(0) for coupling in module.couplings]
    halves = [torch.arange(16) >= 8, torch.arange(16) < 8]
    assert all(torch.equal(one, halves[i % 2]) for i, one in enumerate(moved))  # each moves one half, in turn


def test_a_coupling_is_the_formula_and_its_volume_is_the_sum_of_scales():
    """y = x exp(s) + t with s = 2 tanh(network), and the Jacobian's log-determinant the sum of s."""
    coupling = stirred(connectors.Coupling(2, 3, first_moves=False)).double()
    x = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    s, t = 2 * torch.tanh(coupling.scale(x[:2])), coupling.shift(x[:2])
    assert torch.allclose(coupling(x), torch.cat([x[:2], x[2:] * torch.exp(s) + t]))
    jacobian = torch.autograd.functional.jacobian(coupling, x)
    assert torch.allclose(jacobian.slogdet().logabsdet, s.sum())
    assert (s.abs() < 2).all()


def test_cross_attention_reads_patches_without_padding_and_without_order():
    module = stirred(connectors.build(connectors.design(configuration("idefics2"), heads=4)))
    generator = torch.Generator().manual_seed(3)
    pre = torch.randn(2, 6, 12, generator=generator)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    with torch.no_grad():
        both, alone = module(pre, mask), module(pre[1:, :4])
        assert both.shape == (2, 5, 16)
        assert torch.allclose(both[1], alone[0], atol=1e-5)
        assert torch.allclose(module(pre[:, torch.randperm(6, generator=generator)])[0], module(pre)[0], atol=1e-5)
        assert (module(pre)[1] - alone[0]).abs().max() > 1e-3  # the padding would have told
    assert LATENTS != 5  # the count comes from this configuration, not from a constant
