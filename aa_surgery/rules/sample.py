"""Ops that only move samples: slices, patch merging, unfold, resizing."""

from __future__ import annotations

from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.sites import Site

__all__ = ["align_windows", "antialias_resize", "blur_before_sampling"]


def blur_before_sampling(site: Site, options: Options) -> Edit | Left | None:
    """Blur the map that a slice, a patch merging or an unfold samples.

    With `placement="post"`, patch merging takes its dense form: merge at stride 1, norm, linear,
    then blur and subsample. The norm makes the two differ; the dense one costs `stride**2`.
    """
    if site.op not in ("slice", "space_to_depth", "unfold"):
        return None
    if options.placement != "post":
        return options.blur_before(site)
    anchor = site.activation or site.output
    if site.merged and anchor is not None:
        return options.dense_then_blur(site, anchor)
    return options.blur_before(site, "it has no dense form: blurred before it")


def align_windows(site: Site, options: Options) -> Edit | Left | None:
    """Roll a map to a phase of its windows before the first block of a stage attends in them."""
    return options.blur_before(site) if site.op == "window" else None


def antialias_resize(site: Site, options: Options) -> Edit | Left | None:
    """Let torch low-pass a bilinear or bicubic reduction; blur before a nearest one."""
    if site.op != "interpolate":
        return None
    smooth = site.mode in ("bilinear", "bicubic")
    if not smooth and not site.dims and options.method.name != "blur":
        return Left(site, f"method {options.method.name!r}: it must know how many axes a map has")
    if not smooth:
        return options.blur_before(site)
    if options.method.shares_phase:
        return Left(site, f"method {options.method.name!r}: an interpolation has no phases")
    if options.method.filter is not None and options.filter.is_identity:
        return Left(site, "filter='identity' adds nothing to an interpolation")
    return options.edit(site, "resample", rate=site.stride)
