"""From a name or a path to a tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.files import sha256_file
from pangu_lab.reading import checked, content_of, read_json
from pangu_lab.schema import Count, FileName, Schema, Sha256
from pangu_lab.tokenizer.base import FORMAT, METADATA, Tokenizer
from pangu_lab.tokenizer.characters import sentence_piece_tokenizer
from pangu_lab.tokenizer.gpt2 import MERGES, VOCABULARY, GPT2Tokenizer
from pangu_lab.tokenizer.sentence_piece import MODEL_FILE, SentencePieceTokenizer

RELEASED = ("pangu", "jieba")  # names of the published vocabulary
VOCABULARY_LIMIT = 256 << 20  # bytes; a SentencePiece vocabulary of a million pieces has a tenth of that


class _Description(Schema):
    """``tokenizer.json`` of a saved folder."""

    kind: str
    files: dict[FileName, Sha256]
    eod_id: Count
    pad_id: Count


def released_vocabulary() -> Path:
    """PanGu's vocabulary inside the installed ``pcl-pangu`` package, none of whose code is run.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec("pcl_pangu")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "tokenizer" / "bpe_4w_pcl" / MODEL_FILE
        if path.is_file():
            return path
    raise InputError("PanGu's vocabulary is not installed: pip install 'pcl-pangu>=1.2.6,<1.3'")


def load_tokenizer(path: str | Path = "pangu", eod: str | int | None = None, pad: str | int | None = None) -> Tokenizer:
    """A tokenizer ready to use.

    Args:
        path: ``pangu``, or ``jieba`` as the reference calls it, for the released vocabulary of 40000 pieces (``./pangu`` is
            a folder); a folder written by ``train_vocabulary`` or ``Tokenizer.save``; a SentencePiece ``.model`` file or a folder with one; or a folder with GPT-2's
            ``vocab.json`` and ``merges.txt``.
        eod, pad: the pieces (name or id) that end a document and fill a record. Not given: what a saved folder
            was saved with, else ``<eot>`` and ``<pad>`` (``<|endoftext|>`` for GPT-2).

    Raises:
        InputError: nothing usable there, a damaged file, or no such piece.
    """
    if str(path) in RELEASED:
        return _sentence_piece(released_vocabulary(), eod, pad)
    path = Path(path)
    if path.is_file():
        return _sentence_piece(path, eod, pad)
    if not path.is_dir():
        raise InputError(f"{path}: no such tokenizer: give 'pangu', a folder or a .model file")
    metadata = read_json(path / METADATA, "the tokenizer's description") if (path / METADATA).is_file() else {}
    if isinstance(metadata, dict) and metadata.get("format") == FORMAT:
        return _saved(path, metadata, eod, pad)
    if (path / VOCABULARY).is_file() and (path / MERGES).is_file():
        return _gpt2(path, eod, pad)
    models = sorted(path.glob("*.model"))
    if len(models) == 1:
        return _sentence_piece(models[0], eod, pad)
    raise InputError(f"{path}: no tokenizer in it: expected {METADATA}, one .model file, or {VOCABULARY} with {MERGES}")


def _saved(folder: Path, metadata: dict, eod: str | int | None, pad: str | int | None) -> Tokenizer:
    checked(metadata, _Description, str(folder / METADATA))
    for name, sha256 in metadata["files"].items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: missing from the saved tokenizer")
        if sha256_file(file) != sha256:
            raise InputError(f"{file}: not the file that was saved here (its sha256 differs): take a fresh copy")
    eod = metadata["eod_id"] if eod is None else eod
    pad = metadata["pad_id"] if pad is None else pad
    if metadata["kind"] == "gpt2":
        return _gpt2(folder, eod, pad)
    return _sentence_piece(folder / MODEL_FILE, eod, pad)


def _gpt2(folder: Path, eod: str | int | None, pad: str | int | None) -> GPT2Tokenizer:
    contents = [content_of(folder / name, "a part of the tokenizer", VOCABULARY_LIMIT) for name in (VOCABULARY, MERGES)]
    return GPT2Tokenizer(
        *contents, eod="<eot>" if eod is None else eod, pad="<pad>" if pad is None else pad, name=str(folder)
    )


def _sentence_piece(file: Path, eod: str | int | None, pad: str | int | None) -> SentencePieceTokenizer:
    model = content_of(file, "the vocabulary", VOCABULARY_LIMIT)
    return sentence_piece_tokenizer(
        model, "<eot>" if eod is None else eod, "<pad>" if pad is None else pad, name=str(file)
    )
