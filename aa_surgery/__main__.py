"""`python -m aa_surgery`: the command line."""

from aa_surgery.cli import main

raise SystemExit(main())
