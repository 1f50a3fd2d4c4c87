"""The model's data flow, one graph a scope, walked across the scopes' borders."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import fx, nn

from aa_surgery.errors import NotTraceableError
from aa_surgery.layers.downsample import Downsample
from aa_surgery.sites.containers import is_taken_apart
from aa_surgery.sites.instance import forward_of, replaces_forward
from aa_surgery.sites.kinds import (
    is_container,
    is_size_read,
    own_forward,
    reads_map_size,
)
from aa_surgery.sites.roles import is_norm, is_pointwise, role_of_function, role_of_module
from aa_surgery.sites.site import Anchor, Given
from aa_surgery.sites.tracer import PLAIN, Trace, trace_scopes

__all__ = ["Flow", "Spot"]

_MAX_STEPS = 12
_SET_ON_INSTANCE = (
    "a forward set on the instance runs in the stead of its class's (a hook of accelerate's, a "
    "patch). Apply before it is set"
)


@dataclass(frozen=True)
class Spot:
    """A node of the graph of the scope at `path`."""

    path: str
    node: fx.Node


@dataclass(frozen=True)
class _Calls:
    """The nodes of a graph that call something; alike scopes share a graph, which is read once."""

    modules: list[fx.Node]
    functions: list[fx.Node]

    @classmethod
    def of(cls, graph: fx.Graph) -> _Calls:
        nodes = list(graph.nodes)
        functions = ("call_function", "call_method")
        return cls(
            [node for node in nodes if node.op == "call_module"],
            [node for node in nodes if node.op in functions],
        )


class Flow:
    """Graphs of all scopes of a model, and who calls whom.

    Attributes:
        modules: The model's modules by qualified name, each under its first name.
        graphs: The graph of each scope that could be traced, by the scope's name.
        failures: Why each of the others could not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self._names = {id(module): path for path, module in self.modules.items()}
        self.graphs: dict[str, fx.Graph] = {}
        self._nodes: dict[fx.Graph, _Calls] = {}
        self.failures: dict[str, str] = {}
        self._calls: dict[int, list[Spot]] = defaultdict(list)
        self._taps = set(_taps(self.modules))
        trace_scopes(self._trace_all)

    def _trace_all(self, trace: Trace) -> None:
        for path, module in self.modules.items():
            if not isinstance(module, Downsample) and _brings_forward(module):
                self._trace(path, module, trace)
        for path in [p for p in self.graphs if self._takes_parts_one_by_one(p)]:
            graph = self.graphs.pop(path)
            for node in self._nodes[graph].modules:
                self._calls[id(_child(self.modules[path], node))].remove(Spot(path, node))

    def _takes_parts_one_by_one(self, path: str) -> bool:
        """Tell of a container whether the forward around it, unread, calls its parts."""
        around, _, name = path.rpartition(".")
        unread = around in self.failures and is_container(self.modules[path])
        if not path or not unread or self._calls[id(self.modules[path])]:
            return False
        return is_taken_apart(type(self.modules[around]), name)

    def _trace(self, path: str, module: nn.Module, trace: Trace) -> None:
        if replaces_forward(module):
            self.failures[path] = _SET_ON_INSTANCE
            return
        try:
            graph = trace(module, given=self.given(module))
        except NotTraceableError as error:
            self.failures[path] = str(error)
            return
        self.graphs[path] = graph
        if graph not in self._nodes:
            self._nodes[graph] = _Calls.of(graph)
        for node in self._nodes[graph].modules:
            self._calls[id(_child(module, node))].append(Spot(path, node))

    def functions(self, path: str) -> list[fx.Node]:
        """Return the nodes by which the scope at `path` calls functions and methods."""
        return self._nodes[self.graphs[path]].functions if path in self.graphs else []

    def name_of(self, spot: Spot) -> str:
        """Return the qualified name, the first of several, of what a call_module node calls."""
        return self._names[id(self.module_of(spot))]

    def module_of(self, spot: Spot) -> nn.Module:
        """Return the module that a call_module node calls."""
        return _child(self.modules[spot.path], spot.node)

    def given(self, module: nn.Module) -> Given:
        """Return the arguments that the callers of `module` fill in spite of plain defaults.

        Of the model itself that is its first argument (`pixel_values=None` of transformers).
        """
        spots = self._calls[id(module)]
        if not spots and module is self.modules[""]:
            first = next(iter(_defaults_of(forward_of(module)).items()), ("", 0))
            return ((first[0],),) if first[1] is None else ()
        defaults = _defaults_of(forward_of(module)) if spots else {}
        passed: dict[str, list[Any]] = defaultdict(list)
        for spot in spots:
            arguments = {**dict(zip(defaults, spot.node.args, strict=False)), **spot.node.kwargs}
            for name, default in defaults.items():
                if isinstance(default, PLAIN) or inspect.isroutine(default):
                    passed[name].append(arguments.get(name, default))
        found: list[tuple[Any, ...]] = []
        for name, values in passed.items():
            if all(isinstance(v, PLAIN) and _equal(v, values[0]) for v in values):
                if not _equal(values[0], defaults[name]):
                    found.append((name, values[0]))
            elif any(value is not defaults[name] for value in values):
                found.append((name,))
        return tuple(found)

    def calls(self, module: nn.Module) -> list[Spot]:
        """Return the places that call `module`.

        A forward that calls another method of a child (`self.backbone.forward_features(x)`) calls
        that child's parts in its stead; the child's own forward is then the place that counts.
        A `Sequential` whose members others call one by one has no such forward.
        """
        calls = self._calls[id(module)]
        indexed = [spot for spot in calls if not is_container(self.modules[spot.path])]
        if len(calls) > 1 and indexed:
            calls = [s for s in calls if s in indexed or s.path == "" or self._is_called(s.path)]
            if any(s not in indexed for s in calls):
                return calls
        deepest = max((spot.path for spot in calls), key=len, default="")
        if all(deepest.startswith(spot.path) for spot in calls):
            return [spot for spot in calls if spot.path == deepest]
        return calls

    def _is_called(self, path: str) -> bool:
        return bool(self._calls[id(self.modules[path])])

    def uses(self, spot: Spot) -> list[Spot] | None:
        """Return who reads the value of a node, across scopes; None where that is not known.

        Modules that hand a value on (identities, dropout) are looked through, and reads of the
        size are not uses.
        """
        found: list[Spot] = []
        for user in spot.node.users:
            reached = self._reached(spot, user)
            if reached is None:
                return None
            found += reached
        return found

    def known_uses(self, spot: Spot) -> list[Spot]:
        """Return those who read the value of a node, as far as they are known."""
        return [use for user in spot.node.users for use in self._reached(spot, user) or ()]

    def _reached(self, spot: Spot, user: fx.Node) -> list[Spot] | None:
        if is_size_read(user):
            return []
        there = Spot(spot.path, user)
        if user.op == "output":
            return self._uses_outside(spot, user)
        if user.op != "call_module":
            return self.uses(there) if role_of_function(user) == "transparent" else [there]
        module = self.module_of(there)
        role = role_of_module(module)
        if role == "transparent":
            return self.uses(there)
        path = self.name_of(there)
        if role or path not in self.graphs or not _reads_first(user, spot.node):
            return [there]
        inside = self._activation_in(path)
        if inside is not None and is_pointwise(module):
            return [inside]  # norm and activation in one, the norm written out (`RmsNormAct2d`)
        if len(self.calls(module)) != 1:
            return None
        entry = next(n for n in self.graphs[path].nodes if n.op == "placeholder")
        return self.uses(Spot(path, entry))

    def _activation_in(self, path: str) -> Spot | None:
        """Return the only activation that the forward of the module at `path` calls."""
        module = self.modules[path]
        found = [
            node
            for node in self.graphs[path].nodes
            if node.op == "call_module" and role_of_module(_child(module, node)) == "activation"
        ]
        return Spot(path, found[0]) if len(found) == 1 else None

    def _uses_outside(self, spot: Spot, output: fx.Node) -> list[Spot] | None:
        calls = self.calls(self.modules[spot.path])
        if output.args[0] is not spot.node or len(calls) != 1:
            return None
        return self.uses(calls[0])

    def after_op(
        self, start: Spot, through: tuple[str, ...] = ("norm",), channels_last: bool = False
    ) -> tuple[tuple[str, ...], Spot, Spot | None]:
        """Follow norms (or what else `through` names) from an op to its activation.

        Returns:
            What follows (class or function names), the last linear spot (the op or the norm
            behind it), and the activation's spot if one is reached.
        """
        names: list[str] = []
        here = start
        for _ in range(_MAX_STEPS):
            uses = self.uses(here)
            if not uses or len(uses) != 1 or self._is_tap(here) or self._is_measured(here):
                break
            spot = uses[0]
            if spot.node.op == "call_module":
                module = self.module_of(spot)
                role, name = role_of_module(module, channels_last), type(module).__name__
            else:
                role = role_of_function(spot.node, channels_last)
                name = _function_name(spot.node)
            if role not in (*through, "activation"):
                break
            names.append(name)
            if role == "activation":
                return tuple(names), here, spot
            here = spot
        return tuple(names), here, None

    def _is_tap(self, spot: Spot) -> bool:
        return spot.node.op == "call_module" and self.name_of(spot) in self._taps

    def _is_measured(self, spot: Spot) -> bool:
        """Tell whether a forward reads the size of the map: it shall be that of the blurred one."""
        if reads_map_size(spot.node):
            return True
        if not any(user.op == "output" for user in spot.node.users):
            return False
        calls = self.calls(self.modules[spot.path])
        return len(calls) == 1 and self._is_measured(calls[0])

    def _last_part(self, path: str) -> str:
        """Return the activation that makes the output of a norm with one in it, else `path`.

        timm's `BatchNormAct2d` hands its activation on to the norm that it is converted to.
        """
        if not is_norm(self.modules[path]) or path not in self.graphs:
            return path
        output: Any = next(n for n in self.graphs[path].nodes if n.op == "output").args[0]
        if getattr(output, "op", "") != "call_module":
            return path
        last = Spot(path, output)
        single = len(self.calls(self.module_of(last))) == 1
        active = role_of_module(self.module_of(last)) == "activation"
        return self.name_of(last) if single and active else path

    def anchor(self, spot: Spot) -> Anchor:
        """Return where a blur of a node's value stands best.

        Behind the module that makes the value, if that module is called once; else before the
        module that alone reads it; else in the graph. Modules are preferred to graphs because
        they serve every method of their owner (`forward_features`, `forward_intermediates`).
        """
        if spot.node.op == "call_module" and len(self.calls(self.module_of(spot))) == 1:
            return Anchor("after", self._last_part(self.name_of(spot)))
        uses = self.uses(spot)
        if uses is not None and len(uses) == 1 and uses[0].node.op == "call_module":
            reader = uses[0]
            single = len(self.calls(self.module_of(reader))) == 1
            if single and _reads_first(reader.node):
                return Anchor("before", self.name_of(reader))
        return Anchor("node", spot.path, spot.node.name, self.given(self.modules[spot.path]))


