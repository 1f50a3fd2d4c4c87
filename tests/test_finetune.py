"""`tools/finetune.py` on crops of photographs: resumption, bad files, outputs, refusals."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from torch import Tensor

import aa_surgery  # noqa: F401 - registers aa_*
from aa_surgery import apply_antialias
from aa_surgery.layers import BlurPool
from aa_surgery.methods import alias_penalty

TOOLS = Path(__file__).parents[1] / "tools"
TOOL = TOOLS / "finetune.py"
CLASSES = ("astronaut", "chelsea", "coffee", "rocket")
TRAIN, VAL = 12, 3
HARD = (  # all that could depend on what was drawn before
    *("--model", "aa_test_resnet", "--model-arg", "drop_rate=0.2", "--model-arg"),
    *("drop_path_rate=0.2", "--size", "32", "--batch-size", "8", "--epochs", "3", "--lr", "0.002"),
    *("--ema", "0.9", "--warmup-blur", "5", "--checkpoint-steps", "2", "--mixup", "0.2"),
    *("--re-prob", "0.3", "--consistency", "4", "--no-tensorboard", "--workers", "0"),
)
PLAIN = (
    *("--model", "aa_test_resnet", "--size", "32", "--batch-size", "8", "--epochs", "2"),
    *("--lr", "0.002", "--no-tensorboard", "--workers", "0"),
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of crops, `train/<photograph>/*.jpg` and `val/`."""
    folder = tmp_path_factory.mktemp("photographs")
    draw = random.Random(0)
    for name in CLASSES:
        photograph = Image.fromarray(getattr(skimage.data, name)())
        for number in range(TRAIN + VAL):
            split = "train" if number < TRAIN else "val"
            x, y = draw.randrange(photograph.width - 96), draw.randrange(photograph.height - 96)
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            photograph.crop((x, y, x + 96, y + 96)).save(place / f"{number:02}.jpg")
    return folder


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`finetune.main`, on one thread, as the processes that the tests start."""
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    import finetune

    def run(data: Path, output: Path, *options: str) -> int:
        return finetune.main([str(data), "--output", str(output), *options])

    yield run
    torch.set_num_threads(threads)


def start(*command: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOLS)}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def last(output: Path) -> dict[str, Any]:
    return torch.load(output / "last.pth.tar", weights_only=True)


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the places at which two checkpoints differ, in any bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differing(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, v in enumerate(a) for d in differing(v, b[i], f"{where}.{i}")]
    same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
    return [] if same else [where]


def assert_same_run(one: Path, other: Path) -> None:
    assert differing(last(one), last(other)) == []
    assert (one / "summary.csv").read_text() == (other / "summary.csv").read_text()
    best = [torch.load(o / "model_best.pth.tar", weights_only=True) for o in (one, other)]
    assert differing(*best) == []


@pytest.fixture(scope="module")
def unbroken(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken")
    run = start(TOOL, photographs, "--output", output, *HARD)
    printed, _ = run.communicate()
    assert run.returncode == 0, printed.decode()
    return output


def test_killed_at_any_moment(
    photographs: Path, unbroken: Path, tmp_path: Path, tool: Callable[..., int]
) -> None:
    run = start(TOOL, photographs, "--output", tmp_path, *HARD)
    while run.poll() is None and not (tmp_path / "last.pth.tar").exists():
        time.sleep(0.01)
    time.sleep(random.random() / 2)  # in a step, an evaluation, or while it writes
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert last(tmp_path)["epoch"] < 3
    assert tool(photographs, tmp_path, *HARD, "--workers", "1") == 0
    assert_same_run(unbroken, tmp_path)


@pytest.mark.parametrize("victim", [1, 4, 5, 7])
def test_killed_while_it_writes(
    photographs: Path,
    unbroken: Path,
    tmp_path: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    victim: int,
) -> None:
    """Of the writes of an epoch: two in its midst, one behind step 6, the best, the last."""
    save, count = torch.save, 0

    def broken(state: Any, path: Path) -> None:
        nonlocal count
        count += 1
        save(state, path)
        if count == victim:
            path.write_bytes(path.read_bytes()[:1000])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            tool(photographs, tmp_path, *HARD)
    assert tool(photographs, tmp_path, *HARD) == 0
    assert_same_run(unbroken, tmp_path)


def test_no_checkpoint_is_needed_before_the_first(
    photographs: Path, tmp_path: Path, tool: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice from the start is the same run, whatever the process has drawn before."""
    for name in ("one", "two"):
        assert tool(photographs, tmp_path / name, *PLAIN) == 0
        torch.rand(3), random.random()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_finished_run_stays(
    photographs: Path, unbroken: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (unbroken / "last.pth.tar").read_bytes()
    assert tool(photographs, unbroken, *HARD) == 0
    assert "goes on at epoch 3, step 0" in capsys.readouterr().out
    assert (unbroken / "last.pth.tar").read_bytes() == before


@pytest.mark.parametrize("name", ["aa_test_resnet", "test_resnet"])
def test_timm_loads_it(unbroken: Path, name: str) -> None:
    """The averaged weights of the best epoch, with or without the surgery."""
    path = unbroken / "model_best.pth.tar"
    model = timm.create_model(name, num_classes=len(CLASSES), checkpoint_path=str(path))
    averaged = torch.load(path, weights_only=True)["state_dict_ema"]
    assert differing(dict(model.state_dict()), dict(averaged)) == []


def test_it_says_how_to_load_it(
    photographs: Path, tmp_path: Path, tool: Callable[..., int], capsys: Any
) -> None:
    options = ("--model", "test_resnet", "--filter", "tri-4", "--placement", "pre", "--epochs", "1")
    assert tool(photographs, tmp_path, *PLAIN, *options) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("load it: ")]
    model = eval(line.removeprefix("load it: "), {"timm": timm})
    assert differing(dict(model.state_dict()), dict(last(tmp_path)["state_dict"])) == []
    assert {blur.filter.name for blur in model.modules() if isinstance(blur, BlurPool)} == {"tri-4"}


