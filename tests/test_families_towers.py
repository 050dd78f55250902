"""Towers and connectors of every family: rows of whole pictures in raster order, against eager attention and slow loops."""

import sys

import numpy as np
import pytest
import torch
from tiny_families import mixed
from transformers import AutoModelForImageTextToText

from spatialprobes.capture import capture
from spatialprobes.tower_rows import merge_rows
from spatialprobes.vlm import VLM

TOLERANCE = 1e-5
WINDOW = 2  # cells along a side of the tiny Qwen2.5's windows


@pytest.fixture(scope="module")
def vlm(tiny_family):
    return VLM.load(str(tiny_family))


def pictures_of(batch):
    """The inputs that are pictures."""
    return {name: value for name, value in batch.inputs.items() if name.startswith(("pixel", "image_"))}


def eager_calls(folder, batch, vlm):
    """The maps of an eager tower, call by call, for each block: [batch row, head, row, key]."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    blocks = [vlm.family.attention(layer) for layer in vlm.family.part(model, "tower_layers")]
    owner = sys.modules[type(blocks[0]).__module__]
    found, plain = {id(block): [] for block in blocks}, owner.eager_attention_forward

    def recorded(module, *args, **kwargs):
        output, weights = plain(module, *args, **kwargs)
        if id(module) in found:
            found[id(module)].append(weights)
        return output, weights

    owner.eager_attention_forward = recorded
    try:
        with torch.inference_mode():
            model.get_image_features(**pictures_of(batch))
    finally:
        owner.eager_attention_forward = plain
    return [found[id(block)] for block in blocks]


def slow_places(vlm, grid, block):
    """For each attention call of a block on one picture, the (row, column) of the patch that each token is, by counting."""
    rows, columns = grid
    if vlm.family.model_type not in ("qwen2_vl", "qwen2_5_vl", "qwen3_5"):
        return [[(row, column) for row in range(rows) for column in range(columns)]]
    side = WINDOW if vlm.family.model_type == "qwen2_5_vl" else 10**6
    calls = []
    for top in range(0, rows // 2, side):
        for left in range(0, columns // 2, side):
            calls.append([])
            for cell_row in range(top, min(top + side, rows // 2)):
                for cell_column in range(left, min(left + side, columns // 2)):
                    patches = [(0, 0), (0, 1), (1, 0), (1, 1)]
                    calls[-1] += [(2 * cell_row + down, 2 * cell_column + across) for down, across in patches]
    whole = vlm.family.model_type == "qwen2_5_vl" and block == 1  # one call, still in the order of the windows
    return [[place for call in calls for place in call]] if whole else calls


def slow_rows(vlm, calls, grids, block):
    """Whole-picture maps in raster order from eager's calls, entry by entry; a class token stays ahead, padding falls away."""
    found, calls = [], iter(calls)
    padded = vlm.family.model_type in ("llava", "idefics2")
    together = next(calls) if padded else None
    heads = vlm.family.part(vlm.model, "tower").config.num_attention_heads
    widest = max(columns for _, columns in grids)
    for picture, (rows, columns) in enumerate(grids):
        before = int(vlm.family.model_type == "llava")
        size = before + rows * columns
        whole = np.zeros((heads, size, size), np.float32)
        for places in slow_places(vlm, (rows, columns), block):
            weights = (together[picture] if padded else next(calls)[0]).numpy()
            stride = widest if padded else None
            local = [before + (row * stride + column if padded else i) for i, (row, column) in enumerate(places)]
            raster = [before + row * columns + column for row, column in places]
            if before:
                local, raster = [0, *local], [0, *raster]
            for i, row in zip(local, raster, strict=True):
                for j, key in zip(local, raster, strict=True):
                    whole[:, row, key] = weights[:, i, j]
        found.append(torch.from_numpy(whole))
    assert next(calls, None) is None
    return found


