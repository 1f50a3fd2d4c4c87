"""The audit: what a model does to its sampling rate, judged from one run, op by op.

It shares no code with the finding and rewriting of sites, so that it can catch what those miss.
"""

from aa_surgery.audit.report import AuditReport, AuditRow
from aa_surgery.audit.run import audit

__all__ = ["AuditReport", "AuditRow", "audit"]
