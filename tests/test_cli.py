import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from command_line import run
from PIL import Image

from aa_surgery import apply_antialias
from aa_surgery.cli import commands
from aa_surgery.cli.parser import build_parser
from aa_surgery.filters import list_filters
from aa_surgery.surgery import Plan

NET = """
from torch import nn


def net(num_classes=3):
    print("building")
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder that holds a module `shapes_net` and three images."""
    (tmp_path / "shapes_net.py").write_text(NET)
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "shapes_net", raising=False)
    return tmp_path


def found(capsys, *argv):
    code, out, err = run(capsys, *argv, "--json")
    assert code == 0, err
    return json.loads(out)


def plan_of(data):
    return Plan.from_dict(data["plan"])


@pytest.mark.parametrize(
    ("model", "edits"),
    [("resnet18", 8), ("torchvision:resnet18", 8), ("shapes_net:net", 2)],
)
def test_inspect_finds_the_sites_of_every_kind_of_name(capsys, model, edits):
    data = found(capsys, "inspect", model)
    assert len(plan_of(data).edits) == edits
    assert data["model"] == model
    code, out, err = run(capsys, "inspect", model)
    assert (code, err) == (0, "")
    for edit in plan_of(data).edits:
        assert edit.site.name in out


def test_inspect_audits_before_and_after(capsys):
    audit = found(capsys, "inspect", "shapes_net:net", "--audit", "--size", 32)["audit"]
    verdicts = {when: [row["verdict"] for row in audit[when]["rows"]] for when in audit}
    assert verdicts["before"].count("untreated") == 2
    assert "untreated" not in verdicts["after"]
    assert verdicts["after"].count("treated") == 2
    _, out, _ = run(capsys, "inspect", "shapes_net:net", "--audit", "--size", 32)
    assert "Audit before:" in out
    assert "Audit after:" in out


def test_options_of_the_surgery_reach_the_plan(capsys):
    options = ["--filter", "0.5,0.5", "--placement", "pre", "--padding-mode", "circular"]
    plan = plan_of(found(capsys, "inspect", "resnet18", *options, "--exclude", "layer4.*"))
    assert {e.filter.taps(2) for e in plan.edits} == {(0.5, 0.5)}
    assert {e.padding_mode for e in plan.edits} == {"circular"}
    assert {i.site.name for i in plan.left} == {"layer4.0.conv1", "layer4.0.downsample.0"}
    included = found(capsys, "inspect", "resnet18", "--include", "conv1", "--include", "maxpool")
    assert [e.site.name for e in plan_of(included).edits] == ["conv1", "maxpool"]


def test_max_stride_takes_a_number_or_none(capsys):
    name = "vit_tiny_patch16_224"
    kept = plan_of(found(capsys, "inspect", name, "--model-arg", "depth=1"))
    treated = plan_of(
        found(capsys, "inspect", name, "--model-arg", "depth=1", "--max-stride", "none")
    )
    assert (len(kept.edits), len(kept.left)) == (0, 1)
    assert (len(treated.edits), len(treated.left)) == (1, 0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_apply_writes_what_makes_the_same_model_again(capsys, folder, suffix):
    original = timm.create_model("resnet18", num_classes=4).eval()
    torch.save({"state_dict": original.state_dict()}, "ours.pth")
    arguments = ["--checkpoint", "ours.pth", "--model-arg", "num_classes=4", "--size", 64]
    data = found(
        capsys, "apply", "resnet18", *arguments, "--filter", "tri-4", "--out", f"aa{suffix}"
    )
    assert data["audit"]["ok"] is True
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith((".", "aa"))) == sorted(
        [f"aa{suffix}", "aa.plan.json"]
    )

    again = timm.create_model("resnet18", num_classes=4).eval()
    apply_antialias(again, plan=Plan.load("aa.plan.json"))
    again.load_state_dict(timm.models.load_state_dict(f"aa{suffix}"), strict=True)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), apply_antialias(original, filter="tri-4")(image))


