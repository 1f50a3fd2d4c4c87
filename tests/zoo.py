"""Small nets, one hazard each, that carry the names of the sites to be found in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ZOO", "Zoo"]


class Zoo(nn.Module):
    """Base of the small nets: `expected` is what find must say, `size` an input they accept."""

    expected: dict[str, str]
    size: tuple[int, ...] = (2, 3, 17, 16)


class SharedReLU(Zoo):
    """One ReLU module serves three calls, one of them behind a strided conv."""

    expected = {"conv2": "conv"}

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 5, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.norm(self.conv2(x)))
        return self.relu(self.conv3(x))


class StridesInARow(Zoo):
    """The blur of the first conv and that of the second both stand before the second."""

    expected = {"first": "conv", "second": "conv"}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.second = nn.Conv2d(4, 5, 1, 2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


class FannedOutReLU(Zoo):
    """The shared ReLU's output goes two ways, so that only the graph can hold the blur."""

    expected = {"conv": "conv"}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return self.relu(self.left(x)) + self.right(x)


class FunctionalPools(Zoo):
    expected = {":max_pool2d": "max_pool", ":avg_pool2d": "avg_pool", ":max_pool2d_1": "max_pool"}
    size = (1, 3, 35, 38)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        x = F.avg_pool2d(x, kernel_size=3, stride=2, padding=1, count_include_pad=False)
        return F.max_pool2d(x, 2)


class FunctionalConv(Zoo):
    """Convolutions by function, with weights of the scope, and an activation by function."""

    expected = {":conv2d": "conv", ":conv2d_1": "conv"}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.point = nn.Parameter(torch.randn(2, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weight, None, 2, 1))
        return F.conv2d(x, self.point, stride=2)


class Slices(Zoo):
    """Two strided slices: of the map alone, and four of one map, as patch merging takes."""

    expected = {":getitem": "slice", ":getitem_1": "slice"}
    size = (2, 3, 20, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, ::2, ::2]
        parts = [x[..., a::2, b::2] for a in (0, 1) for b in (0, 1)]
        return torch.cat([p[:, :, :5, :5] for p in parts], 1)


class Resize(Zoo):
    expected = {":interpolate": "interpolate", ":interpolate_1": "interpolate", "up": "interpolate"}
    size = (1, 2, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=0.5, mode="bicubic")

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=0.5)
        x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return F.interpolate(self.up(x), scale_factor=2.0, mode="nearest")


class TrainingBranch(Zoo):
    """The forward itself reads `self.training`, around a functional pool."""

    expected = {":max_pool2d": "max_pool"}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 3, 2, 1)
        if self.training:
            return x * 2
        return F.dropout(x, 0.5, self.training)


class SizeInControlFlow(Zoo):
    """The forward decides on the size, so it cannot be traced; its modules can be treated."""

    expected = {"conv": "conv", "pool": "max_pool"}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.pool(x) if x.shape[-1] > 4 else x


class TiedConvs(Zoo):
    """One strided conv under two names, called twice."""

    expected = {"first": "conv"}
    size = (1, 3, 33, 33)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, 2, 1)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))))


