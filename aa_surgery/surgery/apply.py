"""The only code that changes a model: check everything, build everything, then swap."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from aa_surgery.errors import (
    NoEffectWarning,
    PlanError,
    SurgeryError,
    UnsupportedModelError,
    UnsupportedSiteError,
)
from aa_surgery.filters import Filter
from aa_surgery.layers.maps import AverageBlurPool, BlurMaps
from aa_surgery.layers.pools import BlurPool
from aa_surgery.rules import Edit
from aa_surgery.sites import Anchor, Site, find_sites
from aa_surgery.surgery.classes import Antialiased, OpChange, Recipe, antialiased_class
from aa_surgery.surgery.forward import GraphEdit, rewritten_sources
from aa_surgery.surgery.plan import Plan, plan_antialias

__all__ = ["apply_antialias", "remove_antialias"]

_PLAN = "_antialias_plan"
_WRAPPERS = {
    "OptimizedModule": "torch.compile returned it. Apply to the original, then compile",
    "DistributedDataParallel": "it is wrapped. Apply to model.module before wrapping",
    "DataParallel": "it is wrapped. Apply to model.module before wrapping",
    "FullyShardedDataParallel": "it is wrapped. Apply to the model before wrapping",
}


@dataclass
class _Change:
    """All that happens to one module."""

    op: str = ""
    op_change: OpChange | None = None
    children: dict[str, nn.Module | None] = field(default_factory=dict)
    graph_edits: list[GraphEdit] = field(default_factory=list)

    @property
    def wrapped(self) -> bool:
        return "aa_before" in self.children or "aa_after" in self.children


def apply_antialias(
    model: nn.Module,
    *,
    plan: Plan | None = None,
    filter: str | Iterable[float] | Filter | None = None,
    placement: str = "auto",
    padding_mode: str = "reflect",
    max_stride: int | None = 4,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: str | None = None,
    overrides: Mapping[str, Mapping[str, Any] | bool] | None = None,
) -> nn.Module:
    """Anti-alias `model` in place: low-pass before every subsampling, weights kept.

    The model stays the object that it is: class, methods, parameters, state_dict keys, hooks and
    output shapes are those of before. Either everything in the plan is done, or nothing.

    Source: Zhang 2019 (arXiv:1904.11486), section 3, for the placements.

    Args:
        model: Any module; not scripted, compiled or wrapped.
        plan: A plan to carry out as it is, made for a model with these sites. No other option
            may be given with it.
        filter: Low-pass filter: a name (`aa_surgery.filters.list_filters()`), taps that sum to 1;
            `"tri-3"` unless the preset has another.
        placement: `"auto"`; `"post"`: blur behind the activation wherever an op has a dense form;
            `"pre"`: blur before, at about the cost of the untouched network.
        padding_mode: The blur's border: `"reflect"`, `"replicate"`, `"zeros"`, `"circular"`.
        max_stride: Leave ops of a larger stride; None for no limit.
        include: Shell-style patterns of site names; only these are treated.
        exclude: Patterns of sites to leave.
        preset: `"zhang2019"` for the choices of the paper's package.
        overrides: Options per site: `{pattern: {"filter": ..., "placement": ...}}`, or
            `{pattern: False}` to leave it. The first pattern that matches counts.

    Returns:
        `model` itself.

    Raises:
        SurgeryError: An argument is wrong, or the model cannot be treated; it is untouched.

    Warns:
        NoEffectWarning: Nothing to treat, or treated already.

    >>> import torchvision
    >>> model = apply_antialias(torchvision.models.resnet18())
    >>> model(torch.zeros(1, 3, 65, 65)).shape
    torch.Size([1, 1000])
    """
    check_model(model)
    if any(isinstance(m, Antialiased) for m in model.modules()):
        _warn(f"{type(model).__name__} is anti-aliased already; nothing was changed. "
              "Call remove_antialias(model) first to choose other options.")
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
    )
    if plan is None:
        plan = plan_antialias(model, **options)  # type: ignore[arg-type]
    else:
        _check_alone(options)
        _check_fit(plan, model)
    _check_indices(plan)
    if not plan.edits:
        _warn(f"{type(model).__name__}: nothing to anti-alias; it was not changed. {_why(plan)}")
        return model
    _commit(model, _prepare(model, _changes(model, plan)), plan)
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
    changed = [(n, m) for n, m in model.named_modules() if isinstance(m, Antialiased)]
    for name, module in changed:
        if "_aa_host" not in type(module).__dict__:
            raise UnsupportedModelError(
                f"{name or 'model'}: its class was changed again after the surgery, to "
                f"{type(module).__name__}. Undo that first (a parametrization, say)."
            )
    if not changed:
        _warn(f"{type(model).__name__} has no anti-aliasing to remove; nothing was changed.")
    for _, module in changed:
        module.__class__ = type(module)._aa_host
        for child in [c for c in module._modules if c.startswith("aa_")]:
            del module._modules[child]
        module.__dict__.pop("aa_op", None)
    for module in model.modules():
        module.__dict__.pop(_PLAN, None)
    return model


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be changed in place.

    Raises:
        UnsupportedModelError: The model is no module, or scripted, compiled or wrapped.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"expected a torch.nn.Module, got {type(model).__name__}. "
            "By name: timm.create_model('aa_resnet50')."
        )
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} is scripted: its graph is fixed. "
            "Apply to the eager model, then script."
        )
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _WRAPPERS and type(module).__module__.startswith("torch"):
            raise UnsupportedModelError(f"{name or 'model'} is a {kind}: {_WRAPPERS[kind]}.")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedModelError(
                f"{name or 'model'} was compiled in place (.compile()). "
                "Apply to a fresh model, then compile."
            )
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise UnsupportedModelError(
                f"{name} is lazy and has no weights yet. Run the model once, then apply."
            )


def _check_alone(options: Mapping[str, Any]) -> None:
    defaults = dict(placement="auto", padding_mode="reflect", max_stride=4)
    given = [k for k, v in options.items() if v not in (None, (), defaults.get(k))]
    if given:
        raise SurgeryError(
            f"plan and {given[0]} are mutually exclusive: the plan has its own. "
            "Change the plan, or leave it out."
        )


def _check_fit(plan: Plan, model: nn.Module) -> None:
    """Refuse a plan whose sites are not the model's."""
    found = {site.name: site for site in find_sites(model)}
    for edit in plan.edits:
        site = found.get(edit.site.name)
        if site is None:
            raise PlanError(
                f"the plan, made for {plan.model}, treats {edit.site.name}, which "
                f"{type(model).__name__} does not have. Make it again with plan_antialias(model)."
            )
        if site != edit.site:
            raise PlanError(
                f"{edit.site.name}: the plan was made for {edit.site}, the model has {site}. "
                "Make it again with plan_antialias(model)."
            )


