"""Trace scopes: a module's own forward, with every child a leaf."""

from __future__ import annotations

import dis
import gc
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.fx.proxy import TraceError

from aa_surgery.errors import NotTraceableError
from aa_surgery.sites.leaves import Leaf, deciding_function, in_static_method, recorded_calls
from aa_surgery.sites.memo import Memo, Paths
from aa_surgery.sites.site import Given

__all__ = ["PLAIN", "Trace", "require_default", "trace_scope", "trace_scopes"]

_MAX_LEAVES = 8
PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(PLAIN)

_T = TypeVar("_T")


class Trace(Protocol):
    """`trace(scope)`: the graph of one forward, within a session of `trace_scopes`."""

    def __call__(
        self, scope: nn.Module, training: bool = False, given: Iterable[tuple[Any, ...]] = ()
    ) -> fx.Graph:
        """Return the graph."""
        ...


def trace_scopes(work: Callable[[Trace], _T]) -> _T:
    """Return `work(trace)`, where `trace(scope)` gives the graph of `scope.forward`.

    fx patches `nn.Module` for the time of a trace, which costs more than tracing a small forward;
    so any number of scopes is traced in one such session. Scopes that are alike share a graph: it
    is for reading. `trace(scope, training, given)` has these arguments:

    - scope: The module; left as it was, whatever its forward assigns. Its children are leaves.
    - training: Which branch to follow where the forward reads `self.training`.
    - given: Arguments that callers fill although they have a plain default: `(name,)` where with a
      value of the graph, `(name, constant)` where always with that.

    A helper which decides on a tensor's size (timm's `get_same_padding`, transformers'
    `maybe_pad`) cannot be traced; it becomes a leaf of the graph (`sites/leaves.py`), so that it
    goes on deciding when the graph runs. Functions that their author made leaves (`torch.fx.wrap`)
    are entered like any other.

    Raises:
        NotTraceableError: By `trace`: the forward decides on tensor sizes or values itself.
    """
    session = _Session()
    with _nothing_wrapped(), _no_garbage_collection(), session.memo.installed():
        return session.run(work)


def trace_scope(
    scope: nn.Module, training: bool = False, given: Iterable[tuple[Any, ...]] = ()
) -> fx.Graph:
    """Return the graph of one scope's forward, as `trace_scopes` does of many."""
    return trace_scopes(lambda trace: trace(scope, training, given))


def require_default(value: object, default: object, name: str) -> None:
    """Refuse another value of an argument than the one that the forward was traced for."""
    if value is not default and value != default:
        shown = value if isinstance(value, PLAIN) else type(value).__name__
        raise NotTraceableError(
            f"argument {name}={shown}: this forward was traced for {name}={default} and follows "
            "that branch alone. Call remove_antialias(model), or exclude this module."
        )


class _Session(fx.Tracer):
    """The tracer that fx's patches answer to; hands what they meet to the scope being traced."""

    def __init__(self) -> None:
        super().__init__()
        self.memo = Memo()

    def run(self, work: Callable[[Trace], _T]) -> _T:
        """Run `work` while `nn.Module` is patched."""
        root = _Work(work, self.trace_one)
        self.trace(root)
        return root.result

    def trace_one(
        self, scope: nn.Module, training: bool = False, given: Iterable[tuple[Any, ...]] = ()
    ) -> fx.Graph:
        """Return the graph of `scope.forward`, or that of a scope alike."""
        given = tuple(given)
        return self.memo.recall(
            scope, training, given, lambda paths: self._traced(scope, training, given, paths)
        )

    def _traced(self, scope: nn.Module, training: bool, given: Given, paths: Paths) -> fx.Graph:
        """Return the graph of `scope.forward`, with functions that decide on sizes as leaves."""
        leaves: list[Leaf] = []
        while True:
            self.current = _ScopeTracer(scope, given, paths, self.memo)
            try:
                with _unchanged(scope, training), recorded_calls(leaves, scope):
                    # by way of the patched call, so that fx wraps `math` in the forward's module
                    nn.Module.__call__(scope)
                return self.current.graph
            except Exception as error:
                leaf = deciding_function(error, scope)
                if leaf is None or leaf in leaves or len(leaves) == _MAX_LEAVES:
                    raise NotTraceableError(
                        f"{type(scope).__name__}.forward cannot be traced: {_why(error)}"
                    ) from error
                leaves.append(leaf)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return self.current.call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return self.current.read(attr_val)


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    if isinstance(error, TraceError) or "symbolic tracing" in lines[0]:
        return "it decides on the sizes or values of tensors"
    return lines[0].replace(_Proxy.__name__, "Proxy")


class _Work(nn.Module):
    """The root of a session: its forward is all of the session's work."""

    def __init__(self, work: Callable[[Trace], Any], trace: Trace) -> None:
        super().__init__()
        self.work = work
        self.trace = trace
        self.result: Any = None

    def forward(self) -> None:
        self.result = self.work(self.trace)


class _Proxy(fx.Proxy):
    """A proxy that remembers where a function unpacks; fx disassembles it for every unpacking."""

    def __getattr__(self, k: str) -> _Attribute:
        return _Attribute(self, k)

    def __iter__(self) -> Iterator[Any]:
        caller: Any = inspect.currentframe().f_back  # type: ignore[union-attr]
        count = _unpackings(caller.f_code).get(caller.f_lasti)
        if count is None:
            return iter(self.tracer.iter(self))
        item: Any = self
        return (item[i] for i in range(count))


