"""Checks JSON against the schemas that OpenAPI tells, as far as they are used here; a word that is not known fails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

TELLING = {"title", "description", "examples", "example", "default"}
"""Words that demand nothing."""

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class Mismatch(AssertionError):
    """The value is not what the schema says."""


def check(value: Any, schema: Mapping[str, Any], components: Mapping[str, Any], where: str = "$") -> None:
    """Raises Mismatch. `components` are the schemas that others refer to, by name."""
    for word, said in schema.items():
        if word in TELLING or any(word in words and not isinstance(value, kind) for words, kind in OF):
            continue
        if word == "$ref":
            check(value, components[said.removeprefix("#/components/schemas/")], components, where)
        elif word == "anyOf":
            _any(value, said, components, where)
        elif word == "type":
            fits = isinstance(value, TYPES[said]) and (said == "boolean" or not isinstance(value, bool))
            _demand(fits, where, f"is {value!r}; expected {said}")
        elif word == "enum":
            _demand(value in said, where, f"is {value!r}; expected one of {said}")
        elif word == "const":
            _demand(value == said, where, f"is {value!r}; expected {said!r}")
        elif word == "required":
            _demand(set(said) <= value.keys(), where, f"lacks {set(said) - value.keys()}")
        elif word == "properties":
            for name in said.keys() & value.keys():
                check(value[name], said[name], components, f"{where}.{name}")
        elif word == "additionalProperties":
            for name in value.keys() - schema.get("properties", {}).keys():
                _demand(said is not False, where, f"must not have {name}")
                check(value[name], {} if said is True else said, components, f"{where}.{name}")
        elif word in ("items", "prefixItems"):
            _items(value, schema, components, where)
        elif word in BOUNDS:
            _demand(BOUNDS[word](value, said), where, f"is {value!r}; expected {word} {said}")
        elif word == "format":
            _format(value, said, where)
        else:
            raise NotImplementedError(f"{where}: {word}")


OF: tuple[tuple[set[str], type | tuple[type, ...]], ...] = (
    ({"required", "properties", "additionalProperties"}, dict),
    ({"items", "prefixItems", "minItems", "maxItems"}, (list, tuple)),
    ({"minLength", "maxLength", "format", "pattern"}, str),
    ({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}, (int, float)),
)
"""Words that demand something of values of one kind only."""

BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "minLength": lambda value, bound: len(value) >= bound,
    "maxLength": lambda value, bound: len(value) <= bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "maxItems": lambda value, bound: len(value) <= bound,
}


def _any(value: Any, choices: list[Mapping[str, Any]], components: Mapping[str, Any], where: str) -> None:
    wrong = []
    for choice in choices:
        try:
            check(value, choice, components, where)
            return
        except Mismatch as mismatch:
            wrong.append(str(mismatch))
    raise Mismatch(f"{where} fits none: {'; '.join(wrong)}")


def _items(value: Any, schema: Mapping[str, Any], components: Mapping[str, Any], where: str) -> None:
    first = schema.get("prefixItems", [])
    for number, one in enumerate(value):
        wanted = first[number] if number < len(first) else schema.get("items", {})
        check(one, wanted, components, f"{where}[{number}]")


def _format(value: Any, said: str, where: str) -> None:
    if said == "date-time":
        try:
            told = datetime.fromisoformat(value)
        except ValueError:
            raise Mismatch(f"{where} is {value!r}; expected a time") from None
        _demand(told.tzinfo is not None, where, f"is {value!r}; expected a time with a zone")
    elif said not in ("binary", "byte", "uri", "date"):
        raise NotImplementedError(f"{where}: format {said}")


def _demand(true: bool, where: str, problem: str) -> None:
    if not true:
        raise Mismatch(f"{where} {problem}")