class OneDimension(Zoo):
    expected = {"net.0": "conv", "net.3": "max_pool", "net.4": "avg_pool"}
    size = (2, 3, 61)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(3, 4, 5, 2, 2),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.MaxPool1d(3, 2, 1),
            nn.AvgPool1d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ThreeDimensions(Zoo):
    """Video: strides differ by axis, time being kept in one layer."""

    expected = {"net.0": "conv", "net.2": "max_pool", "net.3": "avg_pool"}
    size = (1, 3, 6, 19, 18)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(3, 4, (3, 5, 5), (1, 2, 2), (1, 2, 2)),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            nn.AvgPool3d(2, ceil_mode=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class AnisotropicStride(Zoo):
    """Text recognisers (CRNN) sample height and width at different rates."""

    expected = {"net.0": "conv", "net.2": "max_pool"}

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, (2, 1), 1), nn.GELU(), nn.MaxPool2d((2, 2), (1, 2), (0, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class UnfoldMerge(Zoo):
    """Patch merging as MMPretrain writes it: `nn.Unfold`, norm, linear."""

    expected = {"sampler": "unfold"}
    size = (2, 3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.sampler = nn.Unfold(kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(12)
        self.reduction = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(self.sampler(x).transpose(1, 2)))


class ReshapeMerge(Zoo):
    """Patch merging as timm writes it, in tokens: reshape, permute, flatten, norm, linear."""

    expected = {":reshape": "space_to_depth"}
    size = (2, 5, 8, 6)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(20), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        x = x.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class SliceMerge(Zoo):
    """Patch merging as torchvision writes it, in tokens: slices at every offset, concatenated."""

    expected = {":getitem": "slice"}
    size = (2, 5, 8, 6)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(20), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        parts = [x[..., a::2, b::2, :] for b in (0, 1) for a in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class OddPadding(Zoo):
    """Padding by a mode, and a patchify conv of a larger stride."""

    expected = {"first": "conv", "patchify": "conv"}
    size = (1, 3, 26, 25)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")
        self.act = nn.SiLU()
        self.patchify = nn.Conv2d(4, 5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.patchify(self.act(self.first(x)))


class PixelUnshuffle(Zoo):
    expected = {"shuffle": "space_to_depth"}

    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.PixelUnshuffle(2)
        self.conv = nn.Conv2d(12, 3, 1)

    size = (1, 3, 16, 18)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.shuffle(x))


class FlagArgument(Zoo):
    """A forward with a plain default argument, which its trace fixes."""

    expected = {":max_pool2d": "max_pool"}

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        x = F.max_pool2d(x, 2)
        return x * 2 if double else x


class Shortcut(nn.Module):
    """A block that may be given its shortcut, as DLA's are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if shortcut is None:
            shortcut = x
        return F.max_pool2d(self.conv(x), 2) + F.avg_pool2d(shortcut, 2)


class GivenShortcut(Zoo):
    """The caller fills an argument that has a default."""

    expected = {"block:max_pool2d": "max_pool", "block:avg_pool2d": "avg_pool"}

    def __init__(self) -> None:
        super().__init__()
        self.block = Shortcut()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, shortcut=x * 2)


class PoolsOfOne(Zoo):
    """Windows of one sample: plain subsampling, as of a feature pyramid's last level."""

    expected = {":max_pool2d": "max_pool", "maximum": "max_pool", "average": "avg_pool"}
    size = (1, 3, 33, 30)

    def __init__(self) -> None:
        super().__init__()
        self.maximum = nn.MaxPool2d(1, 2)
        self.average = nn.AvgPool2d(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.average(self.maximum(F.max_pool2d(x, kernel_size=1, stride=2)))


class DecidingMethod(Zoo):
    """A method pads odd maps before the merge, as that of transformers' Swin does."""

    expected = {":getitem_2": "slice"}

    def __init__(self) -> None:
        super().__init__()
        self.reduction = nn.Linear(12, 5)
        self.fill = 1.0

    def padded(self, x: Tensor, height: int, width: int) -> Tensor:
        if height % 2 == 1 or width % 2 == 1:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2), value=self.fill)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = self.padded(x, x.shape[1], x.shape[2])
        parts = [x[:, i::2, j::2, :] for i in range(2) for j in range(2)]
        return self.reduction(torch.cat(parts, -1)).permute(0, 3, 1, 2)


class TensorInAttribute(Zoo):
    """A tensor that is no buffer, read by the forward."""

    expected = {":max_pool2d": "max_pool"}

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.full((1, 3, 1, 1), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x * self.gain.to(x), 2)


class NormOverTheMap(Zoo):
    """Of a dense map the statistics are others, so that the conv is blurred before."""

    expected = {"conv": "conv", "last": "conv"}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.last = nn.Conv2d(4, 4, 3, 2, 1)
        self.instance = nn.InstanceNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return F.relu(self.instance(self.last(x)))


class NothingToDo(Zoo):
    expected: dict[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, 1:, ..., ::1]


ZOO: tuple[type[Zoo], ...] = tuple(cls for cls in Zoo.__subclasses__() if cls is not NothingToDo)