class _Attribute(fx.proxy.Attribute):
    """An attribute of a proxy (`x.shape`), unpacked in the same way."""

    __getattr__ = _Proxy.__getattr__
    __iter__ = _Proxy.__iter__

    def __bool__(self) -> bool:
        """Follow the branch without gradients, where a forward asks so as to checkpoint itself.

        The read stays in the graph, so that a rewritten forward is checkpointed too.
        """
        if self.attr != "requires_grad":
            return super().__bool__()
        self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {})
        return False


@cache
def _unpackings(code: types.CodeType) -> dict[int, int]:
    """Return into how many names the instruction at each offset unpacks."""
    instructions = dis.get_instructions(code)
    return {i.offset: i.argval for i in instructions if i.opname == "UNPACK_SEQUENCE"}


class _ScopeTracer(fx.Tracer):
    """Build the graph of one scope: enter no child, keep plain default arguments concrete."""

    def __init__(self, scope: nn.Module, given: Given, paths: Paths, memo: Memo) -> None:
        nothing: Any = ()  # older annotations of torch ask for one module, no more and no less
        super().__init__(autowrap_modules=nothing)
        self.memo = memo
        self.root = scope
        self.given = {name: constant for name, *constant in given}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {}
        self.entered = False
        self.paths = paths
        self.tensors: dict[int, str] | None = None
        self.proxies: dict[str, fx.Proxy] = {}

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if m is self.root and not self.entered:
            self.entered = True
            return self._trace_root()
        path = self.paths.get(id(m))
        if path is None:
            raise NameError(f"it calls a {type(m).__name__} that is not one of its children")
        return self.create_proxy("call_module", path, args, kwargs)

    def _trace_root(self) -> None:
        forward, args = self.create_args_for_root(type(self.root).forward, True)
        with self.memo.listening():
            result = forward(*args)
        self.create_node("output", "output", (self.create_arg(result),), {})

    def read(self, value: Any) -> Any:
        """Return the proxy of a tensor that the scope holds; else the value."""
        if not isinstance(value, torch.Tensor):
            return value
        name = self._name_of(value)
        if name is None:
            return value
        if name not in self.proxies:
            self.proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self.proxies[name]

    def _name_of(self, tensor: torch.Tensor) -> str | None:
        if self.tensors is None:
            with self.memo.listening(False):
                self.tensors = {id(value): name for name, value in _held_tensors(self.root)}
        return self.tensors.get(id(tensor))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        kind = type(a)
        if kind in _PLAIN_TYPES:
            return a
        if kind is tuple or kind is list:
            return kind(self.create_arg(item) for item in a)
        if isinstance(a, torch.Tensor):
            a = self.read(a)
            if isinstance(a, fx.Proxy):
                return a.node
            if in_static_method():
                raise TraceError("a static method reads a tensor that the scope does not hold")
        return super().create_arg(a) if kind is not dict or a else {}

    def _proxy_placeholder(
        self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Any
    ) -> Any:
        parameter = sig.parameters.get(name)
        proxy = super()._proxy_placeholder(name, concrete_args, sig, fn_for_analysis)
        if parameter is None or parameter.default is inspect.Parameter.empty:
            return proxy
        constant = self.given.get(name, [parameter.default])
        if not constant or not isinstance(constant[0], PLAIN):
            return proxy
        self.create_proxy("call_function", require_default, (proxy, constant[0], name), {})
        return constant[0]


def _held_tensors(scope: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a forward can read by name: parameters, buffers, and tensors in attributes."""
    for path, module in scope.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, value
    yield from scope.named_buffers()
    yield from scope.named_parameters()


@contextmanager
def _unchanged(scope: nn.Module, training: bool) -> Iterator[None]:
    """Give back the attributes of `scope` afterwards, whatever the forward assigned or cached."""
    saved = dict(scope.__dict__)
    contents = {
        key: (value, value.copy())
        for key, value in saved.items()
        if type(value) in (dict, list) and (value or not key.startswith("_"))
    }
    scope.training = training
    try:
        yield
    finally:
        for key in set(scope.__dict__) - set(saved):
            del scope.__dict__[key]
        scope.__dict__.update(saved)
        for held, content in contents.values():
            if _same(held, content):
                continue
            held.clear()
            held.update(content) if isinstance(held, dict) else held.extend(content)


def _same(one: Any, other: Any) -> bool:
    """Tell whether two dicts or lists hold the same objects; `==` would compare tensors."""
    if isinstance(one, dict):
        return list(one) == list(other) and _same([*one.values()], [*other.values()])
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from looking for garbage among the thousands of nodes that a session makes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _nothing_wrapped() -> Iterator[None]:
    """Let fx forget the functions under `torch.fx.wrap`, of whatever package.

    Some of them subsample (torchvision's `_patch_merging_pad`); and fx patches all of them anew at
    every trace, which takes longer than the trace of a small scope.
    """
    wrapped = _symbolic_trace._wrapped_fns_to_patch
    saved = dict(wrapped)
    wrapped.clear()
    try:
        yield
    finally:
        wrapped.update(saved)
