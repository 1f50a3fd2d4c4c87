"""Write a function anew: its source, in which the calls at certain places are other ones."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import linecache
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aa_surgery.layers.calls import Call
from aa_surgery.sites.code import SourceError, compiled, definition_of, text_of
from aa_surgery.sites.linking import cell_contents, inner_function
from aa_surgery.sites.routes import Place, Unit, resolved
from aa_surgery.surgery.statements import before_statement, shared_value

__all__ = ["Action", "Rewritten", "aliases_of", "held_by", "made_anew", "rewritten"]


@dataclass(frozen=True)
class Action:
    """What is done at one place of a function's source.

    Attributes:
        kind: `"call"`: the scope's child `child` is called in the function's stead; `"after"`: on
            the call's value; `"input"`: on the map that the call, or subscript, reads;
            `"merge"`: on the map that a chain of calls, of which the first is at `places`, reads,
            in the stead of the chain; `"lead"`: the scope's method `child` is called in the stead;
            `"dense"`: a subscript takes all samples between those that it takes.
        child: The name of the child or method.
        places: Further places that belong to it.
        method: Whether the map is the object of a method, `x.unfold(...)`, not an argument.
    """

    kind: str
    child: str
    places: tuple[Place, ...] = ()
    method: bool = False


@dataclass(frozen=True)
class Rewritten:
    """A method of an antialiased class, as text: it pickles, and makes the same function again.

    Attributes:
        name: Its name in the class.
        text: The module that defines it.
        holder: Module and qualified name of what holds the original; empty of the host class.
        attribute: The original's name in there.
    """

    name: str
    text: str
    holder: tuple[str, str]
    attribute: str


def rewritten(host: type, unit: Unit, actions: Mapping[Place, list[Action]]) -> Rewritten:
    """Return the method that does what a unit does, with `actions` done.

    Raises:
        SourceError: An action has no place in the source.
    """
    node = _twin(definition_of(unit.function))
    me = unit.function.__code__.co_varnames[0] if unit.bound else "aa_self"
    node = _Edits(node, actions, me, unit.function).edited()
    if not unit.bound:
        node.args.args.insert(0, ast.arg(me))
        if node.args.posonlyargs:
            node.args.posonlyargs.insert(0, node.args.args.pop(0))
    holder, attribute = unit.owner
    module = ("", "")
    if isinstance(holder, types.ModuleType):
        module = (holder.__name__, "")
    elif holder is not host:
        module = (holder.__module__, holder.__qualname__)
    return Rewritten(unit.name, text_of(node, unit.function), module, attribute)


def _twin(node: Any) -> Any:
    """Return a copy of a syntax tree; `copy.deepcopy`, but quickly."""
    if isinstance(node, list):
        return [_twin(part) for part in node]
    if not isinstance(node, ast.AST):
        return node
    twin = type(node).__new__(type(node))
    twin.__dict__.update({name: _twin(part) for name, part in vars(node).items()})
    return twin


class _Edits(ast.NodeTransformer):
    """Does all actions of one function."""

    def __init__(
        self, node: ast.FunctionDef, actions: Mapping[Place, list[Action]], me: str, function: Any
    ) -> None:
        self.node, self.actions, self.me, self.function = node, actions, me, function
        self.bound = bool(node.args.args or node.args.posonlyargs) and me != "aa_self"
        self.shared: dict[str, str] = {}  # of a blur, the local that holds its map

    def edited(self) -> ast.FunctionDef:
        """Return the function's new definition."""
        for action in [a for held in self.actions.values() for a in held]:
            if action.kind == "input" and action.places and action.child not in self.shared:
                local = f"{action.child}_map"
                if shared_value(self.node, action.places, local, self._call_of(action.child)):
                    self.shared[action.child] = local
        return self.visit(self.node)

    def visit(self, node: ast.AST) -> Any:
        """Return what stands for a node."""
        node = self.generic_visit(node)
        if self.bound and _asks_for_class(node, self.me):
            return ast.copy_location(self._attribute("_aa_host"), node)
        if not isinstance(node, ast.Call | ast.Subscript) or not hasattr(node, "end_lineno"):
            return node
        place = (node.end_lineno or 0, node.end_col_offset or 0)
        new: ast.expr = node
        for action in sorted(self.actions.get(place, ()), key=lambda a: _ORDER.index(a.kind)):
            new = ast.copy_location(getattr(self, f"_{action.kind}")(new, action), node)
        return new

    def _attribute(self, name: str) -> ast.expr:
        return ast.Attribute(ast.Name(self.me, ast.Load()), name, ast.Load())

    def _call_of(self, child: str) -> Any:
        return lambda value: ast.Call(self._attribute(child), [value], [])

    def _after(self, node: ast.expr, action: Action) -> ast.expr:
        return self._call_of(action.child)(node)

    def _lead(self, node: ast.Call, action: Action) -> ast.expr:
        node.func = self._attribute(action.child)
        return node

    def _input(self, node: ast.expr, action: Action) -> ast.expr:
        wrap = self._call_of(action.child)
        if isinstance(node, ast.Subscript):
            if action.child not in self.shared:
                node.value = wrap(node.value)
            return node
        return _with_map(node, action.method, wrap)

    def _call(self, node: ast.Call, action: Action) -> ast.expr:
        child = self._attribute(action.child)
        if not _names_function(node.func, self.function):
            child = ast.Call(ast.Attribute(child, "instead_of", ast.Load()), [node.func], [])
        node.func = child
        return node

    def _dense(self, node: ast.Subscript, action: Action) -> ast.expr:
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            if isinstance(part, ast.Slice) and part.step is not None:
                part.upper = _last_offset(part.lower, part.step)
                part.step = None
        return node

    def _merge(self, node: ast.Call, action: Action) -> ast.expr:
        (place,) = action.places
        wrap = self._call_of(action.child)
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and _ends_at(part, place):
                return wrap(_map_of(part, action.method))
        local = f"{action.child}_map"
        first = next(
            p for p in ast.walk(self.node) if isinstance(p, ast.Call) and _ends_at(p, place)
        )
        before_statement(self.node, first, local, _map_of(first, action.method))
        return wrap(ast.Name(local, ast.Load()))


