"""Verbs about text and tokens: tokenizer train, tokenizer show, prepare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_lab.cli.common import add_verb, finish, text_argument
from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from pangu_lab.terminal import complain, progress_bar, say, table

TOKENIZER_HELP = (
    "'pangu', or a folder made by `pangu-lab tokenizer train`, or one with GPT-2 files (default %(default)s)"
)


def register(verbs: Any) -> None:
    _register_tokenizer(verbs)
    _register_corpus(verbs)
    prepare = add_verb(
        verbs,
        "prepare",
        run_prepare,
        "turn text into a data set of token records",
        "Every document is used exactly once; the result is the same for any number of workers.",
    )
    _add_inputs(prepare)
    prepare.add_argument("--out", required=True, metavar="DIR", help="the data set's folder; must not exist yet")
    prepare.add_argument("--tokenizer", default="pangu", metavar="NAME", help=TOKENIZER_HELP)
    prepare.add_argument("--vocab", metavar="DIR", help="the folder of --tokenizer gpt, as the reference spells it")
    prepare.add_argument("--eod", "--eot", metavar="PIECE|ID", help="the piece that ends a document")
    prepare.add_argument("--pad", metavar="PIECE|ID", help="the piece that fills a record")
    prepare.add_argument(
        "--seq-length",
        type=int,
        default=1025,
        metavar="N",
        help="tokens per record: the model's sequence length plus one (default %(default)s)",
    )
    prepare.add_argument("--workers", type=int, metavar="N", help="processes (default: by the amount of text)")
    add_reading(prepare)
    prepare.add_argument("--column", default="input_ids", metavar="NAME", help="its name (default %(default)s)")
    prepare.add_argument(
        "--shards", type=int, metavar="N", help="number of output files (default: one for 200,000 records)"
    )
    prepare.add_argument("--pad-last", action="store_true", help="fill the last record instead of leaving it out")
    prepare.add_argument(
        "--whole-documents",
        action="store_true",
        help="never cut a document that fits into a record: fill the record instead",
    )


def _register_tokenizer(verbs: Any) -> None:
    tokenizer = verbs.add_parser("tokenizer", help="train a vocabulary, or show how text is split into pieces")
    kinds = tokenizer.add_subparsers(
        dest="kind_of_work", metavar="VERB", required=True, title="verbs", parser_class=type(tokenizer)
    )
    train = add_verb(
        kinds,
        "train",
        train_tokenizer,
        "train a SentencePiece vocabulary on your text",
        "Includes PanGu's special pieces, so that it can replace the published vocabulary everywhere.",
    )
    _add_inputs(train)
    add_reading(train)
    train.add_argument("--out", required=True, metavar="DIR", help="the tokenizer's folder; must not exist yet")
    train.add_argument(
        "--vocab-size",
        type=int,
        default=preset("tiny").model.vocab_size,
        metavar="N",
        help="pieces (default %(default)s, as the preset tiny expects)",
    )
    train.add_argument(
        "--kind", default="bpe", metavar="NAME", help="bpe, unigram, or char: single characters (default %(default)s)"
    )
    train.add_argument(
        "--byte-fallback", action="store_true", help="add 256 byte pieces, so that no character is unknown"
    )
    show = add_verb(kinds, "show", show_tokens, "print words, pieces and ids side by side")
    show.add_argument("text", metavar="TEXT", type=text_argument)
    show.add_argument("--tokenizer", default="pangu", metavar="NAME", help=TOKENIZER_HELP)


def _register_corpus(verbs: Any) -> None:
    corpus = verbs.add_parser("corpus", help="make a clean corpus of a published collection")
    kinds = corpus.add_subparsers(
        dest="kind_of_work", metavar="VERB", required=True, title="verbs", parser_class=type(corpus)
    )
    verse = add_verb(
        kinds,
        "verse",
        make_verse_corpus,
        "regulated verse: 4 or 8 lines of 5 or 7 characters",
        "Reads the JSON of the collection chinese-poetry. Poems that are nearly the same stand on one side.",
    )
    verse.add_argument(
        "--from",
        dest="source",
        nargs="+",
        metavar="PATH",
        help="files, folders or archives of the collection; without it, where to get it is said",
    )
    verse.add_argument(
        "--out", metavar="DIR", help="the corpus's folder (default verse); must not exist yet", default="verse"
    )
    verse.add_argument(
        "--heldout",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="the share of poems that is held out (default %(default)s)",
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        metavar="GLOB",
        help="files, patterns, folders or archives: text (UTF-8, UTF-16 or GBK), JSON, JSON lines, "
        "parquet; also .gz, .bz2, .xz, .zst, .zip, .tar, .tgz",
    )
    source.add_argument("--sample", metavar="PART", help="the texts that come with the lab: train or heldout")


def add_reading(parser: argparse.ArgumentParser, documents: str = "line; block with --sample") -> None:
    """The options that say how files become documents."""
    parser.add_argument(
        "--format",
        default="auto",
        metavar="NAME",
        help="auto (by ending and content), text, json, jsonl, parquet, wiki, wikiextractor or lambada "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--documents",
        metavar="UNIT",
        help="what counts as a document in plain text: a line, a block between blank lines, or "
        f"the whole file (default {documents})",
    )
    parser.add_argument("--field", metavar="NAME", help="the field that holds the text of a row (default text)")
    parser.add_argument(
        "--template", metavar="TEXT", help="the text of a row from several fields, such as '《{title}》{paragraphs}'"
    )
    parser.add_argument("--simplified", action="store_true", help="turn traditional characters into simplified ones")
    parser.add_argument(
        "--bad-bytes",
        default="refuse",
        metavar="HOW",
        help="for bytes that are no text: refuse the file, replace them, or skip their lines (default %(default)s)",
    )
    parser.add_argument("--strict", action="store_true", help="end at the first row that cannot be used")


def reading(args: argparse.Namespace, documents: str = "line") -> Any:
    """What they say; ``documents`` where --documents is not given."""
    from pangu_lab.corpus import Reading

    return Reading(
        args.format,
        args.documents or documents,
        args.field,
        args.template,
        args.simplified,
        args.bad_bytes,
        args.strict,
    )


def _documents(args: argparse.Namespace) -> str:
    return "block" if args.sample else "line"


def inputs(args: argparse.Namespace) -> list[str] | list[Path]:
    """What --input or --sample names."""
    from pangu_lab.data import sample_files

    return sample_files(args.sample) if args.sample else args.input


def piece(value: str) -> str | int:
    """``--eod 9`` is an id, ``--eod '<eot>'`` a piece."""
    return int(value) if value.isdecimal() else value


def train_tokenizer(args: argparse.Namespace) -> int:
    from pangu_lab.tokenizer import train_vocabulary

    with progress_bar("tokenizer train") as progress:
        tokenizer = train_vocabulary(
            inputs(args),
            args.out,
            args.vocab_size,
            kind=args.kind,
            progress=progress,
            byte_fallback=args.byte_fallback,
            how=reading(args, _documents(args)),
        )
    say(f"{tokenizer.vocab_size} pieces in {args.out}")
    return finish(args, {"out": args.out, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint})


def make_verse_corpus(args: argparse.Namespace) -> int:
    from pangu_lab.corpus import make_verse
    from pangu_lab.corpus.verse import SOURCES, TEMPLATE

    if not args.source:
        raise InputError(f"give --from: {SOURCES}")
    with progress_bar("corpus verse") as progress:
        made = make_verse(args.source, args.out, args.heldout, progress)
    say(
        f"{made.train:,} poems to learn from and {made.heldout:,} held out in {made.folder}: "
        + ", ".join(f"{count:,} {form}" for form, count in sorted(made.forms.items()))
    )
    for reason, count in sorted(made.left_out.items(), key=lambda item: -item[1]):
        complain(f"left out: {count:,} × {reason}")
    template = TEMPLATE.replace("\n", "\\n")
    say(
        f"next: pangu-lab tokenizer train --kind char --input {made.folder}/train.jsonl --template '{template}' --out …"
    )
    return finish(args, made)


def show_tokens(args: argparse.Namespace) -> int:
    from pangu_lab.tokenizer import load_tokenizer, show

    rows = show(load_tokenizer(args.tokenizer), args.text)
    table(("word", "pieces", "ids"), [(row.word, " ".join(row.pieces), " ".join(map(str, row.ids))) for row in rows])
    say(f"{len(args.text)} characters, {sum(len(row.ids) for row in rows)} tokens")
    return finish(args, rows)


def _named_tokenizer(args: argparse.Namespace) -> str:
    """What ``--tokenizer`` names; in the reference's spelling ``--tokenizer gpt --vocab DIR``."""
    if (args.tokenizer == "gpt") != (args.vocab is not None):
        raise InputError("--vocab DIR goes with --tokenizer gpt, a folder with GPT-2's vocab.json and merges.txt")
    return args.vocab or args.tokenizer


