"""Every probe finds what was planted in hand-wired models, in 19 of 20 seeds; on models of random weights no claim holds.

What must be found is derived from the wiring (`wired.py`) in closed form, with numpy alone, and seldom from another probe.
"""

import functools
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from wired import (
    CELLS,
    CODES,
    CORNERS,
    FIRST,
    HEADS,
    KINDS,
    LAST,
    LAYERS,
    LM_POSITIONS,
    NONE,
    ON_SYSTEM,
    PEAK,
    PLACE_AT,
    PLACES,
    REST,
    SIDE,
    SINK,
    SLOPE,
    SLOPE_OFFSET,
    SLOPE_PAIR,
    SYSTEM,
    TEXT_NORMS,
    TOWER_POSITIONS,
    TURNING,
    VISION,
    WIDTH,
    asker_norms,
    examples,
    frequency,
    predict,
    wired,
)

from spatialprobes import permutations
from spatialprobes.answers import answer
from spatialprobes.claims import judge
from spatialprobes.intervene import carried, intervene, random_permutations, shifted
from spatialprobes.probes import balance, grounding, hidden_norms, norms, permutation, positions, rope
from spatialprobes.probes.psi import if_above_chance
from spatialprobes.stats import Interval
from spatialprobes.vlm import VLM

SEEDS = range(20)
KIND_OF = {seed: KINDS[seed % 3] for seed in SEEDS}  # where what is planted is the same in all
STILL = {seed: (TOWER_POSITIONS, NONE)[seed % 2] for seed in SEEDS}  # kinds that the order of the tokens is nothing to
LIVELY = dict.fromkeys(SEEDS, LM_POSITIONS)
each_kind = pytest.mark.parametrize("kinds", [LIVELY, STILL], ids=["lm-positions", "others"])
SHORT = {"max_new_tokens": 1}  # answers are one word
N_SYSTEM = len(SYSTEM.split())


@functools.cache
def setting(kind, seed, pictures=3, each=2):
    """Model, what is planted in it, and questions."""
    return *wired(kind, seed), examples(seed, pictures, each)


def of_place(asked):
    return [one for one in asked if one.group == "spatial.place"]


def in_19_of_20(check):
    """check: says of a seed whether everything that was planted was found."""
    missed = [seed for seed in SEEDS if not check(seed)]
    assert len(missed) <= 1, f"not found with seeds {missed}"


def said(frame, condition=None):
    """{id: answer, None where it could not be read} of one condition's rows."""
    rows = frame if condition is None else frame[frame["condition"] == condition]
    assert rows["id"].is_unique
    return {id: None if pd.isna(text) else str(text) for id, text in zip(rows["id"], rows["answer"], strict=True)}


def predicted(kind, asked, **moved):
    return {one.id: predict(kind, one, **moved) for one in asked}


# The wiring in closed form


def scores(plan, role, example, spans, delta=0.0, at="last"):
    """[key up to the row] before softmax, vision keys delta positions further, without noise; at: "last", or the place's "word".

    Of "text_only" and "vision_only" only the order of magnitude is right (their scores depend on the growth of words).
    """
    named = example.category
    row = LAST if example.group == "spatial.place" else spans.length - 1 - spans.start
    row = row if at == "last" else FIRST + CELLS + PLACE_AT
    found = np.zeros(row + 1)
    vision = np.arange(FIRST, FIRST + CELLS)
    distance = row - vision - delta
    looking = {"last": "place", "word": "look"}[at]
    if role == "system":
        found[1 : 1 + N_SYSTEM] = ON_SYSTEM
    elif role == "slope":
        found[vision] = SLOPE * np.cos((distance - SLOPE_OFFSET) * frequency(SLOPE_PAIR)) * (at == "last")
    elif role == looking and example.group == "spatial.place":
        n = PLACES.index(named)
        if plan.kind == LM_POSITIONS:
            found[0] = SINK
            offset = row - FIRST - n
            found[vision] = PEAK * np.mean([np.cos((distance - offset) * frequency(pair)) for pair in TURNING], axis=0)
        elif plan.kind == TOWER_POSITIONS:
            found[0] = PEAK * 3 / 4
            found[vision] = [PEAK * float(CODES[n] @ code) / 4 for code in CODES]
        else:
            found[0], found[vision] = REST / 2, REST
    elif role == "semantic" and example.group == "semantic.existence" and at == "last":
        found[0] = PEAK * 2 / 3
        found[vision] = [PEAK * float(CORNERS[named] @ CORNERS[one]) / 3 for one in example.meta["colours"]]
    else:
        found[0] = REST
        if role == "gather" and at == "last":
            found[spans.word(named) - spans.start] = 2 * REST
        elif role == "vision_only":
            found[vision] = 2 * REST
        elif role == "text_only":
            user = spans.user - spans.start
            found[user[user <= row]] = 2 * REST
    return found


