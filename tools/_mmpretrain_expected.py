"""Tests of mmpretrain that cannot pass with anti-aliasing: they assert what surgery changes."""

EXPECTED = {
    "test_res2net::test_resnet_cifar": (
        "calls `model.conv1` by itself and asserts that its output has half the size of the image. "
        "With anti-aliasing that convolution runs at stride 1, and the map is halved behind its "
        "activation; the sizes that the model gives are those of before"
    ),
}
