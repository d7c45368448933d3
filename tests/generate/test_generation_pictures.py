"""Pictures of writing are drawn from what generation itself computed."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab import PanguLM
from pangu_lab.generate import Stage
from pangu_lab.generate.pictures import decode_seconds, plot_seconds, plot_stages, shown_tokens, written

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def lm(debug_run):
    return PanguLM.load(debug_run)


def test_the_chain_is_explained_with_the_distribution_the_token_is_drawn_from(lm, tmp_path):
    stages = lm.explain("春天来了，", temperature=0.7, top_k=5, repetition_penalty=1.3, bad_words=("的",))
    assert (
        np.count_nonzero(stages[-1].probabilities) == 5 and stages[-1].probabilities[lm.tokenizer.unknown_ids[0]] == 0
    )
    changed = [stage.name for stage in stages if stage.changed]
    assert changed[0] == "model" and {"repetition_penalty", "temperature", "top_k"} <= set(changed)
    drawn = {
        lm.generate(
            "春天来了，",
            max_new_tokens=1,
            temperature=0.7,
            top_k=5,
            repetition_penalty=1.3,
            bad_words=("的",),
            seed=seed,
        ).ids
        for seed in range(20)
    }
    assert {index for ids in drawn for index in ids} <= set(np.flatnonzero(stages[-1].probabilities).tolist())
    assert plot_stages(stages, lm.tokenizer, tmp_path / "stages.png").read_bytes().startswith(PNG)


def test_a_token_that_the_chain_leaves_is_shown_however_unlikely_the_model_finds_it():
    model = np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.03, 0.01])
    forced, halved = np.eye(7)[6], np.array([0, 0, 0, 0, 0.6, 0.3, 0.1])
    assert shown_tokens([Stage("model", model, True), Stage("constraint", forced, True)], 4) == [0, 1, 2, 6]
    assert shown_tokens([Stage("model", model, True), Stage("constraint", halved, True)], 4) == [0, 1, 4, 5]
    assert shown_tokens([Stage("model", model, True)], 4) == [0, 1, 2, 3]


def test_the_cache_is_timed_against_feeding_the_whole_text(lm, tmp_path):
    ids = list(range(20, 40))
    seconds = {name: decode_seconds(lm.engine, ids, cached) for name, cached in (("cached", True), ("whole", False))}
    assert all(values.shape == (19,) and (values > 0).all() for values in seconds.values())
    assert lm.runner.pool.free == lm.runner.pool.slots
    assert plot_seconds(seconds, tmp_path / "seconds.png").read_bytes().startswith(PNG)


def test_blanks_and_line_ends_of_a_token_are_visible(lm):
    ids = [lm.tokenizer.id_of("▃"), lm.tokenizer.id_of("▂"), lm.tokenizer.eod_id]
    assert [written(lm.tokenizer, index) for index in ids] == ["↵", "␣", "<eot>"]
