"""Plan and rewrite: the only code that changes a model."""

from aa_surgery.surgery.apply import apply_antialias, remove_antialias
from aa_surgery.surgery.plan import Plan
from aa_surgery.surgery.planning import plan_antialias
from aa_surgery.surgery.verify import Verification, verify

__all__ = [
    "Plan",
    "Verification",
    "apply_antialias",
    "plan_antialias",
    "remove_antialias",
    "verify",
]
