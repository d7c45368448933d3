"""Heads found by what they look at: on made-up attention whose right head is known, and on a network."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.errors import InputError
from pangu_lab.interpret import best_heads, plot_heads, plot_poem, score_heads, verse_relations
from pangu_lab.interpret.activations import Attention, attention
from pangu_lab.interpret.heads import RELATIONS, verse_places
from pangu_lab.model.parameters import initial_weights
from pangu_lab.presets import preset

# 《春》↵ are the places 0 to 3, the lines 4–8, 10–14, 17–21 and 23–27
HERON = tuple("《春》▃白日依山尽，黄河入海流。▃欲穷千里目，更上一层楼。")
LAYERS = ("blocks.0", "blocks.1", "query_layer")


def even(tokens=HERON, heads: int = 2) -> np.ndarray:
    """Heads that look at all they see alike."""
    seq = len(tokens)
    rows = np.tril(np.ones((seq, seq), np.float32)) / np.arange(1, seq + 1)[:, None]
    return np.broadcast_to(rows, (len(LAYERS), heads, seq, seq)).copy()


def look(probabilities: np.ndarray, tokens=HERON) -> Attention:
    return Attention(tuple(tokens), tuple(range(len(tokens))), LAYERS, probabilities)


def focused(layer: int, head: int, pairs: dict[int, int]) -> Attention:
    """Even heads, of which one looks at one place alone from each of some rows."""
    probabilities = even()
    for row, key in pairs.items():
        probabilities[layer, head, row] = 0
        probabilities[layer, head, row, key] = 1
    return look(probabilities)


def test_relations_are_about_the_character_to_come():
    found = {
        name: sorted(map(tuple, np.argwhere(related).tolist())) for name, related in verse_relations(HERON).items()
    }
    assert list(found) == list(RELATIONS)
    couplets = [(9, 4), (10, 5), (11, 6), (12, 7), (13, 8), (22, 17), (23, 18), (24, 19), (25, 20), (26, 21)]
    assert found["couplet"] == couplets
    assert found["line above"] == sorted(couplets + [(16, 10), (17, 11), (18, 12), (19, 13), (20, 14)])
    assert found["rhyme"] == [(26, 14)] and found["other ends"] == [(26, 8), (26, 21)]
    assert found["title"][:2] == [(3, 1), (4, 1)] and len(found["title"]) == 20 and (26, 1) in found["title"]
    assert (9, 8) in found["previous"] and (26, 25) in found["previous"] and (3, 2) not in found["previous"]


def test_an_eight_line_poem_looks_back_at_all_earlier_rhymes():
    eight = HERON + ("▃",) + HERON[4:]  # its lines end at 8, 14, 21, 27 and at 34, 40, 47, 53
    rows = {
        row: np.flatnonzero(keys).tolist() for row, keys in enumerate(verse_relations(eight)["rhyme"]) if keys.any()
    }
    assert rows == {26: [14], 39: [14, 27], 52: [14, 27, 40]}


def test_the_head_that_looks_at_the_other_line_of_the_couplet_is_found_with_its_share():
    pairs = {row: row - 5 for row in range(9, 14)} | {row: row - 5 for row in range(22, 27)}
    best = best_heads(score_heads([focused(1, 1, pairs)]))["couplet"]
    assert (best.layer, best.head, best.mass) == ("blocks.1", 1, 1.0)
    assert best.uniform == pytest.approx(np.mean([1 / (row + 1) for row in pairs]))
    assert best.ratio == pytest.approx(1 / best.uniform)


def test_a_head_that_looks_above_the_newest_character_instead_of_the_next_gets_nothing():
    late = {row: row - 6 for row in (*range(10, 14), *range(23, 27))}
    scores = score_heads([focused(1, 1, late)])
    late_head = next(
        score for score in scores if (score.relation, score.layer, score.head) == ("couplet", "blocks.1", 1)
    )
    assert late_head.mass == pytest.approx(
        (1 / 10 + 1 / 23) / 10
    )  # from the first characters of the lines, which are even
    assert best_heads(scores)["couplet"].ratio == pytest.approx(1)


def test_the_rhyme_is_asked_for_before_it_stands_there():
    scores = score_heads([focused(2, 0, {26: 14})])
    best = best_heads(scores)["rhyme"]
    assert (best.layer, best.head, best.mass) == ("query_layer", 0, 1.0) and best.uniform == pytest.approx(1 / 27)
    others = next(
        score for score in scores if (score.relation, score.layer, score.head) == ("other ends", "query_layer", 0)
    )
    assert others.mass == 0 and others.uniform == pytest.approx(2 / 27)


def test_even_heads_have_a_ratio_of_one_and_poems_count_alike():
    assert all(score.ratio == pytest.approx(1, abs=1e-5) for score in score_heads([look(even())]))
    both = score_heads([look(even()), focused(0, 0, {26: 14})])
    best = best_heads(both)["rhyme"]
    assert (best.layer, best.head) == ("blocks.0", 0) and best.mass == pytest.approx((1 + 1 / 27) / 2)


def test_a_relation_that_no_poem_has_is_left_out():
    bare = HERON[4:]  # without a title
    assert "title" not in {score.relation for score in score_heads([look(even(bare), bare)])}


def test_what_is_not_verse_is_refused():
    for tokens in (HERON[:-1], HERON[:-2] + ("。",), ("▁春天", "▁来", "▁了"), ("春",)):
        with pytest.raises(InputError, match="not 4 or 8 lines"):
            verse_places(tokens)
    with pytest.raises(InputError, match="no poems"):
        score_heads([])


def test_texts_looked_at_together_are_each_as_alone_and_give_a_score_for_every_head(tmp_path):
    config = preset("debug").model
    weights = initial_weights(config, 3)
    draws = np.random.default_rng(1)
    texts = [draws.integers(10, 500, len(tokens)).tolist() for tokens in (HERON, HERON[4:])]
    looks = attention(weights, config, texts, [HERON, HERON[4:]])
    alone = attention(weights, config, texts[1:], [HERON[4:]])[0]
    assert looks[1].probabilities.shape == alone.probabilities.shape == (4, 4, 25, 25)
    assert np.allclose(looks[1].probabilities, alone.probabilities, atol=1e-5)
    scores = score_heads(looks)
    assert len(scores) == len(RELATIONS) * 4 * 4 and {score.layer for score in scores} == set(looks[0].layers)
    assert all(0 <= score.mass <= 1 and 0 < score.uniform < 1 for score in scores)
    best = best_heads(scores)
    for png in (
        plot_heads(scores, tmp_path / "a.png"),
        plot_poem(looks[0], best["couplet"], tmp_path / "b.png"),
        plot_poem(looks[1], best["line above"], tmp_path / "c.png", lines=[3]),
    ):
        assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5_000
    with pytest.raises(InputError, match="nothing in .* 'rhyme'"):
        plot_poem(looks[0], best["rhyme"], tmp_path / "d.png", lines=[2])