def softmax(values):
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def role_of(plan, layer, head):
    return next((role for role, place in plan.heads.items() if place == (layer, head)), "rest")


@pytest.mark.parametrize("kind", KINDS)
def test_the_wiring_does_what_its_closed_forms_say(kind):
    """Through eager attention, without any probe: every head's row, hidden norms, what enters for a patch."""
    vlm, plan = wired(kind, seed=3, noise=0.0)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    for one in examples(3, pictures=2, each=3):
        batch = vlm.encode([one])
        spans = batch.spans[0]
        assert spans.vision.tolist() == list(range(FIRST, FIRST + CELLS)) and spans.grid == (SIDE, SIDE)
        out = vlm.forward(batch, output_attentions=True, output_hidden_states=True)
        for layer in range(LAYERS):
            for head in range(HEADS):
                role = role_of(plan, layer, head)
                assert np.allclose(out.attentions[layer][0, head, -1], softmax(scores(plan, role, one, spans)), atol=2e-3), role
                if one.group == "spatial.place":
                    row = int(spans.word(one.category))
                    expected = softmax(scores(plan, role, one, spans, at="word"))
                    assert np.allclose(out.attentions[layer][0, head, row, : row + 1], expected, atol=2e-3), role
        for layer in range(LAYERS):
            lengths = out.hidden_states[layer][0].norm(dim=-1)
            words = torch.cat([spans.system, spans.user])
            assert torch.allclose(lengths[words], torch.tensor(TEXT_NORMS[layer]), rtol=1e-3)
            assert torch.allclose(lengths[spans.vision], torch.tensor(VISION), rtol=1e-3)
            if layer <= plan.reading:
                assert lengths[-1] == pytest.approx(asker_norms()[layer], rel=1e-3)


def test_a_wired_model_is_an_ordinary_folder(tmp_path):
    """Saved and loaded as any checkpoint it answers the same, right where it can."""
    vlm, _ = wired(LM_POSITIONS, seed=1)
    vlm.model.save_pretrained(tmp_path / "wired")
    vlm.processor.save_pretrained(tmp_path / "wired")
    asked = examples(1, pictures=3)
    loaded = VLM.load(str(tmp_path / "wired"))
    assert said(answer(loaded, asked, **SHORT)) == said(answer(vlm, asked, **SHORT)) == {one.id: one.answer for one in asked}


# Permutation and position ids


def flipped(order):
    return np.arange(CELLS).reshape(SIDE, SIDE)[order].ravel().tolist()


