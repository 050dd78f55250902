"""What every test shares: no network beyond loopback, one thread, and the tiny checkpoints, built once per session."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


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
