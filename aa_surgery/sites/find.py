"""Find every op of a model that lowers the sampling rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from aa_surgery.layers.downsample import Downsample
from aa_surgery.sites.flow import Flow, Spot
from aa_surgery.sites.functions import read_node
from aa_surgery.sites.heads import is_global_pool
from aa_surgery.sites.instance import REPLACED_FORWARD, replaces_forward
from aa_surgery.sites.kinds import has_two_forms, is_getitem, is_size_read
from aa_surgery.sites.leaves import called_function
from aa_surgery.sites.modules import plain_forward, read_conv_like, read_module
from aa_surgery.sites.partitions import is_put_back, is_shuffled_back
from aa_surgery.sites.reach import reached
from aa_surgery.sites.site import Anchor, Site, Unread
from aa_surgery.sites.unread import read_patch_embedding, unread_forwards
from aa_surgery.treated import inserted, worn_by

__all__ = ["find_sites", "survey"]


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return every downsampling op of `model`, in the order of its modules.

    Reads only: each forward is traced by `torch.fx` with its children as leaves, and nothing of
    the model is changed or run.

    >>> import torchvision
    >>> [site.name for site in find_sites(torchvision.models.resnet18())][:3]
    ['conv1', 'maxpool', 'layer2.0.conv1']
    """
    return survey(model)[0]


def survey(model: nn.Module) -> tuple[tuple[Site, ...], tuple[Unread, ...]]:
    """Return the sites of `model`, and the forwards in which none could be looked for."""
    flow = Flow(model)
    sites: list[Site] = []
    layers = tuple(f"{path}." for path, m in flow.modules.items() if isinstance(m, Downsample))
    ours = inserted(flow.modules.values())
    for path, module in flow.modules.items():
        if f"{path}.".startswith(layers) or module in ours:
            continue
        fields = read_module(module)
        if worn_by(module) is not None:
            sites += _treated_sites(path, module, fields, flow)
        elif fields is not None and plain_forward(module):
            if _samples(module, fields, flow):
                site = _module_site(path, module, fields, flow)
                if replaces_forward(module):
                    site = replace(site, activation=None, opaque=REPLACED_FORWARD)
                sites.append(site)
        elif path in flow.graphs:
            sites += _function_sites(path, module, fields, flow)
        elif path in flow.failures:
            fields = fields or read_patch_embedding(module)
            if fields is not None:
                sites.append(_opaque_site(path, module, fields, flow))
    done = {path for path, m in flow.modules.items() if m in ours or worn_by(m) is not None}
    return reached(sites, flow), tuple(u for u in unread_forwards(flow) if u.scope not in done)


def _module_site(path: str, module: nn.Module, fields: dict[str, Any], flow: Flow) -> Site:
    calls = flow.calls(module)
    parent = calls[0].path if calls else path.rpartition(".")[0]
    site = Site(
        name=path,
        kind=type(module).__name__,
        scope=parent,
        scope_kind=type(flow.modules[parent]).__name__,
        unseen="" if calls else flow.failures.get(parent, ""),
        **fields,
    )
    return _with_surroundings(site, calls[0], flow) if len(calls) == 1 else site


def _samples(module: nn.Module, fields: dict[str, Any], flow: Flow) -> bool:
    """Tell whether a module samples where it is called: it pools no whole map, and cuts to keep."""
    calls = flow.calls(module)
    if len(calls) != 1:
        return True
    if fields["op"] == "unfold":
        return not is_put_back(calls[0], flow)
    if isinstance(module, nn.PixelUnshuffle):
        return not is_shuffled_back(calls[0], flow)
    if fields["op"] in ("max_pool", "avg_pool"):
        return not is_global_pool(flow, calls[0])
    return True


_DONE = "anti-aliased already"
_CARRIES = "it carries the layer of another site: call remove_antialias(model), to treat both"


