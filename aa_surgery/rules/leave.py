"""Sites that stay as they are: what nothing or the method cannot treat, and large strides."""

from __future__ import annotations

from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.sites import Site

__all__ = ["leave_large_stride", "leave_problem", "leave_refused"]


def leave_problem(site: Site, options: Options) -> Edit | Left | None:
    """Leave a site that find marked as not treatable."""
    return Left(site, site.problem) if site.problem else None


def leave_large_stride(site: Site, options: Options) -> Edit | Left | None:
    """Leave strides above `max_stride`.

    A patch embedding of 16 px with many channels keeps the information, while the filter that a
    stride of 16 asks for (31 taps for tri-3) takes away the detail that its weights know. A choice
    of phase without a filter takes nothing away.
    """
    limit = options.max_stride
    filters = not (options.method.shares_phase and options.filter.is_identity)
    if limit is None or site.max_stride <= limit or not filters:
        return None
    return Left(site, f"stride {site.max_stride} is above max_stride={limit}")


def leave_refused(site: Site, options: Options) -> Edit | Left | None:
    """Leave a site that the method cannot treat."""
    objection = options.method.refuses(site)
    return Left(site, f"method {options.method.name!r}: {objection}") if objection else None
