"""Find: read a model, change nothing."""

from aa_surgery.sites.find import find_sites, survey
from aa_surgery.sites.site import Anchor, Given, Site, Unread

__all__ = ["Anchor", "Given", "Site", "Unread", "find_sites", "survey"]
