"""What surgery refuses, before it touches anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from aa_surgery.errors import PlanError, SurgeryError, UnsupportedModelError
from aa_surgery.sites import find_sites
from aa_surgery.sites.windows import window_sites
from aa_surgery.surgery.plan import Plan

__all__ = ["check_alone", "check_fit", "check_model"]

_WRAPPERS = {
    "OptimizedModule": "torch.compile returned it. Apply to the original, then compile",
    "DistributedDataParallel": "it is wrapped. Apply to model.module before wrapping",
    "DataParallel": "it is wrapped. Apply to model.module before wrapping",
    "FullyShardedDataParallel": "it is wrapped. Apply to the model before wrapping",
}


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


def check_alone(options: Mapping[str, Any]) -> None:
    """Refuse options beside a plan."""
    defaults = dict(
        placement="auto", padding_mode="reflect", max_stride=4, method="blur", circular=False
    )
    given = [k for k, v in options.items() if v is not None and v != () and v != defaults.get(k)]
    if given:
        raise SurgeryError(
            f"plan and {given[0]} are mutually exclusive: the plan has its own. "
            "Change the plan, or leave it out."
        )


def check_fit(plan: Plan, model: nn.Module) -> None:
    """Refuse a plan whose sites are not the model's."""
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
