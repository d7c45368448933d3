"""Text to words, exactly as ``jieba.cut`` does it (default mode, unknown words by the character model), faster.

There are two engines with the same result. The portable one below is plain Python with two ideas: the best path through
the dictionary is found backwards in one loop that looks up only word prefixes, and runs of single characters, which
repeat often, are cached. ``native.py`` has the same algorithm in C, used if a compiler was available. The words equal
jieba's by construction: the same numbers are added in the same order and ties are broken the same way, so even rounding
is identical; the tests check it on made-up and on real text.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Callable

from pangu_lab.tokenizer import lexicon, native

# Characters that jieba looks up in its dictionary; all others are words by themselves, and so is "\r\n".
WORD_RUN = re.compile("([\u4e00-\u9fd5a-zA-Z0-9+#&._%-]+)")
OTHER = re.compile("\r\n|.", re.DOTALL)
HAN_RUN = re.compile("([\u4e00-\u9fd5]+)")
LATIN_RUN = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
REMEMBERED = 200_000  # runs of single characters whose words are kept, at most
_ABSENT = object()


class PortableSegmenter:
    """The algorithm in Python."""

    def __init__(self) -> None:
        self.scores, self.unknown = lexicon.word_scores()
        self.alone = {c: self.unknown if score is None else score for c, score in self.scores.items() if len(c) == 1}
        self.longer: dict[str, int] = {}  # two characters → length of the longest word that begins with them
        for word in self.scores:
            if len(word) > 1 and len(word) > self.longer.get(word[:2], 0):
                self.longer[word[:2]] = len(word)
        start, transitions, emit = lexicon.probabilities()
        tables = [emit[state] for state in lexicon.STATES]
        self.emissions = {c: tuple(table.get(c, lexicon.NEVER) for table in tables) for c in set().union(*tables)}
        self.start = tuple(start[state] for state in lexicon.STATES)
        self.transitions = {a + b: value for a, row in transitions.items() for b, value in row.items()}
        self._runs: dict[str, list[str]] = {}

    def words(self, text: str) -> list[str]:
        """The words of ``text``, in order; joined they are ``text`` again."""
        runs = [run.span() for run in WORD_RUN.finditer(text)]
        ends = self._best_ends(text, runs)
        result: list[str] = []
        done = 0
        for begin, end in runs:
            if done < begin:
                other = text[done:begin]
                result += OTHER.findall(other) if "\r" in other else other
            self._cut(text, begin, end, ends, result)
            done = end
        other = text[done:]
        result += OTHER.findall(other) if "\r" in other else other
        return result

    def _cut(self, text: str, position: int, stop: int, ends: list[int], result: list[str]) -> None:
        """Append the words of one run of dictionary characters, text[position:stop]."""
        singles = position
        while position < stop:
            end = ends[position]
            if end - position > 1:
                if singles < position:
                    self._singles(text[singles:position], result)
                result.append(text[position:end])
                singles = end
            position = end
        if singles < stop:
            self._singles(text[singles:stop], result)

    def _best_ends(self, text: str, runs: list[tuple[int, int]]) -> list[int]:
        """For each position in a run the end of the word that starts there on the likeliest path to the run's end.

        Source: jieba's ``calc``; of two equally likely words the longer one wins. At most positions no word of several
        characters begins; these are found by two look-ups that run in C for the whole text.
        """
        alone = list(map(self.alone.get, text, itertools.repeat(self.unknown)))
        longer = list(map(self.longer.get, map(operator.add, text, text[1:])))
        ends = list(range(1, len(text) + 1))
        values = [0.0] * (len(text) + 1)
        get, unknown, absent = self.scores.get, self.unknown, _ABSENT
        for start, stop in runs:
            values[stop] = 0.0
            values[stop - 1] = value = alone[stop - 1]
            for begin in range(stop - 2, start - 1, -1):
                longest = longer[begin]
                if longest is None:
                    values[begin] = value = alone[begin] + value
                    continue
                score = get(text[begin])
                best = None if score is None else score + value
                for end in range(begin + 2, min(begin + longest, stop) + 1):
                    score = get(text[begin:end], absent)
                    if score is absent:
                        break
                    if score is not None:
                        candidate = score + values[end]
                        if best is None or candidate >= best:
                            best, ends[begin] = candidate, end
                values[begin] = value = unknown + value if best is None else best
        return ends

    def _singles(self, run: str, result: list[str]) -> None:
        """Append the words of a run for which the dictionary had single characters only."""
        if len(run) == 1:
            result.append(run)
        elif self.scores.get(run) is not None:
            result += run  # a known word that is less likely than its characters stays split
        else:
            words = self._runs.get(run)
            if words is None:
                if len(self._runs) >= REMEMBERED:
                    self._runs.clear()
                words = self._runs[run] = self._recognise(run)
            result += words

    def _recognise(self, run: str) -> list[str]:
        words: list[str] = []
        for index, part in enumerate(HAN_RUN.split(run)):
            if index % 2:
                begin = 0
                for end in self._viterbi_ends(part):
                    words.append(part[begin:end])
                    begin = end
            else:
                words += [piece for piece in LATIN_RUN.split(part) if piece]
        return words

    def _viterbi_ends(self, han: str) -> list[int]:
        """Ends of the words on the likeliest path of states through a run of Han characters.

        Source: jieba's ``finalseg.viterbi``, unrolled for its four states.
        """
        t, nothing = self.transitions, (lexicon.NEVER,) * 4
        eb, sb, be, me, mm, bm, ss, es = (t[pair] for pair in ("EB", "SB", "BE", "ME", "MM", "BM", "SS", "ES"))
        emit = self.emissions.get(han[0], nothing)
        b, e, m, s = (self.start[i] + emit[i] for i in range(4))
        back = []
        for character in han[1:]:
            emit_b, emit_e, emit_m, emit_s = self.emissions.get(character, nothing)
            to_b, to_b2 = e + eb + emit_b, s + sb + emit_b
            to_e, to_e2 = b + be + emit_e, m + me + emit_e
            to_m, to_m2 = b + bm + emit_m, m + mm + emit_m
            to_s, to_s2 = e + es + emit_s, s + ss + emit_s
            back.append((to_b2 >= to_b, to_e2 >= to_e, to_m2 >= to_m, to_s2 >= to_s))
            b, e = (to_b2 if to_b2 >= to_b else to_b), (to_e2 if to_e2 >= to_e else to_e)
            m, s = (to_m2 if to_m2 >= to_m else to_m), (to_s2 if to_s2 >= to_s else to_s)
        return _ends_from_states(back, 3 if s >= e else 1)


_BEFORE = ((1, 3), (0, 2), (0, 2), (1, 3))  # the two states that can stand before B, E, M, S


def _ends_from_states(back: list[tuple[bool, bool, bool, bool]], state: int) -> list[int]:
    """Follow the path back from its last state; a word ends at every E and S, and at the end."""
    length = len(back) + 1
    ends = [length]
    for position in range(length - 1, 0, -1):
        state = _BEFORE[state][back[position - 1][state]]
        if state in (1, 3):
            ends.append(position)
    return ends[::-1]


@functools.lru_cache(maxsize=1)
def portable() -> PortableSegmenter:
    """The Python engine; its tables take 0.5 s and about 100 MB, once per process."""
    return PortableSegmenter()


@functools.lru_cache(maxsize=1)
def engine() -> Callable[[str], list[str]]:
    """The fastest function from text to words on this machine."""
    compiled = native.segmenter()
    return portable().words if compiled is None else compiled.words


def words(text: str) -> list[str]:
    """The words of ``text``: equal to ``list(jieba.cut(text))`` on every text."""
    return engine()(text)
