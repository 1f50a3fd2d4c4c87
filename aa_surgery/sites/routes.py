"""From a scope's forward to an op in a user's code: which functions must be rewritten to reach it.

The functions on the way become methods of the scope's class. A method of the scope keeps its name.
A helper, or a method of a base class that is called by `super()`, becomes a method under a name of
ours, and the call that leads to it is led there: so the copy serves this scope alone.
"""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from aa_surgery.sites.code import SourceError, class_name, definition_of
from aa_surgery.sites.frames import KEPT, Step
from aa_surgery.sites.instance import bound_methods
from aa_surgery.sites.linking import cell_contents, inner_function

__all__ = ["Place", "Route", "Unit", "call_at", "can_merge", "leads_to", "resolved", "route_of"]

Place = tuple[int, int]
"""Line and column at which a call ends in its file."""


@dataclass(frozen=True)
class Unit:
    """One function that is rewritten.

    Attributes:
        name: The method's name in the scope's class.
        function: The function as its source defines it.
        outer: What is called for it: the function, or decorators around it.
        owner: The module or class that holds `outer`, and its name there.
        bound: Whether its first argument is the scope; else the scope is put before the others.
        led: The names of the unit that calls it and the place of that call, where it must be led
            here; empty for methods under their own name.
    """

    name: str
    function: types.FunctionType
    outer: Any
    owner: tuple[Any, str]
    bound: bool
    led: tuple[str, Place] | tuple[()] = ()


@dataclass(frozen=True)
class Route:
    """The units on the way to an op, and where in the last of them it is called."""

    units: tuple[Unit, ...]
    place: Place

    @property
    def key(self) -> tuple[str, Place]:
        """What ops that one line of code issues have in common."""
        return self.units[-1].name, self.place


def route_of(scope: nn.Module, way: tuple[Step, ...], value: bool = False) -> Route:
    """Return the route to the op that a forward of `scope` came to on `way`.

    Args:
        scope: The module whose forward it is.
        way: The steps to the op.
        value: Whether the op's value is all that is wanted: of a function that cannot be followed
            and does nothing after the op, the call of that function will do.

    Raises:
        SourceError: A function on the way cannot be rewritten.
    """
    if not way:
        raise SourceError("it is not the user's code that calls it")
    if way[-1].by_module:
        raise SourceError(f"{way[-1].code.co_name} has a method of torch's issue it")
    units: list[Unit] = []
    inside: list[Unit] = []  # of each step, the unit whose source has it
    for number, step in enumerate(way):
        unit = _around(step.code, way[:number], inside)
        if unit is None and not number:
            own = scope.__dict__.get("forward")
            unit = _method(scope, "forward" if own is None else own.__name__, step.code)
        elif unit is None:
            try:
                unit = _called(scope, step, inside[-1], way[number - 1].place)
            except SourceError:
                if value and all(map(_returns_at_once, way[number:])):
                    return Route(tuple(units), way[number - 1].place)
                raise
        if unit not in units:
            definition_of(unit.function)
            units.append(unit)
        inside.append(unit)
    place = way[-1].place
    call_at(inside[-1].function, place)
    return Route(tuple(units), place)


def _returns_at_once(step: Step) -> bool:
    """Whether a function returns what it calls, `return F.gelu(x)`, as all that it does."""
    code = step.code
    ops = [i for i in dis.get_instructions(code) if i.offset > step.offset]
    return bool(ops) and ops[0].opname == "RETURN_VALUE"


def _around(code: types.CodeType, way: tuple[Step, ...], inside: list[Unit]) -> Unit | None:
    """Return the unit in whose source a nested function, a lambda or a comprehension stands."""
    for step, unit in zip(reversed(way), reversed(inside), strict=True):
        if unit.function.__code__ is code and step.code is not code:
            return unit  # the step before was a decorator's
        if step.code is code and unit.led:
            raise SourceError(f"{code.co_name} calls itself")
        if step.code is code or code in _nested(step.code):
            return unit
    return None


@lru_cache(maxsize=1024)
def _nested(code: types.CodeType) -> tuple[types.CodeType, ...]:
    held = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(inner for c in held for inner in (c, *_nested(c)))


def _method(scope: nn.Module, name: str, code: types.CodeType) -> Unit:
    outer = inspect.getattr_static(type(scope), name, None)
    function = _function_in(outer, code)
    if function is None:
        raise SourceError(f"{name} of {type(scope).__name__} is not a plain method")
    if not function.__code__.co_argcount:
        raise SourceError(f"{name} does not name its first argument")
    return Unit(name, function, outer, (type(scope), name), bound=True)


