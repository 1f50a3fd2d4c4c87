"""Find: read a model, change nothing."""

from aa_surgery.sites.find import find_sites, survey
from aa_surgery.sites.site import Anchor, Site, Unread

__all__ = ["Anchor", "Site", "Unread", "find_sites", "survey"]
