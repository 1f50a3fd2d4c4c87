"""What must be done before any library is imported, by modules that Python itself starts with."""

import os
import sys

__all__ = ["leave_working_folder"]


def leave_working_folder() -> None:
    """Take the working folder off the search path of `python -m aa_surgery`.

    Python puts it first there, so that a file named torch.py in it would run in torch's place. The
    package itself stays importable, as its own path is known by now.
    """
    words = sys.orig_argv
    # Python calls a program "-m" for as long as it looks for the module
    is_program = sys.argv[:1] == ["-m"] and "-m" in words[:-1]
    if is_program and words[words.index("-m") + 1] == __package__:
        if sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
            del sys.path[0]
