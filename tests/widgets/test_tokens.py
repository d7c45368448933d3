"""The token widgets: pieces and ids are the tokenizer's, the bars are the samplers' own distributions."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine, History, explain
from pangu_lab.tokenizer import train_vocabulary
from tests.generate.fakes import CharacterTokenizer, TableRunner
from widgets.next_token import NextToken
from widgets.token_view import MOST_CHARACTERS, TokenView


def test_a_text_is_shown_as_the_tokenizer_cuts_it():
    view = TokenView("春天来了，hello")
    ids = [index for row in view.rows for index in row["ids"]]
    assert ids == view.tokenizer.encode("春天来了，hello") and view.facts["tokens"] == len(ids)
    assert view.facts["same"] is False and view.facts["back"] == "春天来了,hello"  # this vocabulary writes ， as ,
    assert (
        "round trip differs\nDecoded again the text reads: 春天来了,hello" in view.still_text()
        and "春天来了,hello" in view.still_html()
    )
    view.text = "春天"
    assert view.facts["same"] is True and view.facts["characters"] == 2 and "round trip unchanged" in view.still_text()
    view.language = "zh"
    assert "字符数 2" in view.still_text()
    view.language = "en"
    assert "春天" in view.still_text() and "<script" not in view.still_html()


def test_markup_in_a_text_stays_text_and_too_long_a_text_is_refused():
    view = TokenView("<img src=x>")
    assert "<img" not in view._repr_mimebundle_()[0]["text/html"]
    view.text = "春" * (MOST_CHARACTERS + 1)
    assert "at most 4,000" in view.facts["refused"] and view.facts["refused"] in view.still_text()


def test_another_tokenizer_stands_beside_the_first_and_goes_again(tmp_path):
    text = "春天来了，我们去公园。" * 20
    (tmp_path / "text.txt").write_text(text)
    own = train_vocabulary(tmp_path / "text.txt", tmp_path / "own", 32)
    view = TokenView("春天来了", other=own)
    assert [one["name"] for one in view.cuts] == ["pangu", "sentencepiece"]
    for one, tokenizer in zip(view.cuts, (view.tokenizer, own)):
        ids = tokenizer.encode("春天来了")
        assert [index for row in one["rows"] for index in row["ids"]] == ids and one["facts"]["tokens"] == len(ids)
        assert one["facts"]["characters_a_token"] == 4 / len(ids)
        assert f"{one['name']}: characters 4, tokens {len(ids)}, unknown pieces" in view.still_text()
    assert view.still_html().count("characters 4") == 2
    view._received(view, {"do": "compare", "name": " "}, [])
    assert len(view.cuts) == 1 and "pangu:" not in view.still_text()
    view._received(view, {"do": "compare", "name": str(tmp_path / "own")}, [])
    view.text = "公园"
    assert [one["facts"]["characters"] for one in view.cuts] == [2, 2] and view.cuts[1]["name"] == str(tmp_path / "own")
    with pytest.raises(InputError, match="no such tokenizer"):
        view.compare(tmp_path / "nothing")
    assert len(view.cuts) == 2


@pytest.fixture
def engine():
    tokenizer = CharacterTokenizer()
    table = np.random.default_rng(0).normal(size=(tokenizer.vocab_size, tokenizer.vocab_size)) * 3
    return Engine(TableRunner(lambda ids: table[ids[-1]], tokenizer.vocab_size, 8), tokenizer)


def test_the_bars_are_the_distributions_that_generation_draws_from(engine):
    microscope = NextToken(engine, "ab", SamplingConfig(temperature=0.7, top_k=3))
    ids = engine.tokenizer.encode("ab")
    stages = explain(engine.logits(ids)[-1], microscope.sampling, History(prompt=ids))
    assert [stage["name"] for stage in microscope.stages] == [stage.name for stage in stages]
    assert microscope.stages[-1]["left"] == 3 and microscope.stages[0]["left"] == engine.vocab_size
    for token in microscope.tokens:
        assert token["shares"] == [stage.probabilities[token["id"]] for stage in stages]
    assert sum(token["shares"][-1] for token in microscope.tokens) == pytest.approx(1.0)
    told = f"temperature=0.7, top-k=3, repetition penalty=1.0: 3 of {engine.vocab_size} tokens left"
    assert told in microscope.still_text() and told in microscope.still_html()
    assert "model → temperature → top-k" in microscope.still_text() and "<th>top-k</th>" in microscope.still_html()
    first = microscope.tokens[0]
    shares = [stage.probabilities[first["id"]] for stage in stages if stage.changed]
    assert len(shares) == 3 and " → ".join(f"{share:7.2%}" for share in shares) in microscope.still_text()
    microscope.language = "zh"
    assert f"{engine.vocab_size} 个词元中留下 3 个" in microscope.still_text()


def test_what_generation_never_writes_is_never_drawn_here_either(engine, monkeypatch):
    unknown = int(np.argmax(engine.logits(engine.tokenizer.encode("ab"))[-1]))
    monkeypatch.setattr(engine.tokenizer, "unknown_ids", (unknown,), raising=False)
    microscope = NextToken(engine, "ab", SamplingConfig(temperature=0))
    assert [token["shares"][-1] for token in microscope.tokens if token["id"] == unknown] == [0.0]
    assert microscope.draw() != unknown
    monkeypatch.setattr(engine.tokenizer, "vocab_size", engine.vocab_size - 2)  # rows of the model without a piece
    assert NextToken(engine, "ab").stages[0]["left"] == engine.vocab_size - 2


def test_a_slider_moves_the_bars_and_a_setting_out_of_range_is_said(engine):
    microscope = NextToken(engine, "ab")
    before = microscope.tokens
    microscope.settings = {**microscope.settings, "temperature": 0}
    assert microscope.tokens[0]["shares"][-1] == 1.0 and microscope.tokens != before
    microscope.settings = {**microscope.settings, "temperature": -1}
    assert "sampling.temperature=-1" in microscope.note


def test_tokens_are_written_by_a_click_or_drawn_until_the_sequence_is_full(engine):
    microscope = NextToken(engine, "ab", SamplingConfig(temperature=0))
    chosen = microscope.tokens[0]["id"]
    microscope._received(microscope, {"do": "add", "id": chosen}, [])
    assert microscope.text == "ab" + engine.tokenizer.text_bytes(chosen).decode() and microscope.length == [3, 8]
    drawn = microscope.draw()
    assert microscope._ids[-1] == drawn
    for _ in range(4):
        microscope.draw()
    with pytest.raises(InputError, match="the sequence is full"):
        microscope.draw()


def test_a_word_is_as_likely_as_its_tokens_one_after_the_other(engine):
    microscope = NextToken(engine, "ab")
    microscope._received(microscope, {"do": "seek", "text": "ba"}, [])
    logits = engine.logits(engine.tokenizer.encode("abba"))[1:3]
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    chain = [probabilities[0, engine.tokenizer.id_of("b")], probabilities[1, engine.tokenizer.id_of("a")]]
    assert [token["probability"] for token in microscope.sought["tokens"]] == pytest.approx(chain, rel=1e-4)
    assert microscope.sought["probability"] == pytest.approx(chain[0] * chain[1], rel=1e-4)
    likeliest = microscope.tokens[0]
    microscope.seek(engine.tokenizer.text_bytes(likeliest["id"]).decode())
    assert microscope.sought["tokens"][0]["rank"] == 1
    assert microscope.sought["probability"] == pytest.approx(likeliest["shares"][0], rel=1e-4)
    microscope.write("a")  # asked again of the other text
    assert microscope.wanted and microscope.sought["tokens"][0]["rank"] >= 1
    with pytest.raises(InputError, match="no room for 8 more tokens"):
        microscope.seek("abababab")
    microscope.seek("")
    assert microscope.sought == {}