def _treated_sites(
    path: str, module: nn.Module, fields: dict[str, Any] | None, flow: Flow
) -> list[Site]:
    """Return the sites of a module that surgery changed, which are left as they are."""
    worn = worn_by(module)
    sites = worn.sites if worn is not None else ()
    if not sites:
        own = [] if fields is None else [_module_site(path, module, fields, flow)]
        return [replace(site, activation=None, output=None, problem=_CARRIES) for site in own]
    return [
        replace(
            site,
            name=f"{path}:{site.node}" if site.in_forward else path,
            scope=path if site.node else path.rpartition(".")[0],
            activation=None,
            output=None,
            problem=_DONE,
        )
        for site in sites
    ]


def _opaque_site(path: str, module: nn.Module, fields: dict[str, Any], flow: Flow) -> Site:
    """Return the site of a module whose own forward cannot be traced: a blur can precede it."""
    site = _module_site(path, module, fields, flow)
    return replace(site, activation=None, opaque=flow.failures[path])


def _function_sites(
    path: str, module: nn.Module, owner: dict[str, Any] | None, flow: Flow
) -> list[Site]:
    """Return the sites among the nodes of a scope's graph.

    Where the scope is itself a conv or pool with a forward of its own (timm's `Conv2dSame`,
    `CondConv2d`), the node is that module's op and takes its name and its known sizes.
    """
    owner = owner or read_conv_like(module)
    found: list[Site] = []
    sliced: set[fx.Node] = set()
    for node in flow.functions(path):
        fields = read_node(Spot(path, node), flow)
        if fields is None:
            continue
        if fields["op"] == "slice":
            source = node.all_input_nodes[0]
            if source in sliced:
                continue  # slices of one map at several offsets are one site
            sliced.add(source)
        if owner is not None and owner["op"] == fields["op"]:
            fields |= {k: owner[k] for k in ("kernel", "in_channels", "groups") if k in owner}
            name, kind = path, type(module).__name__
            calls = flow.calls(module)
            spot = calls[0] if len(calls) == 1 else Spot(path, node)
        else:
            spot = Spot(path, node)
            name = f"{path}:{node.name}"
            kind = getattr(node.target, "__name__", str(node.target))
        site = Site(
            name=name,
            kind=kind,
            scope=path,
            scope_kind=type(module).__name__,
            node=node.name,
            given=flow.given(module),
            **fields,
        )
        site = _with_surroundings(site, spot, flow)
        if owner is not None and _measures_its_output(node, site, module):
            site = replace(site, activation=None, opaque=_MEASURES.format(kind))
        found.append(site)
    return found


_MEASURES = "{}.forward makes something of its output's size, which is another at stride 1"


def _measures_its_output(node: fx.Node, site: Site, module: nn.Module) -> bool:
    """Tell whether a helper is given the size of an op's output, which the dense op changes."""
    sizes = [user for user in node.users if is_size_read(user)]
    if not sizes or not site.kernel:
        return False
    sizes += [item for size in sizes for item in size.users if is_getitem(item)]
    helped = any(called_function(user, module) for size in sizes for user in size.users)
    windows = zip(site.kernel, site.dilation, site.padding, strict=True)
    return helped and any(2 * pad != dilation * (size - 1) for size, dilation, pad in windows)


def _with_surroundings(site: Site, spot: Spot, flow: Flow) -> Site:
    """Add what follows the op, and where a blur behind it could stand."""
    through: tuple[str, ...] = ("norm",)
    if site.merged:
        nodes = flow.graphs[spot.path].nodes
        spot = Spot(spot.path, next(n for n in nodes if n.name == site.merged))
        through = ("norm", "linear")
    follows, linear, activation = flow.after_op(spot, through, bool(site.merged))
    if has_two_forms(flow.modules[site.scope]):
        activation = None
    if site.merged and not follows:
        site = replace(site, merged="")
    return replace(
        site,
        follows=follows,
        output=_free(flow.anchor(linear), flow),
        activation=None if activation is None else _free(flow.anchor(activation), flow),
    )


def _free(anchor: Anchor, flow: Flow) -> Anchor | None:
    """Return the place, if the module there was not treated already, with another part."""
    return anchor if worn_by(flow.modules[anchor.path]) is None else None
