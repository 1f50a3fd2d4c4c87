"""Anti-alias the vision model you already have: `apply_antialias(model)`.

Importing this package registers `aa_<name>` with timm for every architecture that timm has.
"""

# ruff: noqa: E402
from aa_surgery._start import leave_working_folder

leave_working_folder()  # before torch and all other libraries

from aa_surgery.audit import audit
from aa_surgery.errors import NoEffectWarning, SurgeryError
from aa_surgery.filters import frequency_response, list_filters
from aa_surgery.integrations.timm import register as _register_with_timm
from aa_surgery.sites import Site, find_sites
from aa_surgery.surgery import Plan, apply_antialias, plan_antialias, remove_antialias, verify

__version__ = "0.1.0"

__all__ = [
    "NoEffectWarning",
    "Plan",
    "Site",
    "SurgeryError",
    "apply_antialias",
    "audit",
    "find_sites",
    "frequency_response",
    "list_filters",
    "plan_antialias",
    "remove_antialias",
    "verify",
]

_register_with_timm()
