"""Versions for the header of a table."""

from __future__ import annotations

from importlib import metadata

__all__ = ["installed_version"]


def installed_version(package: str) -> str:
    """Return the version of an installed package, or `"not installed"`.

    >>> installed_version("no-such-package")
    'not installed'
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
