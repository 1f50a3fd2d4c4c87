# MMPretrain's ImageNet-1k weights, anti-aliased, then fine-tuned on ImageNet-1k.
_base_ = [
    "mmpretrain::_base_/models/convnext/convnext-tiny.py",
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/adamw_coslr-30e.py",
    "../_base_/antialias.py",
]
model = dict(backbone=dict(antialias=dict(filter="tri-3")))
train_dataloader = dict(batch_size=32)
load_from = (
    "https://download.openmmlab.com/mmclassification/v0/"
    "convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth"
)