def _called(scope: nn.Module, step: Step, caller: Unit, place: Place) -> Unit:
    """Return the unit of a function that `caller` calls at `place`."""
    code = step.code
    if step.owner == KEPT:
        raise SourceError(f"{code.co_name} is called as a list or an object keeps it")
    if step.owner:
        raise SourceError(f"{code.co_name} is a method of another module, {step.owner}")
    call = _calls(caller.function).get(place)  # none where a generator is unpacked
    target = call.func if isinstance(call, ast.Call) else None
    name = _attribute_of_me(target, caller)
    name = bound_methods(scope, type(scope)).get(name, name)
    if step.owner == "" and not _is_super(target) and not _is_named(target, caller, code):
        return _method(scope, name or code.co_name, code)
    if name:
        return _static_method(scope, name, code, (caller.name, place))
    if _is_super(target):
        for base in type(scope).__mro__[1:]:
            outer = vars(base).get(code.co_name)
            function = _function_in(outer, code)
            if function is not None:
                name = f"_aa_{base.__name__}_{code.co_name}"
                return Unit(name, function, outer, (base, code.co_name), True, (caller.name, place))
        raise SourceError(f"{code.co_name}, called by super(), is not a plain method")
    outer = resolved(target, caller.function)
    function = _function_in(outer, code)
    if function is None:
        raise SourceError(f"{code.co_name} is called in a way that cannot be followed")
    holder = inspect.getmodule(outer)
    if holder is None or not _is_at(holder, outer.__qualname__, outer):
        raise SourceError(f"{code.co_name} cannot be found by its name")
    name = f"_aa_{code.co_name}_{place[0]}_{place[1]}"
    return Unit(name, function, outer, (holder, outer.__qualname__), False, (caller.name, place))


def _function_in(outer: Any, code: types.CodeType) -> types.FunctionType | None:
    """Return the function whose code, or a decorator's around it, runs; None if it is not that."""
    function = inner_function(outer)
    if not isinstance(outer, types.FunctionType) or not leads_to(outer, function):
        return None
    return function if code in (function.__code__, outer.__code__) else None


def _is_at(holder: Any, path: str, thing: Any) -> bool:
    for part in path.split("."):
        holder = getattr(holder, part, None)
    return holder is thing


def _is_super(target: ast.expr | None) -> bool:
    return (
        isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Call)
        and isinstance(target.value.func, ast.Name)
        and target.value.func.id == "super"
    )


def _is_named(target: ast.expr | None, caller: Unit, code: types.CodeType) -> bool:
    """Whether a method is named by its class, `Base.method(self, x)`."""
    return _function_in(resolved(target, caller.function), code) is not None


def _attribute_of_me(target: ast.expr | None, caller: Unit) -> str:
    """Return `name` of `self.name`, as the interpreter sees it; empty of what is none."""
    if not caller.bound or not isinstance(target, ast.Attribute):
        return ""
    me = caller.function.__code__.co_varnames[0]
    if not isinstance(target.value, ast.Name) or target.value.id != me:
        return ""
    name = target.attr
    private = name.startswith("__") and not name.endswith("__")
    return f"_{class_name(caller.function).lstrip('_')}{name}" if private else name


def _static_method(
    scope: nn.Module, name: str, code: types.CodeType, led: tuple[str, Place]
) -> Unit:
    """Return the unit of a static method of the scope's class."""
    for base in type(scope).__mro__ if name not in vars(scope) else ():
        held = vars(base).get(name)
        if held is None:
            continue
        outer = held.__func__ if isinstance(held, staticmethod) else None
        function = _function_in(outer, code)
        if function is None:
            break
        own = f"_aa_{name}_{led[1][0]}_{led[1][1]}"
        return Unit(own, function, outer, (base, name), False, led)
    raise SourceError(f"{code.co_name} is called in a way that cannot be followed")


def call_at(function: types.FunctionType, place: Place) -> ast.Call | ast.Subscript:
    """Return the call, or subscript, that ends at a place of a function's source.

    Raises:
        SourceError: There is none.
    """
    found = _calls(function).get(place)
    if found is None:
        raise SourceError(f"line {place[0]} of {function.__qualname__} issues it by no call")
    return found


@lru_cache(maxsize=1024)
def _calls(function: types.FunctionType) -> dict[Place, ast.Call | ast.Subscript]:
    return {
        (node.end_lineno or 0, node.end_col_offset or 0): node
        for node in ast.walk(definition_of(function))
        if isinstance(node, ast.Call | ast.Subscript)
    }


def can_merge(first: Route, last: Route, method: bool) -> bool:
    """Whether a chain of calls can be replaced by one on the map that the first of them reads."""
    unit = first.units[-1]
    if unit != last.units[-1]:
        return False
    start, end = call_at(unit.function, first.place), call_at(unit.function, last.place)
    if not isinstance(start, ast.Call):
        return False
    if any(part is start for part in ast.walk(end)):
        return True
    of = start.func.value if method and isinstance(start.func, ast.Attribute) else start.args[0]
    return isinstance(of, ast.Name)


def resolved(expression: ast.expr | None, function: types.FunctionType) -> Any:
    """Return what a name, or a path of attributes of modules, stands for; None if not known."""
    if isinstance(expression, ast.Name):
        name, code = expression.id, function.__code__
        if name in code.co_varnames or name in code.co_cellvars:
            return None
        if name in code.co_freevars:
            cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
            return cell_contents(cells[name])
        return function.__globals__.get(name, getattr(builtins, name, None))
    if isinstance(expression, ast.Attribute):
        holder = resolved(expression.value, function)
        if isinstance(holder, types.ModuleType | type):
            return getattr(holder, expression.attr, None)
    return None


def leads_to(outer: Any, function: types.FunctionType) -> bool:
    """Whether decorators around a function can be made again around another one."""
    return outer is function or any(leads_to(held, function) for held in _held(outer))


def _held(outer: Any) -> Iterator[types.FunctionType]:
    if isinstance(outer, types.FunctionType):
        for cell in outer.__closure__ or ():
            value = cell_contents(cell)
            if isinstance(value, types.FunctionType) and value is not outer:
                yield value
