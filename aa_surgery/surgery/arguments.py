"""What a caller asks of the surgery, checked in full before anything else is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor

from aa_surgery.errors import (
    FilterError,
    InputError,
    MethodError,
    PatternError,
    SurgeryError,
    shown,
)
from aa_surgery.filters import Filter, resolve_filter
from aa_surgery.layers import PADDING_MODES
from aa_surgery.methods import Method, resolve_method
from aa_surgery.rules import DEFAULT_RULES, PRESETS, Options, Preset, Rule

__all__ = ["AUTO", "DEFAULTS", "Request", "check_example", "read_request"]

AUTO = "auto"
PLACEMENTS = (AUTO, "post", "pre")
DEFAULTS: dict[str, Any] = {
    "filter": AUTO,
    "placement": AUTO,
    "padding_mode": "reflect",
    "max_stride": 4,
    "include": (),
    "exclude": (),
    "preset": None,
    "overrides": None,
    "method": "blur",
    "circular": False,
    "example": None,
}
"""The keyword arguments of `plan_antialias`, with what they are where nothing is said."""

_OPTIONS = tuple(field.name for field in dataclasses.fields(Options))


@dataclass(frozen=True)
class Request:
    """The arguments of `plan_antialias`, each of the kind that it must be.

    Attributes:
        options: What holds for every site without an override.
        rules: The policy, that of the preset first.
        include: Patterns of the sites to treat; all without.
        exclude: Patterns of the sites to leave.
        overrides: By pattern, the options of those sites; None leaves them.
        circular: Whether the whole model gets circular borders.
        example: An input of the model.
    """

    options: Options
    rules: tuple[Rule, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    overrides: Mapping[str, Options | None]
    circular: bool
    example: Tensor | None


def read_request(arguments: Mapping[str, Any]) -> Request:
    """Return what the arguments ask for; those of `DEFAULTS` that are left out have its values.

    Raises:
        SurgeryError: One is of the wrong kind, unknown, or out of its range.
    """
    given = {**DEFAULTS, **arguments}
    if not isinstance(given["circular"], bool):
        raise SurgeryError(f"circular={shown(given['circular'])}: give True or False.")
    check_example(given["example"])
    preset = _preset(given["preset"])
    # of any mode, as circular borders would pass over a wrong one
    _check_padding_mode(given["padding_mode"], "padding_mode")
    values = {name: given[name] for name in _OPTIONS}
    if given["circular"]:
        values["padding_mode"] = "circular"
    options = _options(values, "", preset)
    return Request(
        options,
        preset.rules + DEFAULT_RULES,
        _patterns("include", given["include"]),
        _patterns("exclude", given["exclude"]),
        _overrides(given["overrides"], options),
        given["circular"],
        given["example"],
    )


def check_example(example: Any) -> None:
    """Refuse an example that is no batch of maps.

    Raises:
        InputError: It is no tensor, or one of too few axes.
    """
    if example is None:
        return
    if not isinstance(example, Tensor):
        raise InputError(
            f"example={shown(example)}: expected a tensor that the model takes, such as "
            f"torch.zeros(1, 3, 224, 224), got {type(example).__name__}."
        )
    if example.ndim < 2:
        raise InputError(
            f"example of shape {tuple(example.shape)}: expected a batch of maps, such as "
            "torch.zeros(1, 3, 224, 224)."
        )


def _options(values: Mapping[str, Any], where: str, preset: Preset | None = None) -> Options:
    """Return checked options; `where` is what stands before a name in a message."""
    method = resolve_method(values["method"])
    placement, limit = values["placement"], values["max_stride"]
    if not isinstance(placement, str) or placement not in PLACEMENTS:
        raise SurgeryError(
            f"{where}placement {shown(placement)} is unknown. Use one of {PLACEMENTS}."
        )
    _check_padding_mode(values["padding_mode"], f"{where}padding_mode")
    if limit is not None and not _is_count(limit):
        raise SurgeryError(
            f"{where}max_stride must be a whole number or None, at least 1, got {shown(limit)}."
        )
    return Options(
        filter=_filter(values["filter"], method, preset, where),
        placement=placement,
        padding_mode=values["padding_mode"],
        max_stride=None if limit is None else int(limit),
        method=method,
    )


def _filter(filter: Any, method: Method, preset: Preset | None, where: str) -> Filter:
    """Return the filter that was given, or that of the preset or the method."""
    if filter is None:
        raise FilterError(
            f"{where}filter=None is no filter. Leave it out for the usual one, or give "
            "'identity' for none."
        )
    chosen = not (isinstance(filter, str) and filter == AUTO)
    if method.filter is None:
        if chosen and not resolve_filter(filter).is_identity:
            raise MethodError(
                f"{where}method {method.name!r} takes no filter, got {shown(filter)}. "
                "Leave filter out."
            )
        return resolve_filter("identity")
    if not chosen:
        usual = preset.defaults.get("filter") if preset and method.name == "blur" else None
        return resolve_filter(usual or method.filter)
    return resolve_filter(filter)


def _check_padding_mode(mode: Any, where: str) -> None:
    if not isinstance(mode, str) or mode not in PADDING_MODES:
        raise FilterError(f"{where} {shown(mode)} is unknown. Use one of {PADDING_MODES}.")


def _is_count(value: Any) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and bool(value >= 1)


def _preset(name: Any) -> Preset:
    if name is None:
        return Preset()
    if not isinstance(name, str) or name not in PRESETS:
        raise SurgeryError(f"preset {shown(name)} is unknown. Use one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _patterns(argument: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    try:
        patterns = None if isinstance(value, (bytes, Mapping)) else tuple(value)
    except TypeError:
        patterns = None
    if patterns is not None and all(isinstance(pattern, str) for pattern in patterns):
        return patterns
    raise PatternError(
        f"{argument}={shown(value)}: expected a pattern of site names, such as 'layer2.*', or "
        "several of them."
    )


def _overrides(value: Any, options: Options) -> dict[str, Options | None]:
    """Return the options of each pattern, None where its sites are to be left."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SurgeryError(
            f"overrides={shown(value)}: expected {{pattern: options}}, such as "
            "{'layer2.*': {'filter': 'tri-4'}, 'conv1': False}."
        )
    return {pattern: _override(pattern, change, options) for pattern, change in value.items()}


def _override(pattern: Any, change: Any, options: Options) -> Options | None:
    where = f"overrides[{shown(pattern)}]"
    if not isinstance(pattern, str):
        raise PatternError(f"{where}: expected a pattern of site names, such as 'layer2.*'.")
    if isinstance(change, bool):
        return options if change else None
    if not isinstance(change, Mapping):
        raise SurgeryError(
            f"{where} is {shown(change)}: expected a dict of options, such as "
            "{'placement': 'pre'}, or False to leave the sites."
        )
    unknown = [name for name in change if name not in _OPTIONS]
    if unknown:
        raise SurgeryError(
            f"{where}: unknown option {shown(unknown[0])}. Options are {', '.join(_OPTIONS)}."
        )
    values = {name: getattr(options, name) for name in _OPTIONS}
    if "method" in change:
        values["filter"] = AUTO  # the method's own, unless another is given
    return _options({**values, **change}, f"{where}: ")
