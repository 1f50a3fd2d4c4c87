"""Forward rewrite: edit the fx graph of one scope, and generate its forward again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from aa_surgery.errors import NotTraceableError
from aa_surgery.layers.functional import dense_avg_pool, dense_max_pool
from aa_surgery.layers.maps import dense_space_to_depth
from aa_surgery.layers.resize import resizable
from aa_surgery.rules import Edit
from aa_surgery.sites import Given
from aa_surgery.sites.kinds import AVG_POOLS, CONVS, INTERPOLATE, MAX_POOLS, arguments, is_getitem
from aa_surgery.sites.leaves import SELF
from aa_surgery.sites.merging import read_reshape_merge, slice_merge, sliced_steps
from aa_surgery.sites.tracer import Trace, trace_scopes
from aa_surgery.surgery.source import source_of

__all__ = ["GraphEdit", "rewritten_sources"]

_TABLES = {"conv": CONVS, "max_pool": MAX_POOLS, "avg_pool": AVG_POOLS, "interpolate": INTERPOLATE}


@dataclass(frozen=True)
class GraphEdit:
    """One change of a scope's graph.

    Attributes:
        edit: The edit that it is part of.
        action: `"op"` runs the node at another stride; `"replace"`, `"after"` and `"input"` call
            the blur instead of the node, behind it, or on its input.
        node: The node's name.
        blur: The name of the scope's child that is the blur, where there is one.
        given: Arguments that callers of the scope fill.
    """

    edit: Edit
    action: str
    node: str
    blur: str = ""
    given: Given = ()


def rewritten_sources(
    scopes: Mapping[str, tuple[nn.Module, Sequence[GraphEdit]]],
) -> dict[str, tuple[str, ...]]:
    """Return the sources of each edited forward: one, or one for eval and one for training.

    Raises:
        NotTraceableError: A forward needs something that source text cannot carry, or its two
            modes name the edited nodes differently.
    """
    if not scopes:
        return {}
    graphs = trace_scopes(
        lambda trace: {path: _modes(trace, path, *scope) for path, scope in scopes.items()}
    )
    return {path: _sources(modes, path, *scopes[path]) for path, modes in graphs.items()}


def _modes(
    trace: Trace, path: str, scope: nn.Module, edits: Sequence[GraphEdit]
) -> tuple[fx.Graph, fx.Graph]:
    """Return a forward's graph in eval and in training; one and the same where they are equal."""
    given = dict.fromkeys(argument for change in edits for argument in change.given)
    try:
        return trace(scope, False, given), trace(scope, True, given)
    except NotTraceableError as error:
        raise NotTraceableError(
            f"{path}: {error}. Exclude this module, or use placement='pre'."
        ) from error


def _sources(
    modes: tuple[fx.Graph, fx.Graph], path: str, scope: nn.Module, edits: Sequence[GraphEdit]
) -> tuple[str, ...]:
    evaluating, training = modes
    for name in {change.node for change in edits}:
        if _node(training, name, path).target != _node(evaluating, name, path).target:
            raise NotTraceableError(
                f"{path} ({type(scope).__name__}): its forward differs between training and eval "
                f"at {name}. Exclude this module, or use placement='pre'."
            )
    distinct = (evaluating,) if training is evaluating else modes
    sources = tuple(_source(copy.deepcopy(graph), path, edits, scope) for graph in distinct)
    return sources[:1] if sources[0] == sources[-1] else sources


def _node(graph: fx.Graph, name: str, path: str) -> fx.Node:
    for node in graph.nodes:
        if node.name == name:
            return node
    raise NotTraceableError(
        f"{path}: no op {name} in its forward, in one of training and eval. Make the plan again."
    )


def _source(graph: fx.Graph, path: str, edits: Sequence[GraphEdit], scope: nn.Module) -> str:
    for node in graph.nodes:
        if node.op == "get_attr" and node.target != SELF and not _held(scope, str(node.target)):
            raise NotTraceableError(
                f"{path} ({type(scope).__name__}): its forward makes the constant {node.target} "
                "from values, which generated source cannot carry. Exclude this module."
            )
    # edits behind a node come first, so that the blur of a dense op stands behind the new node
    for change in sorted(edits, key=lambda c: c.action != "after"):
        _ACTIONS[change.action](graph, _node(graph, change.node, path), change)
    return source_of(graph, scope)


def _held(scope: nn.Module, target: str) -> bool:
    held: Any = scope
    for part in target.split("."):
        if not hasattr(held, part):
            return False
        held = getattr(held, part)
    return True


