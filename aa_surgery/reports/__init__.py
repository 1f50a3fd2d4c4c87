"""What a person reads: tables, progress bars and pictures."""

from aa_surgery.reports.progress import progress_bar
from aa_surgery.reports.tables import print_table, text_table

__all__ = ["print_table", "progress_bar", "text_table"]
