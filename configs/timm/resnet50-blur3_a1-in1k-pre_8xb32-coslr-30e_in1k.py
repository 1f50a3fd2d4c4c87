# timm's weights, anti-aliased, its classifier kept: fine-tune by MMPretrain's tools/train.py.
_base_ = ["../_base_/in1k_8xb32-coslr-30e.py"]
custom_imports = dict(imports=["aa_surgery"], allow_failed_imports=False)

model = dict(
    type="TimmClassifier",
    model_name="aa_resnet50.a1_in1k",
    pretrained=True,
    antialias=dict(filter="tri-3"),
    loss=dict(type="CrossEntropyLoss"),
)