@functools.cache
def answers_shuffled(kind, seed):
    """A table of the probe, and the orders of every row's patches: [(permutation, draw, cluster)]."""
    vlm, _, asked = setting(kind, seed)
    orders, seen = {}, []

    def recorded(grid, generator, example):
        order = permutations.full(grid, generator)
        orders["drawn", seen.count(example.cluster), example.cluster] = order.tolist()
        seen.append(example.cluster)
        return order

    for cluster in {one.cluster for one in asked}:
        orders["in place", -1, cluster] = list(range(CELLS))
        orders["mirror", 0, cluster] = np.arange(CELLS).reshape(SIDE, SIDE)[:, ::-1].ravel().tolist()
    ways = {"drawn": recorded, "mirror": lambda grid, generator, example: permutations.flip_left_right(grid)}
    return permutation.measure(vlm, asked, permutations=ways, draws=2, seed=seed, **SHORT), orders


@each_kind
def test_permuted_answers_are_those_of_the_patches_that_came_there(kinds):
    """Answer by answer under recorded permutations, so that the index is known exactly."""

    def found(seed):
        asked = {one.id: one for one in setting(kinds[seed], seed)[2]}
        frame, orders = answers_shuffled(kinds[seed], seed)
        keys = zip(
            frame["permutation"], np.where(frame["permutation"] == "mirror", 0, frame["draw"]), frame["cluster"], strict=True
        )
        expected = [predict(kinds[seed], asked[id], orders[key]) for id, key in zip(frame["id"], keys, strict=True)]
        if expected != [None if pd.isna(one) else one for one in frame["answer"]]:
            return False
        right = pd.Series([one == asked[id].answer for one, id in zip(expected, frame["id"], strict=True)])
        accuracy = right.groupby([frame["kind"], frame["permutation"]]).mean()
        table = permutation.psi_table(frame, by="kind", seed=seed)
        in_place = np.array([accuracy[row.group, "in place"] for row in table.itertuples()])
        kept = np.array([accuracy[row.group, row.permutation] for row in table.itertuples()])
        index = 1 - np.divide(kept, in_place, out=np.full_like(kept, np.nan), where=in_place > 0)
        semantic = (table["group"] == "semantic").to_numpy()
        sure = (table.loc[semantic, "psi"] == 0).all() and (in_place[semantic] == 1).all()
        return sure and np.allclose(table["psi"], index, equal_nan=True)

    in_19_of_20(found)


def test_the_index_of_a_full_shuffle_is_one_minus_the_share_of_the_colour():
    """P(the patch that comes has the colour of the one that went) is that colour's share; pooled over the seeds."""
    differences = []
    for seed in SEEDS:
        spatial = of_place(setting(LM_POSITIONS, seed)[2])
        frame, _ = answers_shuffled(LM_POSITIONS, seed)
        drawn = frame[(frame["kind"] == "spatial") & (frame["permutation"] != "mirror")]
        shares = [one.meta["colours"].count(one.answer) / CELLS for one in spatial]
        differences.append(permutation.psi(drawn, seed).estimate - (1 - np.mean(shares)))
    error = np.std(differences, ddof=1) / math.sqrt(len(differences))
    assert abs(np.mean(differences)) < 3 * error < 0.15


@each_kind
def test_position_ids_matter_where_place_lives_in_them_alone(kinds):
    """Shifts move the answer to the neighbour; tokens with their ids change nothing; one id for all leaves the middle two."""

    def found(seed):
        kind = kinds[seed]
        vlm, _, asked = setting(kind, seed)
        frame = positions.measure(vlm, asked, shifts=(1.0, -1.0), seed=seed, **SHORT)
        in_place = predicted(kind, asked)
        expected = {
            positions.IN_PLACE: in_place,
            positions.TOGETHER: in_place,
            "ids shifted by +1": predicted(kind, asked, shift=1),
            "ids shifted by -1": predicted(kind, asked, shift=-1),
            positions.ONE: {one.id: at_one_id(kind, one) for one in asked},
        }
        if kind != LM_POSITIONS:
            assert all(answers == in_place for answers in expected.values())
            expected |= {positions.IDS: in_place, positions.SHUFFLED: in_place}
        if any(said(frame, name) != answers for name, answers in expected.items()):
            return False
        moved = [said(frame, name) for name in (positions.SHUFFLED, positions.IDS)]
        heeds = [any(answers[one.id] != in_place[one.id] for one in of_place(asked)) for answers in moved]
        content = all(answers[one.id] == one.answer for answers in moved for one in asked if one.choices[0] == "yes")
        return content and heeds == [kind == LM_POSITIONS] * 2

    in_19_of_20(found)


