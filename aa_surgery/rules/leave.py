"""Sites that stay as they are: what cannot be treated, and strides above the limit."""

from __future__ import annotations

from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.sites import Site

__all__ = ["leave_large_stride", "leave_problem"]


def leave_problem(site: Site, options: Options) -> Edit | Left | None:
    """Leave a site that find marked as not treatable."""
    return Left(site, site.problem) if site.problem else None


def leave_large_stride(site: Site, options: Options) -> Edit | Left | None:
    """Leave strides above `max_stride`.

    A patch embedding of 16 px with many channels keeps the information, while the filter that a
    stride of 16 asks for (31 taps for tri-3) takes away the detail that its weights know.
    """
    limit = options.max_stride
    if limit is None or site.max_stride <= limit:
        return None
    return Left(site, f"stride {site.max_stride} is above max_stride={limit}")
