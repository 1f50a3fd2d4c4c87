"""The command `aa-surgery`: inspect, apply, demo, consistency."""

from aa_surgery.cli.main import main

__all__ = ["main"]