def test_a_picture_token_that_the_model_says_is_a_word():
    """A model may say the image token; its position is the next one, whatever becomes of the picture's."""
    vlm, _ = wired(LM_POSITIONS, seed=2)
    end, image = vlm.tokenizer.convert_tokens_to_ids(["</s>", "<image>"])
    with torch.no_grad():
        vlm.model.lm_head.weight[[end, image]] = vlm.model.lm_head.weight[[image, end]]
    asked = of_place(examples(2, pictures=2))
    batch, seen = vlm.encode(asked), []
    decoder = vlm.family.decoder(vlm.model)
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    orders = {one.cluster: random_permutations(CELLS, 1, i)[0] for i, one in enumerate(asked)}
    try:
        for moved in (shifted(5.5), carried(orders)):
            seen.clear()
            with intervene(vlm, positions=moved):
                tokens = vlm.generate(batch, max_new_tokens=4)
            assert (tokens[:, 1:] == image).all()
            assert [ids.unique().tolist() for ids in seen[1:]] == [[LAST + step] for step in (1, 2, 3)]
    finally:
        hook.remove()


def at_one_id(kind, example):
    """All patches in the middle of the row: a head that looks for cell 7 or 8 is near enough and sees all alike, others rest."""
    if kind != LM_POSITIONS or example.group == "semantic.existence":
        return predict(kind, example)
    return predict(NONE, example) if PLACES.index(example.category) in (7, 8) else None


@each_kind
def test_only_a_head_that_finds_patches_by_distance_feels_the_phase(kinds):
    """alpha, g, delta g and delta alpha of every head against the closed form; elsewhere nothing."""

    def found(seed):
        kind = kinds[seed]
        vlm, plan, asked = setting(kind, seed)
        frame = rope.measure(vlm, asked, deltas=(1.0, -2.0)).set_index(["example", "layer", "head", "delta"])
        known = closed_form(vlm, plan, asked, (1.0, -2.0)).loc[frame.index]
        slack = {"alpha_v": 0.03, "delta_alpha_v": 0.05, "derivative": 0.03, "delta_g_v": 0.3, "g_v": 0.5}
        for name, absolute in slack.items():
            if ((frame[name] - known[name]).abs() > absolute + 0.05 * known[name].abs()).any():
                return False
        if kind != LM_POSITIONS:
            return frame[["delta_g_v", "delta_alpha_v", "derivative"]].abs().max().max() < 0.02
        layers = rope.by_head(frame.reset_index().query("delta == 1"), seed=seed).sort_values("mean", ascending=False)
        largest = list(zip(layers["layer"], layers["head"], strict=True))[:2]
        return set(largest) == {plan.heads["place"], plan.heads["slope"]} and largest[0] == plan.heads["place"]

    in_19_of_20(found)


def closed_form(vlm, plan, asked, deltas):
    rows = []
    for one, spans in zip(asked, (vlm.encode([one]).spans[0] for one in asked), strict=True):
        vision = slice(FIRST, FIRST + CELLS)
        for layer in range(LAYERS):
            for head in range(HEADS):
                role = role_of(plan, layer, head)
                plain, step = scores(plan, role, one, spans), 1e-4
                weights = softmax(plain)
                alpha, within = weights[vision].sum(), weights[vision] / weights[vision].sum()
                up, down = (scores(plan, role, one, spans, delta) for delta in (step, -step))
                g_v = float(within @ (up - down)[vision]) / (2 * step)
                derivative = (softmax(up)[vision].sum() - softmax(down)[vision].sum()) / (2 * step)
                for delta in deltas:
                    moved = scores(plan, role, one, spans, delta)
                    rows.append(
                        {
                            "example": one.id,
                            "layer": layer,
                            "head": head,
                            "delta": delta,
                            "alpha_v": alpha,
                            "g_v": g_v,
                            "delta_g_v": float(within @ (moved - plain)[vision]) / delta,
                            "delta_alpha_v": softmax(moved)[vision].sum() - alpha,
                            "derivative": derivative,
                        }
                    )
    return pd.DataFrame(rows).set_index(["example", "layer", "head", "delta"])


