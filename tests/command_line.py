"""Commands run as a user runs them."""

from aa_surgery.cli import main


def run(capsys, *argv):
    """The exit code, stdout and stderr of one command."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err
