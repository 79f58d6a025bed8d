"""Parses JSON into the frozen dataclasses of `answers.py`, by their type hints.

Unknown fields of a newer service are ignored, and unknown enum values stay strings. Fields that an older service does
not send are None where the type allows it, or the field's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from search_service.client.errors import UnexpectedAnswer

T = TypeVar("T")


def read(kind: type[T], value: object, where: str = "the answer") -> T:
    """Returns `value` as a `kind`. Raises UnexpectedAnswer, which names the position by `where`."""
    return cast(T, _read(kind, value, where))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(parts, value, where)
    if is_dataclass(kind):
        return _object(cast(type, kind), value, where)
    if origin is tuple:
        return _list(parts, value, where)
    if origin is Mapping:
        return _expect(dict, value, where)
    if kind is datetime:
        return _time(value, where)
    if kind is float and isinstance(value, int):
        return float(value)
    return _expect(kind, value, where)


def _one_of(parts: tuple[Any, ...], value: Any, where: str) -> Any:
    """Reads an optional value, or an enum that may have more values in newer services."""
    if value is None and NoneType in parts:
        return None
    for part in parts:
        if isinstance(part, type) and issubclass(part, StrEnum) and value in tuple(part):
            return part(value)
    rest = [
        part for part in parts if part is not NoneType and not (isinstance(part, type) and issubclass(part, StrEnum))
    ]
    return _read(rest[0], value, where)


def _object(kind: type, value: Any, where: str) -> Any:
    values, types = _expect(dict, value, where), _types(kind)
    named = [f for f in fields(kind) if f.name in values or (f.default is MISSING and f.default_factory is MISSING)]
    return kind(**{f.name: _field(f.name, types[f.name], values, where) for f in named})


def _field(name: str, kind: Any, values: Mapping[str, Any], where: str) -> Any:
    if name in values:
        return _read(kind, values[name], f"{where}.{name}")
    if NoneType in get_args(kind):
        return None
    raise UnexpectedAnswer(f"{where} has no {name!r}, which every service of this API sends")


def _list(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = _expect(list, value, where)
    kinds = [parts[0]] * len(items) if parts[1:] == (...,) else list(parts)
    if len(kinds) != len(items):
        raise UnexpectedAnswer(f"{where} has {len(items)} entries; expected {len(kinds)}")
    return tuple(
        _read(kind, item, f"{where}[{place}]") for place, (kind, item) in enumerate(zip(kinds, items, strict=True))
    )


def _time(value: Any, where: str) -> datetime:
    try:
        return datetime.fromisoformat(_expect(str, value, where))
    except ValueError as error:
        raise UnexpectedAnswer(f"{where} is {value!r}; expected a time") from error


def _expect(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UnexpectedAnswer(f"{where} is {value!r:.100}; expected {kind.__name__}")
    return value


@cache
def _types(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)