def test_a_saved_plan_is_applied_again(capsys, folder):
    first = found(
        capsys, "apply", "resnet18", "--exclude", "conv1", "--out", "a.pth", "--save-plan", "p.json"
    )
    second = found(capsys, "apply", "resnet18", "--plan", "p.json", "--out", "b.pth")
    assert first["plan"] == second["plan"] == json.loads((folder / "p.json").read_text())


def test_consistency_measures_the_model_and_the_antialiased_one(capsys):
    arguments = ["consistency", "shapes_net:net", "--images", "images", "--size", 32]
    alone = found(capsys, *arguments)
    assert list(alone["results"]) == ["original"]
    both = found(capsys, *arguments, "--antialias", "--protocol", "circular", "--passes", 4)
    assert list(both["results"]) == ["original", "anti-aliased"]
    for result in both["results"].values():
        assert 0 <= result["consistency"] <= 100
        assert (result["images"], result["pairs"]) == (3, 12)
    assert "circular" in both["results"]["original"]["protocol"]
    implied = found(capsys, *arguments, "--filter", "tri-4", "--limit", 2)
    assert [r["images"] for r in implied["results"].values()] == [2, 2]
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert "random" in err
    assert "original: shift consistency" in out


def test_demo_gets_its_options_and_hands_out_json_alone(capsys, monkeypatch):
    given = {}

    class Result:
        def to_dict(self):
            return {"kept": 1}

    def stand_in(out_dir, **options):
        given.update(options, out_dir=str(out_dir))
        print("part by part")
        return Result()

    monkeypatch.setattr(commands, "run_demo", stand_in)
    arguments = ["demo", "--out", "report", "--quick", "--seed", 3, "--filter", "0.5,0.5"]
    assert found(capsys, *arguments) == {"kept": 1}
    assert given == {
        "out_dir": "report",
        "quick": True,
        "seed": 3,
        "images": None,
        "filter": [0.5, 0.5],
    }
    assert run(capsys, "demo") == (0, "part by part\n", "")


BAD = {
    "unknown model": (["inspect", "resnet19"], "resnet18"),
    "unknown tag": (["inspect", "resnet18.nope"], "a1_in1k"),
    "unknown torchvision name": (["inspect", "torchvision:resnet19"], "resnet18"),
    "missing module": (["inspect", "no_such_module:net"], "no_such_module"),
    "missing attribute": (["inspect", "shapes_net:nett"], "net"),
    "not callable": (["inspect", "shapes_net:number"], "number"),
    "not a module": (["inspect", "builtins:dict"], "dict"),
    "bad model argument": (["inspect", "resnet18", "--model-arg", "depth_=1"], "depth_"),
    "model argument without value": (["inspect", "resnet18", "--model-arg", "x"], "KEY=VALUE"),
    "unknown filter": (["inspect", "resnet18", "--filter", "gauss"], "gauss"),
    "taps that do not sum to 1": (["inspect", "resnet18", "--filter", "1,2,1"], "sum"),
    "unknown placement": (["inspect", "resnet18", "--placement", "mid"], "placement"),
    "unknown preset": (["inspect", "resnet18", "--preset", "nope"], "nope"),
    "pattern without a match": (["inspect", "resnet18", "--include", "nope.*"], "nope"),
    "max_stride in words": (["inspect", "resnet18", "--max-stride", "two"], "two"),
    "size 0": (["inspect", "resnet18", "--audit", "--size", 0], "--size"),
    "size the model refuses": (
        ["inspect", "swin_tiny_patch4_window7_224", "--audit", "--size", 100],
        "--size",
    ),
    "missing checkpoint": (["inspect", "resnet18", "--checkpoint", "no.pth"], "no.pth"),
    "corrupt checkpoint": (["inspect", "resnet18", "--checkpoint", "shapes_net.py"], "shapes_net"),
    "missing plan": (["inspect", "resnet18", "--plan", "no.json"], "no.json"),
    "plan that is none": (["inspect", "resnet18", "--plan", "shapes_net.py"], "shapes_net.py"),
    "plan that is no text": (["inspect", "resnet18", "--plan", "images/0.png"], "0.png"),
    "plan and options": (
        ["inspect", "resnet18", "--plan", "no.json", "--filter", "tri-3"],
        "--filter",
    ),
    "no folder for the output": (["apply", "resnet18", "--out", "no/aa.pth"], "no"),
    "output is a folder": (["apply", "resnet18", "--out", "images"], "images"),
    "unknown suffix": (["apply", "resnet18", "--out", "aa.txt"], ".safetensors"),
    "one file for both": (
        ["apply", "resnet18", "--out", "aa.pth", "--save-plan", "aa.pth"],
        "--save-plan",
    ),
    "missing images": (["consistency", "shapes_net:net", "--images", "no"], "no"),
    "no device": (
        ["consistency", "shapes_net:net", "--images", "images", "--device", "nope"],
        "nope",
    ),
    "passes 0": (
        ["consistency", "shapes_net:net", "--images", "images", "--size", 32, "--passes", 0],
        "passes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(capsys, folder, case):
    argv, said = BAD[case]
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out.replace("building\n", "") == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("aa-surgery")
    assert "error: " in last
    assert said in last
    assert "Traceback" not in err
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts] == before


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}, "missing"),
        ({"head.weight": torch.zeros(1)}, "unexpected"),
        ({"conv1.weight": torch.zeros(1, 1, 1, 1)}, "another shape"),
    ],
)
def test_checkpoint_that_does_not_fit_names_the_keys(capsys, state, said):
    torch.save(state, "other.pth")
    code, _, err = run(capsys, "apply", "resnet18", "--checkpoint", "other.pth", "--out", "aa.pth")
    assert code == 2
    assert said in err
    assert next(iter(state)).split(".")[0] in err or said == "missing"


