"""The source of an edited graph: text that pickles, and that TorchScript reads where it can."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.fx.graph_module import _format_import_block
from torch.package.importer import sys_importer

from aa_surgery.sites.leaves import SELF
from aa_surgery.surgery.classes import typed_signature

__all__ = ["source_of"]


def source_of(graph: fx.Graph, scope: nn.Module) -> str:
    """Return the source of a forward of `scope` that computes `graph`, which is changed for it."""
    asked = _gradient_reads(graph)
    _write_floats(graph)
    _write_types(graph, scope)
    graph.lint()
    code = graph.python_code("self")
    ours = [n for n, f in code.globals.items() if _module_of(f).startswith("aa_surgery.")]
    imports = _imports(code.globals)
    # a later symbolic trace of the whole model shall record our functions, not enter them
    wraps = "".join(f"\ntorch.fx.wrap({name!r})" for name in sorted(ours))
    source = code.src.replace(f"self.{SELF}", "self")
    if asked:
        source = _checkpointed(source, graph, asked[0])
    return f"{imports}\nimport torch.fx{wraps}\n{source}"


def _gradient_reads(graph: fx.Graph) -> list[str]:
    """Take the questions of a forward that checkpoints itself out of its graph.

    Returns:
        The arguments whose `requires_grad` it asked for.
    """
    reads = [n for n in graph.nodes if n.target is getattr and n.args[1] == "requires_grad"]
    asked = []
    for node in reads:
        of: Any = node.args[0]
        if not node.users and of.op == "placeholder":
            asked.append(str(of.target))
            graph.erase_node(node)
    return asked


def _checkpointed(source: str, graph: fx.Graph, asked: str) -> str:
    """Return the source of a forward that keeps none of its maps where `asked` has gradients."""
    names = ", ".join(["self", *(str(n.target) for n in graph.nodes if n.op == "placeholder")])
    head = source[source.index("def forward(") : source.index(":\n") + 2]
    return f"""
from torch.utils.checkpoint import checkpoint as aa_checkpoint
{source.replace("def forward(", "def aa_forward(", 1)}
{head}
    if {asked}.requires_grad:
        return aa_checkpoint(aa_forward, {names}, use_reentrant=False)
    return aa_forward({names})
"""


def _imports(names: Mapping[str, Any]) -> str:
    """Return the lines that import what generated source calls, static methods by their class."""
    static = {n: f.__qualname__.split(".") for n, f in names.items() if _is_static(f)}
    plain = {n: f for n, f in names.items() if n not in static}
    lines = [_format_import_block(plain, sys_importer)]
    for name, (holder, method) in static.items():
        lines.append(f"from {names[name].__module__} import {holder} as {name}_holder")
        lines.append(f"{name} = {name}_holder.{method}")
    return "\n".join(lines)


def _is_static(value: Any) -> bool:
    return isinstance(value, FunctionType) and value.__qualname__.count(".") == 1


def _module_of(value: Any) -> str:
    return getattr(value, "__module__", None) or ""


def _write_floats(graph: fx.Graph) -> None:
    """Spell the value that is padded as a float, which TorchScript asks for."""
    for node in graph.nodes:
        if node.target is F.pad and isinstance(node.kwargs.get("value"), int):
            node.update_kwarg("value", float(node.kwargs["value"]))


def _write_types(graph: fx.Graph, scope: nn.Module) -> None:
    """Let annotations that are text in the host's file be the types that they name there."""
    types = {p.name: p.annotation for p in typed_signature(type(scope).forward).parameters.values()}
    for node in graph.nodes:
        if isinstance(node.type, str):
            known = types.get(node.name, inspect.Parameter.empty)
            node.type = None if known is inspect.Parameter.empty else known