def test_where_heads_do_not_act_on_each_other_the_real_shift_equals_the_offline_one():
    def found(seed):
        kind = (LM_POSITIONS, TOWER_POSITIONS)[seed % 2]
        vlm, _, asked = setting(kind, seed)
        spatial = of_place(asked)
        both = rope.compare(rope.measure(vlm, spatial), real := rope.rerun(vlm, spatial))
        if (both["delta_alpha_v"] - both["delta_alpha_v_rerun"]).abs().max() > 2e-3:
            return False
        changed = real.groupby("example")["changed"].first().to_dict()
        return changed == {one.id: predict(kind, one, shift=1) != predict(kind, one) for one in spatial}

    in_19_of_20(found)


# Norms


def test_the_planted_ratio_of_norms_is_found():
    def found(seed):
        vlm, _, asked = setting(KIND_OF[seed], seed)
        ratio = norms.vision_to_text(norms.measure(vlm, asked), seed)
        return abs(ratio.estimate / VISION - 1) < 0.01 and 0.98 * VISION < ratio.low <= ratio.high < 1.02 * VISION

    in_19_of_20(found)


def test_the_planted_growth_of_words_is_found():
    def found(seed):
        vlm, plan, asked = setting(KIND_OF[seed], seed)
        frame = hidden_norms.measure(vlm, asked)
        stream = frame[frame["site"] == hidden_norms.STREAM]
        mean = stream.groupby(["layer", "group"])["norm"].mean()
        for layer, norm in enumerate(TEXT_NORMS):
            expected = {"system": norm, "user": norm, "vision": VISION}
            if layer <= plan.reading:
                expected["role"] = (norm + asker_norms()[layer]) / 2
            if any(abs(mean[layer, group] / value - 1) > 0.05 for group, value in expected.items()):
                return False
        final = frame.loc[(frame["site"] == hidden_norms.NORMED) & (frame["group"] != "role"), "norm"]
        if (final / math.sqrt(WIDTH) - 1).abs().max() > 0.01:
            return False
        ratios = hidden_norms.ratio(frame, text=("user",), seed=seed).query("site == 'stream'").set_index("layer")["ratio"]
        decay = hidden_norms.decay(frame, text=("user",), seed=seed)
        planted = [VISION / norm for norm in TEXT_NORMS]
        return np.allclose(ratios, planted, rtol=0.05) and abs(decay.estimate * TEXT_NORMS[-1] - 1) < 0.07

    in_19_of_20(found)


# Shares and balance


def test_heads_for_text_for_the_picture_and_for_the_system_prompt_are_found():
    def found(seed):
        vlm, plan, asked = setting(KIND_OF[seed], seed)
        spatial = of_place(asked)
        frame = balance.measure(vlm, spatial, **SHORT)
        cmb = balance.cmb_summary(balance.cmb(frame), seed).set_index(["layer", "head"])["cmb"]
        if cmb[plan.heads["text_only"]] > 1e-3 or cmb[plan.heads["vision_only"]] < 0.999:
            return False
        layer, head = plan.heads["system"]
        rows = frame[(frame["layer"] == layer) & (frame["head"] == head)]
        keys = LAST + 1 + rows["step"]
        share = N_SYSTEM * math.exp(ON_SYSTEM) / (N_SYSTEM * math.exp(ON_SYSTEM) + keys - N_SYSTEM)
        if (rows["system"] - share).abs().max() > 0.02:
            return False
        even = CELLS / (LAST - N_SYSTEM)  # picture and words have one score in this head: as many as there are tokens
        deciding = balance.cmb(frame[frame["step"] == 0]).groupby(["layer", "head"])["cmb"].min()
        return abs(cmb[layer, head] - even) < 0.02 and deciding[plan.heads["place"]] > 0.99

    in_19_of_20(found)


