"""jieba's tables, read as plain files: word frequencies, and the character model for words it does not know.

The tables come from the installed ``jieba`` package without importing it. Importing would load the dictionary from a
cache in the shared temporary folder, and other code in the process could change the result (jieba's user dictionaries
are global); here the same text always gives the same words. Scores are equal to the last bit: logarithms are Python's,
sums are taken in jieba's order (see ``segment.py``).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
from pathlib import Path
from types import ModuleType

from pangu_lab.errors import InputError

STATES = "BEMS"  # begin, end, middle of a word; single character. Ties go to the later letter
NEVER = -3.14e100  # jieba's logarithm of an impossible event


@functools.lru_cache(maxsize=1)
def package_folder() -> Path:
    """The folder of the installed jieba.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec("jieba")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package jieba is not installed: pip install jieba==0.42.1")
    return Path(spec.submodule_search_locations[0])


@functools.lru_cache(maxsize=1)
def fingerprint() -> str:
    """sha256 over the files that decide how text is cut into words."""
    digest = hashlib.sha256()
    for name in ("dict.txt", "finalseg/prob_start.py", "finalseg/prob_trans.py", "finalseg/prob_emit.py"):
        digest.update(hashlib.sha256((package_folder() / name).read_bytes()).digest())
    return digest.hexdigest()


def dictionary_bytes() -> bytes:
    """The content of the dictionary file: lines of ``word frequency kind``."""
    return (package_folder() / "dict.txt").read_bytes()


def frequencies(dictionary: bytes) -> dict[str, int]:
    """Word → frequency; a word listed twice keeps its last frequency, as in jieba."""
    result = {}
    for line in dictionary.decode("utf-8").split("\n"):
        fields = line.split(" ", 2)
        if len(fields) >= 2:
            result[fields[0]] = int(fields[1])
    return result


def total_frequency(dictionary: bytes) -> int:
    """The sum over all lines, words listed twice counted twice, as in jieba."""
    return sum(int(line.split(b" ", 2)[1]) for line in dictionary.split(b"\n") if b" " in line)


def word_scores() -> tuple[dict[str, float | None], float]:
    """Logarithm of each word's probability, and that of an unknown character.

    Prefixes of words that are not words themselves are there too, with None: a search for longer words can stop at the
    first prefix that is absent.
    """
    dictionary = dictionary_bytes()
    log_total = math.log(total_frequency(dictionary))
    words = frequencies(dictionary)
    scores: dict[str, float | None] = {
        word: math.log(count) - log_total if count else None for word, count in words.items()
    }
    for word in words:
        for end in range(len(word) - 1, 0, -1):
            prefix = word[:end]
            if prefix in scores:
                break  # then all shorter ones are there, or will be when their own word comes
            scores[prefix] = None
    return scores, 0.0 - log_total


def _table(name: str) -> dict:
    """One of the probability tables, a module of plain constants, loaded without its package."""
    path = package_folder() / "finalseg" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"pangu_lab_jieba_{name}", path)
    assert spec is not None and spec.loader is not None
    module = ModuleType(spec.name)
    spec.loader.exec_module(module)
    return module.P


def probabilities() -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The character model: logarithms of start[state], transition[from][to] and emission[state][character]."""
    return _table("prob_start"), _table("prob_trans"), _table("prob_emit")