def _asks_for_class(node: ast.AST, me: str) -> bool:
    """Whether a node is `type(self)` or `self.__class__`: for the host's code, the host's class."""
    held: Any = None
    if isinstance(node, ast.Attribute) and node.attr == "__class__":
        held = node.value if isinstance(node.ctx, ast.Load) else None
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type":
        held = node.args[0] if len(node.args) == 1 and not node.keywords else None
    return isinstance(held, ast.Name) and held.id == me


_ORDER = ("input", "dense", "merge", "call", "lead", "after")


def _ends_at(node: ast.expr, place: Place) -> bool:
    return (node.end_lineno, node.end_col_offset) == place


def _map_of(node: ast.Call, method: bool) -> ast.expr:
    held: list[ast.expr] = []

    def note(value: ast.expr) -> ast.expr:
        held.append(value)
        return value

    _with_map(node, method, note)
    return held[0]


def _with_map(node: Any, method: bool, wrap: Any) -> ast.expr:
    """Return a call that reads the map through `wrap`."""
    if method:
        if not isinstance(node.func, ast.Attribute):
            raise SourceError(f"line {node.lineno} calls a method by another name")
        node.func.value = wrap(node.func.value)
    elif node.args and not isinstance(node.args[0], ast.Starred):
        node.args[0] = wrap(node.args[0])
    else:
        named = [k for k in node.keywords if k.arg in ("input", "tensor", "x", "self")]
        if not named:
            raise SourceError(f"line {node.lineno} does not say which argument is the map")
        named[0].value = wrap(named[0].value)
    return node


def _names_function(target: ast.expr, function: types.FunctionType) -> bool:
    """Whether a call names a function that our modules stand for, as the module has it now."""
    held = resolved(target, function)
    return held is not None and any(held in cls.functions for cls in _calls())


def _calls() -> list[type[Call]]:
    found, waiting = [], [Call]
    while waiting:
        cls = waiting.pop()
        found.append(cls)
        waiting += cls.__subclasses__()
    return found


def _last_offset(start: ast.expr | None, step: ast.expr) -> ast.expr | None:
    """Return where a dense slice ends: `a::s` becomes `a:a-s+1`, and nothing for 0."""
    first: Any = start or ast.Constant(0)
    whole = ast.BinOp(ast.BinOp(first, ast.Sub(), step), ast.Add(), ast.Constant(1))
    if isinstance(first, ast.Constant) and isinstance(step, ast.Constant):
        end = int(str(first.value)) - int(str(step.value)) + 1
        return ast.Constant(end) if end else None
    return ast.BoolOp(ast.Or(), [whole, ast.Constant(None)])


def made_anew(host: type, method: Rewritten) -> Any:
    """Return the method for a class derived from `host`, decorated as the original is."""
    outer = _original(host, method)
    function = inner_function(outer)
    digest = hashlib.sha1(method.text.encode()).hexdigest()[:12]
    file = f"<aa_surgery {function.__qualname__} {digest}>"
    linecache.cache[file] = (len(method.text), None, method.text.splitlines(True), file)
    code = compiled(method.text, file, function)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    new = types.FunctionType(
        code,
        function.__globals__,
        method.name,
        function.__defaults__,
        tuple(cells[name] for name in code.co_freevars),
    )
    new.__kwdefaults__ = function.__kwdefaults__
    new.__annotations__ = dict(function.__annotations__)
    new.__doc__, new.__module__ = function.__doc__, function.__module__
    new.__qualname__ = function.__qualname__
    return _decorated(outer, function, new)


def held_by(host: type, method: Rewritten) -> tuple[Any, str]:
    """Return the class or module that holds a method's original, and its name there."""
    module, path = method.holder
    if not module:
        return host, method.attribute
    for base in host.__mro__ if path else ():
        if (base.__module__, base.__qualname__) == method.holder:
            return base, method.attribute
    holder: Any = importlib.import_module(module)
    *outer, name = method.attribute.split(".")
    for part in outer:
        holder = getattr(holder, part)
    return holder, name


def aliases_of(host: type, method: Rewritten) -> list[str]:
    """Return the names of a method of the class, `down = _down`; none of a helper's copy."""
    if method.name != method.attribute:
        return []
    original = inspect.getattr_static(host, method.attribute)
    return [name for name in dir(host) if inspect.getattr_static(host, name, None) is original]


def _original(host: type, method: Rewritten) -> Any:
    held = inspect.getattr_static(*held_by(host, method))
    return held.__func__ if isinstance(held, staticmethod) else held


def _decorated(outer: Any, old: types.FunctionType, new: types.FunctionType) -> Any:
    """Return `outer`, decorators around `old`, around `new`."""
    if outer is old:
        return new
    cells = tuple(
        types.CellType(_decorated(value, old, new))
        if isinstance(value := cell_contents(cell), types.FunctionType) and value is not outer
        else cell
        for cell in outer.__closure__ or ()
    )
    copied = types.FunctionType(
        outer.__code__, outer.__globals__, outer.__name__, outer.__defaults__, cells
    )
    copied.__kwdefaults__ = outer.__kwdefaults__
    copied.__dict__.update(outer.__dict__)
    if "__wrapped__" in copied.__dict__:
        copied.__dict__["__wrapped__"] = new
    return copied