@pytest.mark.parametrize("bos", ["keep", "drop"])
def test_shares_are_those_of_the_planted_heads(bos):
    """Heads averaged, then layers, by hand from the closed form; the step that decides on the answer."""

    def found(seed):
        vlm, plan, asked = setting(KIND_OF[seed], seed)
        spatial = of_place(asked)
        frame = balance.shares(balance.measure(vlm, spatial, max_new_tokens=1), bos=bos).set_index("example")
        for one in spatial:
            spans = vlm.encode([one]).spans[0]
            rows = np.array(
                [
                    [softmax(scores(plan, role_of(plan, layer, head), one, spans)) for head in range(HEADS)]
                    for layer in range(LAYERS)
                ]
            ).mean(1)
            if bos == "drop":
                rows = rows[:, 1:] / rows[:, 1:].sum(-1, keepdims=True)
                rows = np.pad(rows, ((0, 0), (1, 0)))
            mean = rows.mean(0)
            system, vision = mean[1 : 1 + N_SYSTEM].sum(), mean[FIRST : FIRST + CELLS].sum()
            user = mean[1 + N_SYSTEM : FIRST].sum() + mean[FIRST + CELLS :].sum()
            expected = np.array([system, vision, user]) / (system + vision + user)
            if np.abs(frame.loc[one.id, ["system", "vision", "user"]].to_numpy(float) - expected).max() > 0.005:
                return False
        return True

    in_19_of_20(found)


# Maps of words


def peaks(frame, layer):
    """{example: (raster index of the greatest weight, what the word sees of the picture)} of one layer."""
    chosen = frame[frame["layer"] == layer]
    best = chosen.loc[chosen.groupby("example")["weight"].idxmax()].set_index("example")
    return {id: (int(row["row"] * SIDE + row["col"]), float(row["seen"])) for id, row in best.iterrows()}


def test_the_map_of_a_places_name_peaks_at_the_place():
    """Permuted, a head that goes by distance still looks there; one that goes by content follows the patch."""

    def found(seed):
        kind = KIND_OF[seed]
        vlm, plan, asked = setting(kind, seed)
        spatial = of_place(asked)
        words = {one.id: [one.category] for one in spatial}
        named = {one.id: PLACES.index(one.category) for one in spatial}
        frame = grounding.measure(vlm, spatial, words)
        entropy = grounding.entropy(frame[frame["layer"] == plan.reading])["entropy"]
        if kind == NONE:
            return entropy.min() > 0.99
        order = random_permutations(CELLS, 1, seed)[0].tolist()
        with intervene(vlm, permute=order):
            permuted = peaks(grounding.measure(vlm, spatial, words), plan.reading)
        goes = {id: n if kind == LM_POSITIONS else order.index(n) for id, n in named.items()}
        right = {id: cell for id, (cell, _) in peaks(frame, plan.reading).items()} == named
        seen = [value for _, value in peaks(frame, plan.reading).values()]
        follows = {id: cell for id, (cell, _) in permuted.items()} == goes
        return right and follows and entropy.max() < 0.1 and np.allclose(seen, 1 / HEADS, atol=0.02)

    in_19_of_20(found)