def run_prepare(args: argparse.Namespace) -> int:
    from pangu_lab.data import prepare
    from pangu_lab.tokenizer import load_tokenizer

    chosen = {key: piece(getattr(args, key)) for key in ("eod", "pad") if getattr(args, key) is not None}
    tokenizer = load_tokenizer(_named_tokenizer(args), **chosen)
    with progress_bar("prepare") as progress:
        result = prepare(
            inputs(args),
            args.out,
            tokenizer,
            record_length=args.seq_length,
            workers=args.workers,
            how=reading(args, _documents(args)),
            column=args.column,
            pad_last=args.pad_last,
            shards=args.shards,
            whole_documents=args.whole_documents,
            progress=progress,
        )
    say(
        f"{result.documents:,} documents, {result.characters:,} characters, {result.tokens:,} tokens: "
        f"{result.records:,} records of {result.record_length} in {result.folder}"
    )
    if result.leftover_tokens:
        say(f"{result.leftover_tokens} tokens at the end did not fill a record and were dropped; --pad-last keeps them")
    if args.whole_documents:
        share = result.padding_tokens / (result.records * result.record_length)
        say(f"no document was cut that fits into a record; padding fills {share:.1%} of the records")
    for warning in result.warnings():
        complain(warning)
    return finish(args, result)
