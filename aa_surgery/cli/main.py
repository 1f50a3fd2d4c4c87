"""Entry point: parse, run one command, turn failures into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from aa_surgery.cli import commands
from aa_surgery.cli.adapt import adapt
from aa_surgery.cli.output import Output
from aa_surgery.cli.parser import build_parser
from aa_surgery.cli.streams import kept_streams
from aa_surgery.cli.sweep import sweep
from aa_surgery.errors import SurgeryError

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130
READER_GONE = 141  # as the shell says of a program that a closed pipe has ended

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

    0; 1 where a sweep found a problem; 2 for bad input, and for a file or an output that could not
    be written; 130 when interrupted; 141 where who read the output left before its end: all work
    was done and all files were written, but text was lost.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    with kept_streams() as output:
        code = _guarded(argv)
        if output is not None:
            output.flush()
        if output is None or output.lost is None or code:
            return code
        if isinstance(output.lost, BrokenPipeError):
            return READER_GONE
        _say("error", f"the output could not be written: {output.lost.strerror}.")
        return BAD_INPUT


def _guarded(argv: Sequence[str] | None) -> int:
    """Parse and run; a failure becomes one line and its code."""
    args = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(args)
    except (SurgeryError, OSError) as error:
        _say("error", str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        _say("error", "interrupted.")
        return INTERRUPTED


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
