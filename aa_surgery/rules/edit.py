"""What a rule says of a site: an edit, or a reason to leave it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from aa_surgery.filters import Filter, resolve_filter
from aa_surgery.methods import Method, resolve_method
from aa_surgery.sites import Anchor, Site

__all__ = ["Edit", "Left", "Options", "Placement"]

Placement = Literal["post", "pre", "replace", "resample"]


@dataclass(frozen=True)
class Edit:
    """How one site is anti-aliased.

    Attributes:
        site: The op.
        placement: `"post"`: op at a smaller stride, blur and subsample behind it (or behind its
            activation). `"pre"`: blur in front of it. `"replace"`: blur in the place of an
            average, or the method's module in that of a convolution. `"resample"`: the op's own
            `antialias=True`.
        filter: The low-pass filter.
        padding_mode: Its border.
        op_stride: The stride that the op runs at; None leaves the op alone.
        blur_stride: The step of the blur.
        rate: The rate that the filter prepares for; the filter's taps follow from it.
        anchor: Where the blur stands; None if nothing is inserted.
        pool_kernel: Another window for a max-pool, one an axis; empty keeps its own.
        note: What a reader of the plan should know.
        method: What stands there in the blur's stead; "blur" is the fixed filter.
        channels: Channels of the map there, where the method's layer is made for a number.
        leader: The site whose choice of a phase this one follows; empty if it chooses itself.
    """

    site: Site
    placement: Placement
    filter: Filter
    padding_mode: str = "reflect"
    op_stride: tuple[int, ...] | None = None
    blur_stride: tuple[int, ...] = ()
    rate: tuple[int, ...] = ()
    anchor: Anchor | None = None
    pool_kernel: tuple[int, ...] = ()
    note: str = ""
    method: Method = field(default_factory=lambda: resolve_method("blur"))
    channels: int = 0
    leader: str = ""


@dataclass(frozen=True)
class Left:
    """A site that stays as it is, and why."""

    site: Site
    reason: str


@dataclass(frozen=True)
class Options:
    """What the user asks of the plan: the keyword arguments of `apply_antialias`."""

    filter: Filter = field(default_factory=lambda: resolve_filter("tri-3"))
    placement: str = "auto"
    padding_mode: str = "reflect"
    max_stride: int | None = 4
    method: Method = field(default_factory=lambda: resolve_method("blur"))

    def edit(self, site: Site, placement: Placement, **fields: Any) -> Edit:
        """Return an edit of `site` with these options' method, filter and border."""
        return Edit(site, placement, self.filter, self.padding_mode, method=self.method, **fields)

    def dense_then_blur(self, site: Site, anchor: Anchor, **fields: Any) -> Edit:
        """Return the edit that runs the op at stride 1, and blurs and subsamples at `anchor`."""
        dense = (1,) * site.ndim
        return self.edit(
            site,
            "post",
            op_stride=dense,
            blur_stride=site.stride,
            rate=site.stride,
            anchor=anchor,
            **fields,
        )

    def blur_before(self, site: Site, note: str = "") -> Edit | Left:
        """Return the edit that blurs in front of the op, which keeps its stride."""
        if not self.method.stands_before:
            return Left(site, f"method {self.method.name!r}: {note or 'it has no dense form'}")
        still = (1,) * site.ndim
        return self.edit(
            site, "pre", blur_stride=still, rate=site.stride, anchor=site.front, note=note
        )
