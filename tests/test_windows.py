"""Swin's windows, as timm, torchvision and MMPretrain write them: aligned, and without a border."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from mmpretrain.models import SwinTransformer, SwinTransformerV2
from torch import Tensor, nn
from torchvision.models import swin_transformer as tv

from aa_surgery import apply_antialias, plan_antialias, remove_antialias

SIDE = 128  # px; the last map has 4 x 4 samples, 2 x 2 windows
SHIFTS = [(1, 0), (0, 1), (3, 2), (31, 17), (16, 32), (64, 127)]
WHOLE = (64, 64)  # px: patch 4, three mergings, windows of 2


class Pooled(nn.Module):
    """An MMPretrain backbone, its last map averaged."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.backbone(x)[-1].mean((2, 3))
        return pooled


def of_timm(name: str) -> nn.Module:
    return timm.create_model(
        name, img_size=SIDE, window_size=2, embed_dim=16, depths=(2,) * 4, num_heads=(1, 2, 2, 4)
    )


def of_torchvision(block: type[nn.Module], merging: type[nn.Module]) -> nn.Module:
    return tv.SwinTransformer(
        [4, 4], 16, [2] * 4, [1, 2, 2, 4], [2, 2], block=block, downsample_layer=merging
    )


def of_mmpretrain(backbone: type[nn.Module]) -> nn.Module:
    arch: dict[str, Any] = {"embed_dims": 16, "depths": [2] * 4, "num_heads": [1, 2, 2, 4]}
    if backbone is SwinTransformerV2:
        arch["extra_norm_every_n_blocks"] = 0
    return Pooled(backbone(arch, img_size=SIDE, window_size=2))


NETS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: of_timm("swin_tiny_patch4_window7_224"),
    "timm v2": lambda: of_timm("swinv2_tiny_window8_256"),
    "torchvision": lambda: of_torchvision(tv.SwinTransformerBlock, tv.PatchMerging),
    "torchvision v2": lambda: of_torchvision(tv.SwinTransformerBlockV2, tv.PatchMergingV2),
    "mmpretrain": lambda: of_mmpretrain(SwinTransformer),
    "mmpretrain v2": lambda: of_mmpretrain(SwinTransformerV2),
}


@pytest.fixture(params=NETS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A network in which windows count: no table of positions is zero, and no branch silent."""
    torch.manual_seed(0)
    model = NETS[request.param]().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, SIDE, SIDE, generator=generator)


@torch.no_grad()
def change(model: nn.Module, image: Tensor, shifts: list[tuple[int, int]]) -> float:
    """The largest change of the outputs, relative to the largest of them."""
    outputs = model(image)
    moved = [model(image.roll(shift, (2, 3))) for shift in shifts]
    return max(((m - outputs).abs().max() / outputs.abs().max()).item() for m in moved)


@pytest.mark.parametrize("method", ["aps", "lps"])
def test_aligned_windows_keep_every_circular_shift(
    model: nn.Module, image: Tensor, method: str
) -> None:
    with torch.no_grad():
        untouched = model(image)
    assert change(model, image, SHIFTS) > 1e-2
    apply_antialias(model, method=method, circular=True, example=image)
    windows = [edit for edit in model._antialias_plan.edits if edit.site.op == "window"]
    assert len(windows) == 4, "one a stage"
    assert change(model, image, SHIFTS) < 1e-4
    again = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
        remove_antialias(model)
        assert torch.equal(model(image), untouched)


def test_circular_borders_have_no_mask(model: nn.Module, image: Tensor) -> None:
    assert change(model, image, [WHOLE]) > 1e-3
    apply_antialias(model, circular=True)
    assert change(model, image, [WHOLE]) < 1e-4


def test_aligned_windows_start_as_they_were(model: nn.Module) -> None:
    """Of a flat image every phase is alike, and the first is chosen: nothing changes."""
    flat = torch.full((1, 3, SIDE, SIDE), 0.3)
    with torch.no_grad():
        untouched = model(flat)
        apply_antialias(model, method="aps", example=flat)
        torch.testing.assert_close(model(flat), untouched)


def test_other_methods_leave_windows_alone(model: nn.Module) -> None:
    plan = plan_antialias(model)
    assert {item.site.op for item in (*plan.edits, *plan.left)}.isdisjoint({"window"})
