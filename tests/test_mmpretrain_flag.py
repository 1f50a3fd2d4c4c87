"""The key `antialias` in a model config, and the type that stands for it."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope, Registry
from mmpretrain import ImageClassificationInferencer, get_model, init_model, list_models
from mmpretrain.models import ResNet
from mmpretrain.registry import MODELS
from torch import nn

import aa_surgery
import aa_surgery.mmpretrain
from aa_surgery import NoEffectWarning, SurgeryError
from aa_surgery.errors import UnsupportedModelError
from aa_surgery.mmpretrain import antialiased
from aa_surgery.surgery.classes import Antialiased

BACKBONE = dict(type="ResNet", depth=18)
MODEL = dict(
    type="ImageClassifier",
    backbone=BACKBONE,
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=3, in_channels=512),
)
PHOTO = torch.rand(1, 3, 65, 64, generator=torch.Generator().manual_seed(0))


def seeded(build: Any) -> nn.Module:
    torch.manual_seed(0)
    return build()


def with_flag(flag: Any, where: str = "backbone") -> dict[str, Any]:
    model = copy.deepcopy(MODEL)
    (model[where] if where else model)["antialias"] = flag  # type: ignore[index]
    return model


def features(model: nn.Module) -> torch.Tensor:
    backbone = getattr(model, "backbone", model)
    backbone.eval()
    with torch.no_grad():
        return backbone(PHOTO)[-1]


@pytest.fixture(scope="module")
def by_hand() -> torch.Tensor:
    model = seeded(lambda: MODELS.build(copy.deepcopy(MODEL)))
    return features(aa_surgery.apply_antialias(model, filter="tri-4"))


@pytest.mark.parametrize("where", ["backbone", ""])
@pytest.mark.parametrize("flag", ["tri-4", dict(filter="tri-4"), [1 / 8, 3 / 8, 3 / 8, 1 / 8]])
def test_the_flag_is_apply_antialias(where: str, flag: Any, by_hand: torch.Tensor) -> None:
    model = seeded(lambda: MODELS.build(with_flag(flag, where)))
    assert torch.equal(features(model), by_hand)
    assert set(model.state_dict()) == set(MODELS.build(copy.deepcopy(MODEL)).state_dict())


@pytest.mark.parametrize("flag", [False, None])
def test_without_surgery_or_by_default(flag: Any) -> None:
    treated = any(isinstance(m, Antialiased) for m in MODELS.build(with_flag(flag)).modules())
    assert treated is (flag is None)  # `antialias=None` is the flag without options, as in timm


@pytest.mark.parametrize("suffix", ["py", "json", "yaml"])
def test_a_config_is_unchanged_and_survives_its_dump(suffix: str, tmp_path: Path) -> None:
    config = Config(dict(model=with_flag(dict(filter="tri-4")), default_scope="mmpretrain"))
    text = config.pretty_text
    first = seeded(lambda: MODELS.build(config.model))
    assert config.pretty_text == text
    config.dump(tmp_path / f"c.{suffix}")
    again = Config.fromfile(tmp_path / f"c.{suffix}")
    assert again.model.backbone.antialias == dict(filter="tri-4")
    second = seeded(lambda: MODELS.build(again.model))
    assert torch.equal(features(first), features(second))


def test_command_line_with_custom_imports(by_hand: torch.Tensor) -> None:
    config = Config(dict(model=copy.deepcopy(MODEL)))
    config.merge_from_dict({"model.backbone.antialias.filter": "tri-4"})  # --cfg-options
    assert torch.equal(features(seeded(lambda: MODELS.build(config.model))), by_hand)


@pytest.mark.parametrize("of", ["ResNet", "mmpretrain.ResNet", ResNet])
@pytest.mark.parametrize("kind", ["aa_surgery.mmpretrain.antialiased", "antialiased", antialiased])
def test_function_type(kind: Any, of: Any, by_hand: torch.Tensor) -> None:
    config = Config(dict(model=copy.deepcopy(MODEL)))
    config.merge_from_dict(
        {"model.backbone.type": kind, "model.backbone.of": of, "model.backbone.surgery": "tri-4"}
    )
    assert torch.equal(features(seeded(lambda: MODELS.build(config.model))), by_hand)


def test_new_style_config_dumps_and_builds_again(tmp_path: Path, by_hand: torch.Tensor) -> None:
    source = tmp_path / "new.py"
    source.write_text(
        "from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead\n"
        "from mmpretrain.models import ResNet\n"
        "from aa_surgery.mmpretrain import antialiased\n"
        "model = dict(type=ImageClassifier,\n"
        "    backbone=dict(type=antialiased, of=ResNet, depth=18, surgery='tri-4'),\n"
        "    neck=dict(type=GlobalAveragePooling),\n"
        "    head=dict(type=LinearClsHead, num_classes=3, in_channels=512))\n"
    )
    config = Config.fromfile(source)
    config.dump(tmp_path / "dumped.py")
    for each in (config, Config.fromfile(tmp_path / "dumped.py")):
        assert torch.equal(features(seeded(lambda c=each: MODELS.build(c.model))), by_hand)


def test_registries_of_other_packages() -> None:
    later = Registry("models", parent=ROOT, scope="some_det", locations=[])
    for registry in (ROOT, later):
        model = registry.build(dict(type="mmpretrain.ResNet", depth=18, antialias=True))
        assert any(isinstance(m, Antialiased) for m in model.modules())
    scoped = dict(type="ResNet", depth=18, antialias=True, _scope_="mmpretrain")
    assert any(isinstance(m, Antialiased) for m in ROOT.build(scoped).modules())
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = ROOT.build(with_flag(True))
    assert isinstance(model.backbone.conv1, Antialiased)


def test_a_list_is_a_sequence_whose_items_have_flags() -> None:
    treated, plain = MODELS.build([dict(**BACKBONE, antialias=True), BACKBONE])
    assert isinstance(treated.conv1, Antialiased)
    assert not isinstance(plain.conv1, Antialiased)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("yes", "filter 'yes' is unknown"),
        (3, "expected True, False, a filter"),
        (dict(filtr="tri-3"), "unknown key 'filtr'. Use filter, placement"),
        (dict(filter="tri-300"), "'tri' is 3 or 4"),
        (dict(placement="behind"), "placement 'behind' is unknown"),
        (dict(include="layer9.*"), "matches no site"),
    ],
)
@pytest.mark.parametrize(
    ("where", "path"), [("backbone", "model.backbone.antialias (ResNet)"), ("", "model.antialias")]
)
def test_a_wrong_flag_names_its_place(flag: Any, message: str, where: str, path: str) -> None:
    with pytest.raises(SurgeryError) as error:
        MODELS.build(with_flag(flag, where))
    assert str(error.value).startswith(path)
    assert message in str(error.value)


def test_places_within_lists_are_named() -> None:
    model = dict(**MODEL, antialias=False)
    model["backbone"] = [BACKBONE, dict(**BACKBONE, antialias=3)]  # type: ignore[assignment]
    with pytest.raises(SurgeryError, match=r"^model\.backbone\[1\]\.antialias \(ResNet\)"):
        MODELS.build(model)


def test_nothing_to_treat_warns() -> None:
    with pytest.warns(NoEffectWarning, match=r"^model\.neck\.antialias \(GlobalAveragePooling\)"):
        MODELS.build(with_flag(True, "neck"))


def test_flags_on_model_and_backbone_warn() -> None:
    model = with_flag(True)
    model["antialias"] = True
    with pytest.warns(NoEffectWarning, match=r"^model\.antialias .* anti-aliased already"):
        assert isinstance(MODELS.build(model).backbone.conv1, Antialiased)


def test_frozen_weights_warn_and_training_ones_do_not() -> None:
    frozen = with_flag(True)
    frozen["backbone"]["frozen_stages"] = 2
    with pytest.warns(UserWarning, match=r"^model\.backbone\.antialias .*3 treated sites.*conv1"):
        MODELS.build(frozen)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        MODELS.build(with_flag(True))


def test_a_scripted_backbone_is_refused() -> None:
    @MODELS.register_module(force=True)
    def ScriptedForTest() -> Any:
        return torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)))

    with pytest.raises(UnsupportedModelError, match=r"^model\.backbone\.antialias.*is scripted"):
        MODELS.build({**MODEL, "backbone": dict(type="ScriptedForTest", antialias=True)})


def test_get_model_init_model_and_inferencer() -> None:
    name = "resnet18_8xb32_in1k"
    config = get_model(name)._config
    config.model.backbone.antialias = "tri-4"
    for model in (
        get_model(name, backbone=dict(antialias="tri-4")),
        get_model(config),
        init_model(config, device="cpu"),
        ImageClassificationInferencer(get_model(config)).model,
        get_model(name + "_blur3"),
    ):
        assert isinstance(model.backbone.conv1, Antialiased)
    assert "antialias" not in get_model(name)._config.model.backbone


def test_the_whole_zoo_has_antialiased_names() -> None:
    names = [n for n in list_models() if "blur" not in n]
    suffixed = set(list_models("*_blur3"))
    assert len(names) > 500
    assert {n + "_blur3" for n in names if n + "_blur3" not in suffixed} == set()
    aa_surgery.mmpretrain.list_in_zoo()  # again is harmless
    assert set(list_models("*_blur3")) == suffixed


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_core_needs_no_mmpretrain() -> None:
    hidden = "import sys; sys.modules.update(mmpretrain=None, mmengine=None, mmcv=None); "
    done = run_python(hidden + "import aa_surgery; print(aa_surgery.list_filters()[0])")
    assert done.returncode == 0, done.stderr
    failed = run_python(hidden + "import aa_surgery.mmpretrain")
    assert failed.returncode != 0
    assert 'pip install "aa-surgery[mmpretrain]"' in failed.stderr.splitlines()[-1]
    loaded = run_python(
        "import aa_surgery, sys; print([m for m in sys.modules if 'mmengine' in m])"
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("flag", ["aps", dict(method=dict(name="learned"), filter="tri-4")])
@pytest.mark.parametrize("where", ["", "backbone"])
def test_the_flag_chooses_a_method(flag: Any, where: str) -> None:
    model = seeded(lambda: MODELS.build(with_flag(flag, where)))
    options = {"method": flag} if isinstance(flag, str) else flag
    other = seeded(lambda: MODELS.build(copy.deepcopy(MODEL)))
    aa_surgery.apply_antialias(other if not where else other.backbone, **options)
    assert list(model.state_dict()) == list(other.state_dict())
    assert torch.equal(features(model), features(other))
