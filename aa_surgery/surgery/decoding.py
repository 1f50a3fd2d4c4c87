"""Plain data, as JSON holds it, to the plan's records: by annotations and bounds of their fields.

A record's dataclass is its schema. A field that it gets later is decoded like the others, and may
be missing from a file if it has a default.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from aa_surgery.errors import PlanError, SurgeryError, shown
from aa_surgery.filters import Filter, resolve_filter
from aa_surgery.layers import PADDING_MODES
from aa_surgery.methods import Method, resolve_method

__all__ = ["decode_record"]

Record = TypeVar("Record")

_MOST = 2**31 - 1  # a file can hold any number, torch's sizes cannot
_MOST_CHANNELS = 2**20  # of a layer that would be made for them
_AXES = 8


def decode_record(cls: type[Record], data: Any, where: str) -> Record:
    """Return the record of class `cls` that `data` holds.

    Args:
        cls: A dataclass.
        data: A mapping of its fields.
        where: What `data` is, for messages: `sites[0].site`.

    Raises:
        PlanError: A field is missing, unknown, of another type, or out of its bounds.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: expected an object of fields, got {shown(data)}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise PlanError(f"{where} has a field {shown(name)}, which this version does not know.")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise PlanError(f"{where}.{name} is missing.")
    hints = get_type_hints(cls)
    found = {n: _decoded(hints[n], data[n], f"{where}.{n}") for n in fields if n in data}
    for name, value in found.items():
        holds, words = _BOUNDS.get(name, (lambda _: True, ""))
        if not holds(value):
            raise PlanError(f"{where}.{name} is {shown(data[name])}: expected {words}.")
    return cls(**found)


def _decoded(kind: Any, value: Any, where: str) -> Any:
    """Return a value of the annotated type `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return _frozen(value)
    if origin is Literal:
        if any(type(value) is type(arg) and value == arg for arg in args):
            return value
        raise PlanError(f"{where} is {shown(value)}: expected one of {', '.join(map(repr, args))}.")
    if origin in (Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        if value is None and len(inner) < len(args):
            return None
        return _decoded(inner[0], value, where)
    if origin is tuple:
        return _sequence(args, value, where)
    if kind in _RESOLVERS:
        try:
            return _RESOLVERS[kind](value)
        except SurgeryError as error:
            raise PlanError(f"{where}: {error}") from error
    if dataclasses.is_dataclass(kind):
        return decode_record(kind, value, where)  # type: ignore[arg-type]
    if type(value) is not kind:  # a truth value is no number here
        raise PlanError(f"{where} is {shown(value)}: expected {_WORDS.get(kind, kind.__name__)}.")
    return value


def _sequence(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise PlanError(f"{where} is {shown(value)}: expected a list.")
    return tuple(_decoded(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(value))


def _frozen(value: Any) -> Any:
    """Return any plain value with tuples for its lists, as the records hold them."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _filter(spec: Any) -> Filter:
    if spec is None:
        raise PlanError("no filter.")
    return resolve_filter(spec)


def _sizes(least: int) -> tuple[Callable[[Any], bool], str]:
    def holds(value: Any) -> bool:
        return len(value or ()) <= _AXES and all(least <= n <= _MOST for n in value or ())

    return holds, f"up to {_AXES} whole numbers, {least} to {_MOST}"


def _number(most: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: 0 <= value <= most, f"a whole number, 0 to {most}"


_RESOLVERS: dict[Any, Callable[[Any], Any]] = {Filter: _filter, Method: resolve_method}
_WORDS = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}
_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: _sizes(1) for name in ("kernel", "stride", "dilation", "op_stride", "blur_stride")},
    **{name: _sizes(1) for name in ("rate", "pool_kernel")},
    "padding": _sizes(0),
    "in_channels": _number(_MOST),
    "groups": _number(_MOST),
    "channels": _number(_MOST_CHANNELS),
    "padding_mode": (PADDING_MODES.__contains__, f"one of {', '.join(PADDING_MODES)}"),
}
