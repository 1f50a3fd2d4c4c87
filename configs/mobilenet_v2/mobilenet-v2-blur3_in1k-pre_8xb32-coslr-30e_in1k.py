# MMPretrain's ImageNet-1k weights, anti-aliased, then fine-tuned on ImageNet-1k.
_base_ = [
    "mmpretrain::_base_/models/mobilenet_v2_1x.py",
    "mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py",
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/sgd_coslr-30e.py",
    "../_base_/antialias.py",
]
model = dict(backbone=dict(antialias=dict(filter="tri-3")))
load_from = (
    "https://download.openmmlab.com/mmclassification/v0/"
    "mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth"
)
