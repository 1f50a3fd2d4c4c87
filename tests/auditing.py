"""What the tests of the audit share."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from aa_surgery.audit import AuditReport, audit
from aa_surgery.layers import BlurPool

__all__ = [
    "BLUR",
    "CONV",
    "IMAGE",
    "RESNET18",
    "Apply",
    "sites",
    "sites_of",
    "timm_model",
    "verdicts_of",
]

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Apply(nn.Module):
    """Run a function of the input and of a few children."""

    def __init__(self, function, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def sites(report: AuditReport) -> list[str]:
    return [f"{r.name} {r.op} {'x'.join(f'{s:g}' for s in r.stride)}" for r in report.rows]


def sites_of(function, x: Tensor = IMAGE, **children: nn.Module) -> list[str]:
    report = audit(Apply(function, **children), x)
    assert not report.unread
    return sites(report)


def verdicts_of(function, x: Tensor = IMAGE, **children: nn.Module) -> list[str]:
    return [r.verdict for r in audit(Apply(function, **children), x).rows]


def timm_model(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options)


RESNET18 = [
    "conv1 conv 2x2",
    "maxpool max_pool 2x2",
    *(f"layer{i}.0.{conv} conv 2x2" for i in (2, 3, 4) for conv in ("conv1", "downsample.0")),
]
BLUR = {"blur": BlurPool("tri-3", (1, 1), rate=(2, 2))}
CONV = {"conv": nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular")}
