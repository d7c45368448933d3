"""Reading JSON and YAML that came from outside: bounded, unambiguous, and of the shape that is expected.

Every description that this project reads comes through here. A file is refused, in one line that names it, when it is
too large, nested too deeply, not UTF-8, or says the same key twice; YAML also when it has aliases or tags, which no
configuration needs and which can make a small file a huge value. A schema (``pangu_lab.schema``) then checks names,
types and ranges, so that the code that uses the values need not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pangu_lab.errors import InputError
from pangu_lab.ranges import shown

if TYPE_CHECKING:
    from pangu_lab.schema import Schema

LIMIT = 64 << 20  # bytes of a JSON file; the description of a data set of 250,000 text files has so many
YAML_LIMIT = 1 << 16  # bytes of a configuration; one with every setting has 2 KB
DEPTH = 32  # levels of lists and objects
FIX = "take a fresh copy of it"


def content_of(path: Path | str, what: str, limit: int = LIMIT) -> bytes:
    """The content of a file of at most ``limit`` bytes; ``what`` names it in the error.

    Raises:
        InputError: it is missing, larger, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: {what} is not there") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise InputError(f"{path}: {what} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > limit:
        raise InputError(f"{path}: {what} is larger than {limit >> 10} KiB, which no such file is: {FIX}")
    return content


def read_json(
    path: Path | str, what: str, schema: type[Schema] | None = None, fix: str = FIX, limit: int = LIMIT
) -> Any:
    """Parse a JSON file; ``what`` names it in the error ("the data set's description").

    Args:
        schema: what it must hold.
        fix: what a person can do about a file that is damaged; completes the error's line.

    Returns:
        The value as it stands in the file.

    Raises:
        InputError: the file is missing, is not JSON, or does not fit the schema.
    """
    return parse_json(content_of(path, what, limit), f"{path}: {what}", schema, fix)


def parse_json(content: bytes | str, where: str, schema: type[Schema] | None = None, fix: str = FIX) -> Any:
    """Parse JSON text; ``where`` begins the line of an error.

    Raises:
        InputError: as ``read_json``.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_without_doubles)
        _check_depth(value)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could never be shown
    except UnicodeEncodeError:
        raise InputError(f"{where} is not readable JSON (half a surrogate pair): {fix}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, bytes that are no text
        raise InputError(f"{where} is not readable JSON ({_why(error)}): {fix}") from None
    return value if schema is None else checked(value, schema, where, fix)


def checked(value: Any, schema: type[Schema], where: str, fix: str = FIX) -> Any:
    """``value`` itself, if it fits the schema.

    Raises:
        InputError: names the first field that does not, and what stands there.
    """
    try:
        schema.model_validate(value)
    except ValueError as error:
        raise InputError(f"{where}: {_first(error)}: {fix}") from None
    return value


def _first(error: Any) -> str:
    """The first finding of a schema's error, in words."""
    finding = error.errors(include_url=False, include_context=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in finding["loc"]).lstrip(".")
    if finding["type"] == "missing":
        return f"says nothing of {field}"
    wanted = finding["msg"].replace("Input should be", "it should be").replace("Value error, ", "")
    if finding["type"] in ("model_type", "dict_type"):
        wanted = "it should be an object"
    if not field:
        return f"{wanted}, not {shown(finding['input'], repr)}"
    return f"{shown(field)} is {shown(finding['input'], repr)}; {wanted}"


def read_yaml(path: Path | str) -> Any:
    """Parse a configuration file: YAML of plain values.

    Raises:
        InputError: it is missing, too large, not readable, or has aliases or tags.
    """
    return parse_yaml(content_of(path, "the configuration", YAML_LIMIT), str(path))


def parse_yaml(content: bytes | str, where: str) -> Any:
    """Parse YAML text of plain values; ``where`` begins the line of an error.

    Raises:
        InputError: as ``read_yaml``.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        _check_events(text)
        return yaml.load(text, Loader=_Plain)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where}: not readable as YAML ({_why(error)}): correct it") from None


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses keys that stand there twice, and those that are neither text nor a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        wrong = [key for key in keys if not isinstance(key, (str, int))]
        if wrong:
            raise ValueError(f"the key {shown(wrong[0], repr)} is no name, line {node.start_mark.line + 1}")
        _refuse_doubles(keys)
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse deep, shared and tagged values before any is made."""
    depth = 0
    for event in yaml.parse(text, Loader=_Plain):
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} levels deep, line {line}")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"the alias *{shown(event.anchor)} in line {line}: write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"the tag {shown(event.tag)} in line {line}: leave it out")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        _refuse_doubles(name for name, _ in pairs)
    return values


def _refuse_doubles(keys: Iterable[str]) -> None:
    [(key, count)] = Counter(keys).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"the key {shown(key, repr)} stands there twice")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {DEPTH} levels deep")


def _why(error: Exception) -> str:
    """One line of what went wrong."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem or error.context}, line {error.problem_mark.line + 1}"
    return str(error).replace("\n", " ")
