# MMPretrain's ImageNet-1k weights, anti-aliased, then fine-tuned on ImageNet-1k.
_base_ = [
    "mmpretrain::_base_/models/swin_transformer/tiny_224.py",
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/adamw_coslr-30e.py",
    "../_base_/antialias.py",
]
model = dict(backbone=dict(antialias=dict(filter="tri-3")))
train_dataloader = dict(batch_size=32)
load_from = (
    "https://download.openmmlab.com/mmclassification/v0/"
    "swin-transformer/swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth"
)