def _check_indices(plan: Plan) -> None:
    for item in plan.left:
        if item.reason.startswith("return_indices"):
            raise UnsupportedSiteError(f"{item.site.name} ({item.site.kind}): {item.reason}")


def _why(plan: Plan) -> str:
    if not plan.left:
        return "It has no strided conv, pool, slice or patch merging."
    first = plan.left[0]
    return f"{len(plan.left)} sites were left, {first.site.name} because: {first.reason}."


def _warn(message: str) -> None:
    warnings.warn(message, NoEffectWarning, stacklevel=3)


def _changes(model: nn.Module, plan: Plan) -> dict[str, _Change]:
    """Return what happens to each module, by name."""
    changes: dict[str, _Change] = defaultdict(_Change)
    for edit in plan.edits:
        site = edit.site
        like = _like(model, site)
        if edit.placement == "replace":
            _place_replacement(changes, edit, model, like)
        elif edit.op_stride is not None or edit.placement == "resample":
            _place_op(changes, edit)
        if edit.anchor is not None:
            _place_blur(changes, edit, edit.anchor, like)
    return changes


def _place_op(changes: dict[str, _Change], edit: Edit) -> None:
    site = edit.site
    if site.node:
        changes[site.scope].graph_edits.append(GraphEdit(edit, "op", site.node))
        return
    change = changes[site.name]
    change.op = "resample" if edit.placement == "resample" else site.op
    change.op_change = OpChange(edit.op_stride or (), edit.pool_kernel)


