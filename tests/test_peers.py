"""`preset="zhang2019"` computes what the package `antialiased-cnns` computes.

The package runs beside ours as a peer; its licence (CC BY-NC-SA) lets none of its code in here.
"""

from __future__ import annotations

import antialiased_cnns
import pytest
import torch
import torchvision
from torch import nn

from aa_surgery import apply_antialias

pytestmark = pytest.mark.peer

FILTERS = {3: "tri-3", 4: "tri-4", 5: "binomial-5"}


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and statistics by their order, which the two packages share."""
    theirs, ours = dict(source.named_parameters()), dict(target.named_parameters())
    statistics = {n: b for n, b in source.named_buffers() if not n.endswith("filt")}
    pairs = [
        *zip(theirs.values(), ours.values(), strict=True),
        *zip(statistics.values(), target.buffers(), strict=True),
    ]
    for their, our in pairs:
        assert their.shape == our.shape
        our.data.copy_(their.data)


@pytest.mark.parametrize("taps", FILTERS)
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg16_bn", "alexnet", "densenet121", "mobilenet_v2"]
)
def test_outputs_equal_the_peer(name: str, taps: int) -> None:
    torch.manual_seed(0)
    peer = getattr(antialiased_cnns, name)(filter_size=taps).eval()
    ours = torchvision.models.get_model(name).eval()
    copy_weights(peer, ours)
    apply_antialias(ours, preset="zhang2019", filter=FILTERS[taps])
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected, output = peer(x), ours(x)
    scale = expected.abs().max()
    torch.testing.assert_close(output / scale, expected / scale, rtol=1e-5, atol=1e-5)
