# timm's weights, anti-aliased, its classifier kept: fine-tune by MMPretrain's tools/train.py.
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py",
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/sgd_coslr-30e.py",
    "../_base_/antialias.py",
]

model = dict(
    type="TimmClassifier",
    model_name="resnet50.a1_in1k",
    pretrained=True,
    antialias=dict(filter="tri-3"),
    loss=dict(type="CrossEntropyLoss"),
)
