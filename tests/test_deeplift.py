"""Captum's DeepLift explains a treated model: its shares add up to what the output differs by."""

from __future__ import annotations

import copy

import captum.attr as captum
import pytest
import torch
from torch import Tensor, nn

from aa_surgery import apply_antialias

PLACEMENTS = ("auto", "post", "pre")


class Net(nn.Module):
    def __init__(self, act: type[nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), act(), pool, nn.Conv2d(8, 8, 3, 2, 1), act()
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x).mean((2, 3)))


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.ELU])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)], ids=str)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_shares_add_up_and_the_identity_changes_none(
    act: type[nn.Module], pool: nn.Module, placement: str
) -> None:
    torch.manual_seed(0)
    plain = Net(act, copy.deepcopy(pool)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    reference = torch.zeros_like(x)
    wanted = captum.DeepLift(plain).attribute(x, reference, target=1)
    for name in ("identity", "tri-3"):
        treated = apply_antialias(copy.deepcopy(plain), filter=name, placement=placement)
        shares, missing = captum.DeepLift(treated).attribute(
            x, reference, target=1, return_convergence_delta=True
        )
        gained = (treated(x) - treated(reference))[:, 1].abs().min()
        assert missing.abs().max() < 1e-9 < 1e-3 * gained
        if name == "identity":
            assert torch.allclose(shares, wanted, atol=1e-9)