def test_tower_rows_equal_eagers_put_together_by_hand(tiny_family, vlm):
    batch = vlm.encode(mixed(3))
    plain = vlm.forward(batch).logits
    with capture(vlm, tower_rows="all") as got:
        assert torch.equal(vlm.forward(batch).logits, plain)
    grids = got.tower.grids
    assert len(set(grids)) == (1 if vlm.family.model_type == "llava" else 3)
    calls = eager_calls(tiny_family, batch, vlm)
    assert len(got.tower_rows) == len(calls)
    for block, rows in got.tower_rows.items():
        for one, expected in zip(rows, slow_rows(vlm, calls[block], grids, block), strict=True):
            # beyond the first block the inputs differ already, by the rounding of SDPA in the blocks before
            assert (one - expected).abs().max() < (1e-6 if block == 0 else TOLERANCE)
            assert torch.allclose(one.sum(-1), torch.ones(()), atol=TOLERANCE)
            assert expected.std() > 1e-4


def test_chosen_tower_rows_are_slices_of_the_whole(vlm):
    batch = vlm.encode(mixed(3))
    with capture(vlm, tower_rows="all") as whole, capture(vlm, tower_rows=[0, 1], tower_at=[21, 0, 7]) as few:
        vlm.forward(batch)
    for block, rows in few.tower_rows.items():
        for one, all_rows in zip(rows, whole.tower_rows[block], strict=True):
            assert torch.allclose(one, all_rows[:, [21, 0, 7]], atol=1e-6)
    with pytest.raises(ValueError, match="tower_at: row 5000"), capture(vlm, tower_rows=0, tower_at=[0, 5000]):
        vlm.forward(batch)


def test_windows_confine_attention(tiny_qwen2_5_vl):
    """A patch of the first window attends to no patch of another in blocks 0 and 2, and to some of all in block 1."""
    vlm = VLM.load(str(tiny_qwen2_5_vl))
    with capture(vlm, tower_rows="all", tower_at=[0]) as got:
        vlm.vision_features(mixed(2)[1:])
    (grid,) = got.tower.grids
    seen = [got.tower_rows[block][0][:, 0].reshape(-1, *grid).sum(0) > 0 for block in range(3)]
    assert seen[0].nonzero().amax(0).tolist() == seen[2].nonzero().amax(0).tolist() == [3, 3]
    assert int(seen[0].sum()) == 16 and bool(seen[1].all())


