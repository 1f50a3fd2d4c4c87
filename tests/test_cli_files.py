"""The command line and what is around it: folders, files, pipes, disks and terminals."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from command_line import run
from PIL import Image

from aa_surgery import plan_antialias
from aa_surgery.cli.streams import kept_streams

NET = """
from beside import kernel
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, kernel(), stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def leaves():
    raise SystemExit(0)
"""
SHADOWS = ("torch", "timm", "numpy", "PIL", "pywt", "torchvision", "safetensors", "mmpretrain")
ROOT = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a network of its own, weights and photographs."""
    (tmp_path / "own_net.py").write_text(NET)
    (tmp_path / "beside.py").write_text("def kernel():\n    return 3\n")
    for i in range(4):
        place = tmp_path / "images" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((70, 70), 60 + i).convert("RGB").save(place / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    for name in ("own_net", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def command(*argv, program=("-m", "aa_surgery"), **kwargs):
    """Run the command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": ROOT, **kwargs.pop("env", {})}
    kwargs = {"capture_output": True, "text": True, **kwargs}
    return subprocess.run([sys.executable, *program, *map(str, argv)], env=environment, **kwargs)


SCRIPT = ("-c", "import sys; sys.path.pop(0); from aa_surgery.cli import main; sys.exit(main())")


@pytest.mark.parametrize("program", [("-m", "aa_surgery"), SCRIPT])
def test_no_file_of_the_working_folder_runs_but_what_is_named(folder, program):
    for name in SHADOWS:
        (folder / f"{name}.py").write_text("open('ran', 'w').close()\nraise SystemExit(0)\n")
    options = ["own_net:net", "--method", "wavelet", "--json"]
    done = command("inspect", *options, program=program)
    assert not (folder / "ran").exists()
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["plan"]["sites"]) == 1


def test_the_search_path_is_as_it_was(capsys):
    before = list(sys.path), list(sys.meta_path)
    assert run(capsys, "inspect", "own_net:net")[0] == 0
    assert run(capsys, "inspect", "own_net:nett")[0] == 2
    assert (sys.path, sys.meta_path) == before


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("1 / 0", "division by zero"),
        ("def net(:", "SyntaxError"),
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("def net():\n    raise SystemExit(0)", "cannot be built"),
        ("def net():\n    return {}['key']", "cannot be built"),
    ],
)
def test_what_a_users_file_does_is_one_line(capsys, folder, monkeypatch, code, said):
    (folder / "broken_net.py").write_text(code)
    monkeypatch.delitem(sys.modules, "broken_net", raising=False)
    code, _, err = run(capsys, "inspect", "broken_net:net")
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_an_antialiased_model_is_inspected_and_not_treated_twice(capsys):
    code, out, err = run(capsys, "inspect", "aa_test_resnet")
    assert (code, err) == (0, "")
    assert "anti-aliased already" in out
    assert "tri-3" in out
    for argv in (
        ["inspect", "aa_test_resnet", "--filter", "tri-4"],
        ["consistency", "aa_test_resnet", "--images", "images", "--antialias", "--size", 64],
        ["adapt", "aa_test_resnet", "--images", "images", "--size", 64],
    ):
        code, _, err = run(capsys, *argv)
        assert code == 2
        assert "anti-aliased already" in err.splitlines()[-1]


# Outputs that are inputs


def filled(folder):
    model = timm.create_model("test_resnet", num_classes=2)
    torch.save(model.state_dict(), folder / "w.pth")
    plan_antialias(model).save(folder / "p.json")
    (folder / "link.pth").symlink_to("w.pth")
    (folder / "hard.pth").hardlink_to(folder / "w.pth")
    (folder / "photographs").symlink_to("images")


MODEL = ("test_resnet", "--model-arg", "num_classes=2", "--checkpoint", "w.pth", "--plan", "p.json")
ADAPT = ("adapt", *MODEL, "--images", "images", "--adapt-images", 2, "--size", 64)
OVERWRITES = [
    ("apply", *MODEL, "--out", "w.pth"),
    ("apply", *MODEL, "--out", "./../{folder}/w.pth"),
    ("apply", *MODEL, "--out", "link.pth"),
    ("apply", *MODEL, "--out", "hard.pth"),
    ("apply", *MODEL, "--out", "o.pth", "--save-plan", "w.pth"),
    ("apply", *MODEL, "--out", "o.pth", "--save-plan", "p.json"),
    ("apply", *MODEL, "--out", "o.pth", "--save-plan", "./o.pth"),
    ("apply", "own_net:net", "--out", "o.pth", "--save-plan", "own_net.py"),
    (*ADAPT, "--out", "o.pth", "--save-plan", "images/a/0.png"),
    (*ADAPT, "--out", "o.pth", "--save-plan", "photographs/a/0.png"),
    (*ADAPT, "--out", "o.pth", "--resume", "w.pth"),
    (*ADAPT, "--out", "o.pth", "--resume", "o.pth"),
    (*ADAPT, "--resume", "p.json"),
    (*ADAPT, "--resume", "images/b/1.png"),
    ("sweep", "--only", "test_resnet", "--out", "s", "--report", "s/results.json"),
    ("sweep", "--only", "test_resnet", "--out", "s", "--report", "s/rows.jsonl"),
]


@pytest.mark.parametrize("argv", OVERWRITES)
def test_an_output_that_is_still_needed_is_refused(capsys, folder, argv):
    filled(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, _, err = run(capsys, *(str(a).format(folder=folder.name) for a in argv))
    assert code == 2
    assert "would overwrite what" in err.splitlines()[-1]
    kept = {p: p.read_bytes() for p in before}
    assert kept == before
    assert not (folder / "o.pth").exists()


def test_the_file_behind_a_link_is_replaced_and_the_link_stays(capsys, folder):
    filled(folder)
    (folder / "out.pth").symlink_to("target.pth")
    assert run(capsys, "apply", "own_net:net", "--size", 32, "--out", "out.pth")[0] == 0
    assert (folder / "out.pth").is_symlink()
    assert len(torch.load(folder / "target.pth")) == 2


def test_who_may_read_a_file_stays_so(capsys, folder):
    (folder / "o.pth").touch(0o600)
    assert run(capsys, "apply", "own_net:net", "--size", 32, "--out", "o.pth")[0] == 0
    assert (folder / "o.pth").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("argument", ["pretrained=1", "name=2", "builder=3", "model_name='x'"])
def test_arguments_that_the_builders_have_themselves(capsys, argument):
    for model in ("test_resnet", "torchvision:resnet18", "own_net:net"):
        code, _, err = run(capsys, "inspect", model, "--model-arg", argument)
        assert code == 2, (model, argument)
        assert len(err.splitlines()) == 1


# Pipes, disks, terminals


def test_a_closed_pipe_loses_no_file_and_does_not_pass_for_success(folder):
    argv = ["apply", "own_net:net", "--size", "32", "--out", "o.pth"]
    reading, writing = os.pipe()
    os.close(reading)
    done = command(*argv, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""
    assert len(torch.load(folder / "o.pth")) == 2
    assert (folder / "o.plan.json").exists()


def test_a_full_output_is_one_line(folder):
    with Path("/dev/full").open("w") as full:
        done = command("inspect", "own_net:net", capture_output=False, stdout=full, stderr=-1)
    assert done.returncode == 2
    assert "the output could not be written: No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(capsys, folder, suffix):
    out = folder / f"o{suffix}"
    out.write_text("old weights")
    (folder / "o.plan.json").write_text("old plan")
    before = sorted(p.name for p in folder.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, limits[1]))
    try:
        code, _, err = run(capsys, "apply", "test_resnet", "--size", 64, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    assert str(out) in err
    assert len(err.splitlines()) == 1
    assert out.read_text() == "old weights"
    assert (folder / "o.plan.json").read_text() == "old plan"
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == before


def test_a_terminal_without_the_characters_gets_their_codes(folder):
    stream = (folder / "out").open("w", encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with kept_streams():
            print("r\u00e9sum\u00e9 \u2192 \U0001f600")
    assert (folder / "out").read_text() == "r\\xe9sum\\xe9 \\u2192 \\U0001f600\n"


# Numbers


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--minutes", ["nan", "inf", "-1", "0", "1e300", "five", ""]),
        ("--steps", ["0", "-1", "2.5", "1e3", "nan", "9" * 5000]),
        ("--limit", ["0", "-3", "x"]),
        ("--size", ["0", "-64", "1000000000", "64.0"]),
        ("--passes", ["0", "-1"]),
        ("--seed", ["-1", "x", "9" * 30]),
        ("--threads", ["0", "-1", "1000000"]),
    ],
)
def test_numbers_of_adapt(capsys, option, values):
    for value in values:
        code, _, err = run(capsys, "adapt", "own_net:net", "--images", "images", option, value)
        assert code == 2
        assert f"argument {option}: " in err.splitlines()[-1]
        assert len(err.splitlines()[-1]) < 300


@pytest.mark.parametrize(
    ("option", "values"),
    [("--timeout", ["nan", "inf", "-1", "0", "1e300"]), ("--jobs", ["0", "-1", "1e9", "9999999"])],
)
def test_numbers_of_sweep(capsys, option, values):
    for value in values:
        code, _, err = run(capsys, "sweep", "--only", "nothing", option, value)
        assert code == 2
        assert f"argument {option}: " in err.splitlines()[-1]


# Another run's file


def test_a_training_is_resumed_by_its_own_run_alone(capsys, folder):
    filled(folder)
    plain = [a for a in ADAPT if a not in ("--plan", "p.json")]
    mine = [*plain, "--steps", "1", "--resume", "r.pt"]
    code, _, err = run(capsys, *mine)
    assert code == 0, err
    saved = (folder / "r.pt").read_bytes()
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), "other.pth")
    others = {
        "weights": [a if a != "w.pth" else "other.pth" for a in mine],
        "surgery": [*mine, "--filter", "tri-4"],
        "photographs": [a if a != 64 else 48 for a in mine],
    }
    for what, argv in others.items():
        code, _, err = run(capsys, *argv)
        assert code == 2, what
        assert f"is of another run: {what} " in err.splitlines()[-1] or what in err
    Image.effect_noise((70, 70), 200).convert("RGB").save(folder / "images" / "a" / "0.png")
    code, _, err = run(capsys, *mine)
    assert code == 2
    assert "photographs" in err.splitlines()[-1]
    assert (folder / "r.pt").read_bytes() == saved
    (folder / "r.pt").write_bytes(saved[:300])
    code, _, err = run(capsys, *mine)
    assert code == 2
    assert "Delete it to start anew" in err
