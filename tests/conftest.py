"""What every test shares: no network beyond loopback, one thread, and the tiny checkpoints, built once per session."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data():
    """The folder of published data, where the environment names one; a test that needs it is skipped where it does not."""
    folder = os.environ.get("SPATIALPROBES_REAL_DATA")
    if not folder:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no published files here")
    assert Path(folder).is_dir(), f"SPATIALPROBES_REAL_DATA is {folder!r}, which is no folder"
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    """Folder of a random LLaVA: 2 layers, 4 heads, 36 vision tokens, a chat template with a default system prompt."""
    from tiny import save_llava

    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="session")
def tiny_llava_pieces(tmp_path_factory):
    """As tiny_llava, with a tokenizer of word pieces and a template like LLaVA-1.5's, without system prompt and bos."""
    from tiny import save_llava

    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava-pieces", tokenizer="pieces", positions=256, seed=2)


@pytest.fixture(scope="session")
def tiny_llava_grouped(tmp_path_factory):
    """As tiny_llava, but 3 layers, 2 key-value heads for 4 query heads, and a template without a system prompt of its own."""
    from tiny import save_llava

    folder = tmp_path_factory.mktemp("models") / "tiny-llava-grouped"
    return save_llava(folder, layers=3, kv_heads=2, system="", seed=1)


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory):
    """Folder of a random Qwen2-VL: 3 layers, 4 heads on 2 key-value heads, 8 pixels a cell, any grid, no bos token."""
    from tiny_families import save_qwen2_vl

    return save_qwen2_vl(tmp_path_factory.mktemp("models") / "tiny-qwen2-vl")


@pytest.fixture(scope="session")
def tiny_qwen2_5_vl(tmp_path_factory):
    """As tiny_qwen2_vl, a Qwen2.5-VL: tower blocks 0 and 2 see windows of 2 x 2 cells, block 1 the whole picture."""
    from tiny_families import save_qwen2_5_vl

    return save_qwen2_5_vl(tmp_path_factory.mktemp("models") / "tiny-qwen2-5-vl")


@pytest.fixture(scope="session")
def tiny_qwen3_5(tmp_path_factory):
    """As tiny_qwen2_vl, a Qwen3.5 of 4 layers: linear attention in 0 and 2, full attention in 1 and 3; byte-level pieces."""
    from tiny_families import save_qwen3_5

    return save_qwen3_5(tmp_path_factory.mktemp("models") / "tiny-qwen3-5")


@pytest.fixture(scope="session")
def tiny_idefics2(tmp_path_factory):
    """Folder of a random Idefics2: 3 layers, 4 heads on 2 key-value heads, 10 latents without a grid."""
    from tiny_families import save_idefics2

    return save_idefics2(tmp_path_factory.mktemp("models") / "tiny-idefics2")


@pytest.fixture(scope="session", params=["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_5", "idefics2"])
def tiny_family(request):
    """Folder of a random model of each family in turn, with 36 vision tokens for 48x48 pixels (Idefics2: 10)."""
    return request.getfixturevalue(f"tiny_{request.param}")
