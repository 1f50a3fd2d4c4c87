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
import json
import random
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from _timm_compare import compared, document, regressions
from _timm_runner import VARIANTS, Runner, ToolError

from aa_surgery.reports.versions import installed_version

# Files whose tests make models by name; the others cannot see anti-aliasing.
BY_NAME = re.compile(r"\b(create_model|list_models|model_entrypoint)\b")

# Tests over lists as short as this have chosen their models for a reason; a sample keeps them.
SHORT = 40


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    with tempfile.TemporaryDirectory(prefix="timm-tests-") as folder:
        work = Path(folder)
        try:
            files = test_files(found_tests(options.tests, work), options.files)
            result = run(files, options, work)
        except ToolError as error:
            print(f"run_timm_tests: {error}", file=sys.stderr)
            return 2
    result["command"] = shlex.join(["python", "tools/run_timm_tests.py", *argv])
    result["versions"] = {
        name: installed_version(name)
        for name in ("timm", "torch", "torchvision", "aa_surgery", "pytest", "expecttest")
    }
    text = document(result)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.write:
        options.write.write_text(text)
    return 1 if regressions(result) else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tests", type=Path, help="a timm checkout, its tests/ folder, or an sdist .tar.gz")
    add("--files", default="", help="file names or patterns, comma-separated; all that make models")
    add("--models", default="", help="patterns of model names, comma-separated: 'resnet18,*vit_t*'")
    add("--sample", type=int, metavar="N", help="the N smallest models of each of timm's families")
    add("--largest", type=float, default=150, help="parameters of a sampled model, in millions")
    add("--all-tags", action="store_true", help="every pretrained tag, not the first alone")
    add("-k", default="", dest="keyword", help="as pytest's -k")
    add("-m", default="", dest="marker", help="as pytest's -m: forward, backward, cfg, features...")
    add("--quick", action="store_true", help="timm's models only where ours do not pass")
    add("--again", type=Path, help="an earlier --out: run the tests that did not pass with ours")
    add("--antialias", default="null", help="antialias=, as JSON (%(default)s: the default)")
    add("--jobs", type=int, default=1, help="processes (%(default)s)")
    add("--limit", type=float, default=360.0, help="seconds a test (%(default)s)")
    add("--budget", type=float, help="seconds after which no further test starts")
    add("--out", type=Path, help="file for every result, as JSON")
    add("--write", type=Path, help="file for the summary in Markdown, which is printed as well")
    options = parser.parse_args(argv)
    if options.models and options.sample:
        parser.error("--models and --sample are two ways to choose models; give one.")
    try:
        json.loads(options.antialias)
    except ValueError as error:
        parser.error(f"--antialias {options.antialias!r} is not JSON: {error}")
    return options


def run(files: list[Path], options: argparse.Namespace, work: Path) -> dict[str, object]:
    """Collect once, run every test for both variants, and join the results."""
    models = options.models
    chosen = ["--aa-all-tags"] if options.all_tags else []
    if options.sample:
        from _timm_sample import smallest

        models = ",".join(smallest(options.sample, 1e6 * options.largest))
        chosen.append(f"--aa-short={SHORT}")
    chosen.append(f"--aa-models={models}")
    runner = Runner(files, work, options.jobs, options.limit, options.antialias)
    if options.again:
        items = regressions(json.loads(options.again.read_text()))
        uncollected: dict[str, str] = {}
    else:
        chosen += ["-k", options.keyword] if options.keyword else []
        chosen += ["-m", options.marker] if options.marker else []
        items, uncollected = runner.collect(chosen)
    if not items and not options.again:
        raise ToolError("no test was chosen. Widen --files, --models, -k or -m.")
    if options.budget:
        runner.deadline = time.time() + options.budget
        random.Random(0).shuffle(items)  # what is run is then a fair sample
    results = runner.run_ours_first(items) if options.quick else runner.run(items)
    return {
        "models": models,
        "uncollected": uncollected,
        "tests": compared(items, *(results[v] for v in VARIANTS)),
    }


def found_tests(path: Path | None, work: Path) -> Path:
    """Return the folder of timm's tests, unpacked or fetched if need be.

    Raises:
        ToolError: There is none at `path`, or pip cannot fetch them.
    """
    if path is None:
        path = fetched(work)
    if path.is_file() and path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            # Only these: with timm's sources beside them, the tests would import those.
            parts = [
                m for m in archive if re.fullmatch(r"[^/]+/(pyproject\.toml|tests/.*)", m.name)
            ]
            archive.extractall(work / "sdist", members=parts, filter="data")
        path = next(iter((work / "sdist").glob("*/tests")), path)
    elif (path / "tests").is_dir():
        path = path / "tests"
    if not any(path.glob("test_*.py")):
        raise ToolError(
            f"--tests {path}: no test_*.py there. Give a checkout of timm, its tests/ folder or an "
            "sdist .tar.gz; an installed timm and its wheel have no tests."
        )
    return path.resolve()


def fetched(work: Path) -> Path:
    wanted = f"timm=={installed_version('timm')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    pip = subprocess.run(
        [*command, "--dest", str(work), wanted], capture_output=True, text=True, check=False
    )
    archives = list(work.glob("timm-*.tar.gz"))
    if not archives:
        raise ToolError(
            f"pip could not download the sdist of {wanted}: {pip.stderr.strip()[-500:]}\n"
            "Name a checkout or an sdist: --tests PATH."
        )
    return archives[0]


def test_files(folder: Path, names: str) -> list[Path]:
    patterns = [n for n in names.split(",") if n]
    if patterns:
        files = [f for p in patterns for f in sorted(folder.glob(p))]
    else:
        files = [f for f in sorted(folder.glob("test_*.py")) if BY_NAME.search(f.read_text())]
    if not files:
        raise ToolError(f"{folder} has no file that matches --files {names!r}.")
    return files


if __name__ == "__main__":
    raise SystemExit(main())
