"""The only code that changes a model: check everything, build everything, then swap."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from aa_surgery.errors import NoEffectWarning, UnsupportedModelError
from aa_surgery.filters import Filter
from aa_surgery.methods import Method
from aa_surgery.surgery.changes import changes_of
from aa_surgery.surgery.checks import (
    check_alone,
    check_fit,
    check_indices,
    check_model,
    check_module,
)
from aa_surgery.surgery.classes import Antialiased
from aa_surgery.surgery.dress import undress
from aa_surgery.surgery.operate import commit, prepare
from aa_surgery.surgery.plan import Plan
from aa_surgery.surgery.planning import plan_antialias

__all__ = ["apply_antialias", "remove_antialias"]

PLAN = "_antialias_plan"
"""The attribute of a model that holds the plan it was changed by."""


def apply_antialias(
    model: nn.Module,
    *,
    plan: Plan | None = None,
    filter: str | Iterable[float] | Filter = "auto",
    placement: str = "auto",
    padding_mode: str = "reflect",
    max_stride: int | None = 4,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: str | None = None,
    overrides: Mapping[str, Mapping[str, Any] | bool] | None = None,
    method: str | Mapping[str, Any] | Method = "blur",
    circular: bool = False,
    example: Tensor | None = None,
) -> nn.Module:
    """Anti-alias `model` in place: low-pass before every subsampling, weights kept.

    The model stays the object that it is: class, methods, parameters, state_dict keys, hooks and
    output shapes are those of before. Either everything in the plan is done, or nothing.

    Source: Zhang 2019 (arXiv:1904.11486), section 3, for the placements.

    Args:
        model: Any module; not scripted, compiled or wrapped.
        plan: A plan to carry out as it is, made for a model with these sites. No other option
            but `example` may be given with it.
        filter: Low-pass filter: a name (`aa_surgery.filters.list_filters()`), or taps that sum to
            1; `"auto"` is the preset's or the method's, `"tri-3"` as a rule.
        placement: `"auto"`; `"post"`: blur behind the activation wherever an op has a dense form;
            `"pre"`: blur before, at about the cost of the untouched network.
        padding_mode: The blur's border: `"reflect"`, `"replicate"`, `"zeros"`, `"circular"`.
        max_stride: Leave ops of a larger stride; None for no limit.
        include: Shell-style patterns of site names; only these are treated.
        exclude: Patterns of sites to leave.
        preset: `"zhang2019"` for the choices of the paper's package.
        overrides: Options per site: `{pattern: {"filter": ..., "placement": ...}}`, or
            `{pattern: False}` to leave it. The first pattern that matches counts.
        method: What subsamples without aliasing: a name (`aa_surgery.methods.list_methods()`), or
            `{"name": ..., option: value}`.
        circular: Circular borders for every convolution, pool and blur of the model: on maps that
            the strides divide, shift equivariance is then a law, not an approximation.
        example: An input of the model, for methods that must know the maps (channels, which of them
            lie on one grid); made up from the model's configuration without.

    Returns:
        `model` itself.

    Raises:
        SurgeryError: An argument is wrong, or the model cannot be treated; it is untouched.

    Warns:
        NoEffectWarning: Nothing to treat, or treated already.

    >>> import torch, torchvision
    >>> model = apply_antialias(torchvision.models.resnet18())
    >>> model(torch.zeros(1, 3, 65, 65)).shape
    torch.Size([1, 1000])
    """
    check_model(model)
    if any(isinstance(m, Antialiased) for m in model.modules()):
        _warn(
            f"{type(model).__name__} is anti-aliased already; nothing was changed. "
            "Call remove_antialias(model) first to choose other options."
        )
        return model
    options = dict(
        filter=filter,
        placement=placement,
        padding_mode=padding_mode,
        max_stride=max_stride,
        include=include,
        exclude=exclude,
        preset=preset,
        overrides=overrides,
        method=method,
        circular=circular,
        example=example,
    )
    if plan is None:
        plan = plan_antialias(model, **options)  # type: ignore[arg-type]
    else:
        check_alone(plan, options)
        check_fit(plan, model, example)
    check_indices(plan)
    if not plan.edits:
        _warn(f"{type(model).__name__}: nothing to anti-alias; it was not changed. {_why(plan)}")
        return model
    commit(prepare(model, changes_of(model, plan)))
    model.__dict__[PLAN] = plan
    return model


def remove_antialias(model: nn.Module) -> nn.Module:
    """Undo `apply_antialias` in place: the untouched classes and forwards, nothing left behind.

    Args:
        model: The model that was anti-aliased, or one that holds it.

    Returns:
        `model` itself, its outputs bit-equal to those before the surgery with these weights.

    Warns:
        NoEffectWarning: The model has no anti-aliasing of ours.

    >>> import torchvision
    >>> model = remove_antialias(apply_antialias(torchvision.models.resnet18()))
    >>> type(model.maxpool).__name__
    'MaxPool2d'
    """
    check_module(model)
    changed = {n: m for n, m in model.named_modules() if isinstance(m, Antialiased)}
    for name, module in changed.items():
        if "_aa_host" not in type(module).__dict__:
            raise UnsupportedModelError(
                f"{name or 'model'}: its class was changed again after the surgery, to "
                f"{type(module).__name__}. Undo that first (a parametrization, say)."
            )
    if not changed:
        _warn(f"{type(model).__name__} has no anti-aliasing to remove; nothing was changed.")
    for name in changed:
        undress(model.get_submodule(name))
    for part in model.modules():
        part.__dict__.pop(PLAN, None)
    return model


def _why(plan: Plan) -> str:
    if not plan.left:
        return "It has no strided conv, pool, slice or patch merging."
    first = plan.left[0]
    return f"{len(plan.left)} sites were left, {first.site.name} because: {first.reason}."


def _warn(message: str) -> None:
    warnings.warn(message, NoEffectWarning, stacklevel=3)
