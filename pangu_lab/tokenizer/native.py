"""The C implementation of segmentation and word look-up: prebuilt, compiled at first use, or skipped.

``segment.c`` and ``wordids.c`` need no Python headers, so any C compiler builds a small shared library from them: with
the package, or at first use in about a second (see ``compiling.py``). It is loaded through ctypes, which lets other
threads run during a call. Without a compiler, or with ``PANGU_LAB_NATIVE=0``, the portable code gives the same result,
about six times slower.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.compiling import compiled, wanted
from pangu_lab.tokenizer import lexicon

NO_WORD = -1.0e300
EMITTING = 0x10000  # characters with a row in the table of the character model
LONGEST = 1 << 24  # characters per call: limits the working memory to about 30 bytes × this
REMEMBERED = 1_000_000  # words whose ids are kept, at most: about 60 MB
log = logging.getLogger(__name__)
EncodeWords = Callable[[list[str]], list[list[int]]]

_SIGNATURES = {  # C functions: return type and argument types; p pointer, i int64, d double, v void
    "dictionary_parse": "i pippp",
    "segmenter_new": "p pppidppp",
    "segmenter_cut": "i ppip",
    "wordids_new": "p ",
    "wordids_free": "v p",
    "wordids_add": "i pppppi",
    "wordids_lookup": "i pppipipp",
}
_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double, "v": None}


class NativeSegmenter:
    """The C engine, with the same method ``words`` as the portable one."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._handle = _new_segmenter(library)

    def words(self, text: str) -> list[str]:
        """The words of ``text``, in order; joined they are ``text`` again."""
        return [word for part in parts(text) for word in self._words(part)]

    def _words(self, text: str) -> list[str]:
        stops = self.word_ends(text.encode("utf-32-le", "surrogatepass"), len(text)).tolist()
        return [text[begin:end] for begin, end in zip([0, *stops], stops)]

    def word_ends(self, characters: bytes, length: int) -> np.ndarray:
        """Where each word ends in a text of ``length`` characters in UTF-32; (words,) int32."""
        ends = np.empty(length, np.int32)
        count = self.library.segmenter_cut(self._handle, characters, length, ends.ctypes.data)
        if count < 0:
            raise MemoryError("not enough memory to cut text into words")
        return ends[:count]


class WordIds:
    """Text to ids through a table of word ids; each word is encoded once.

    Args:
        encode: gives the ids of words; called for new words.
    """

    def __init__(self, segmenter: NativeSegmenter, encode: EncodeWords) -> None:
        self._segmenter, self._encode = segmenter, encode
        self._library = segmenter.library
        self._table, self._size = self._library.wordids_new(), 0
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if getattr(self, "_table", None):
            self._library.wordids_free(self._table)

    def ids(self, text: str) -> np.ndarray:
        """Ids of the words of ``text``, (ids,) int32."""
        found = [self._part_ids(part) for part in parts(text)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _part_ids(self, text: str) -> np.ndarray:
        characters = text.encode("utf-32-le")
        ends = self._segmenter.word_ends(characters, len(text))
        out = np.empty(2 * len(text) + 16, np.int32)
        missing, missing_count = np.empty(len(ends), np.int32), ctypes.c_int64()
        with self._lock:
            while True:
                count = self._library.wordids_lookup(
                    self._table,
                    characters,
                    ends.ctypes.data,
                    len(ends),
                    out.ctypes.data,
                    len(out),
                    missing.ctypes.data,
                    ctypes.addressof(missing_count),
                )
                if missing_count.value:
                    self._add_words(text, ends, missing[: missing_count.value])
                elif count > len(out):
                    out = np.empty(count, np.int32)
                else:
                    break
            self._clear_if_full()
        return out[:count]

    def _add_words(self, text: str, ends: np.ndarray, indices: np.ndarray) -> None:
        """Encode the words of ``text`` with these indices, and add them to the table."""
        begins = np.where(indices > 0, ends[indices - 1], 0)
        words = list({text[begin:end] for begin, end in zip(begins.tolist(), ends[indices].tolist())})
        ids = self._encode(words)
        texts = "".join(words).encode("utf-32-le")
        text_ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
        id_ends = np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids)))
        flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(id_ends[-1]))
        self._size = self._library.wordids_add(
            self._table, texts, text_ends.ctypes.data, flat.ctypes.data, id_ends.ctypes.data, len(words)
        )
        if self._size < 0:
            raise MemoryError("not enough memory to keep the ids of words")

    def _clear_if_full(self) -> None:
        if self._size > REMEMBERED:
            self._library.wordids_free(self._table)
            self._table, self._size = self._library.wordids_new(), 0


def parts(text: str) -> list[str]:
    """A very long text in parts that end at line ends, where no word can be split; a longer line stays whole."""
    if len(text) <= LONGEST:
        return [text]
    result, begin = [], 0
    while len(text) - begin > LONGEST:
        end = text.rfind("\n", begin, begin + LONGEST) + 1
        end = end or text.find("\n", begin + LONGEST) + 1 or len(text)
        result.append(text[begin:end])
        begin = end
    return [*result, text[begin:]]


def _new_segmenter(library: ctypes.CDLL) -> int:
    dictionary = lexicon.dictionary_bytes()
    words = np.empty(len(dictionary), np.uint32)
    ends, counts = np.empty(len(dictionary), np.int64), np.empty(len(dictionary), np.int64)
    number = library.dictionary_parse(
        dictionary, len(dictionary), words.ctypes.data, ends.ctypes.data, counts.ctypes.data
    )
    log_total = math.log(int(counts[:number].sum()))
    distinct, inverse = np.unique(counts[:number], return_inverse=True)
    scores = np.array([math.log(count) - log_total if count else NO_WORD for count in distinct.tolist()])[inverse]
    start, transitions, emit = lexicon.probabilities()
    states = lexicon.STATES
    starts = np.array([start[state] for state in states], np.float64)
    steps = np.array([transitions[a].get(b, lexicon.NEVER) for a in states for b in states], np.float64)
    emissions = np.full((EMITTING, 4), lexicon.NEVER)
    for column, state in enumerate(states):
        characters = np.frombuffer("".join(emit[state]).encode("utf-32-le"), np.uint32)
        inside = characters < EMITTING  # all Han characters are; others are never looked up
        emissions[characters[inside], column] = np.fromiter(emit[state].values(), np.float64)[inside]
    handle = library.segmenter_new(
        words.ctypes.data,
        ends.ctypes.data,
        scores.ctypes.data,
        number,
        0.0 - log_total,
        starts.ctypes.data,
        steps.ctypes.data,
        emissions.ctypes.data,
    )
    if not handle:
        raise MemoryError("not enough memory for the dictionary of words")
    return handle


@functools.lru_cache(maxsize=1)
def segmenter() -> NativeSegmenter | None:
    """The C engine; None where it is not available."""
    if not wanted() or sys.byteorder != "little":
        return None
    try:
        path = compiled("segment")
        return NativeSegmenter(_open(path)) if path else None
    except (OSError, RuntimeError, AttributeError) as error:  # no home folder; another machine's library …
        log.info("the C segmenter cannot be used (%s): using the portable one", error)
        return None


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, signature in _SIGNATURES.items():
        returns, _, takes = signature.partition(" ")
        function = getattr(library, name)
        function.restype, function.argtypes = _TYPES[returns], [_TYPES[letter] for letter in takes]
    return library
