"""Run mmpretrain's own tests with its backbones and with anti-aliased ones, and compare.

    python tools/run_mmpretrain_tests.py --jobs 2 --keep out/mmpretrain-tests

Each test runs twice, in processes of its own: once as its authors run it, and once where every
backbone is anti-aliased as it is built. The test files are not changed, and the node ids are the
same, so that the results compare one to one. `_mmpretrain_plugin.py`, loaded by `pytest -p`, says
what is swapped. Weights and images, which the tests draw without a seed, are seeded by the node id.
A process that crashes or hangs costs that one test.

The tests come from the sdist of mmpretrain 1.0.0rc5 (`pip download`), the last release whose sdist
holds them, and run against the mmpretrain that is installed; or from `--tests`: a checkout, its
`tests/` folder, or an sdist. Nothing of them is kept. mmpretrain's licence is Apache-2.0. Weights
of torchvision and timm that they would download are drawn instead, for both.

With `--keep FOLDER` a run that was ended goes on where it was. After a change of aa_surgery, delete
FOLDER/antialiased-*.log: the results of the untouched backbones stay.

The exit status is 1 when a test passes for the original and not for ours, 2 when nothing ran. Tests
that assert the very thing that surgery changes are in `_mmpretrain_expected.py`, with what they
assert; they are listed, and do not count.
`OMP_NUM_THREADS=1` unless it is set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _mmpretrain_expected import EXPECTED
from _suite_compare import document, file
from _suite_runner import Runner
from _suite_tests import add_options, compare, found_tests, matching, outcomes, parse, settings

# The last release whose sdist holds the tests.
WITH_TESTS = "mmpretrain==1.0.0rc5"

# Those that build backbones.
FILES = ",".join(
    f"test_models/{name}.py"
    for name in (
        "test_backbones/test_*",
        "test_selfsup/test_*",
        "test_models",
        "test_classifiers",
        "test_retrievers",
        "test_tta",
    )
)

PACKAGES = (
    "mmpretrain",
    "onedl-mmpretrain",
    "mmengine",
    "mmcv-lite",
    "timm",
    "torch",
    "aa_surgery",
    "pytest",
)

HOW = (
    "The tests of mmpretrain 1.0.0rc5, the last release whose sdist holds them, unless `--tests` "
    "names others, against the version that is installed. Every backbone is anti-aliased at the "
    "end of its constructor, with the options under `--antialias`; the test files are not changed. "
    "Tests that expect what later versions changed (what ViTs for pretraining give without a mask) "
    "and those that need the Hugging Face hub pass for neither."
)

TREATED = "tests that built at least one backbone with anti-aliasing"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    summary = partial(document, host="mmpretrain", how=HOW, treated=TREATED, name=file)
    command = ["tools/run_mmpretrain_tests.py", *argv]
    return compare(options(argv), run, summary, command, PACKAGES)


def options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "mmpretrain")
    parser.add_argument(
        "--files",
        default=FILES,
        help="patterns of files under tests/, comma-separated: 'test_models/test_backbones/*'",
    )
    return parse(parser, argv)


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    folder = found_tests(options.tests, WITH_TESTS, work)
    files = matching(folder, options.files)
    runner = Runner("_mmpretrain_plugin", folder, files, work, **settings(options))
    return outcomes(runner, options, [], EXPECTED)


if __name__ == "__main__":
    raise SystemExit(main())
