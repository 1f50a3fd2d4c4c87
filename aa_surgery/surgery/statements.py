"""Statements of a function: put one before another, and share a value among several."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from aa_surgery.sites.code import SourceError
from aa_surgery.sites.routes import Place

__all__ = ["before_statement", "shared_value"]

Block = list[ast.stmt]


def shared_value(
    function: ast.FunctionDef,
    places: Sequence[Place],
    local: str,
    wrap: Callable[[ast.expr], ast.expr],
) -> bool:
    """Let subscripts of one variable read one value: `local = wrap(variable)`, made before them.

    Returns:
        Whether that was possible; else nothing was changed.
    """
    parts = [n for n in ast.walk(function) if isinstance(n, ast.Subscript) and _place(n) in places]
    names = {n.value.id for n in parts if isinstance(n.value, ast.Name)}
    if len(names) != 1 or not all(isinstance(n.value, ast.Name) for n in parts):
        return False
    (name,) = names
    block, first, last = _common_block(function, parts)
    for number, statement in enumerate(block[first : last + 1], first):
        simple = isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return)
        if _binds(statement, name, whole=number != last or not simple):
            return False
    for part in parts:
        part.value = ast.Name(local, ast.Load())
    value = wrap(ast.Name(name, ast.Load()))
    block.insert(first, ast.Assign([ast.Name(local, ast.Store())], value))
    return True


def before_statement(
    function: ast.FunctionDef, part: ast.expr, local: str, value: ast.expr
) -> None:
    """Put `local = value` before the statement that holds `part`.

    Raises:
        SourceError: The value is more than a variable, which that statement could change.
    """
    if not isinstance(value, ast.Name):
        raise SourceError(f"line {part.lineno} makes its map and merges it in several statements")
    block, first, _ = _common_block(function, [part])
    block.insert(
        first,
        ast.Assign([ast.Name(local, ast.Store())], ast.Name(value.id, ast.Load())),
    )


def _place(node: ast.expr) -> Place:
    return node.end_lineno or 0, node.end_col_offset or 0


def _binds(statement: ast.stmt, name: str, whole: bool) -> bool:
    """Whether a statement gives a variable another value; of a simple one, its value's parts."""
    held: list[ast.AST] = [statement]
    if not whole:
        held = [part for part in [getattr(statement, "value", None)] if part is not None]
    return any(
        isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)
        for part in held
        for node in ast.walk(part)
    )


def _common_block(function: ast.FunctionDef, parts: Sequence[ast.expr]) -> tuple[Block, int, int]:
    """Return the innermost block that holds all parts, and its first and last such statement."""
    ways = [list(_way(function.body, part)) for part in parts]
    depth = 0
    while all(len(way) > depth for way in ways) and len({id(way[depth][0]) for way in ways}) == 1:
        depth += 1
        if len({way[depth - 1][1] for way in ways}) > 1:
            break
    block = ways[0][depth - 1][0]
    numbers = [way[depth - 1][1] for way in ways]
    return block, min(numbers), max(numbers)


def _way(block: Block, part: ast.expr) -> Iterator[tuple[Block, int]]:
    """Yield the blocks around a part, outermost first, and the statement of each that holds it."""
    for number, statement in enumerate(block):
        if any(node is part for node in ast.walk(statement)):
            yield block, number
            for field in ("body", "orelse", "finalbody"):
                inner = getattr(statement, field, None)
                if isinstance(inner, list):
                    yield from _way(inner, part)
            for handler in getattr(statement, "handlers", ()):
                yield from _way(handler.body, part)
            return
