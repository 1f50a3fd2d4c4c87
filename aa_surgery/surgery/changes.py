"""What a plan means for each module: one `Change` a module, built before anything is touched."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from itertools import takewhile
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from aa_surgery.layers.calls import AVG_CALLS, CONV_CALLS, MAX_CALLS, ResizeCall
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.maps import AverageBlurPool, BlurMaps
from aa_surgery.layers.resize import BlurBeforeResize
from aa_surgery.rules import Edit
from aa_surgery.sites import Anchor, Site
from aa_surgery.sites.roles import is_norm
from aa_surgery.sites.windows import takes_tokens
from aa_surgery.surgery.change import Change, conv_op
from aa_surgery.surgery.circular import make_circular
from aa_surgery.surgery.forward import GraphEdit
from aa_surgery.surgery.plan import Plan
from aa_surgery.treated import Half, Reference

__all__ = ["MakeLayer", "changes_of", "conv_padding", "new_keys"]

Like = dict[str, Any]  # device and dtype
MakeLayer = Callable[[Edit, Like], Downsample]


def changes_of(model: nn.Module, plan: Plan, make: MakeLayer | None = None) -> dict[str, Change]:
    """Return what happens to each module, by name; `make` makes other layers than the methods'."""
    changes: dict[str, Change] = defaultdict(Change)
    layers: dict[str, Any] = {}
    treatment = uuid4().hex
    for edit in plan.edits:
        site = edit.site
        changes[_op_path(site)].sites.append(site)
        like = _like(model, site)
        if edit.placement == "replace":
            _place_replacement(changes, edit, like, model)
        elif edit.op_stride is not None or edit.placement == "resample":
            _place_op(changes, edit, model, plan.circular)
        if edit.anchor is None:
            continue
        layers[site.name] = layer = (make or _layer)(edit, like)
        _note_halves(changes, edit, model, treatment)
        if _pools_in_forward(edit):
            _place_call(changes, edit, _pool_call(site, layer), model)
        elif _blurs_itself(edit, plan.circular):
            changes[site.name].children["aa_blur"] = layer
        elif site.op == "window" and takes_tokens(model.get_submodule(site.name)):
            changes[site.name].op = "aligned_tokens"
            changes[site.name].children["aa_roll"] = layer
        else:
            _place_layer(changes, edit, edit.anchor, layer, model)
    for edit in plan.edits if make is None else ():
        if edit.leader:
            layers[edit.site.name].follow(layers[edit.leader])
    if plan.circular:
        make_circular(model, changes)
    return changes


def _op_path(site: Site) -> str:
    return site.scope if site.in_forward else site.name


def _note_halves(changes: dict[str, Change], edit: Edit, model: nn.Module, treatment: str) -> None:
    """Let the op that runs dense and the layer that subsamples know each other."""
    op, layer = _op_path(edit.site), edit.anchor.path if edit.anchor else ""
    if edit.op_stride is None or edit.anchor is None or op == layer:
        return
    there = [path.split(".") if path else [] for path in (op, layer)]
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*there, strict=False)))
    root = Reference(model.get_submodule(".".join(there[0][:common])))
    first, second = (tuple(names[common:]) for names in there)
    name = edit.site.name
    around = model.get_submodule(layer.rpartition(".")[0])
    norm = type(around).__name__ if is_norm(around) else ""
    changes[op].halves.append(Half(name, "op", treatment, root, first, second, norm))
    changes[layer].halves.append(Half(name, "layer", treatment, root, second, first, norm))


