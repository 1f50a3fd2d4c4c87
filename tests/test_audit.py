"""The report, the plan's reasons, and a model left as it was."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from auditing import BLUR, CONV, IMAGE, RESNET18, Apply, sites, timm_model
from torch import Tensor, nn

from aa_surgery.audit import audit
from aa_surgery.errors import InputError, UnsupportedModelError
from aa_surgery.layers import BlurPool2d, MaxBlurPool2d


def test_calls_of_one_module_are_one_row():
    pool = nn.MaxPool2d(2)
    (row,) = audit(Apply(lambda m, x: m.pool(m.pool(x)), pool=pool), IMAGE).rows
    assert (row.name, row.calls, row.size_in, row.size_out) == ("pool", 2, (64, 64), (32, 32))


def test_worst_call_decides():
    children = BLUR | {"pool": nn.MaxPool2d(2)}
    (row,) = audit(Apply(lambda m, x: m.pool(x) + m.pool(m.blur(x)), **children), IMAGE).rows
    assert (row.verdict, row.calls) == ("untreated", 2)


def test_indexing_without_a_regular_step_is_listed_not_judged():
    report = audit(Apply(lambda m, x: x[:, :, torch.tensor([0, 3, 4, 9, 12])]), IMAGE)
    assert not report.rows
    assert report.unread == ("(model): index",)


def left(name: str, reason: str = "stride 4 > max_stride") -> SimpleNamespace:
    return SimpleNamespace(site=SimpleNamespace(name=name), reason=reason)


def test_plan_gives_the_reason():
    model = timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4)
    plan = SimpleNamespace(left=(left("patch_embed.proj"), left("layers.1.downsample:reshape")))
    report = audit(model, IMAGE, plan=plan)
    assert [r.name for r in report.left] == ["patch_embed.proj", "layers.1.downsample"]
    assert {r.reason for r in report.left} == {"stride 4 > max_stride"}
    assert [r.name for r in report.untreated] == ["layers.2.downsample", "layers.3.downsample"]
    model._antialias_plan = plan
    assert audit(model, IMAGE) == report


def test_plan_excuses_no_namesake():
    model = Apply(
        lambda m, x: m.conv10(m.conv1(x)), conv1=nn.Conv2d(3, 3, 2, 2), conv10=CONV["conv"]
    )
    report = audit(model, IMAGE, plan=SimpleNamespace(left=(left("conv1"),)))
    assert [r.verdict for r in report.rows] == ["left", "untreated"]


def test_treated_stays_treated_though_left():
    assert audit(BlurPool2d(), IMAGE, plan=SimpleNamespace(left=(left(""),))).treated


class Untidy(nn.Module):
    """Change a buffer, replace another, and draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.cache = x
        x += torch.rand(1)
        return F.max_pool2d(self.norm(x), 2)


def test_model_input_and_random_state_are_as_before():
    model, x = Untidy(), IMAGE.clone()
    model.train()
    model.norm.eval()
    state, hooks = torch.get_rng_state(), len(nn.modules.module._global_forward_hooks)
    assert len(audit(model, x).rows) == 1
    assert (model.training, model.norm.training) == (True, False)
    assert model.count == 0
    assert model.cache is None
    assert torch.equal(x, IMAGE)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(nn.modules.module._global_forward_hooks) == hooks
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_failing_forward_leaves_all_as_before():
    model = nn.Sequential(nn.Dropout(), nn.Linear(5, 2)).train()
    hooks = len(nn.modules.module._global_forward_hooks)
    with pytest.raises(InputError, match="Sequential fails on inputs of shape") as caught:
        audit(model, IMAGE)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert model.training
    assert model[0].training
    assert len(nn.modules.module._global_forward_hooks) == hooks


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="no inputs"):
        audit(nn.ReLU())
    with pytest.raises(UnsupportedModelError, match="expected an nn"):
        audit(F.relu, IMAGE)  # type: ignore[arg-type]
    scripted = torch.jit.trace(nn.ReLU(), IMAGE)
    with pytest.raises(UnsupportedModelError, match="0 is a"):
        audit(nn.Sequential(scripted), IMAGE)


def test_keyword_inputs_and_wrappers():
    assert sites(audit(nn.DataParallel(timm_model("resnet18")), IMAGE)) == RESNET18
    compiled = torch.compile(timm_model("resnet18"), backend="eager")
    assert sites(audit(compiled, x=IMAGE)) == RESNET18


def test_meta_device_says_the_same():
    for model in (
        timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4),
        nn.Sequential(nn.Conv2d(3, 8, 3), BlurPool2d(), MaxBlurPool2d(3, 2), nn.MaxPool2d(2)),
    ):
        real = audit(model, IMAGE)
        meta = audit(model.to("meta"), IMAGE.to("meta"))
        assert [(r.name, r.op, r.stride, r.verdict) for r in meta.rows] == [
            (r.name, r.op, r.stride, r.verdict) for r in real.rows
        ]


def test_low_precision_filters_are_seen():
    model = nn.Sequential(BlurPool2d("binomial-7")).bfloat16()
    assert audit(model, IMAGE.bfloat16()).ok


def test_report_prints_and_writes():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), BlurPool2d())
    report = audit(model, IMAGE)
    lines = str(report).splitlines()
    assert lines[0].split() == [
        "name", "op", "stride", "size", "calls", "verdict", "gain", "reason",
    ]  # fmt: skip
    assert lines[2].startswith("0 ")
    assert lines[-1] == "2 sampling ops: 1 treated, 0 left, 1 untreated"
    starts = {line.index("conv") for line in lines[2:-1]}
    assert len(starts) == 1
    data = json.loads(json.dumps(report.to_dict()))
    assert [r["verdict"] for r in data["rows"]] == ["untreated", "treated"]
    assert not data["ok"]
    assert str(audit(nn.ReLU(), IMAGE)) == ("0 sampling ops: 0 treated, 0 left, 0 untreated")
