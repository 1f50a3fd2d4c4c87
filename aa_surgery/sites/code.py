"""A user's function as source: its syntax tree, proven to be that of the code that runs."""

from __future__ import annotations
import __future__ as future

import ast
import copy
import linecache
import types
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["SourceError", "class_name", "compiled", "definition_of", "text_of"]

_FUTURE = 0
for _name in future.all_feature_names:
    _FUTURE |= getattr(future, _name).compiler_flag


class SourceError(Exception):
    """Why a function cannot be rewritten, in words that end a sentence."""


@dataclass(frozen=True)
class _File:
    """The functions that a file defines, by name and first line, and the names that it imports."""

    functions: dict[tuple[str, int], ast.FunctionDef]
    imported: tuple[str, ...]

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, text: str) -> _File:
        functions: dict[tuple[str, int], ast.FunctionDef] = {}
        imported: dict[str, None] = {}
        waiting: list[tuple[ast.AST, bool]] = [(ast.parse(text), True)]
        while waiting:
            node, outside = waiting.pop()
            if isinstance(node, ast.Import | ast.ImportFrom) and outside:
                imported |= {(a.asname or a.name).partition(".")[0]: None for a in node.names}
            elif isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                functions[node.name, first] = node
            elif isinstance(node, ast.expr) and not isinstance(node, ast.Lambda):
                continue
            outside = outside and not isinstance(node, ast.FunctionDef | ast.ClassDef)
            waiting += [(child, outside) for child in ast.iter_child_nodes(node)]
        imported.pop("*", None)
        return cls(functions, tuple(imported))


@lru_cache(maxsize=1024)
def definition_of(function: types.FunctionType) -> ast.FunctionDef:
    """Return the definition of a function, without its decorators; not to be changed.

    Raises:
        SourceError: There is no source, or it is another function's than the one that runs.
    """
    code = function.__code__
    if code.co_name == "<lambda>":
        raise SourceError("a lambda cannot be rewritten")
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        raise SourceError(f"the source of {function.__qualname__} cannot be found")
    # most often its own lines and globals will do, which takes a fraction of the file's time
    node = _defined_in(_its_lines(lines, code), _imported(function), function)
    if node is None:
        try:
            file = _File.of("".join(lines))
        except SyntaxError:
            file = _File({}, ())
        defined = file.functions.get((code.co_name, code.co_firstlineno))
        node = _defined_in(defined, file.imported, function)
    if node is None:
        raise SourceError(f"the source of {function.__qualname__} has changed")
    return node


def _its_lines(lines: list[str], code: types.CodeType) -> ast.FunctionDef | None:
    """Return the definition that stands in the lines that a code names, if they are whole."""
    first = code.co_firstlineno
    own = "".join(lines[first - 1 : _last_line(code)])
    # an indented one in a block, so that lines and columns are those of the file
    before = "\n" * (first - 2) + "if 1:\n" if own[:1].isspace() else "\n" * (first - 1)
    try:
        held: Any = ast.parse(before + own).body
    except SyntaxError:
        return None
    found = held[0].body if held and isinstance(held[0], ast.If) else held
    return found[0] if len(found) == 1 and isinstance(found[0], ast.FunctionDef) else None


def _last_line(code: types.CodeType) -> int:
    held = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return max(*(place[1] or 0 for place in code.co_positions()), 0, *map(_last_line, held))


def _imported(function: types.FunctionType) -> tuple[str, ...]:
    """Return the names that a function reads from around itself and that other modules define."""
    names, home = function.__globals__, function.__globals__.get("__name__")
    found = [name for name in function.__code__.co_names if name in names]
    return tuple(
        name
        for name in found
        if isinstance(names[name], types.ModuleType)
        or (isinstance(names[name], _DEFINED) and names[name].__module__ != home)
    )


_DEFINED = (types.FunctionType, types.BuiltinFunctionType, type)


def _defined_in(
    node: ast.FunctionDef | None, imported: tuple[str, ...], function: types.FunctionType
) -> ast.FunctionDef | None:
    """Return a definition, if it compiles to the code of the function."""
    code = function.__code__
    if node is None or node.name != code.co_name:
        return None
    node = copy.copy(node)
    node.decorator_list = []
    around = _around(node, function)
    if imported:  # of an imported module, a method is compiled as an attribute
        around.body.insert(0, ast.Import([ast.alias(name) for name in imported]))
    try:
        own = compiled(ast.fix_missing_locations(around), code.co_filename, function)
    except SyntaxError:
        return None
    return node if _signs(own) == _signs(code) else None


def class_name(function: types.FunctionType) -> str:
    """Return the name of the class whose body defines the function; empty if none does."""
    parts = function.__qualname__.split(".")
    return parts[-2] if len(parts) > 1 and parts[-2] != "<locals>" else ""


def text_of(node: ast.FunctionDef, function: types.FunctionType) -> str:
    """Return a definition as the text of a module in which its names mean what they meant.

    It stands in a class, for names with two underscores and for `super()`, and in a function whose
    arguments are the names that it takes from around itself.
    """
    return ast.unparse(_around(node, function))


def _around(node: ast.FunctionDef, function: types.FunctionType) -> ast.Module:
    body: list[ast.stmt] = [node]
    name = class_name(function)
    free = [n for n in function.__code__.co_freevars if n != "__class__"]
    if name:
        body = [_with_parameters(ast.ClassDef(name, [], [], body, []))]
        if name not in free:  # the class's name is the module's, as in `super(Net, self)`
            body.insert(0, ast.Global([name]))
    elif node.name not in free:  # the function's name is the module's, where it calls itself
        body.insert(0, ast.Global([node.name]))
    arguments = ast.arguments([], [ast.arg(n) for n in free], None, [], [], None, [])
    outer = _with_parameters(ast.FunctionDef("aa_around", arguments, body, []))
    return ast.fix_missing_locations(ast.Module([outer], []))


def _with_parameters(node: Any) -> Any:
    if "type_params" in node._fields:  # Python 3.12 and newer
        node.type_params = []
    return node


def compiled(
    source: ast.Module | str, file: str, function: types.FunctionType, name: str = ""
) -> types.CodeType:
    """Return the code of the function `name` within `text_of` or the tree behind it."""
    flags = function.__code__.co_flags & _FUTURE
    code = compile(source, file, "exec", flags=flags, dont_inherit=True)
    inner = class_name(function)
    for part in ("aa_around", *([inner] if inner else []), name or function.__code__.co_name):
        code = _constant(code, part)
    return code


def _signs(code: types.CodeType) -> tuple[Any, ...]:
    """Return what two codes of one source have in common; constants may be numbered otherwise."""
    constants = {repr(c) for c in code.co_consts if not isinstance(c, types.CodeType)}
    return code.co_code[::2], code.co_names, code.co_varnames, constants - {"None"}


def _constant(code: types.CodeType, name: str) -> Any:
    held = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return next(c for c in held if c.co_name == name)
