"""Find: read a model, change nothing."""

from aa_surgery.sites.find import find_sites
from aa_surgery.sites.site import Anchor, Site

__all__ = ["Anchor", "Site", "find_sites"]