def new_keys(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Return the keys that the methods' own weights add to the model's state_dict."""
    if all(edit.method.name == "blur" for edit in plan.edits):
        return ()
    with torch.random.fork_rng(devices=[]):  # a plan touches nothing, random numbers included
        changes = changes_of(model, dataclasses.replace(plan, circular=False))
    return tuple(
        ".".join(filter(None, (path, child, key)))
        for path, change in changes.items()
        for child, layer in change.children.items()
        for key in layer.state_dict()
    )


def _blurs_itself(edit: Edit, circular: bool) -> bool:
    """Whether the op's changed forward calls its blur, so that the two can share the work."""
    plain = edit.method.name == "blur" and not circular and edit.placement == "post"
    return edit.site.op == "max_pool" and not edit.site.node and plain


def _place_op(changes: dict[str, Change], edit: Edit, model: nn.Module, circular: bool) -> None:
    site = edit.site
    if site.node:
        _place_op_in_forward(changes, edit, model)
        return
    change, module = changes[site.name], model.get_submodule(site.name)
    change.op = conv_op(module) if site.op == "conv" else site.op
    if site.op == "max_pool" and not _blurs_itself(edit, circular):
        change.op = "dense_max_pool"
    if edit.placement == "resample":
        change.op = "resample"
    change.numbers = _numbers(edit, module)


def _pools_in_forward(edit: Edit) -> bool:
    """Whether the op is a pool that a forward calls, run dense with its blur."""
    pools = edit.site.op in ("max_pool", "avg_pool")
    return bool(edit.site.node) and pools and edit.placement == "post"


def _place_op_in_forward(changes: dict[str, Change], edit: Edit, model: nn.Module) -> None:
    """Let the op of a call in a forward run another way; pools come with their blur."""
    site = edit.site
    if site.op == "conv":
        _place_call(changes, edit, CONV_CALLS[site.ndim](site.stride, edit.op_stride or ()), model)
    elif site.op == "interpolate":
        _place_call(changes, edit, ResizeCall(), model)
    elif site.op in ("slice", "space_to_depth"):
        change = changes[site.scope]
        name = _free_name(model.get_submodule(site.scope), change, f"{site.node}_dense")
        change.graph_edits.append(GraphEdit(edit, "dense", site.node, name, site.given))


def _pool_call(site: Site, blur: nn.Module) -> nn.Module:
    calls = MAX_CALLS if site.op == "max_pool" else AVG_CALLS
    return calls[site.ndim](blur, site.stride)


def _place_call(changes: dict[str, Change], edit: Edit, call: nn.Module, model: nn.Module) -> None:
    """Let the scope's forward call a module of ours in the stead of the op's function."""
    site, change = edit.site, changes[edit.site.scope]
    word = f"{site.node}_dense" if site.op == "conv" else site.node
    name = _free_name(model.get_submodule(site.scope), change, word)
    change.graph_edits.append(GraphEdit(edit, "call", site.node, name, site.given))
    change.children[name] = call


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


def conv_padding(conv: Any) -> tuple[int, ...]:
    """Return the padding that a strided convolution leaves to the op itself."""
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return (0,) * len(conv.stride)
    return tuple(conv.padding)


def _place_replacement(
    changes: dict[str, Change], edit: Edit, like: Like, model: nn.Module
) -> None:
    site = edit.site
    if site.op == "conv":
        conv = model.get_submodule(site.name)
        assert edit.method.replacement is not None
        change = changes[site.name]
        change.op = "replace_conv"
        change.children["aa_conv"] = edit.method.replacement(conv, **edit.method.options)
        change.frozen = tuple(name for name, _ in conv.named_parameters(recurse=False))
        return
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
        _place_call(changes, edit, _pool_call(site, blur), model)
    else:
        changes[site.name].op = "replace"
        changes[site.name].children["aa_blur"] = blur


def _free_name(module: nn.Module, change: Change, node: str) -> str:
    """Return a name for the layer at a node that neither the module nor another layer has."""
    name = f"aa_{node}"
    while hasattr(module, name) or name in change.children:
        name += "_"
    return name


def _place_layer(
    changes: dict[str, Change], edit: Edit, anchor: Anchor, layer: Downsample, model: nn.Module
) -> None:
    change = changes[anchor.path]
    if anchor.kind in ("node", "input"):
        name = _free_name(model.get_submodule(anchor.path), change, anchor.node)
        action = "after" if anchor.kind == "node" else "input"
        change.graph_edits.append(GraphEdit(edit, action, anchor.node, name, anchor.given))
        change.children[name] = layer
        return
    name = f"aa_{anchor.kind}"
    other = change.children.get(name)
    if other is None:
        change.children[name] = layer
        return
    # two strided ops in a row: the module's own blur is the one next to it
    leads = (edit.site.name == anchor.path) == (anchor.kind == "after")
    change.children[name] = nn.Sequential(*((layer, other) if leads else (other, layer)))


def _layer(edit: Edit, like: Like) -> Downsample:
    """Make the layer of an edit's method."""
    method = edit.method
    keywords: dict[str, Any] = dict(
        stride=edit.blur_stride,
        rate=edit.rate,
        padding_mode=edit.padding_mode,
        channels_last=edit.site.channels_last,
        **method.options,
        **like,
    )
    if method.filter is not None:
        keywords["filter"] = edit.filter
    if method.per_channel:
        keywords["channels"] = edit.channels
    if edit.leader:
        keywords["leads"] = False
    if method.name == "blur" and edit.site.op == "interpolate":
        return BlurBeforeResize(**keywords)
    maps = method.name == "blur" and edit.site.dims
    return BlurMaps(**keywords) if maps else method.layer(**keywords)


def _like(model: nn.Module, site: Site) -> Like:
    """Return device and dtype of the parameters nearest to a site."""
    path = site.scope if site.node else site.name
    while True:
        for tensor in model.get_submodule(path).parameters():
            if tensor.is_floating_point():
                return dict(device=tensor.device, dtype=tensor.dtype)
        if not path:
            return {}
        path = path.rpartition(".")[0]