def test_what_it_writes(photographs: Path, tmp_path: Path, tool: Callable[..., int]) -> None:
    options = [o for o in PLAIN if o != "--no-tensorboard"]
    assert tool(photographs, tmp_path, *options, "--amp", "bf16", "--clip-grad", "1") == 0
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("eval_top1")] == [0, 1]
    assert events.Scalars("train_loss")[1].value == pytest.approx(float(rows[1]["train_loss"]))


def test_loader_processes_change_nothing(photographs: Path, tool: Callable[..., int]) -> None:
    from _finetune_data import EpochSampler, find_images, load_images
    from _finetune_options import parse

    seen = []
    for workers in (0, 2):
        augment = ("--auto-augment", "rand-m9-mstd0.5", "--re-prob", "0.5", "--batch-size", "8")
        run = (str(photographs), "--output", "x", "--model", "x", "--workers", str(workers))
        options = parse([*run, *augment])
        config = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bicubic"}
        config |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        loader = load_images(options, config, find_images(options)).train
        assert isinstance(loader.sampler, EpochSampler)
        loader.sampler.epoch, loader.sampler.start = 3, 2 * bool(workers)
        seen.append(list(loader))
    whole, rest = seen
    assert differing(whole[2:], rest) == []
    assert len(rest) == len(CLASSES) * TRAIN // 8 - 2


def test_processes_share_an_epoch(tool: Callable[..., int]) -> None:
    from _finetune_data import EpochSampler

    one = list(EpochSampler(50, 8, shuffle=1))
    shares = [list(EpochSampler(50, 4, rank, 2, shuffle=1)) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(one)
    assert sorted(shares[0][:4] + shares[1][:4]) == sorted(one[:8])  # batch by batch


@pytest.fixture
def spoilt(photographs: Path, tmp_path: Path) -> Path:
    """The photographs with three files that cannot be read, and others that are unusual."""
    folder = Path(shutil.copytree(photographs, tmp_path / "spoilt"))
    place = folder / "train" / "coffee"
    photograph = Image.open(place / "00.jpg")
    photograph.convert("CMYK").save(place / "00.jpg")
    photograph.convert("L").save(place / "01.jpg")
    photograph.resize((1, 1)).save(place / "02.png")
    (place / "03.jpg").write_bytes((place / "04.jpg").read_bytes()[:900])
    (place / "11.jpg").write_text("no image")
    (place / "notes.txt").write_text("not even called one")
    (folder / "val" / "coffee" / "12.jpg").write_bytes(b"")
    return folder


def test_bad_images(
    spoilt: Path, tmp_path: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(spoilt, tmp_path / "run", *PLAIN) == 0
    named = [line for line in capsys.readouterr().err.splitlines() if "cannot be read" in line]
    assert len(named) == 3  # once each
    assert all(any(bad in line for line in named) for bad in ("03.jpg", "11.jpg", "12.jpg"))
    rows = list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))
    assert {row["train_unreadable"] for row in rows} <= {"1", "2"}  # 49 images, 48 of them seen
    assert float(rows[0]["eval_top1"]) * 11 / 100 == pytest.approx(
        round(float(rows[0]["eval_top1"]) * 11 / 100)
    )


