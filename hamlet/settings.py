"""Frozen dataclasses from plain data, strictly: unknown keys and wrong types are refused by their dotted names."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

Settings = TypeVar("Settings")


def from_plain(kind: type[Settings], plain: Mapping[str, Any]) -> Settings:
    """Build a dataclass, and those within it, from what YAML gives.

    Raises:
        ValueError: an unknown key, with the nearest known one; a missing one; a value of another type, or one that the
            dataclass itself refuses. The message begins with the key's dotted name.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Oven:
        ...     degrees: float
        ...     racks: tuple[int, ...] = ()
        >>> from_plain(Oven, {"degrees": 180, "racks": [1, 2]})
        Oven(degrees=180.0, racks=(1, 2))
        >>> from_plain(Oven, {"degree": 180})
        Traceback (most recent call last):
        ...
        ValueError: degree: unknown key, did you mean degrees? (known: degrees, racks)
    """
    built: Settings = _convert(kind, plain, "")
    return built


def override(plain: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Plain data with ``dotted.key=value`` assignments laid over it; values are YAML, numbers in a key index lists.

    Example:
        >>> override({"a": {"b": 1}, "c": [{"d": 2}]}, ["a.b=[3, 4]", "c.0.d=null"])
        {'a': {'b': [3, 4]}, 'c': [{'d': None}]}
    """
    result = _copy(plain)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ValueError(f"overrides: got {assignment!r}, expected key=value, such as optimizer.lr=0.001")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{key}: {text!r} is not YAML ({' '.join(str(error).split())})") from error
        *parents, last = key.split(".")
        place: Any = result
        for depth, parent in enumerate(parents):
            name = ".".join(parents[: depth + 1])
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place[_index(place, parent, name)]
            if not isinstance(place, dict | list):
                raise ValueError(f"{key}: {name} is {place!r}, which has no {key[len(name) + 1 :]}")
        place[last if isinstance(place, dict) else _index(place, last, key)] = value
    return result


def to_plain(settings: Any) -> Any:
    """A dataclass as what YAML can hold: dicts, lists, numbers and text."""
    return _copy(dataclasses.asdict(settings))


def _copy(plain: Any) -> Any:
    if isinstance(plain, Mapping):
        return {key: _copy(value) for key, value in plain.items()}
    return [_copy(value) for value in plain] if isinstance(plain, list | tuple) else plain


def _index(items: list[Any], text: str, name: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise ValueError(f"{name}: got index {text!r}, expected 0 to {len(items) - 1}")
    return int(text)


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, name, kind)
    if origin is Literal and value in arguments and isinstance(value, str):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_convert(a, v, f"{name}.{i}") for i, (a, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _float(value, name)
    # bool is an int to Python, not to those who write recipes.
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise _mismatch(kind, value, name)


def _dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise _mismatch(kind, value, name)
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else ""
            raise ValueError(f"{prefix}{key}: unknown key{hint} (known: {', '.join(fields)})")
    given = {key: _convert(hints[key], item, f"{prefix}{key}") for key, item in value.items()}
    for key, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if key not in given and not optional:
            raise ValueError(f"{prefix}{key}: missing, expected {_describe(hints[key])}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _union(kinds: Sequence[Any], value: Any, name: str, union: Any) -> Any:
    for kind in kinds:
        try:
            return _convert(kind, value, name)
        except ValueError:
            continue
    raise _mismatch(union, value, name)


def _float(value: float | str, name: str) -> float:
    try:
        # YAML 1.1 reads 1e-3 as text.
        return float(value)
    except ValueError:
        raise _mismatch(float, value, name) from None


def _mismatch(kind: Any, value: Any, name: str) -> ValueError:
    return ValueError(f"{name or 'settings'}: got {value!r}, expected {_describe(kind)}")


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if dataclasses.is_dataclass(kind):
        return f"keys and values ({', '.join(field.name for field in dataclasses.fields(kind))})"
    if kind is type(None):
        return "null"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_describe(each) for each in get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("Ellipsis", "...")
