"""PD and CFT: the missing word of a news item or a children's tale. Cui et al. 2016, arXiv 1607.02250.

A block of lines is a document: ``1 ||| sentence`` …, the words separated by spaces, and a last line
``11 ||| query with XXXXX ||| answer``. The model reads the document's other sentences, then the query up to the
gap.
"""

from __future__ import annotations

from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.evaluate.tasks.base import Question, read_text
from pangu_lab.evaluate.tasks.cloze import ClozeTask

GAP = "XXXXX"


class CFT(ClozeTask):
    """Children's Fairy Tale; files such as ``cft.test.human``."""

    name, title = "cft", "CFT"
    template = "{document}{query}{|}{option}"
    fields = ("document", "query", "option")
    file_format = "lines 'number ||| sentence', then 'number ||| query with XXXXX ||| answer', for each document"
    default_split = "test"
    suffixes = ()

    def read_file(self, path: Path) -> list[Question]:
        questions: list[Question] = []
        sentences: list[str] = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            parts = [part.strip() for part in line.split("|||")]
            if len(parts) == 2:
                sentences.append(parts[1])
            elif len(parts) == 3:
                questions.append(_question(path, number, sentences, parts[1], parts[2]))
                sentences = []
            elif line.strip():
                raise InputError(f"{path}: line {number} is not of this form: {self.file_format}")
        if sentences:
            raise InputError(f"{path}: the last document has no query with its answer")
        return questions


class PD(CFT):
    """People Daily; files such as ``pd.valid`` and ``pd.test``."""

    name, title = "pd", "PD"


def _question(path: Path, number: int, sentences: list[str], query: str, answer: str) -> Question:
    if GAP not in query or not answer:
        raise InputError(f"{path}: line {number}: the query needs {GAP} where its answer is missing")
    document = "".join(join_words(sentence) for sentence in sentences if GAP not in sentence)
    return Question(
        str(number), {"document": document, "query": join_words(query.partition(GAP)[0])}, (join_words(answer),)
    )


def join_words(text: str) -> str:
    """The text without the spaces between its words; a space stays between two that are both Latin or digits."""
    joined = ""
    for word in text.split():
        both_latin = _is_latin(joined[-1:]) and _is_latin(word[0])
        joined += f" {word}" if both_latin else word
    return joined


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