def _brings_forward(module: nn.Module) -> bool:
    own = "forward" in vars(module) and not type(module).__module__.startswith("torch.")
    return own or is_container(module) or own_forward(module)


def _child(module: nn.Module, node: fx.Node) -> nn.Module:
    """Return the part of `module` that a call_module node calls; `get_submodule`, but quickly."""
    part: Any = module
    for name in str(node.target).split("."):
        part = part.__dict__["_modules"][name]
    return part


def _reads_first(reader: fx.Node, value: fx.Node | None = None) -> bool:
    """Tell whether a node reads one value of the graph (`value`), once: as its first argument."""
    first = reader.args[0] if reader.args else None
    if not isinstance(first, fx.Node) or value not in (None, first):
        return False
    read: list[fx.Node] = []
    fx.node.map_arg((reader.args, reader.kwargs), read.append)
    return read.count(first) == 1 and (value is not None or len(read) == 1)


def _taps(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield the modules whose outputs timm's models give as features, at a rate they declare."""
    for path, module in modules.items():
        info = vars(module).get("feature_info")
        entries = getattr(info, "info", info)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and "module" in entry:
                yield f"{path}.{entry['module']}" if path else entry["module"]


@lru_cache(maxsize=1024)
def _defaults_of(forward: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments behind `self`, with their defaults."""
    _, *parameters = inspect.signature(forward).parameters.values()
    return {p.name: p.default for p in parameters}


def _equal(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def _function_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
