"""The command `aa-surgery`: inspect, apply, adapt, demo, consistency, sweep."""

from aa_surgery.cli.main import main

__all__ = ["main"]
