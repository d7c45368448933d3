"""The attention view sends the page what ``lm.attention`` gives, says what cannot be shown, and leaves a picture."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.errors import InputError
from tests.generate.fakes import small_lm
from widgets.attention_view import WHOLE, AttentionView


@pytest.fixture(scope="module")
def lm():
    return small_lm()


def test_the_page_gets_every_head_of_every_layer(lm):
    view = AttentionView(lm, "春天 好")
    assert view.tokens == ["春", "天", "␣", "好"] and view.shape == [3, 4, 4, 4] and view.layer == 2
    sent = np.frombuffer(view.data, "<u2").reshape(view.shape) / WHOLE
    want = lm.attention("春天 好").probabilities
    assert np.abs(sent - want).max() < 1e-5
    assert np.array_equal(view.picture(), want[2].mean(0))
    view.layer, view.head = 0, 3
    assert np.array_equal(view.picture(), want[0, 3])


def test_another_text_is_read_and_what_cannot_be_shown_is_said_and_changes_nothing(lm):
    view = AttentionView(lm, "ab", layer=1, head=2)
    view._received(view, {"do": "text", "text": "春天好"}, [])
    assert view.shape == [3, 4, 3, 3] and view.text == "春天好" and (view.layer, view.head, view.note) == (1, 2, "")
    for text, word in (("a" * 65, "65 tokens; at most 64"), ("", "the text is empty"), ("a" * 40, "at most 32 tokens")):
        view._received(view, {"do": "text", "text": text}, [])
        assert word in view.note and view.text == "春天好" and len(view.tokens) == 3
    view._received(view, {"do": "text", "text": "b"}, [])
    assert view.note == "" and view.tokens == ["b"]


@pytest.mark.parametrize("wrong", [{"layer": 3}, {"layer": "top"}, {"head": 4}, {"head": "all"}])
def test_a_layer_or_head_that_is_not_there_is_named(lm, wrong):
    with pytest.raises(InputError, match="no (layer|head) .*: there are 0 to "):
        AttentionView(lm, "ab", **wrong)


def test_without_a_page_it_is_a_picture_and_text_and_markup_stays_text(lm):
    view = AttentionView(lm, "春天", language="zh")
    first, second = view.picture()[1]
    better = sorted((("春", first), ("天", second)), key=lambda pair: -pair[1])
    assert view.still_text().splitlines()[0] == "查询层 · 各头平均:"
    assert view.still_text().splitlines()[2] == "天 → " + ", ".join(f"{token} {value:.0%}" for token, value in better)
    view.tokens = ["<b>", "天"]
    html = view._repr_mimebundle_()[0]["text/html"]
    assert "<b>天" not in html and "&lt;b&gt;" in html and html.count("<rect") == 3 and "<script" not in html
