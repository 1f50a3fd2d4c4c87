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
from aa_surgery.surgery.checks import check_alone, check_fit, check_model, check_module
from aa_surgery.surgery.classes import Antialiased
from aa_surgery.surgery.dress import dress, put_back, state_of, undress
from aa_surgery.surgery.layering import unlayered
from aa_surgery.surgery.operate import prepare
from aa_surgery.surgery.plan import Plan
from aa_surgery.surgery.planning import planned
from aa_surgery.treated import OWNER, PLAN, Reference, lost_halves, worn_by

__all__ = ["apply_antialias", "remove_antialias"]


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
    if PLAN in model.__dict__ and _is_treated(model):
        _warn(_already(model))
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
        plan = planned(model, options)
    else:
        check_alone(plan, options)
        check_fit(plan, model, example)
    if not plan.edits:
        why = f"{type(model).__name__}: nothing to anti-alias; it was not changed. {_why(plan)}"
        _warn(_already(model) if _is_treated(model) else why)
        return model
    prepared = prepare(model, changes_of(model, plan))
    state = state_of([model, *(module for module, _ in prepared)])
    try:
        for module, worn in prepared:
            dress(module, worn)
        model.__dict__.update({PLAN: plan, OWNER: Reference(model)})
        return model
    except BaseException:
        put_back(state)
        raise


def remove_antialias(model: nn.Module) -> nn.Module:
    """Undo `apply_antialias` in place: the untouched classes and forwards, nothing left behind.

    Args:
        model: The model that was anti-aliased, or one that holds it.

    Returns:
        `model` itself, its outputs bit-equal to those before the surgery with these weights.

    Raises:
        UnsupportedModelError: Only a part of what was treated together is given, a shallow copy, or
            a module whose class was changed again; nothing was changed.

    Warns:
        NoEffectWarning: The model has no anti-aliasing of ours.

    >>> import torchvision
    >>> model = remove_antialias(apply_antialias(torchvision.models.resnet18()))
    >>> type(model.maxpool).__name__
    'MaxPool2d'
    """
    check_module(model)
    changed: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, Antialiased)}
    _check_removable(model, changed)
    if not changed:
        _warn(f"{type(model).__name__} has no anti-aliasing to remove; nothing was changed.")
    state = state_of(model.modules())
    try:
        for module in changed.values():
            undress(module)
        for part in model.modules():
            part.__dict__.pop(PLAN, None)
            part.__dict__.pop(OWNER, None)
        return model
    except BaseException:
        put_back(state)
        raise


def _check_removable(model: nn.Module, changed: Mapping[str, Any]) -> None:
    parts: dict[str, Any] = {"": model, **changed}
    for name, module in parts.items():
        where, worn = name or "the model", worn_by(module)
        reference = module.__dict__.get(OWNER) if worn is None else worn.owner
        owner = None if reference is None else reference()
        if owner is not None and owner is not module and owner._modules is module._modules:
            raise UnsupportedModelError(
                f"{where} is a shallow copy of a {type(module).__name__} and shares its parts with "
                "the original. Use copy.deepcopy(model), or remove_antialias(the original)."
            )
        if isinstance(module, Antialiased) and "_aa_host" not in vars(unlayered(type(module))):
            raise UnsupportedModelError(
                f"{where}: its class was changed again after the surgery, to "
                f"{type(module).__name__}. Undo that first."
            )
    inside = set(changed.values())
    for name, half in lost_halves(model):
        other = half.other()
        if other is not None and other not in inside:
            raise UnsupportedModelError(
                f"{name or 'the model'} carries half of the anti-aliasing of {half.site}, and "
                f"{'.'.join(half.there)} of the {type(half.root()).__name__}, which is not in "
                f"this {type(model).__name__}, the other half. Call remove_antialias on the whole."
            )


def _is_treated(model: nn.Module) -> bool:
    return any(isinstance(m, Antialiased) for m in model.modules())


def _already(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} is anti-aliased already; nothing was changed. "
        "Call remove_antialias(model) first to choose other options."
    )


def _why(plan: Plan) -> str:
    if not plan.left:
        return "It has no strided conv, pool, slice or patch merging."
    first = plan.left[0]
    return f"{len(plan.left)} sites were left, {first.site.name} because: {first.reason}."


def _warn(message: str) -> None:
    warnings.warn(message, NoEffectWarning, stacklevel=3)
