"""Constraints: the form of verse holds whatever the model would write, in every way to generate."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab import cli
from pangu_lab.config import SamplingConfig
from pangu_lab.corpus.prosody import lines_of, prosody_of
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine, Verse, explain, generate, generate_many, stream
from pangu_lab.generate.sampling import History
from tests.generate.fakes import CharacterTokenizer, TableRunner, small_lm

POETS = "春夏秋冬东风空红中同通天年前边田山间关还白日人入月色木石不上下，。\n"


class VerseTokenizer(CharacterTokenizer):
    """Each character is a token; there is a Latin letter that no poem may have."""

    def __init__(self) -> None:
        super().__init__(())
        known = {piece.decode("utf-8", "ignore") for piece in self.pieces}
        self.pieces += [sign.encode() for sign in POETS if sign not in known]
        self.vocab_size = len(self.pieces)


@pytest.fixture(scope="module")
def engine():
    tokenizer = VerseTokenizer()

    def logits(ids):
        return np.random.default_rng([*ids[-3:], len(ids)]).normal(0, 2, tokenizer.vocab_size).astype(np.float32)

    return Engine(TableRunner(logits, tokenizer.vocab_size, 256), tokenizer)


def settings(**more) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 80, "seed": 3, **more})


@pytest.mark.parametrize("lines", [4, 8])
@pytest.mark.parametrize("length", [5, 7])
@pytest.mark.parametrize(
    "more", [{}, {"temperature": 0.0}, {"top_p": 0.5, "repetition_penalty": 1.3}, {"num_beams": 3}]
)
def test_the_form_holds_in_every_way_to_decode(engine, lines, length, more):
    done = generate(engine, "春\n", settings(**more), constraint=Verse(lines, length))
    found = lines_of(done.text)
    assert len(found) == lines and {len(line) for line in found} == {length}
    assert done.finish_reason == "end_of_document" and not done.text.endswith("\n")


def test_the_rhyme_and_the_acrostic_hold(engine):
    verse = Verse(8, 7, rhyme=True, acrostic="春夏秋冬")
    for done in generate_many(engine, ["春", "天", "日"], settings(), seeds=[1, 2, 3], constraint=verse):
        lines = lines_of(done.text)
        assert "".join(line[0] for line in lines[:4]) == "春夏秋冬"
        assert prosody_of(lines).rhyme


def test_rhyme_words_differ_where_there_are_enough(engine):
    lines = lines_of(generate(engine, "春", settings(), constraint=Verse(4, 5, rhyme=True)).text)
    assert lines[1][-1] != lines[3][-1]


def test_a_stream_and_a_batch_write_what_generate_writes(engine):
    verse = Verse(4, 5, rhyme=True)
    alone = generate(engine, "春", settings(), constraint=verse)
    assert "".join(stream(engine, "春", settings(), verse)) == alone.text
    assert generate_many(engine, ["天", "春"], settings(), constraint=verse)[1] == alone
    assert alone.text == generate(engine, "春", settings(num_return_sequences=2), constraint=verse).all[0].text


def test_the_chain_shows_the_constraint_as_its_first_step(engine):
    done = generate(engine, "春", settings(), explain=True, constraint=Verse(4, 5))
    names = [[stage.name for stage in stages if stage.changed] for stages in done.explained]
    assert all(stages[:2] == ["model", "constraint"] for stages in names)
    assert done.explained[5][1].top(1) == [(engine.tokenizer.id_of("，"), 1.0)]


def test_a_model_explains_its_next_token_under_a_constraint():
    lm = small_lm()
    stage = lm.explain("春", constraint=Verse(4, 5), max_new_tokens=30)[1]
    kept = {lm.tokenizer.piece(index) for index in np.flatnonzero(stage.probabilities)}
    assert stage.changed and kept == set("好的春天不行")


def test_without_a_constraint_its_step_returns_the_same_array():
    logits = np.arange(5, dtype=np.float32)
    stage = explain(logits, SamplingConfig(), History())[1]
    assert (stage.name, stage.changed) == ("constraint", False)


@pytest.mark.parametrize(
    "verse, limit, words",
    [(Verse(8, 7), 60, "needs 68 tokens and has room for 60"), (Verse(4, 5, acrostic="龙"), 80, "no token for '龙'")],
)
def test_what_cannot_be_held_is_refused_in_one_line(engine, verse, limit, words):
    with pytest.raises(InputError, match=words):
        generate(engine, "春", settings(max_new_tokens=limit), constraint=verse)


@pytest.mark.parametrize("wrong", [{"lines": 5}, {"length": 6}, {"acrostic": "春夏秋冬春"}])
def test_there_is_no_other_verse(wrong):
    with pytest.raises(InputError):
        Verse(**wrong)


def test_a_verse_takes_just_the_tokens_that_it_says(engine):
    for verse in (Verse(4, 5), Verse(8, 7)):
        done = generate(engine, "春", settings(max_new_tokens=verse.tokens), constraint=verse)
        assert done.finish_reason == "end_of_document" and len(done.ids) == verse.tokens - 1


@pytest.mark.parametrize(
    "options, words",
    [
        (["--verse", "4"], "--verse 4: give lines x characters"),
        (["--verse", "5x5"], "verse of 5 lines"),
        (["--rhyme"], "--rhyme needs --verse"),
        (["--acrostic", "春"], "--acrostic needs --verse"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(capsys, options, words):
    assert cli.main(["generate", "--from", "no-such-run", "--prompt", "春", *options]) == 2
    assert words in capsys.readouterr().err
