"""What find knows of one downsampling op: frozen records, no tensors, no modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Anchor", "Given", "Op", "Site", "Unread"]

Op = Literal[
    "conv",
    "max_pool",
    "avg_pool",
    "slice",
    "space_to_depth",
    "unfold",
    "interpolate",
    "adaptive_pool",
    "window",
]


Given = tuple[tuple[Any, ...], ...]
"""Arguments that callers fill in spite of plain defaults: `(name,)` of one that is a value of the
graph, `(name, constant)` of one that is always that."""


@dataclass(frozen=True)
class Anchor:
    """A place in the model where a blur can stand.

    Attributes:
        kind: `"after"` or `"before"` the module `path`; or `"node"`: behind the node `node` of
            the graph of the module `path`; or `"input"`: between that node and its input.
        path: The module's qualified name.
        node: The fx node's name, for the last two.
        given: For the last two, arguments of that module's forward that its callers fill.
        line: For `"node"`, function, line and column of the node's call.
    """

    kind: Literal["after", "before", "node", "input"]
    path: str
    node: str = ""
    given: Given = ()
    line: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.node}" if self.node else f"{self.kind} {self.path}"


@dataclass(frozen=True)
class Site:
    """One op that lowers the sampling rate.

    Attributes:
        name: Qualified name of the op's module, or `scope:node` of an op in a forward.
        op: What it does.
        kind: Class or function that does it, for people to read.
        scope: Qualified name of the module whose forward issues the op.
        scope_kind: That module's class.
        node: The op's node in the graph of `scope`; empty where the op is a plain torch module.
        kernel: Window, one an axis (px); so are `stride`, `padding` and `dilation`.
        stride: Factor by which each axis is subsampled.
        padding: Border that the op itself adds, where it is fixed.
        dilation: Distance between the window's samples.
        in_channels: Channels read, of a convolution.
        groups: Groups of a convolution.
        dims: The axes subsampled, where they are not the last ones (slices and merges).
        channels_last: Whether the channels are the last axis at this op (tokens).
        merged: The node at which slices or a reshape become channels, if linear layers follow it.
        follows: Classes or functions of what comes next, up to the activation.
        output: Where a blur right behind the op (or the norm after it) would stand.
        activation: Where a blur behind the activation would stand; None if there is none.
        ceil_mode: Whether a pool's last window may reach past the border.
        mode: Interpolation mode.
        given: Arguments of the scope's forward that its callers fill.
        opaque: Why the op's own forward cannot be edited, so that a blur can only precede it.
        unseen: Why what follows is not known, where the forward that calls it cannot be traced.
        problem: Why the op cannot be treated; empty if it can.
        line: Function, line and column of the call, where a forward issues the op; ops that one
            call issues have the same.
    """

    name: str
    op: Op
    kind: str
    scope: str
    scope_kind: str
    node: str = ""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    in_channels: int = 0
    groups: int = 1
    dims: tuple[int, ...] = ()
    channels_last: bool = False
    merged: str = ""
    follows: tuple[str, ...] = ()
    output: Anchor | None = None
    activation: Anchor | None = None
    ceil_mode: bool = False
    mode: str = ""
    given: Given = ()
    opaque: str = ""
    unseen: str = ""
    problem: str = ""
    line: str = ""

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.stride)

    @property
    def max_stride(self) -> int:
        """The largest factor of any axis."""
        return max(self.stride, default=1)

    @property
    def front(self) -> Anchor:
        """The place in front of the op: of its module, or of its node in a forward."""
        if self.in_forward:
            return Anchor("input", self.scope, self.node, self.given)
        return Anchor("before", self.name)

    @property
    def back(self) -> Anchor:
        """The place right behind the op."""
        if self.in_forward:
            return Anchor("node", self.scope, self.node, self.given)
        return Anchor("after", self.name)

    @property
    def adapts(self) -> bool:
        """Whether what is called in the op's stead asks each call for its stride or ratio.

        Of resizings, the bilinear ones: low-passed, they enlarge a map as before; bicubic ones
        do so with other weights.
        """
        resizes = self.op == "interpolate" and self.mode == "bilinear"
        return resizes or self.op in ("max_pool", "avg_pool")

    @property
    def in_forward(self) -> bool:
        """Whether the op is one of several of a forward, not a module of its own."""
        return self.name != self.scope and bool(self.node)


@dataclass(frozen=True)
class Unread:
    """A forward, or a function that it calls, whose own ops find cannot see.

    Attributes:
        scope: Qualified name of the module whose forward it is.
        kind: That module's class.
        reason: Why, and what a user can do.
    """

    scope: str
    kind: str
    reason: str
