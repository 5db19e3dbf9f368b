"""Strict configuration: plain values ↔ frozen dataclasses. Unknown fields and wrong types are errors that help."""

import dataclasses
import functools
import json
import math
import tomllib
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from patchword.core.errors import UsageError, nearest

T = TypeVar("T")
_MOST = 2**63
"""No whole number in a recipe or a model is larger; files have them of any length."""


def build(kind: type[T], values: dict[str, Any], where: str = "") -> T:
    """Make a dataclass of `kind` from plain values, nested tables included; missing fields keep their defaults.

    `where` is the dotted path in front of the field names in errors. Raises `UsageError`.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{where or 'the recipe'} must be a table of fields, not {values!r}")
    hints = field_types(kind)
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in hints:
            raise UsageError(f"unknown field {prefix}{name}; {nearest(name, hints, prefix)}")
    return kind(**{name: coerce(value, hints[name], prefix + name) for name, value in values.items()})


def coerce(value: Any, expected: Any, where: str) -> Any:
    """`value` as the type that the field declares; only lossless steps are made (3 → 3.0, a list → a tuple)."""
    origin, args = get_origin(expected), get_args(expected)
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return value if isinstance(value, expected) else build(expected, value, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}={value} is no number to work with; a finite one is right")
    if origin is Literal:
        if value in args:
            return value
        known = [str(choice) for choice in args if choice != ""]  # the empty one means "choose for me"
        raise UsageError(f"{where}={value!r} is not known; {nearest(str(value), known)}")
    if origin in (Union, types.UnionType):
        for choice in args:
            try:
                return coerce(value, choice, where)
            except UsageError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is ... else args
        if len(kinds) == len(value):
            return tuple(coerce(each, kind, where) for each, kind in zip(value, kinds, strict=True))
    elif origin is list and isinstance(value, list):
        return [coerce(each, args[0], where) for each in value]
    elif origin is dict and isinstance(value, dict):
        return {coerce(key, args[0], where): coerce(each, args[1], f"{where}.{key}") for key, each in value.items()}
    elif expected is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST:
        return float(value)
    elif type(value) is int and abs(value) >= _MOST:
        raise UsageError(f"{where} is too large a number; whole ones have to lie between ±2^63")
    elif expected is Any or (isinstance(expected, type) and type(value) is expected):
        return value
    raise UsageError(f"{where}={value!r} is not of the right type; it takes {_in_words(expected)}")


def _in_words(expected: Any) -> str:
    origin, args = get_origin(expected), get_args(expected)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(choice) for choice in args if choice is not type(None))
    if origin is tuple:
        several = f"{len(args)} of them" if args[-1] is not ... else "one or more"
        return f"a list in brackets, {several}: {_in_words(args[0])}"
    if origin is dict or dataclasses.is_dataclass(expected):
        return "a table of fields"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
    return names.get(expected, getattr(expected, "__name__", str(expected)))


@functools.cache  # looking them up takes a millisecond, which a study of a thousand recipes pays for each of their parts
def field_types(kind: type) -> dict[str, Any]:
    """Field name → declared type."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["augment.flip=false", "model.pool=gap"]` → nested tables. Values are TOML; anything else is a string."""
    tables: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise UsageError(f"{assignment!r} is not of the form field=value, such as optimizer.lr=0.001")
        table = tables
        for name in names[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UsageError(f"{assignment!r} sets a field of {name}, which is set to a value as well")
        table[names[-1]] = _parse_value(text.strip())
    return tables


def assignment(field: str, value: Any) -> str:
    """`field=value` as `parse_assignments` understands it: words stay words, and what JSON writes of the rest is TOML, too."""
    plain = isinstance(value, str) and _parse_value(value.strip()) == value
    return f"{field}={value if plain else json.dumps(value, ensure_ascii=False)}"


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested tables with the fields of `over` winning."""
    merged = dict(base)
    for name, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both_tables else value
    return merged


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # not TOML, nested too deep, or of too many digits
        return text
