"""`aa-surgery adapt`, from photographs in a folder to weights in a file."""

import json
import zipfile

import pytest
import timm
import torch
from command_line import run
from PIL import Image
from skimage import data

from aa_surgery import apply_antialias
from aa_surgery.adapt.run import STEPS
from aa_surgery.surgery import Plan

MODEL = ("adapt", "test_efficientnet", "--size", 64)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with weights and eight photographs in two folders."""
    for label, name in ((3, "chelsea"), (7, "coffee")):
        place = tmp_path / "images" / f"{label}_{name}"
        place.mkdir(parents=True)
        picture = getattr(data, name)()
        for i in range(4):
            Image.fromarray(picture[20 * i : 20 * i + 160, 30 * i : 30 * i + 200]).save(
                place / f"{i}.png"
            )
    torch.save(weights(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights():
    """Random ones, but batch norms that know photographs, as those of trained networks do."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet").train()
    picture = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 128 - 1
    with torch.no_grad():
        for _ in range(20):
            model(picture.unfold(1, 64, 64).unfold(2, 64, 64).flatten(1, 2).transpose(0, 1))
    return model.state_dict()


def adapt(capsys, *options, weights="weights.pth", images="images"):
    return run(capsys, *MODEL, "--weights", weights, "--images", images, *options)


def found(capsys, *options, **paths):
    code, out, err = adapt(capsys, *options, "--json", **paths)
    assert code == 0, err
    return json.loads(out)


def warnings_in(err):
    return [line for line in err.splitlines() if "warning" in line]


def test_an_interrupted_training_goes_on(capsys):
    options = ("--steps", 2, "--resume", "run.pt")
    for name in ("first", "again"):
        assert adapt(capsys, *options, "--out", f"{name}.pth")[0] == 0
    first, again = (torch.load(f"{name}.pth", weights_only=True) for name in ("first", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)

    code, _, err = adapt(capsys, "--steps", 3, "--resume", "run.pt")
    assert code == 2
    assert "steps 2 there, 3 now" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume", "nowhere/run.pt"), "its folder does not exist"),
        (("--resume", "run.pt", "--no-distill"), "--resume keeps the distillation"),
    ],
)
def test_a_resume_that_cannot_be_is_refused_before_any_work(capsys, options, message):
    code, out, err = adapt(capsys, *options)
    assert (code, out) == (2, "")
    assert message in err


def test_says_what_each_step_did(capsys):
    code, out, err = adapt(capsys, "--steps", 1)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows if row[0] in STEPS] == list(STEPS)
    assert "4 photographs to adapt on, 4 others to measure on" in out
    for title in ("as the original %", "top-1 %", "consistency % (95 %)", "minutes"):
        assert title in out


def test_writes_what_makes_the_adapted_model_again(capsys, folder):
    options = ("--steps", 4, "--filter", "halfband-7", "--placement", "post", "--seed", 3)
    data = found(capsys, *options, "--out", "aa.pth")
    assert (data["weights"], data["plan_file"]) == ("aa.pth", "aa.plan.json")
    again = timm.create_model("test_efficientnet").eval()
    apply_antialias(again, plan=Plan.load("aa.plan.json"))
    again.load_state_dict(torch.load("aa.pth"), strict=True)
    bare = timm.create_model("test_efficientnet", checkpoint_path="weights.pth").eval()
    apply_antialias(bare, plan=Plan.load("aa.plan.json"))
    assert not torch.equal(again.conv_stem.weight, bare.conv_stem.weight)  # trained
    norms = [name for name in bare.state_dict() if name.endswith("running_mean")]
    assert not all(again.state_dict()[n].equal(bare.state_dict()[n]) for n in norms)  # recalibrated
    found(capsys, *options, "--out", "twin.safetensors", "--save-plan", "p.json")
    twin = timm.models.load_state_dict("twin.safetensors")
    for name, value in again.state_dict().items():
        assert torch.equal(value, twin[name])
    assert Plan.load("p.json") == Plan.load("aa.plan.json")


def test_json_holds_every_number(capsys):
    data = found(capsys, "--no-distill", "--passes", 2, "--adapt-images", 2)
    assert data["adapted_on"] == 2
    assert [step["name"] for step in data["steps"]] == ["original", "surgery", "recalibrated"]
    for step in data["steps"]:
        assert (step["images"], step["pairs"]) == (6, 12)
        assert 0 <= step["top1"] <= 100
        assert step["interval"][0] <= step["consistency"] <= step["interval"][1]
    assert [step["agreement"] is None for step in data["steps"]] == [True, False, False]
    assert Plan.from_dict(data["plan"]).edits


