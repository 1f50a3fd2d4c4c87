"""What a table was measured with, for its header: versions and hardware."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

__all__ = ["cpu_name", "installed_version"]


def installed_version(package: str) -> str:
    """Return the version of an installed package, or `"not installed"`.

    >>> installed_version("no-such-package")
    'not installed'
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """Return the processor's name, as the system has it.

    >>> cpu_name() != ""
    True
    """
    info = Path("/proc/cpuinfo")
    if info.is_file() and (match := re.search(r"model name\s*: (.*)", info.read_text())):
        return match.group(1)
    return platform.processor() or platform.machine()
