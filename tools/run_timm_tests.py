"""Run timm's own test-suite over timm's models and over the `aa_*` ones, and compare.

    python tools/run_timm_tests.py --sample 1 --jobs 2 --out out/timm-tests.json

Each test runs twice, in processes of its own: once as timm's authors run it, and once where
`timm.create_model("<name>")` builds `aa_<name>`. The test files are not changed, and the node ids
are the same, so that the results compare one to one. `_timm_plugin.py`, loaded by `pytest -p`,
says what is swapped: the constructor that `timm.create_model` looks up, and nothing else. The
names could also be rewritten to `aa_<name>` in the tests' parameters; that leaves out the tests
that spell a name in their body, and sends `aa_vit_*` past the patterns by which timm's tests tell
transformers from convolutional nets.

Weights and images, which timm's tests draw without a seed, are seeded by the node id. A process
that crashes or hangs costs that one test: it is recorded, and the rest go on in a new process.

The tests come from the sdist of the installed timm (`pip download`), or from `--tests`: a checkout
of timm, its `tests/` folder, or an sdist. Nothing of them is kept. timm's licence is Apache-2.0.
An sdist has no train.py, so that tests of timm's scripts pass for neither; a checkout has.
test_optim needs `expecttest` installed. `--sample` keeps tests of a few chosen models whole.

The exit status is 1 when a test passes for the original and not for ours, 2 when nothing ran.
Environment: `HF_HUB_OFFLINE=1` unless it is set, so that tests of pretrained weights fail at once
for both; `OMP_NUM_THREADS=1` likewise. timm's tests read `GITHUB_ACTIONS` (leaves out big models
and tests), `TORCH_DEVICE` and `TORCH_BACKEND`; input sizes are fixed in `test_models.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _suite_compare import document, function
from _suite_runner import Runner, ToolError
from _suite_tests import add_options, compare, found_tests, matching, outcomes, parse, settings

from aa_surgery.reports.versions import installed_version

# Files whose tests make models by name; the others cannot see anti-aliasing.
BY_NAME = re.compile(r"\b(create_model|list_models|model_entrypoint)\b")

# Tests over lists as short as this have chosen their models for a reason; a sample keeps them.
SHORT = 40

PACKAGES = ("timm", "torch", "torchvision", "aa_surgery", "pytest", "expecttest")

HOW = "`timm.create_model(name)` builds `aa_<name>`; the test files are not changed."

TREATED = "tests in which `timm.create_model` gave at least one model with anti-aliasing, as `aa_*`"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    summary = partial(document, host="timm", how=HOW, treated=TREATED, name=function)
    return compare(options(argv), run, summary, ["tools/run_timm_tests.py", *argv], PACKAGES)


def options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "timm")
    add = parser.add_argument
    add("--files", default="", help="file names or patterns, comma-separated; all that make models")
    add("--models", action="append", default=[], help="patterns of names: 'resnet18,*vit_t*'")
    add("--sample", type=int, metavar="N", help="the N smallest models of each of timm's families")
    add("--largest", type=float, default=150, help="parameters of a sampled model, in millions")
    add("--all-tags", action="store_true", help="every pretrained tag, not the first alone")
    chosen = parse(parser, argv)
    if chosen.models and chosen.sample:
        parser.error("--models and --sample are two ways to choose models; give one.")
    return chosen


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    folder = found_tests(options.tests, f"timm=={installed_version('timm')}", work)
    files = test_files(folder, options.files)
    models = ",".join(options.models)
    chosen = ["--aa-all-tags"] if options.all_tags else []
    if options.sample:
        from _timm_sample import smallest

        models = ",".join(smallest(options.sample, 1e6 * options.largest))
        chosen.append(f"--aa-short={SHORT}")
    chosen.append(f"--aa-models={models}")
    runner = Runner("_timm_plugin", folder, files, work, **settings(options))
    return {"models": models, **outcomes(runner, options, chosen)}


def test_files(folder: Path, names: str) -> list[Path]:
    if names:
        return matching(folder, names)
    files = [f for f in sorted(folder.glob("test_*.py")) if BY_NAME.search(f.read_text())]
    if not files:
        raise ToolError(f"{folder} has no test_*.py that makes models. Name some: --files.")
    return files


if __name__ == "__main__":
    raise SystemExit(main())
