"""Fill yapf's grammar cache once, before pytest starts its worker processes.

MMEngine imports yapf, which on a new machine writes the cache without a lock: a second worker
that imports it at the same moment reads half a file and fails with EOFError.
"""

import yapf  # noqa: F401
