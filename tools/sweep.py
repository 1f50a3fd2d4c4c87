"""Test every architecture: `aa-surgery sweep`, from a checkout.

python tools/sweep.py --jobs 2 --report docs/coverage.md
"""

from __future__ import annotations

import sys

from aa_surgery.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
