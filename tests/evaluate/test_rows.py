"""Packing: every request is laid out whole, what is shared is there once, and the rows are worth their width."""

from __future__ import annotations

import numpy as np

from pangu_lab.evaluate.rows import bucket, plan_rows
from pangu_lab.evaluate.split import TokenPair


def path_of(row, number: int, wanted: list[int]) -> list[tuple[int, ...]]:
    """For each scored token of a request, the tokens its slot can see, itself last."""
    paths = []
    for index in wanted:
        slot, _ = row.wanted[index]
        branch = row.branches[slot]
        paths.append(tuple(row.ids[k] for k in range(slot + 1) if row.branches[k] in (0, branch)))
    return paths


def check(pairs, hidden=64, window=64):
    rows = plan_rows(pairs, hidden, window)
    seen = set()
    for row in rows:
        assert len(row.ids) == len(row.positions) == len(row.branches)
        for number, wanted in row.reads:
            seen.add(number)
            pair = pairs[number]
            assert path_of(row, number, wanted) == [pair.ids[:end] for end in range(pair.start, len(pair.ids))]
            assert [row.wanted[index][1] for index in wanted] == list(pair.targets)
            for index in wanted:  # a token's position is the number of tokens before it in its own request
                slot = row.wanted[index][0]
                assert row.positions[slot] == len(path_of(row, number, [index])[0]) - 1
    assert seen == {number for number, pair in enumerate(pairs) if pair.targets}
    return rows


def test_candidates_of_one_context_share_it():
    context = tuple(range(100, 140))
    pairs = [TokenPair(context + (option, option + 1), len(context)) for option in range(4)]
    [row] = check(pairs)
    assert len(row) == len(context) + 4 and row.ids[:40] == list(context)
    assert len(row.wanted) == 8  # each option's two tokens


def test_what_a_shared_beginning_predicts_is_computed_once():
    pairs = [TokenPair((1, 2, 3, 4, 5, 6, 7), 1), TokenPair((1, 2, 3, 4, 5, 9, 7), 1)]
    [row] = check(pairs)
    assert len(row.wanted) == 8 and sum(len(wanted) for _, wanted in row.reads) == 12


def test_random_requests_are_laid_out_whole():
    random = np.random.default_rng(3)
    for _ in range(30):
        pairs = []
        for _ in range(random.integers(1, 40)):
            ids = tuple(int(i) for i in random.integers(0, 3, random.integers(1, 60)))
            pairs.append(TokenPair(ids, int(random.integers(1, len(ids) + 1))))
        check(pairs, hidden=int(random.choice([16, 2560])))


def test_long_requests_that_share_little_stay_apart():
    pairs = [TokenPair((1, 2, 3, option) + tuple(range(300)), 4) for option in range(4)]
    assert len(check(pairs, hidden=192, window=1024)) == 4


def test_a_long_shared_context_is_worth_a_longer_row():
    context = tuple(range(1000, 1400))
    pairs = [TokenPair(context + (option,) * 5, len(context)) for option in range(4)]
    assert len(check(pairs, hidden=192, window=1024)) == 1


def test_row_lengths_are_few_and_near_what_is_needed():
    lengths = sorted({bucket(length, 1024) for length in range(1, 1025)})
    assert lengths == [64, 128, 192, 256, 384, 512, 768, 1024]
    assert all(bucket(length, 1024) >= length for length in range(1, 1025))
    assert bucket(900, 1000) == 1000
