# CIFAR-10 as a folder of images, `data/cifar10/{train,test}/<class>/*.jpg`; from nothing. A step
# takes about 4 s on two CPU cores, so there, try it with train_cfg.max_epochs=1.
# Another folder of small images: DATA_ROOT=... in the environment, and the number of its classes
# by --cfg-options model.head.num_classes=...
_base_ = [
    "mmpretrain::_base_/models/resnet18_cifar.py",
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/sgd_coslr-30e.py",
    "../_base_/antialias.py",
]
model = dict(backbone=dict(antialias=dict(filter="tri-3")))
data_preprocessor = dict(
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=True,
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomCrop", crop_size=32, padding=4),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    dataset=dict(
        type="CustomDataset", data_root="{{$DATA_ROOT:data/cifar10}}/train", pipeline=train_pipeline
    ),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    dataset=dict(
        type="CustomDataset", data_root="{{$DATA_ROOT:data/cifar10}}/test", pipeline=test_pipeline
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=5e-4))
auto_scale_lr = dict(base_batch_size=128)
