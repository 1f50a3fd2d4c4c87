"""Strided maximum and average pools."""

from __future__ import annotations

from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.sites import Site

__all__ = ["blur_after_max", "blur_for_average"]


def blur_after_max(site: Site, options: Options) -> Edit | Left | None:
    """Take the maximum at stride 1, then blur and subsample (Zhang 2019, MaxBlurPool)."""
    if site.op != "max_pool":
        return None
    if site.opaque:
        return options.blur_before(site, site.opaque)
    return options.dense_then_blur(site, site.back)


def blur_for_average(site: Site, options: Options) -> Edit | Left | None:
    """Blur and subsample in the place of the average (Zhang 2019).

    With `placement="post"`, a filter of one tap, or another method than the blur, the average
    stays: at stride 1, then the blur.
    """
    if site.op != "avg_pool":
        return None
    if site.opaque:
        return options.blur_before(site, site.opaque)
    stays = options.filter.is_identity or not options.method.stands_for_average
    if options.placement == "post" or stays:
        return options.dense_then_blur(site, site.back)
    return options.edit(site, "replace", blur_stride=site.stride, rate=site.stride)