def _place_replacement(
    changes: dict[str, _Change], edit: Edit, model: nn.Module, like: dict[str, Any]
) -> None:
    site = edit.site
    owner = model.get_submodule(site.scope if site.node else site.name)
    ceil_mode = bool(getattr(owner, "ceil_mode", False))
    blur = AverageBlurPool(
        edit.filter, site.kernel, site.stride, site.padding, ceil_mode, edit.padding_mode, **like
    )
    if site.node:
        change = changes[site.scope]
        name = f"aa_{site.node}"
        change.graph_edits.append(GraphEdit(edit, "replace", site.node, name))
        change.children[name] = blur
    else:
        changes[site.name].op = "replace"
        changes[site.name].children["aa_blur"] = blur


def _place_blur(
    changes: dict[str, _Change], edit: Edit, anchor: Anchor, like: dict[str, Any]
) -> None:
    change = changes[anchor.path]
    site = edit.site
    if anchor.kind in ("after", "before"):
        change.children.setdefault("aa_before", None)
        change.children.setdefault("aa_after", None)
        name = f"aa_{anchor.kind}"
        if change.children[name] is not None:
            raise UnsupportedSiteError(
                f"{site.name}: two blurs would stand {anchor}. Exclude one of the two sites."
            )
    else:
        name = f"aa_{anchor.node}"
        action = "after" if anchor.kind == "node" else "input"
        change.graph_edits.append(GraphEdit(edit, action, anchor.node, name))
    layer = BlurMaps if site.dims else BlurPool
    change.children[name] = layer(
        edit.filter, edit.blur_stride, edit.rate, edit.padding_mode, site.channels_last, **like
    )


def _like(model: nn.Module, site: Site) -> dict[str, Any]:
    """Return device and dtype of the parameters nearest to a site."""
    path = site.scope if site.node else site.name
    while True:
        for tensor in model.get_submodule(path).parameters():
            if tensor.is_floating_point():
                return dict(device=tensor.device, dtype=tensor.dtype)
        if not path:
            return {}
        path = path.rpartition(".")[0]


def _prepare(
    model: nn.Module, changes: Mapping[str, _Change]
) -> list[tuple[nn.Module, _Change, type[nn.Module]]]:
    """Build the class of each changed module; nothing of the model is touched yet."""
    prepared = []
    for path, change in changes.items():
        module = model.get_submodule(path)
        sources: tuple[str, ...] = ()
        if change.graph_edits:
            sources = rewritten_sources(module, path, change.graph_edits)
        recipe = Recipe(change.op, sources, change.wrapped)
        taken = [n for n in change.children if hasattr(module, n)]
        if taken:
            raise UnsupportedModelError(f"{path}: the name {taken[0]} is taken. Rename that child.")
        prepared.append((module, change, antialiased_class(type(module), recipe)))
    return prepared


def _commit(
    model: nn.Module, prepared: list[tuple[nn.Module, _Change, type[nn.Module]]], plan: Plan
) -> None:
    """Swap the classes; on a failure, undo what was swapped."""
    try:
        for module, change, cls in prepared:
            module.__class__ = cls
            for name, child in change.children.items():
                if child is not None:
                    child.train(module.training)
                module._modules[name] = child
            if change.op_change is not None:
                module.__dict__["aa_op"] = change.op_change
        model.__dict__[_PLAN] = plan
    except Exception:
        remove_antialias(model)
        raise
