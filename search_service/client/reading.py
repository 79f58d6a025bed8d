"""JSON -> the frozen dataclasses of `answers.py`, as their types say.

What a newer service says beyond them is overlooked; a word that an enum does not know stays a string; and what an
older service does not say yet is None where it may be None, or the field's default.
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
    """`value` as a `kind`. Raises UnexpectedAnswer, which names the place by `where`."""
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
    """Of a type that may be None, or of an enum whose words may become more."""
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
    told, types = _expect(dict, value, where), _types(kind)
    named = [f for f in fields(kind) if f.name in told or (f.default is MISSING and f.default_factory is MISSING)]
    return kind(**{f.name: _field(f.name, types[f.name], told, where) for f in named})


def _field(name: str, kind: Any, told: Mapping[str, Any], where: str) -> Any:
    if name in told:
        return _read(kind, told[name], f"{where}.{name}")
    if NoneType in get_args(kind):
        return None
    raise UnexpectedAnswer(f"{where} has no {name!r}; expected it, as every service of this API says it")


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
