"""Lines, rhyme and tones of poems everybody knows."""

from __future__ import annotations

import pytest

from pangu_lab.corpus.prosody import _WIDER, LEVEL, OBLIQUE, lines_of, prosody_of, rhymes, tones

HERON = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
MOON = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"


def test_the_lines_of_a_poem_come_without_punctuation():
    assert lines_of(HERON) == ("白日依山尽", "黄河入海流", "欲穷千里目", "更上一层楼")
    assert lines_of(HERON + "\n") == lines_of(HERON)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "白日依山尽，黄河入海流。",
        HERON.replace("尽", ""),
        HERON.replace("。\n", "。"),
        HERON.replace("，", "。"),
        HERON.replace("目", "a"),
        HERON + HERON,
        HERON + "\n白",
    ],
)
def test_another_form_has_no_lines(wrong):
    assert lines_of(wrong) is None


def test_a_regulated_poem_fits_and_one_of_the_old_style_does_not():
    heron, moon = prosody_of(lines_of(HERON)), prosody_of(lines_of(MOON))
    assert heron.rhyme and heron.loose_rhyme and heron.pattern and heron.tones == 1
    assert moon.rhyme and not moon.pattern and moon.tones == 0.75


def test_neighbouring_rhymes_are_loose_and_others_none():
    neighbours = prosody_of(("白日依山东", "白日依山东", "白日依山东", "白日依山冬"))
    assert not neighbours.rhyme and neighbours.loose_rhyme
    other = prosody_of(("白日依山东", "白日依山东", "白日依山东", "白日依山天"))
    assert not other.rhyme and not other.loose_rhyme


def test_the_entering_tone_is_oblique_and_a_character_with_two_readings_fits_both():
    assert tones("白") == {OBLIQUE} and tones("东") == {LEVEL} and tones("看") == {LEVEL, OBLIQUE}
    assert tones("卍") == {LEVEL, OBLIQUE}  # not in the book


def test_a_character_that_the_book_lacks_rhymes_with_nothing():
    assert not prosody_of(("白日依山东", "白日依山卍", "白日依山东", "白日依山卍")).loose_rhyme


def test_the_book_has_its_106_rhymes_and_each_has_its_wider_class():
    names = set().union(*rhymes().values())
    assert len(names) == 106 and names == set("".join(_WIDER))
    assert rhymes()["東"] == rhymes()["东"] == {"东"}
