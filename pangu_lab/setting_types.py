"""Values of settings by their types: what YAML or a command line gave, checked and converted."""

from __future__ import annotations

import math
import types
import typing
from typing import Any, Union

from pangu_lab.errors import InputError
from pangu_lab.ranges import check, shown


def convert(key: str, value: Any, hint: Any) -> Any:
    """Check ``value`` against a type hint; numbers written as text ('1e-4', which YAML reads as text) are converted."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None:
        check(type(None) in options, f"{key} needs a value")
        return None
    for option in options:
        if option is not type(None):
            converted = _convert_one(value, option)
            if converted is not None:
                return converted
    names = " or ".join(_type_name(option) for option in options)
    raise InputError(f"{key}={shown(value, repr)} must be {names}")


def _convert_one(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        value = list(value.items()) if isinstance(value, dict) else value  # {id: number} for pairs
        items = value if isinstance(value, (list, tuple)) else [value]
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(items)
        if len(items) != len(kinds):
            return None
        converted = tuple(_convert_one(item, item_kind) for item, item_kind in zip(items, kinds))
        return None if any(item is None for item in converted) else converted
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is int:
        whole = isinstance(value, int) or isinstance(value, float) and math.isfinite(value) and value == int(value)
        return int(value) if whole else None
    if kind is float:
        try:
            number = float(value) if isinstance(value, (int, float, str)) else math.nan
            return number if math.isfinite(number) else None
        except (ValueError, OverflowError):
            return None
    return value if isinstance(value, kind) else None


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}.get(
        kind, str(kind)
    )