def test_truncated_image_and_checkpoint_are_named(capsys, folder):
    image = folder / "images" / "1.png"
    image.write_bytes(image.read_bytes()[:200])
    code, _, err = run(capsys, "consistency", "shapes_net:net", "--images", "images", "--size", 32)
    assert code == 2
    assert "1.png" in err
    for name, save in (("w.pth", torch.save), ("w.safetensors", None)):
        if save is not None:
            save({"a": torch.zeros(1000)}, name)
        data = (folder / name).read_bytes()[:700] if save is not None else b"\x08\0\0\0\0\0\0\0{}"
        (folder / name).write_bytes(data)
        code, _, err = run(capsys, "inspect", "resnet18", "--checkpoint", name)
        assert code == 2
        assert name in err


def test_failing_write_leaves_the_old_files(capsys, folder, monkeypatch):
    (folder / "aa.pth").write_text("old weights")
    (folder / "aa.plan.json").write_text("old plan")

    def full(self, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Plan, "save", full)
    code, _, err = run(capsys, "apply", "shapes_net:net", "--size", 32, "--out", "aa.pth")
    assert code == 2
    assert "No space left" in err
    assert (folder / "aa.pth").read_text() == "old weights"
    assert (folder / "aa.plan.json").read_text() == "old plan"
    assert not list(folder.glob(".*"))


def test_nothing_found_is_a_warning_not_an_error(capsys):
    arguments = ["--model-arg", "depth=1", "--out", "aa.pth"]
    code, _, err = run(capsys, "apply", "vit_tiny_patch16_224", *arguments)
    assert code == 0
    assert err.startswith("aa-surgery: warning: ")
    assert len(err.splitlines()) == 1


def test_help_names_every_command_and_filter(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("inspect", "apply", "demo", "consistency"):
        assert command in out
        code, text, _ = run(capsys, command, "--help")
        assert code == 0
        assert all(name in text for name in list_filters())


def test_options_left_out_keep_the_defaults_of_apply_antialias():
    args = build_parser().parse_args(["inspect", "resnet18"])
    assert not set(vars(args)) & {"filter", "placement", "padding_mode", "max_stride", "preset"}


def test_installed_command_prints_its_version():
    done = subprocess.run(
        [sys.executable, "-c", "from aa_surgery.cli import main; main()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("aa-surgery 0.")
    assert f"timm {timm.__version__}" in done.stdout