def _run_dense(graph: fx.Graph, node: fx.Node, change: GraphEdit) -> None:
    """Let the node's op run at the stride that the edit leaves it."""
    edit = change.edit
    if edit.site.op in ("slice", "space_to_depth"):
        _merge_densely(graph, node)
        return
    names, _ = _TABLES[edit.site.op][node.target]  # type: ignore[index]
    args = arguments(node, names)
    if edit.site.op == "conv":
        _set_argument(node, names, "stride", edit.op_stride)
        return
    if edit.site.op == "interpolate":
        _resize_smoothly(graph, node)
        return
    site = edit.site
    common = (args["input"], site.kernel, site.stride, site.padding)
    if site.op == "max_pool":
        node.target = dense_max_pool
        node.args = (*common, site.dilation, args.get("ceil_mode", False))
    else:
        node.target = dense_avg_pool
        node.args = (
            *common,
            args.get("ceil_mode", False),
            args.get("count_include_pad", True),
            args.get("divisor_override"),
        )
    node.kwargs = {}


def _resize_smoothly(graph: fx.Graph, node: fx.Node) -> None:
    """Let the interpolation low-pass, in a dtype for which it can, and cast its output back."""
    source = _input(node)
    with graph.inserting_before(node):
        read = graph.call_function(resizable, (source,))
    node.replace_input_with(source, read)
    node.kwargs = {**node.kwargs, "antialias": True}
    with graph.inserting_after(node):
        cast = graph.call_method("type_as", (node, source))
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)


def _merge_densely(graph: fx.Graph, node: fx.Node) -> None:
    """Let patch merging take every patch, not one in `stride`."""
    merge = None if is_getitem(node) else read_reshape_merge(node)
    if merge is not None:
        last = merge.nodes[-1]
        with graph.inserting_before(last):
            args = (_input(node), merge.dims, merge.factors, merge.order, merge.joined)
            dense = graph.call_function(dense_space_to_depth, args)
        last.replace_all_uses_with(dense)
        for done in reversed(merge.nodes):
            graph.erase_node(done)
        return
    cat = slice_merge(node)
    for part in [] if cat is None else cat.all_input_nodes:
        index: Any = part.args[1]
        part.update_arg(1, tuple(_every_offset(item) for item in index))


def _every_offset(item: Any) -> Any:
    """Return the slice that takes what `item` takes, and all between: `a::s` becomes `a:a-s+1`."""
    if not isinstance(item, slice) or not isinstance(item.step, int) or item.step == 1:
        return item
    start = item.start or 0
    return slice(start, start - item.step + 1 or None)


def _set_argument(node: fx.Node, names: tuple[str, ...], name: str, value: Any) -> None:
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _insert_after(graph: fx.Graph, node: fx.Node, change: GraphEdit) -> None:
    with graph.inserting_after(node):
        blurred = graph.call_module(change.blur, (node,))
    node.replace_all_uses_with(blurred, delete_user_cb=lambda user: user is not blurred)


def _replace(graph: fx.Graph, node: fx.Node, change: GraphEdit) -> None:
    names, _ = _TABLES["avg_pool"][node.target]  # type: ignore[index]
    args = arguments(node, names)
    average = (args.get("count_include_pad", True), args.get("divisor_override"))
    with graph.inserting_before(node):
        blurred = graph.call_module(change.blur, (args["input"], *average))
    node.replace_all_uses_with(blurred)
    graph.erase_node(node)


def _insert_before(graph: fx.Graph, node: fx.Node, change: GraphEdit) -> None:
    """Blur what the node reads; slices of one map at several offsets share the blur."""
    source = _input(node)
    with graph.inserting_before(_first_reader(graph, source, node)):
        blurred = graph.call_module(change.blur, (source,))
    readers = [node]
    if is_getitem(node):
        readers = [u for u in source.users if is_getitem(u) and sliced_steps(u.args[1])]
    for reader in readers:
        reader.replace_input_with(source, blurred)


def _first_reader(graph: fx.Graph, source: fx.Node, node: fx.Node) -> fx.Node:
    """Return the first slice of `source`, so that the blur stands before all of them."""
    if not is_getitem(node):
        return node
    return next(
        n for n in graph.nodes if n in source.users and is_getitem(n) and sliced_steps(n.args[1])
    )


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


_ACTIONS = {
    "op": _run_dense,
    "after": _insert_after,
    "replace": _replace,
    "input": _insert_before,
}
