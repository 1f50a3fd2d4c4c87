"""Entry point: parse, run one command, turn failures into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from aa_surgery.cli import commands
from aa_surgery.cli.adapt import adapt
from aa_surgery.cli.output import Output
from aa_surgery.cli.parser import build_parser
from aa_surgery.cli.sweep import sweep
from aa_surgery.errors import SurgeryError

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130

_COMMANDS: dict[str, Callable[[argparse.Namespace], Output]] = {
    "inspect": commands.inspect,
    "apply": commands.apply,
    "demo": commands.demo,
    "consistency": commands.consistency,
    "adapt": adapt,
    "sweep": sweep,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code.

    0; 1 where a sweep found a problem; 2 for bad input; 130 when interrupted.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    args = build_parser().parse_args(argv)
    # The installed script does not search the working folder, and package.module:callable
    # should find what lies there, as under `python -m`.
    sys.path.insert(0, str(Path.cwd()))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(args)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (SurgeryError, OSError) as error:
        _say("error", str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        _say("error", "interrupted.")
        return INTERRUPTED
    finally:
        sys.path.pop(0)
    return 0


def _run(args: argparse.Namespace) -> int:
    """Run the command; on request stdout holds its JSON alone, whatever a model prints."""
    command = _COMMANDS[args.command]
    if args.json:
        with contextlib.redirect_stdout(sys.stderr):
            output = command(args)
        print(json.dumps(output.found, indent=2))
    else:
        output = command(args)
        if output.text:
            print(output.text)
    return output.code


def _say(kind: str, text: str) -> None:
    """Print one line to stderr."""
    print(f"aa-surgery: {kind}: {' '.join(text.split())}", file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as the one line that concerns the user."""
    _say("warning", str(message))