def test_the_row_that_emits_the_answer_looks_at_the_patch_and_the_answers_own_row_does_not():
    def found(seed):
        kind = (LM_POSITIONS, TOWER_POSITIONS)[seed % 2]
        vlm, plan, asked = setting(kind, seed)
        spatial = of_place(asked)
        words = {one.id: [one.answer] for one in spatial}
        options = {"part": "answer", "layers": [plan.reading]}
        emits = peaks(grounding.measure(vlm, spatial, words, row="emits", **options), plan.reading)
        own = peaks(grounding.measure(vlm, spatial, words, row="query", **options), plan.reading)
        looks = all(cell == PLACES.index(one.category) and seen > 0.2 for one in spatial for cell, seen in [emits[one.id]])
        return looks and all(seen < 0.01 for _, seen in own.values())

    in_19_of_20(found)


# Claims: as the notebooks state them


def verdicts_of_answers(frame, chance, seed=0):
    """Of the permutation of one or several models: {claim: verdict}."""
    found = {}
    for kind, part in frame.groupby("kind"):
        index, fell = permutation.psi_table(part, by="kind", seed=seed).iloc[0], permutation.drop(part, seed)
        index = Interval(index.psi, index.low, index.high, index.n, index.clusters)
        for name, interval, rules in (
            ("psi", index, {"semantic": "high(PSI) < .02", "spatial": "low(PSI) > .25"}),
            ("permutation", fell, {"semantic": "high(drop) < .02", "spatial": "low(drop) > .25"}),
        ):
            counts = if_above_chance(interval, part, chance, seed)
            found[f"{name}.{kind}"] = judge(rules[kind], counts.estimate, counts.low, counts.high)
    return found


def pooled(kind, kinds):
    """The answers of all models of a kind, each picture of each a cluster."""
    frames = []
    for seed in (seed for seed in SEEDS if kinds[seed] == kind):
        frame, _ = answers_shuffled(kind, seed)
        own = frame.assign(id=f"{seed} " + frame["id"], cluster=f"{seed} " + frame["cluster"])
        frames.append(own[own["permutation"] != "mirror"])
    return pd.concat(frames, ignore_index=True)


CHANCE = {"semantic.existence": 1 / 2, "spatial.place": 1 / 3}  # the wired pictures have at least three colours


def test_the_claim_about_places_holds_where_order_is_all_and_fails_where_it_is_nothing():
    lively = verdicts_of_answers(pooled(LM_POSITIONS, LIVELY), CHANCE)
    still = verdicts_of_answers(pooled(TOWER_POSITIONS, STILL), CHANCE)
    assert lively["psi.spatial"] == lively["permutation.spatial"] == "holds"
    assert still["psi.spatial"] == still["permutation.spatial"] == "fails"


def test_on_random_weights_no_claim_holds():
    """Architecture and questions as wired, weights as transformers draws them; each claim holds for at most one of 20 models.

    Of the norms this is about this architecture: elsewhere vision vectors can begin longer than words (`norms.untrained`).
    Early against late layers: pictures say how sure a difference is of one model, not whether another draw of its weights would
    have it too; by its sign alone every third of these models has it. So here it is a factor of 2.
    """
    architecture, _ = wired(NONE)
    held = Counter()
    for seed in SEEDS:
        vlm, asked = norms.untrained(architecture, seed), examples(seed, pictures=6, each=2)
        spatial = of_place(asked)[::2]
        frame = permutation.measure(vlm, asked, draws=1, by="score", seed=seed)
        found = verdicts_of_answers(frame, CHANCE, seed)
        for name, interval, rule in (
            ("norms.ratio", norms.vision_to_text(norms.measure(vlm, asked), seed), "low > 3"),
            ("hidden_norms.decay", hidden_norms.decay(hidden_norms.measure(vlm, spatial), seed=seed), "high < .5"),
            ("rope.early", rope.early_over_late(rope.measure(vlm, spatial), seed=seed), "low > 2"),
        ):
            found[name] = judge(rule, interval.estimate, interval.low, interval.high)
        held.update(name for name, verdict in found.items() if verdict == "holds")
    assert max(held.values(), default=0) <= 1, held
