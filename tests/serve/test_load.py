"""The load driver against a real server: every text is checked, and what is lost or mixed up is counted."""

from __future__ import annotations

import pytest

from pangu_lab.cli import main
from pangu_lab.errors import InputError
from pangu_lab.serve.load import drive, percentile, questions
from tests.serve.running import scripted


@pytest.fixture(scope="module")
def url():
    from pangu_lab.serve import serve

    with serve(scripted(seconds=0.0005), port=0, page=False, quick=True) as page:
        yield page.url


def test_streams_together_are_given_what_each_is_given_alone(url):
    alone, together = drive(url, (1, 8), seconds=0.5, new_tokens=8, prompts=("ab", "ba"))
    for load in (alone, together):
        assert load.requests > 0 and load.tokens > 0 and load.lost == load.mixed_up == 0, load.problems
        assert len(load.first_token) == load.requests and load.between_tokens
    assert together.streams == 8 and together.summary()["first_token_p99"] > 0


def test_a_text_that_is_another_than_expected_is_counted_as_mixed_up(url):
    wrong = dict.fromkeys(questions(("ab",), 8), "something else")
    [load] = drive(url, (2,), seconds=0.1, new_tokens=8, prompts=("ab",), expected=wrong)
    assert load.mixed_up == load.requests > 0 and "and not 'something else'" in load.problems[0]


def test_a_server_that_ends_meanwhile_is_counted_as_lost():
    from pangu_lab.serve import serve

    known = dict.fromkeys(questions(("ab",), 8), "")
    with serve(scripted(), port=0, page=False, quick=True) as page:
        address = page.url
    [load] = drive(address, (2,), seconds=0.05, new_tokens=8, prompts=("ab",), expected=known)
    assert load.requests == 0 and load.lost > 0 and load.problems


def test_no_server_and_wrong_numbers_are_said_in_one_line(capsys):
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9", "--seconds", "1"]) == 2
    assert "no answer to load it with" in capsys.readouterr().err
    assert main(["bench", "serve", "--streams", "many"]) == 2
    assert "give whole numbers such as 1,8" in capsys.readouterr().err
    with pytest.raises(InputError, match="must each be at least 1"):
        drive("http://127.0.0.1:9", (0,))
    with pytest.raises(InputError, match="begins with http"):
        drive("127.0.0.1:9")


def test_percentiles_are_values_that_occurred():
    assert percentile([], 50) is None and percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0 and percentile(list(map(float, range(1, 101))), 99) == 99.0
