"""Forward rewrite: the user's own source, in which the calls that sample are treated."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any

from torch import fx, nn

from aa_surgery.errors import NotTraceableError
from aa_surgery.layers.calls import MergeCall
from aa_surgery.rules import Edit
from aa_surgery.sites import Given
from aa_surgery.sites.code import SourceError
from aa_surgery.sites.instance import other_forwards
from aa_surgery.sites.kinds import is_getitem
from aa_surgery.sites.merging import read_reshape_merge, slice_merge, sliced_steps
from aa_surgery.sites.roles import role_of_module
from aa_surgery.sites.routes import Place, Route, Unit, route_of
from aa_surgery.sites.tracer import WAY, Trace, trace_scopes
from aa_surgery.surgery.source import Action, Rewritten, rewritten

__all__ = ["GraphEdit", "Rewrite", "rewrites"]


@dataclass(frozen=True)
class GraphEdit:
    """One change of a scope's forward.

    Attributes:
        edit: The edit that it is part of.
        action: `"call"`: a module of ours is called in the function's stead; `"dense"`: a patch
            merging takes every patch; `"after"` and `"input"`: the blur is called on the op's
            value, or on what it reads.
        node: The name of the op's node in the scope's graph.
        child: The name of the scope's child that is called.
        given: Arguments that callers of the scope fill.
    """

    edit: Edit
    action: str
    node: str
    child: str = ""
    given: Given = ()


@dataclass
class Rewrite:
    """What rewriting a scope's forward takes.

    Attributes:
        methods: The methods of its class that are other ones.
        children: Children that they call beside those of the edits.
        spare: Children of edits that are not called: another edit's serves the same line of code.
    """

    methods: tuple[Rewritten, ...] = ()
    children: dict[str, nn.Module] = field(default_factory=dict)
    spare: set[str] = field(default_factory=set)


def rewrites(scopes: Mapping[str, tuple[nn.Module, Sequence[GraphEdit]]]) -> dict[str, Rewrite]:
    """Return what each scope takes, by its name.

    Raises:
        NotTraceableError: A forward has no source, or no op where the plan has one.
    """
    if not scopes:
        return {}
    return trace_scopes(
        lambda trace: {
            path: _rewrite(path, scope, edits, trace) for path, (scope, edits) in scopes.items()
        }
    )


def _rewrite(path: str, scope: nn.Module, edits: Sequence[GraphEdit], trace: Trace) -> Rewrite:
    graph = trace(scope, False, _given(edits))
    result = _Writer(path, scope, graph).write(edits)
    for other in other_forwards(scope):
        _add_other(result, other, _twin_with(scope, other), edits, graph, trace)
    return result


def _twin_with(scope: nn.Module, forward: str) -> nn.Module:
    """Return a shallow copy of a module on which another of its methods was set as its forward."""
    twin = copy.copy(scope)
    twin.__dict__["forward"] = MethodType(getattr(type(scope), forward), twin)
    return twin


def _add_other(
    result: Rewrite,
    name: str,
    twin: nn.Module,
    edits: Sequence[GraphEdit],
    graph: fx.Graph,
    trace: Trace,
) -> None:
    """Rewrite another forward in the same way, where it has the same ops, norms aside."""
    try:
        there = trace(twin, False, _given(edits))
        moved = [replace(e, node=_counterpart(e.node, graph, there, twin)) for e in edits]
        other = _Writer(name, twin, there).write(moved)
    except NotTraceableError:
        return  # it stays as it is; whoever sets it as the forward is told so
    if [method.name for method in other.methods] == [name]:  # or helpers would serve both
        result.methods += other.methods
        result.children |= other.children
        result.spare &= other.spare


def _counterpart(name: str, graph: fx.Graph, there: fx.Graph, scope: nn.Module) -> str:
    """Return the one node of another graph that makes the same of the input as `name` does."""
    made = {node.name: _made_of(node, scope) for node in graph.nodes}
    found = [node.name for node in there.nodes if _made_of(node, scope) == made[name]]
    if len(found) != 1 or list(made.values()).count(made[name]) != 1:
        raise NotTraceableError(f"it has {len(found)} ops like {name}")
    return found[0]


def _made_of(node: fx.Node, scope: nn.Module) -> tuple[Any, ...]:
    """Return the ops from the input to a node, norms aside; each reads the one before it."""
    chain: list[Any] = []
    here: fx.Node | None = node
    while here is not None and here.op != "placeholder":
        module = scope.get_submodule(str(here.target)) if here.op == "call_module" else None
        if module is None or role_of_module(module) != "norm":
            chain.append((here.op, here.target, len(here.all_input_nodes)))
        inputs = here.all_input_nodes
        here = inputs[0] if inputs else None
    return tuple(chain)


def _given(edits: Iterable[GraphEdit]) -> Iterable[Any]:
    return dict.fromkeys(argument for change in edits for argument in change.given)


class _Writer:
    """Collects what is done at which place of which function, and writes these anew."""

    def __init__(self, path: str, scope: nn.Module, graph: fx.Graph) -> None:
        self.path, self.scope, self.graph = path, scope, graph
        self.units: dict[str, Unit] = {}
        self.actions: dict[str, dict[Place, list[Action]]] = {}
        self.result = Rewrite()

    def write(self, edits: Sequence[GraphEdit]) -> Rewrite:
        """Return the rewrite for all edits of the scope."""
        try:
            for change in edits:
                _ACTIONS[change.action](self, self._node(change.node), change)
            self.result.methods = tuple(
                rewritten(type(self.scope), unit, self.actions.get(name, {}))
                for name, unit in self.units.items()
            )
        except SourceError as error:
            raise NotTraceableError(
                f"{self.path or 'the model'} ({type(self.scope).__name__}): {error}. "
                "Exclude this module, or use placement='pre'."
            ) from error
        return self.result

    def _node(self, name: str) -> fx.Node:
        for node in self.graph.nodes:
            if node.name == name:
                return node
        raise NotTraceableError(
            f"{self.path or 'the model'}: no op {name} in its forward. Make the plan again."
        )

    def _route(self, node: fx.Node, value: bool = False) -> Route:
        route = route_of(self.scope, node.meta.get(WAY, ()), value)
        for unit in route.units:
            self.units.setdefault(unit.name, unit)
            if unit.led:
                caller, place = unit.led
                self._add(caller, place, Action("lead", unit.name))
        return route

    def _add(self, unit: str, place: Place, action: Action) -> bool:
        """Note an action; whether it is the first of its kind there."""
        known = self.actions.setdefault(unit, {}).setdefault(place, [])
        if any(a.kind == action.kind for a in known):
            return False
        known.append(action)
        return True

    def _call(self, node: fx.Node, change: GraphEdit) -> None:
        self._at(self._route(node), Action("call", change.child))

    def _after(self, node: fx.Node, change: GraphEdit) -> None:
        self._at(self._route(node, value=True), Action("after", change.child))

    def _at(self, route: Route, action: Action) -> None:
        if not self._add(*route.key, action):
            self.result.spare.add(action.child)

    def _input(self, node: fx.Node, change: GraphEdit) -> None:
        """Blur what the node reads; slices of one map at several offsets share the blur."""
        if not is_getitem(node):
            self._at(self._route(node), Action("input", change.child, method=_is_method(node)))
            return
        source = node.all_input_nodes[0]
        readers = [u for u in source.users if is_getitem(u) and sliced_steps(u.args[1])]
        keys = list(dict.fromkeys(self._route(reader).key for reader in readers))
        shared = tuple(place for unit, place in keys if unit == keys[0][0])
        for unit, place in keys:
            together = shared if unit == keys[0][0] else (place,)
            self._at(
                Route((self.units[unit],), place), Action("input", change.child, places=together)
            )
        self.result.spare.discard(change.child)

    def _dense(self, node: fx.Node, change: GraphEdit) -> None:
        """Let patch merging take every patch, not one in `stride`."""
        merge = None if is_getitem(node) else read_reshape_merge(node)
        if merge is not None:
            first, last = self._route(merge.nodes[0]), self._route(merge.nodes[-1])
            if first.units[-1] != last.units[-1]:
                raise SourceError("its patches are merged in several functions")
            call = MergeCall(merge.dims, merge.factors, merge.order, merge.joined)
            self.result.children[change.child] = call
            method = _is_method(merge.nodes[0])
            self._at(last, Action("merge", change.child, (first.place,), method))
            return
        cat = slice_merge(node)
        for part in [] if cat is None else cat.all_input_nodes:
            self._add(*self._route(part).key, Action("dense", ""))


def _is_method(node: fx.Node) -> bool:
    return node.op == "call_method"


_ACTIONS = {
    "call": _Writer._call,
    "after": _Writer._after,
    "input": _Writer._input,
    "dense": _Writer._dense,
}
