"""How a text is encoded, found from all of it, or the first byte that is no text.

A text is UTF-8 (with or without a byte-order mark), UTF-16 with its mark, or GBK / GB 18030. A damaged UTF-8 text often
happens to decode as GBK, into nonsense; so GBK is accepted only if the bytes as a whole do not look like UTF-8 and the
text looks Chinese. Windows writes the euro sign as byte 0x80 into GBK (code page 936), which Python's codec does not
know: the error handler ``EURO`` reads it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK = 1 << 20
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
NAMES = {"utf-8": "UTF-8 or GBK", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "gb18030": "UTF-8 or GBK"}
EURO = "pangu_lab.euro"  # an error handler for ``open``: byte 0x80 is the euro sign, all else is an error
EURO_OR_MARK = "pangu_lab.euro_or_mark"  # the same, and U+FFFD for whatever is no text
# Characters that make up a tenth of any Chinese text, modern or classical, in both scripts.
COMMON = frozenset(
    "的一是不了在人有我他她你这這个個上们們来來到时時大地为為子中说說生国國年著着就那和要出也得裡里後后"
    "自以會会之其而於于者曰，。、：“”"
)


def _euro(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError) and error.encoding.startswith("gb") and error.object[error.start] == 0x80:
        return "€", error.start + 1
    raise error


def _euro_or_mark(error: UnicodeError) -> tuple[str, int]:
    try:
        return _euro(error)
    except UnicodeError:
        return codecs.replace_errors(error)


codecs.register_error(EURO, _euro)
codecs.register_error(EURO_OR_MARK, _euro_or_mark)


@dataclass(frozen=True)
class Found:
    """What was found of a text.

    Attributes:
        encoding: a codec's name, the likeliest where there are bad bytes.
        characters: decoded, up to the first bad byte if that is not accepted.
        bad: the offset of the first byte that is no text, None without one.
        complaint: a sentence about it for the user.
    """

    encoding: str
    characters: int
    bad: int | None = None
    complaint: str = ""


def find_encoding(blocks: Iterable[bytes]) -> Found:
    """Look through a text once, to its end or until nothing can save it."""
    attempts: list[_Attempt] = []
    sample, before = b"", b""  # around the first byte that is not UTF-8
    offset = 0
    for block in blocks:
        if not attempts:
            marked = next((encoding for mark, encoding in MARKS if block.startswith(mark)), None)
            attempts = [_Attempt(encoding) for encoding in ([marked] if marked else ["utf-8", "gb18030"])]
        first_bad_before = attempts[0].bad
        for attempt in attempts:
            attempt.feed(block, offset)
        if first_bad_before is None and attempts[0].bad is not None or (sample and len(sample) < BLOCK):
            sample = (sample or before) + block
        before = block[-BLOCK // 2 :]
        offset += len(block)
    if not attempts:
        return Found("utf-8", 0)
    for attempt in attempts:
        attempt.end(offset)
    utf8, *others = attempts
    sample = sample or before
    chosen = utf8
    if utf8.bad is not None and others and not utf8.zero and _looks_like_gbk(sample):
        chosen = others[0]
    return Found(chosen.encoding, chosen.characters, chosen.bad, chosen.complaint())


class _Attempt:
    """Decoding as one encoding, block by block."""

    def __init__(self, encoding: str) -> None:
        self.encoding, self.characters = encoding, 0
        self.bad: int | None = None
        self.byte = b""
        self.zero = False
        self._decoder = codecs.getincrementaldecoder(encoding.removesuffix("-sig"))(EURO)

    def feed(self, block: bytes, offset: int, final: bool = False) -> None:
        """``offset``: of the block in the text."""
        if self.bad is not None:
            return
        if self.encoding == "utf-8-sig" and offset == 0:
            block, offset = block[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, final=final)
        except UnicodeDecodeError as error:
            self.bad = offset - pending + error.start
            self.byte = error.object[error.start : error.start + 1]
            self.zero = self.byte == b"\0" and self.encoding != "utf-16"
            return
        if "\0" in text:
            self.bad = offset + max(0, block.find(b"\0\0" if self.encoding == "utf-16" else b"\0"))
            self.byte, self.zero = b"\0", True
            return
        self.characters += len(text)

    def end(self, offset: int) -> None:
        self.feed(b"", offset, final=True)

    def complaint(self) -> str:
        if self.bad is None:
            return ""
        if self.zero and self.encoding != "utf-16":
            return f"byte {self.bad} is zero: not a text file, or UTF-16 without its mark; save it as UTF-8"
        shown = f" (0x{self.byte.hex()})" if self.byte else ""
        return (
            f"not readable as {NAMES[self.encoding]} text at byte {self.bad}{shown}: mend the file, save it as "
            "UTF-8, or leave bad bytes out with --bad-bytes skip"
        )


def _looks_like_gbk(sample: bytes) -> bool:
    """Whether the bytes around the first that is not UTF-8 speak for GBK.

    Of a UTF-8 text with a damaged spot most bytes above 127 still form UTF-8 sequences; of a GBK text hardly any.
    """
    high = sum(byte > 127 for byte in sample)
    as_utf8 = sample.decode("utf-8", "ignore")
    if 2 * (len(as_utf8.encode("utf-8")) - sum(c < "\x80" for c in as_utf8)) > high:
        return False
    text = [c for c in sample.decode("gb18030", "ignore") if c > "\x7f"]
    if not text:
        return False
    simplified = len("".join(text).encode("gb2312", "ignore")) / (2 * len(text))
    common = sum(c in COMMON for c in text) / len(text)
    return simplified >= 0.95 or common >= 0.04
