"""What happens to one module, as a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aa_surgery.sites.kinds import pads_to_same
from aa_surgery.surgery.forward import GraphEdit

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
    """

    op: str = ""
    numbers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    children: dict[str, nn.Module | None] = field(default_factory=dict)
    graph_edits: list[GraphEdit] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    @property
    def wrapped(self) -> bool:
        """Whether a blur stands before or behind the whole module."""
        return "aa_before" in self.children or "aa_after" in self.children


def conv_op(conv: nn.Module) -> str:
    """Return the key of `OPS` by which a convolution runs at another stride."""
    return "same_conv" if pads_to_same(conv) else "conv"