def test_refusals(photographs: Path, tmp_path: Path, tool: Callable[..., int], capsys: Any) -> None:
    def refused(data: Path, *options: str) -> str:
        assert tool(data, tmp_path / "run", *options) == 2
        return capsys.readouterr().err

    empty = tmp_path / "empty"
    for split in ("train", "val"):
        (empty / split / "cat").mkdir(parents=True)
    assert "0 images" in refused(empty, *PLAIN)
    assert "no such folder" in refused(tmp_path / "nowhere", *PLAIN)
    assert "no folder 'test'" in refused(photographs, *PLAIN, "--val-split", "test")
    assert "fewer than one batch" in refused(photographs, *PLAIN, "--batch-size", "64")
    assert "12 steps" in refused(photographs, *PLAIN, "--antialias", "--warmup-blur", "13")
    assert "no such file" in refused(photographs, *PLAIN, "--weights", "nowhere.pth")
    assert "no such file" in refused(photographs, *PLAIN, "--model", "nowhere.py:net")
    shutil.copytree(photographs, tmp_path / "more")
    shutil.copytree(photographs / "val" / "coffee", tmp_path / "more" / "val" / "tea")
    assert "'tea'" in refused(tmp_path / "more", *PLAIN)


def test_a_run_with_other_options_is_not_resumed(
    photographs: Path, unbroken: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(photographs, unbroken, *HARD, "--lr", "0.1") == 2
    assert "lr was 0.002, now 0.1" in capsys.readouterr().err
    smaller = ("--train-split", "val", "--val-split", "train")
    assert tool(photographs, unbroken, *HARD, *smaller) == 2
    assert "images was 48 images" in capsys.readouterr().err


@pytest.mark.parametrize("distill", ["logits", "features"])
def test_the_untouched_model_teaches(
    unbroken: Path, tool: Callable[..., int], distill: str
) -> None:
    """A student that is its teacher has nothing to learn from it; an anti-aliased one has."""
    from _finetune_model import build_models, make_task
    from _finetune_options import parse

    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    learnt = {}
    for taps in ("identity", "tri-3"):
        for weight in ("0", "100"):
            run = ("x", "--output", "x", "--model", "test_resnet", "--filter", taps)
            run += ("--weights", str(unbroken / "model_best.pth.tar"), "--temperature", "2")
            run += ("--teacher", "self", "--distill", distill, "--distill-weight", weight)
            options = parse(run)
            task = make_task(options, build_models(options, 4), 4, torch.device("cpu")).eval()
            learnt[taps, weight] = task(images, labels)["loss"].item()
    assert learnt["identity", "0"] == pytest.approx(learnt["identity", "100"], abs=1e-5)
    assert learnt["tri-3", "0"] + 1e-3 < learnt["tri-3", "100"]


def test_other_classes(
    photographs: Path, unbroken: Path, tmp_path: Path, tool: Callable[..., int], capsys: Any
) -> None:
    """The last layer is made anew, all else comes from the weights."""
    fewer = Path(shutil.copytree(photographs, tmp_path / "fewer"))
    for split in ("train", "val"):
        shutil.rmtree(fewer / split / "rocket")
    weights = ("--weights", str(unbroken / "model_best.pth.tar"), "--lr", "0", "--epochs", "1")
    assert tool(fewer, tmp_path / "run", *PLAIN, *weights, "--weight-decay", "0") == 0
    state, before = last(tmp_path / "run")["state_dict"], last(unbroken)["state_dict"]
    assert state.keys() == before.keys()
    teacher = ("--teacher", "self")
    assert tool(fewer, tmp_path / "other", *PLAIN, *weights, *teacher) == 2
    assert "--distill features" in capsys.readouterr().err
    assert tool(fewer, tmp_path / "other", *PLAIN, *weights, *teacher, "--distill", "features") == 0


def test_recalibration(
    photographs: Path, unbroken: Path, tmp_path: Path, tool: Callable[..., int], capsys: Any
) -> None:
    weights = unbroken / "model_best.pth.tar"
    options = ("--epochs", "1", "--antialias", "--recalibrate", "16", "--freeze-statistics")
    assert tool(photographs, tmp_path, *PLAIN, "--weights", str(weights), *options) == 0
    assert "corrected on 16 images" in capsys.readouterr().out
    before = torch.load(weights, weights_only=True)["state_dict_ema"]
    after = last(tmp_path)["state_dict"]
    changed = [k for k in after if "running_" in k and not torch.equal(before[k], after[k])]
    # all but those in front of the first blur; and no batch has been counted
    assert 0 < len(changed) < sum("running_" in key for key in after)
    counted = "bn1.num_batches_tracked"
    assert torch.equal(after[counted], before[counted])


def test_alias_penalty(photographs: Path, tmp_path: Path, tool: Callable[..., int]) -> None:
    gains = {}
    for weight in ("0", "100"):
        output = tmp_path / weight
        options = [*PLAIN, "--method", "learned", "--alias-penalty", weight]
        assert tool(photographs, output, *options) == 0
        model = timm.create_model("test_resnet", num_classes=len(CLASSES))
        apply_antialias(model, method="learned")
        model.load_state_dict(last(output)["state_dict"])
        gains[weight] = alias_penalty(model).item()
    assert 0 < gains["100"] < gains["0"] / 2
    options = [*PLAIN, "--filter", "tri-3", "--alias-penalty", "1"]
    assert tool(photographs, tmp_path / "fixed", *options) == 2
    assert not (tmp_path / "fixed" / "last.pth.tar").exists()


def test_a_model_of_ones_own(photographs: Path, tmp_path: Path, tool: Callable[..., int]) -> None:
    for model in ("resnet", "vgg"):
        own = ("--model", f"{TOOLS / '_cifar_models.py'}:{model}", "--model-arg", "width=4")
        assert tool(photographs, tmp_path / model, *PLAIN, *own, "--filter", "binomial-5") == 0


DRIVER = """
import sys
import finetune, torch
from _finetune_options import parse

trainer = finetune.finetune(parse(sys.argv[2:]))
torch.save(trainer.state(), f"{sys.argv[1]}/rank{trainer.rank}.pt")
"""


def test_two_processes(photographs: Path, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    options = (*PLAIN, "--batch-size", "4", "--device", "cpu", "--checkpoint-steps", "4")
    options = (*options, "--antialias", "--ema", "0.9", "--consistency", "4", "--epochs", "3")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", driver)
    run = start(*launch, tmp_path, photographs, "--output", tmp_path / "run", *options)
    printed, _ = run.communicate()
    assert run.returncode == 0, printed.decode()
    one, other = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    for part in ("state_dict", "state_dict_ema", "optimizer"):
        assert differing(dict(one[part]), dict(other[part])) == []
    rows = last(tmp_path / "run")["rows"]
    assert rows == one["rows"]
    assert rows[2]["train_loss"] < rows[0]["train_loss"]
    assert [{k: v for k, v in row.items() if "eval" in k} for row in rows] == [
        {k: v for k, v in row.items() if "eval" in k} for row in other["rows"]
    ]


def test_the_cifar_study(
    photographs: Path, tmp_path: Path, tool: Callable[..., int], capsys: Any
) -> None:
    import cifar10

    data, document = tmp_path / "data", tmp_path / "study.md"
    for split, folder in (("train", "train"), ("val", "test")):
        for file in (photographs / split).glob("*/*.jpg"):
            place = data / folder / file.parent.name
            place.mkdir(parents=True, exist_ok=True)
            Image.open(file).resize((32, 32)).save(place / file.name)
    document.write_text("# Study\n<!-- cifar10 -->\nold\n<!-- cifar10 -->\nend\n")
    small = ("--images", "36", "--held-out", "12", "--batch-size", "12", "--epochs", "1")
    small += ("--models", "vgg", "--filters", "none", "tri-3", "--seeds", "0", "1", "--width", "8")
    command = [str(data), "--out", str(tmp_path / "out"), *small, "--write", str(document)]
    assert cifar10.main([*command, "--threads", "1"]) == 0
    written = document.read_text()
    assert written.count("| vgg |") == 2
    assert "old" not in written
    assert written.endswith("<!-- cifar10 -->\nend\n")
    assert capsys.readouterr().out.count("epoch 0") == 4
    assert cifar10.main([*command, "--threads", "1"]) == 0
    assert "epoch 0" not in capsys.readouterr().out
    assert document.read_text() == written


def test_the_table_of_the_study(tool: Callable[..., int]) -> None:
    from _cifar_table import table

    run = {"model": "net", "images": 1000, "rolls": 50.0}
    results = [
        {**run, "filter": "none", "seed": 0, "top1": 60.0, "crops": 70.0},
        {**run, "filter": "tri-3", "seed": 0, "top1": 61.0, "crops": 80.0},
        {**run, "filter": "none", "seed": 1, "top1": 62.0, "crops": 70.0},
        {**run, "filter": "tri-3", "seed": 1, "top1": 65.0, "crops": 82.0},
    ]
    _, _, none, blurred = table(results).splitlines()
    assert none.startswith("| net | none | 2 | 61.0 (57.9–64.0) |  | 70.0 (67.1–72.8) |  |")
    assert "63.0 (60.0–65.9) | **+2.0** (+1.0, +3.0) | 81.0" in blurred
    assert "**+11.0** (+10.0, +12.0)" in blurred
