"""What surgery refuses, before it touches anything."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import (
    MethodError,
    PlanError,
    SurgeryError,
    UnsupportedModelError,
    shown,
)
from aa_surgery.rules import Edit
from aa_surgery.sites import find_sites
from aa_surgery.sites.windows import window_sites
from aa_surgery.surgery.arguments import DEFAULTS, check_example
from aa_surgery.surgery.changes import new_keys
from aa_surgery.surgery.consistent import check_decisions
from aa_surgery.surgery.plan import Plan
from aa_surgery.surgery.probe import with_maps

__all__ = ["check_alone", "check_fit", "check_model", "check_module"]

_WRAPPERS = {
    "OptimizedModule": "torch.compile returned it. Apply to the original, then compile",
    "DistributedDataParallel": "it is wrapped. Apply to model.module before wrapping",
    "DataParallel": "it is wrapped. Apply to model.module before wrapping",
    "FullyShardedDataParallel": "it is wrapped. Apply to the model before wrapping",
}


def check_module(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        UnsupportedModelError: It is none.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"expected a torch.nn.Module, got {type(model).__name__}. "
            "By name: timm.create_model('aa_resnet50')."
        )


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be changed in place.

    Raises:
        UnsupportedModelError: The model is no module, or scripted, compiled or wrapped.
    """
    check_module(model)
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{name or kind} is scripted: its graph is fixed. "
                "Apply to the eager model, then script."
            )
        if kind in _WRAPPERS and type(module).__module__.startswith("torch"):
            raise UnsupportedModelError(f"{name or 'model'} is a {kind}: {_WRAPPERS[kind]}.")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedModelError(
                f"{name or 'model'} was compiled in place (.compile()). "
                "Apply to a fresh model, then compile."
            )
        if any(type(p) is nn.UninitializedParameter for p in module._parameters.values()):
            raise UnsupportedModelError(
                f"{name} is lazy and has no weights yet. Run the model once, then apply."
            )


def check_alone(plan: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse what is no plan, and arguments beside one, `example` excepted.

    Raises:
        PlanError: It is no plan.
        SurgeryError: Another argument says what the plan says.
    """
    if not isinstance(plan, Plan):
        way = f": Plan.load({shown(str(plan))})" if isinstance(plan, (str, PathLike)) else ""
        raise PlanError(
            f"plan: expected a Plan, got {type(plan).__name__}. Load a saved one{way}, or make "
            "one with plan_antialias(model)."
        )
    check_example(arguments["example"])
    given = [name for name in DEFAULTS if name != "example" and _is_given(name, arguments[name])]
    if given:
        raise SurgeryError(
            f"plan and {given[0]} are mutually exclusive: the plan has its own. "
            "Change the plan, or leave it out."
        )


def _is_given(name: str, value: Any) -> bool:
    usual = DEFAULTS[name]
    return type(value) is not type(usual) or bool(value != usual)


def check_fit(plan: Plan, model: nn.Module, example: Tensor | None = None) -> None:
    """Refuse a plan that is not whole in itself, or not for this model.

    Raises:
        PlanError: Its parts do not agree, its sites are not the model's, or the maps at the sites
            are others than it says.
    """
    check_decisions(plan.decisions)
    found = {site.name: site for site in (*find_sites(model), *window_sites(model))}
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
    _check_maps(plan, model, example)
    keys = new_keys(model, plan)
    if keys != plan.new_keys:
        raise PlanError(
            f"the plan names {len(plan.new_keys)} new keys of the state_dict, and makes "
            f"{len(keys)}, {', '.join(keys[:2]) or 'none'}. Make it again."
        )


def _check_maps(plan: Plan, model: nn.Module, example: Tensor | None) -> None:
    """Refuse channels and leaders that a run of the model does not show, where it runs."""
    try:
        seen = with_maps(model, plan, example)
    except MethodError:
        if example is not None:
            raise
        return  # it runs on nothing that could be made up; its layers check what they get
    for said, shown_by_run in zip(plan.decisions, seen.decisions, strict=True):
        if said != shown_by_run:
            facts = [
                (d.channels, d.leader) if isinstance(d, Edit) else d.reason
                for d in (said, shown_by_run)
            ]
            raise PlanError(
                f"{said.site.name}: the plan says (channels, leader) {facts[0]}, a run of the "
                f"model {facts[1]}. Make it again with plan_antialias(model, example=...)."
            )
