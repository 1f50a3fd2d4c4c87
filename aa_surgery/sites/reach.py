"""What of the sites in forwards can be reached in the user's source, and alone.

A site in a forward is treated by rewriting the call that issues it. Where that call cannot be
reached, the site is left, with the reason; where the call behind which a blur would stand cannot,
the blur stands before the op. One call may issue several ops (a loop, a method that is called
twice): what stands at that call then serves them all, so that they must be alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import fx

from aa_surgery.sites.code import SourceError
from aa_surgery.sites.flow import Flow
from aa_surgery.sites.kinds import is_getitem
from aa_surgery.sites.merging import read_reshape_merge, slice_merge, sliced_steps
from aa_surgery.sites.routes import Place, Route, can_merge, route_of
from aa_surgery.sites.site import Anchor, Site
from aa_surgery.sites.tracer import WAY

__all__ = ["reached"]

_WAY_OUT = "do it in a module (nn.MaxPool2d, nn.Conv2d, ...), or blur before it by hand"

Key = tuple[str, Place]


def reached(sites: Iterable[Site], flow: Flow) -> tuple[Site, ...]:
    """Return the sites, with what cannot be done in the forwards of the model taken away."""
    scopes: dict[str, _Scope] = {}

    def scope(path: str) -> _Scope:
        return scopes.setdefault(path, _Scope(path, flow))

    found = [_with_line(site, scope(site.scope)) if site.node else site for site in sites]
    for name in ("activation", "output"):
        anchors = {id(site): a for site in found if _in_graph(a := getattr(site, name))}
        served: dict[tuple[str, tuple[int, ...]], set[str]] = defaultdict(set)
        for site in found:
            if id(site) in anchors:
                anchor = anchors[id(site)]
                served[anchor.path, site.stride].add(anchor.node)
        found = [
            _with_anchor(site, name, _with_line_of(a, scope(a.path), served[a.path, site.stride]))
            if (a := anchors.get(id(site))) is not None
            else site
            for site in found
        ]
    return tuple(found)


def _with_anchor(site: Site, name: str, anchor: Anchor | None) -> Site:
    if name == "activation":
        return replace(site, activation=anchor)
    return replace(site, output=anchor)


def _in_graph(anchor: Anchor | None) -> bool:
    return anchor is not None and anchor.kind in ("node", "input")


def _with_line_of(anchor: Anchor, scope: _Scope, served: set[str]) -> Anchor | None:
    """Return an anchor with its line of code; None if it cannot be reached, or serves other ops."""
    key = scope.serves(anchor.node, served)
    return None if key is None else replace(anchor, line=f"{key[0]}:{key[1][0]}:{key[1][1]}")


def _with_line(site: Site, scope: _Scope) -> Site:
    """Return a site of a forward with its line of code, or why it cannot be treated there."""
    node = scope.nodes[site.node]
    try:
        keys = [scope.route(n).key for n in _parts(node)]
        if site.merged and not _can_merge(node, scope):
            site = replace(site, merged="")
        key = keys[0]
        others = [n for n in scope.kin(node, key) if n not in _parts(node)]
    except SourceError as error:
        return _out_of_reach(site, str(error))
    if not site.adapts and not all(scope.samples_alike(node, n) for n in others):
        return _out_of_reach(site, f"line {key[1][0]} issues ops that are not alike")
    return replace(site, line=f"{key[0]}:{key[1][0]}:{key[1][1]}")


def _out_of_reach(site: Site, reason: str) -> Site:
    if site.in_forward:
        problem = site.problem or f"its call cannot be rewritten: {reason}; {_WAY_OUT}"
        return replace(site, problem=problem)
    return replace(site, activation=None, opaque=reason)


def _parts(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that an edit of a site changes together: all slices of one map."""
    if not is_getitem(node):
        return [node]
    source = node.all_input_nodes[0]
    return [u for u in source.users if is_getitem(u) and sliced_steps(u.args[1])] or [node]


def _can_merge(node: fx.Node, scope: _Scope) -> bool:
    merge = None if is_getitem(node) else read_reshape_merge(node)
    if merge is None:
        cat = slice_merge(node)
        return cat is not None and all(scope.route(n) for n in cat.all_input_nodes)
    method = merge.nodes[0].op == "call_method"
    return can_merge(scope.route(merge.nodes[0]), scope.route(merge.nodes[-1]), method)


class _Scope:
    """The graph of one scope, and the routes to its nodes."""

    def __init__(self, path: str, flow: Flow) -> None:
        self.module = flow.modules[path]
        self.nodes = {node.name: node for node in flow.graphs[path].nodes}
        self._at: dict[object, list[fx.Node]] = defaultdict(list)
        for node in self.nodes.values():
            way = node.meta.get(WAY)
            if way:
                self._at[way[-1]].append(node)

    def route(self, node: fx.Node, value: bool = False) -> Route:
        return route_of(self.module, node.meta.get(WAY, ()), value)

    def kin(self, node: fx.Node, key: Key, value: bool = False) -> list[fx.Node]:
        """Return the other nodes that the very call issues."""
        way = node.meta.get(WAY)
        others = [n for n in self._at[way[-1]] if n is not node] if way else []
        return [n for n in others if self.route(n, value).key == key]

    def samples_alike(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether two calls have the same arguments, tensors aside."""
        return _plain(node.args) == _plain(other.args) and _plain(node.kwargs) == _plain(
            other.kwargs
        )

    def serves(self, name: str, nodes: set[str]) -> Key | None:
        """Return where a node is called, if that call can be reached and issues only `nodes`."""
        node = self.nodes[name]
        if node.op == "placeholder":
            return None
        try:
            key = self.route(node, value=True).key
            alone = all(n.name in nodes for n in self.kin(node, key, value=True))
        except SourceError:
            return None
        return key if alone else None


def _plain(arguments: Any) -> str:
    return repr(fx.node.map_arg(arguments, lambda n: None))
