"""What happens to one module, as a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aa_surgery.sites import Site
from aa_surgery.sites.kinds import pads_to_same
from aa_surgery.surgery.forward import GraphEdit
from aa_surgery.treated import Half

__all__ = ["Change", "conv_op"]


@dataclass
class Change:
    """All that happens to one module.

    Attributes:
        op: Which op runs another way: a key of `OPS`, or empty.
        numbers: What it runs with.
        children: The layers, by name.
        graph_edits: Changes of the module's own forward.
        attributes: Attributes of the module that get another value.
        frozen: Parameters of the module that its forward no longer reads.
        sites: The sites whose op the module runs.
        halves: Treatments of which it carries one half.
    """

    op: str = ""
    numbers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    children: dict[str, nn.Module] = field(default_factory=dict)
    graph_edits: list[GraphEdit] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    sites: list[Site] = field(default_factory=list)
    halves: list[Half] = field(default_factory=list)

    @property
    def wrapped(self) -> tuple[str, ...]:
        """Where a blur stands around the whole module."""
        return tuple(where for where in ("before", "after") if f"aa_{where}" in self.children)

    @property
    def half(self) -> bool:
        """Whether the module's op runs dense, and another module subsamples."""
        return any(half.part == "op" for half in self.halves)


def conv_op(conv: nn.Module) -> str:
    """Return the key of `OPS` by which a convolution runs at another stride."""
    return "same_conv" if pads_to_same(conv) else "conv"
