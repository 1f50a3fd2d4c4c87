# MMPretrain's ImageNet-1k weights, anti-aliased, then fine-tuned on ImageNet-1k.
_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "mmpretrain::_base_/datasets/imagenet_bs32.py",
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/sgd_coslr-30e.py",
    "../_base_/antialias.py",
]
model = dict(backbone=dict(antialias=dict(filter="tri-3")))
load_from = (
    "https://download.openmmlab.com/mmclassification/v0/"
    "resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth"
)