def test_merged_rows_equal_a_slow_loop(vlm):
    """A cell's row: the mean over its patches as queries, the sum over each cell's patches as keys; a class token apart."""
    with capture(vlm, tower_rows=0) as got:
        vlm.vision_features(mixed(2))
    run = got.tower
    for one, (rows, columns) in zip(got.tower_rows[0], run.grids, strict=True):
        merged, one = merge_rows(one, (rows, columns), run.merge, run.before), one.numpy()
        groups = [[token] for token in range(run.before)]
        for top in range(0, rows, run.merge):
            for left in range(0, columns, run.merge):
                inside = [(top + down, left + across) for down in range(run.merge) for across in range(run.merge)]
                groups.append([run.before + row * columns + column for row, column in inside])
        assert merged.shape == (one.shape[0], len(groups), len(groups))
        for i, queries in enumerate(groups):
            for j, keys in enumerate(groups):
                slow = sum(one[:, query, key] for query in queries for key in keys) / len(queries)
                assert np.allclose(merged[:, i, j], slow, atol=1e-6)
        assert torch.allclose(merged.sum(-1), torch.ones(()), atol=TOLERANCE)
    if vlm.family.model_type.startswith("qwen"):
        assert [(rows // run.merge, columns // run.merge) for rows, columns in run.grids] == [
            spans.grid for spans in vlm.encode(mixed(2)).spans
        ]


def test_a_class_token_keeps_its_row_and_its_share_where_patches_merge():
    rows = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    merged = merge_rows(rows, (2, 4), 2, before=1)
    groups = [[0], [1, 2, 5, 6], [3, 4, 7, 8]]
    for i, queries in enumerate(groups):
        for j, keys in enumerate(groups):
            slow = sum(rows[:, query, key] for query in queries for key in keys) / len(queries)
            assert torch.allclose(merged[:, i, j], slow, atol=1e-6)
    assert torch.allclose(merged.sum(-1), torch.ones(()), atol=1e-6)


def test_rows_that_cannot_be_merged_are_refused():
    with pytest.raises(ValueError, match="not those of all 1 \\+ 4 x 4 tokens"):
        merge_rows(torch.ones(2, 16, 16), (4, 4), 2, before=1)
    with pytest.raises(ValueError, match="not those of all"):
        merge_rows(torch.ones(2, 3, 16), (4, 4), 2)
    with pytest.raises(ValueError, match="4 x 3 patches is not made of cells of 2 x 2"):
        merge_rows(torch.ones(2, 12, 12), (4, 3), 2)


# Connectors


def test_connector_input_and_output_are_picture_by_picture_in_raster_order(vlm):
    asked = mixed(3)
    batch = vlm.encode(asked)
    with torch.inference_mode():
        pooled = vlm.model.get_image_features(**pictures_of(batch)).pooler_output
    with capture(vlm, connector="pre_norm") as raw, capture(vlm, connector="post_norm") as normed:
        vlm.forward(batch)
    connector, tower = (vlm.family.part(vlm.model, part) for part in ("connector", "tower"))
    for i, feature in enumerate(pooled):
        assert torch.equal(raw.connector_output[i], feature)
        assert torch.equal(normed.connector_output[i], feature)
        before, after = raw.connector_input[i], normed.connector_input[i]
        with torch.inference_mode():
            if vlm.family.model_type == "idefics2":
                assert torch.equal(tower.post_layernorm(before), after)
                again = connector(after[None], attention_mask=torch.ones(1, len(after), dtype=torch.bool))[0]
            elif vlm.family.model_type == "llava":
                assert torch.equal(tower.post_layernorm(before), after)
                again = connector(before)
            else:
                norm = connector.norm if vlm.family.model_type == "qwen3_5" else connector.ln_q
                assert torch.allclose(norm(before), after, atol=1e-6)
                again = connector(before)
        assert (again - feature).abs().max() < TOLERANCE
        rows, columns = raw.tower.grids[i]
        assert len(before) == rows * columns
        assert len(feature) == (10 if vlm.family.model_type == "idefics2" else rows * columns // raw.tower.merge**2)


def test_qwen2_5s_windows_are_undone(tiny_qwen2_5_vl):
    """The connector itself sees window after window: what a plain hook reads is another order of the same rows."""
    vlm = VLM.load(str(tiny_qwen2_5_vl))
    seen = {}
    merger = vlm.model.model.visual.merger
    hook = merger.register_forward_hook(lambda module, args, output: seen.update(entering=args[0], output=output))
    with capture(vlm, connector="pre_norm") as got:
        features = vlm.vision_features(mixed(2)[1:])
    hook.remove()
    assert torch.equal(got.connector_output[0], features[0])
    for raw, read, each in ((seen["output"], got.connector_output[0], 1), (seen["entering"], got.connector_input[0], 4)):
        cells, raw_cells = read.reshape(45, each, -1), raw.reshape(45, each, -1)
        order = []  # 5 x 9 cells, counted window by window
        for top in range(0, 5, WINDOW):
            for left in range(0, 9, WINDOW):
                order += [
                    9 * row + column for row in range(top, min(top + WINDOW, 5)) for column in range(left, min(left + WINDOW, 9))
                ]
        assert order != sorted(order)
        assert torch.equal(cells[order], raw_cells)
        assert not torch.equal(cells, raw_cells)


def test_a_plain_run_of_the_model_is_read_too(vlm):
    """Without vlm.forward: grids come from the tower's own call."""
    batch = vlm.encode(mixed(2))
    with capture(vlm, connector="pre_norm", tower_rows=0, tower_at=[0]) as plain, torch.inference_mode():
        vlm.model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    with capture(vlm, connector="pre_norm", tower_rows=0, tower_at=[0]) as got:
        vlm.forward(batch)
    for a, b in zip(plain.connector_input + plain.tower_rows[0], got.connector_input + got.tower_rows[0], strict=True):
        assert torch.equal(a, b)