def test_reads_a_zip_and_a_part_of_it(capsys, folder):
    with zipfile.ZipFile("images.zip", "w") as archive:
        for path in (folder / "images").rglob("*.png"):
            archive.write(path, path.relative_to(folder / "images"))
    steps = found(capsys, "--no-distill", "--limit", 4, images="images.zip")["steps"]
    assert {step["images"] for step in steps} == {2}


def test_weights_under_other_names_are_loaded_by_position(capsys):
    state = torch.load("weights.pth")
    kept = {k: v for k, v in state.items() if "num_batches" not in k}
    torch.save({f"net.{i}": v for i, v in enumerate(kept.values())}, "foreign.pth")
    code, _, err = adapt(capsys, "--no-distill", "--out", "a.pth", weights="foreign.pth")
    assert code == 0
    (said,) = warnings_in(err)
    assert "by their position" in said
    adapt(capsys, "--no-distill", "--out", "b.pth")
    first, second = torch.load("a.pth"), torch.load("b.pth")
    for name in kept:
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("change", ["one tensor fewer", "another shape", "another order"])
def test_weights_that_do_not_fit_by_position_are_refused(capsys, change):
    state = {f"net.{k}": v for k, v in torch.load("weights.pth").items()}
    names = [n for n in state if "num_batches" not in n]
    if change == "one tensor fewer":
        del state[names[0]]
    elif change == "another shape":
        state[names[0]] = state[names[0]][:1]
    else:
        state = dict(reversed(state.items()))
    torch.save(state, "foreign.pth")
    code, _, err = adapt(capsys, "--no-distill", weights="foreign.pth")
    assert code == 2
    assert "does not fit the model" in err


def spoil(folder):
    """Add bad images: three cannot be read, three can, and a text file is no image at all."""
    place = folder / "images" / "7_coffee"
    coffee = Image.fromarray(data.coffee())
    coffee.convert("CMYK").save(place / "cmyk.jpg")
    coffee.convert("L").save(place / "grey.jpg")
    coffee.resize((1, 1)).save(place / "dot.png")
    coffee.save(place / "whole.jpg")
    (place / "truncated.jpg").write_bytes((place / "whole.jpg").read_bytes()[:9000])
    (place / "whole.jpg").unlink()
    (place / "text.jpg").write_text("no image")
    (place / "empty.png").write_bytes(b"")
    (place / "notes.txt").write_text("no image, and no suffix of one")


def test_bad_images_are_used_or_left_out_with_one_warning(capsys, folder):
    spoil(folder)
    code, out, err = adapt(capsys, "--steps", 1)
    assert code == 0, err
    (said,) = warnings_in(err)
    assert "3 of 14 images are left out" in said
    assert any(name in said for name in ("truncated.jpg", "text.jpg", "empty.png"))
    assert "5 photographs to adapt on, 6 others to measure on" in out
    assert "nan" not in out


def test_images_that_are_all_bad_are_an_error(capsys, folder):
    spoil(folder)
    for path in (folder / "images").rglob("*.*"):
        if path.name not in ("truncated.jpg", "text.jpg", "empty.png"):
            path.unlink()
    code, out, err = adapt(capsys, "--no-distill")
    assert (code, "as the original" in out) == (2, False)
    assert "none of 3 images can be read" in err


BAD = {
    "an empty folder": (["--images", "empty"], "no image among 0 files"),
    "a folder of texts": (["--images", "texts"], "no image among 1 files"),
    "no folder": (["--images", "nowhere"], "nowhere"),
    "one image": (["--images", "images/3_chelsea/0.png"], "at least two"),
    "no weights there": (["--weights", "no.pth"], "no.pth"),
    "steps 0": (["--steps", 0], "above 0"),
    "minutes below 0": (["--minutes", -1], "above 0"),
    "steps and minutes": (["--steps", 1, "--minutes", 1], "not allowed"),
    "steps without distillation": (["--steps", 1, "--no-distill"], "not allowed"),
    "nothing to adapt on": (["--adapt-images", 0], "adapt_images"),
    "passes 0": (["--passes", 0], "passes"),
    "limit 0": (["--limit", 0], "limit"),
    "threads 0": (["--threads", 0], "--threads"),
    "no device": (["--device", "nope"], "nope"),
    "plan without weights": (["--save-plan", "p.json"], "--out"),
    "unknown suffix": (["--out", "aa.txt"], ".safetensors"),
    "no folder for the output": (["--out", "no/aa.pth"], "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(capsys, folder, case):
    options, said = BAD[case]
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").write_text("no image")
    before = sorted(folder.rglob("*"))
    code, _, err = adapt(capsys, *options)
    assert code == 2
    assert said in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before


def test_random_weights_are_warned_of(capsys):
    code, _, err = run(capsys, *MODEL, "--images", "images", "--no-distill")
    assert code == 0
    assert "random" in err
