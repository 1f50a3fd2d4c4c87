"""What a plan means for each module: one `Change` a module, built before anything is touched."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aa_surgery.layers.maps import AverageBlurPool, BlurMaps
from aa_surgery.layers.pools import BlurPool
from aa_surgery.rules import Edit
from aa_surgery.sites import Anchor, Site
from aa_surgery.sites.kinds import pads_to_same
from aa_surgery.surgery.forward import GraphEdit
from aa_surgery.surgery.plan import Plan

__all__ = ["Change", "changes_of", "conv_op", "conv_padding"]


@dataclass
class Change:
    """All that happens to one module."""

    op: str = ""
    numbers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    children: dict[str, nn.Module | None] = field(default_factory=dict)
    graph_edits: list[GraphEdit] = field(default_factory=list)

    @property
    def wrapped(self) -> bool:
        """Whether a blur stands before or behind the whole module."""
        return "aa_before" in self.children or "aa_after" in self.children


def changes_of(model: nn.Module, plan: Plan) -> dict[str, Change]:
    """Return what happens to each module, by name."""
    changes: dict[str, Change] = defaultdict(Change)
    for edit in plan.edits:
        site = edit.site
        like = _like(model, site)
        if edit.placement == "replace":
            _place_replacement(changes, edit, like)
        elif edit.op_stride is not None or edit.placement == "resample":
            _place_op(changes, edit, model)
        if _blurs_itself(site):
            changes[site.name].children["aa_blur"] = _blur(edit, like)
        if edit.anchor is not None and not _blurs_itself(site):
            _place_blur(changes, edit, edit.anchor, like)
    return changes


def _blurs_itself(site: Site) -> bool:
    """Whether the op's changed forward calls its blur, so that the two can share the work."""
    return site.op == "max_pool" and not site.node


def _place_op(changes: dict[str, Change], edit: Edit, model: nn.Module) -> None:
    site = edit.site
    if site.node:
        changes[site.scope].graph_edits.append(GraphEdit(edit, "op", site.node, given=site.given))
        return
    change, module = changes[site.name], model.get_submodule(site.name)
    change.op = conv_op(module) if site.op == "conv" else site.op
    if edit.placement == "resample":
        change.op = "resample"
    change.numbers = _numbers(edit, module)


def _numbers(edit: Edit, module: Any) -> dict[str, tuple[int, ...]]:
    """Return what the op runs with: sizes in samples, one an axis, by name."""
    site = edit.site
    if edit.placement == "resample":
        return {}
    if site.op == "conv":
        return {"stride": edit.op_stride or (), "padding": conv_padding(module)}
    numbers = {"kernel": site.kernel, "stride": site.stride, "padding": site.padding}
    if site.op == "max_pool":
        numbers["dilation"] = site.dilation
    if edit.pool_kernel:
        numbers["pool_kernel"] = edit.pool_kernel
    return numbers


def conv_op(conv: nn.Module) -> str:
    """Return the key of `OPS` by which a convolution runs at another stride."""
    return "same_conv" if pads_to_same(conv) else "conv"


def conv_padding(conv: Any) -> tuple[int, ...]:
    """Return the padding that a strided convolution leaves to the op itself."""
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return (0,) * len(conv.stride)
    return tuple(conv.padding)


def _place_replacement(changes: dict[str, Change], edit: Edit, like: dict[str, Any]) -> None:
    site = edit.site
    blur = AverageBlurPool(
        edit.filter,
        site.kernel,
        site.stride,
        site.padding,
        site.ceil_mode,
        edit.padding_mode,
        **like,
    )
    if site.node:
        change = changes[site.scope]
        name = f"aa_{site.node}"
        change.graph_edits.append(GraphEdit(edit, "replace", site.node, name, site.given))
        change.children[name] = blur
    else:
        changes[site.name].op = "replace"
        changes[site.name].children["aa_blur"] = blur


def _place_blur(
    changes: dict[str, Change], edit: Edit, anchor: Anchor, like: dict[str, Any]
) -> None:
    change = changes[anchor.path]
    blur = _blur(edit, like)
    if anchor.kind in ("node", "input"):
        name = f"aa_{anchor.node}"
        action = "after" if anchor.kind == "node" else "input"
        change.graph_edits.append(GraphEdit(edit, action, anchor.node, name, anchor.given))
        change.children[name] = blur
        return
    change.children.setdefault("aa_before", None)
    change.children.setdefault("aa_after", None)
    name = f"aa_{anchor.kind}"
    other = change.children[name]
    if other is None:
        change.children[name] = blur
        return
    # two strided ops in a row: the module's own blur is the one next to it
    leads = (edit.site.name == anchor.path) == (anchor.kind == "after")
    change.children[name] = nn.Sequential(*((blur, other) if leads else (other, blur)))


def _blur(edit: Edit, like: dict[str, Any]) -> BlurPool:
    layer = BlurMaps if edit.site.dims else BlurPool
    return layer(
        edit.filter,
        edit.blur_stride,
        edit.rate,
        edit.padding_mode,
        edit.site.channels_last,
        **like,
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
