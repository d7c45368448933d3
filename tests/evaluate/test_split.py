"""Where the context ends among the pieces: with a made-up tokenizer, and with the real ones on real text."""

from __future__ import annotations

import random

import pytest

from pangu_lab.errors import InputError
from pangu_lab.evaluate.split import TokenPair, encode_pair, fit
from tests.evaluate.letters import LetterTokenizer, sample_lines


@pytest.fixture(scope="module")
def pangu():
    from pangu_lab.tokenizer import load_tokenizer

    return load_tokenizer("pangu")


def places(lines, seed=0, each=6):
    """Real texts cut between two characters, anywhere."""
    generator = random.Random(seed)
    return [(line[:cut], line[cut:]) for line in lines for cut in generator.sample(range(len(line)), each)]


def test_the_pieces_are_those_of_the_whole_text_wherever_it_is_cut(pangu):
    straddled = 0
    for context, continuation in places(sample_lines(60)):
        ids, count = encode_pair(pangu, context, continuation)
        assert ids == pangu.encode(context + continuation)
        inside, through = pangu.decode(ids[:count]), pangu.decode(ids[: count + 1])
        normal = pangu.decode(pangu.encode(context))
        assert normal.startswith(inside), (context, continuation)  # nothing of the continuation is given away
        assert not normal.startswith(through) or through == inside, (context, continuation)  # nor too much scored
        straddled += inside != normal
    assert straddled > 30  # words and pieces over the boundary are common, not a corner case


def test_a_straddling_piece_counts_to_the_continuation(pangu):
    ids, count = encode_pair(pangu, "我爱北", "京天安门")
    pieces = [pangu.decode([index]) for index in ids]
    assert "北京" in pieces and pieces.index("北京") == count


def test_a_clean_boundary_takes_the_pieces_of_the_context_alone(pangu):
    context = "问：他们在做什么?\n答："
    ids, count = encode_pair(pangu, context, "买东西")
    assert ids[:count] == pangu.encode(context)


def test_an_empty_context_gives_nothing(pangu):
    assert encode_pair(pangu, "", "天气")[1] == 0
    assert encode_pair(pangu, "天气", "") == (pangu.encode("天气"), len(pangu.encode("天气")))


@pytest.mark.parametrize("mark", ["\u2581", "…", "①", "㈱", "\u3000", "e\u0301"])
def test_characters_that_the_vocabulary_rewrites_do_not_mislead(pangu, mark):
    for context, continuation in ((f"他说{mark}", "好"), ("他说", f"{mark}好"), (f"A{mark}", f"{mark}B")):
        ids, count = encode_pair(pangu, context, continuation)
        assert ids == pangu.encode(context + continuation) and 0 <= count <= len(ids)
        assert pangu.decode(pangu.encode(context)).startswith(pangu.decode(ids[:count]))


def test_the_split_agrees_with_the_characters_of_a_tokenizer_known_exactly():
    letters = LetterTokenizer(1_000_000)  # so many that no two words share an id
    for context, continuation in places(sample_lines(60), seed=1):
        ids, count = encode_pair(letters, context, continuation)
        assert ids == letters.encode(context + continuation)
        covered = "".join(letters.texts[index] for index in ids[:count])
        assert len(covered) <= len(context)
        assert count == len(ids) or len(covered) + len(letters.texts[ids[count]]) > len(context)


def test_fitting_keeps_what_is_scored():
    assert fit(range(10), 4, 21) == TokenPair(tuple(range(10)), 4, 0)
    assert fit(range(10), 4, 8) == TokenPair(tuple(range(2, 10)), 2, 2)  # the context from the left
    assert fit(range(10), 4, 8, "continuation") == TokenPair(tuple(range(8)), 4, 2)  # the continuation's end
    assert fit(range(10), 2, 6) == TokenPair((1, 2, 3, 4, 5, 6), 1, 4)  # one token of the context stays
    assert fit(range(10), 0, 6) == TokenPair((0, 1, 2, 3, 4, 5), 1, 4)
    with pytest.raises(InputError, match="must be 'context' or 'continuation'"):
        fit([1], 0, 1, "middle")
