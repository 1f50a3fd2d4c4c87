"""Small networks for images of 32 px, which `tools/cifar10.py` trains from scratch."""

from __future__ import annotations

from timm.layers import ConvNormAct, create_classifier
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn


def resnet(num_classes: int = 10, width: int = 16, depth: int = 1) -> nn.Module:
    """Build a ResNet with stages at 32, 16, 8 and 4 px, from timm's class and blocks.

    Three convolutions of stride 2, and their three shortcuts, lower the rate. Source: He et al.
    2016 (arXiv:1512.03385); `width=64, depth=2` is the ResNet-18 that is usual for CIFAR.

    Args:
        num_classes: Number of classes.
        width: Channels of the first stage; doubled in each further one.
        depth: Blocks a stage.
    """
    channels = (width, 2 * width, 4 * width, 8 * width)
    options = dict(channels=channels, stem_type="deep", stem_width=width // 2)
    model = ResNet(BasicBlock, (depth,) * 4, num_classes=num_classes, **options)
    # in place of the stem for 224 px, which would leave 8 px of 32 to the stages
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


class VGG(nn.Module):
    """Stack stages of convolutions, each closed by a max-pool: 32, 16, 8, 4, and then 2 px.

    Source: Simonyan and Zisserman 2015 (arXiv:1409.1556), with batch norm and one linear layer.
    """

    def __init__(self, num_classes: int = 10, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 8 * width
        layers: list[nn.Module] = []
        before = 3
        for channels in (width, 2 * width, 4 * width, 8 * width):
            for _ in range(depth):
                layers.append(ConvNormAct(before, channels, 3))
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.global_pool, self.head = create_classifier(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map of 2 px."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the pooled features before them."""
        x = self.global_pool(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def vgg(num_classes: int = 10, width: int = 16, depth: int = 2) -> nn.Module:
    """Build a `VGG`."""
    return VGG(num_classes, width, depth)
