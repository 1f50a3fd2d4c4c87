"""What a rule says of a site: an edit, or a reason to leave it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from aa_surgery.filters import Filter, resolve_filter
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
            average. `"resample"`: the op's own `antialias=True`.
        filter: The low-pass filter.
        padding_mode: Its border.
        op_stride: The stride that the op runs at; None leaves the op alone.
        blur_stride: The step of the blur.
        rate: The rate that the filter prepares for; the filter's taps follow from it.
        anchor: Where the blur stands; None if nothing is inserted.
        pool_kernel: Another window for a max-pool, one an axis; empty keeps its own.
        note: What a reader of the plan should know.
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

    def edit(self, site: Site, placement: Placement, **fields: Any) -> Edit:
        """Return an edit of `site` with these options' filter and border."""
        return Edit(site, placement, self.filter, self.padding_mode, **fields)

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

    def blur_before(self, site: Site, note: str = "") -> Edit:
        """Return the edit that blurs in front of the op, which keeps its stride."""
        still = (1,) * site.ndim
        return self.edit(
            site, "pre", blur_stride=still, rate=site.stride, anchor=site.front, note=note
        )
