"""Every architecture at once: apply, audit and test the laws, each failure a row of a table."""

from aa_surgery.sweep.catalogue import (
    SOURCES,
    Subject,
    installed_sources,
    representatives,
    subjects,
)
from aa_surgery.sweep.coverage import coverage, problems, summary
from aa_surgery.sweep.laws import structural_laws
from aa_surgery.sweep.rows import LAWS, Row, read_results
from aa_surgery.sweep.run import run_sweep, versions

__all__ = [
    "LAWS",
    "SOURCES",
    "Row",
    "Subject",
    "coverage",
    "installed_sources",
    "problems",
    "read_results",
    "representatives",
    "run_sweep",
    "structural_laws",
    "subjects",
    "summary",
    "versions",
]
