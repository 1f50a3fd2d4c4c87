"""After-life operations that stay in eager mode: copies, training, and timm's methods.

Each takes a `Subject` and raises where the operation fails or gives another result than eager
mode. What it returns is a fact that must be the same for the anti-aliased model as for the
untouched one. `Unavailable` means that the model has no such operation.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable
from typing import Any

import timm
import torch
from _afterlife_models import Subject, outputs, tensors
from timm.utils import ModelEmaV3, reparameterize_model
from torch import Tensor, nn

from aa_surgery.surgery.classes import Antialiased

MERGING = ("fuse", "reparameterize", "switch_to_deploy")  # what timm's reparameterize_model calls
CLOSE, INT8, BF16 = 1e-3, 0.1, 0.3
"""Largest differences, relative to the largest output. Random weights are hard on bf16."""


class Unavailable(Exception):
    """The model has no such operation."""


class Different(Exception):
    """The result is not what eager mode gives."""


def agree(results: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float = CLOSE) -> None:
    """Raise `Different` unless each result is as expected, relative to the largest value."""
    results, expected = list(results), list(expected)
    if [r.shape for r in results] != [e.shape for e in expected]:
        raise Different(f"shapes {shapes(results)} instead of {shapes(expected)}")
    for result, target in zip(results, expected, strict=True):
        if not target.isfinite().all():
            raise Different("eager mode gives infinite values")
        scale = max(target.abs().max().item(), 1e-6)
        error = (result.to(target) - target).abs().max().item() / scale
        if not error <= tolerance:
            raise Different(f"an error of {error:.2g} of the largest output")


def shapes(values: Iterable[Tensor]) -> str:
    return ", ".join("x".join(map(str, value.shape)) for value in values)


def deepcopy(subject: Subject) -> None:
    """Copy with `copy.deepcopy`: equal outputs, and no weight in common."""
    model = subject.unused()  # transformers' models, once run, hold hooks that cannot be pickled
    _is_a_copy(copy.deepcopy(model), model, subject)


def pickled(subject: Subject) -> None:
    """Pickle and unpickle, likewise."""
    model = subject.unused()
    _is_a_copy(pickle.loads(pickle.dumps(model)), model, subject)


def saved(subject: Subject) -> None:
    """Save and load the module with `torch.save` and `torch.load(weights_only=False)`, likewise."""
    model, file = subject.unused(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    _is_a_copy(torch.load(file, weights_only=False), model, subject)


def _is_a_copy(twin: nn.Module, model: nn.Module, subject: Subject) -> None:
    agree(outputs(twin, subject.images()), subject.expected)
    # independence: emptying the copy must leave the model as it is
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    agree(outputs(model, subject.images()), subject.expected)


def state_dict(subject: Subject) -> str:
    """Save the state_dict, and load it strictly into the anti-aliased and the untouched model."""
    file = io.BytesIO()
    torch.save(subject.model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    plain = subject.sample.build()
    plain.load_state_dict(state, strict=True)
    agree(outputs(plain, subject.images()), outputs(subject.original, subject.images()))
    other = subject.fresh()
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(state, strict=True)
    agree(outputs(other, subject.images()), subject.expected)
    return f"{len(state)} keys"


def train(subject: Subject) -> str:
    """Take a training step: finite gradients, for all parameters that had one."""
    model = subject.fresh().train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    _backward(model, subject.images())
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise Different(f"the gradient of {name} is not finite")
    optimizer.step()
    outputs(model.eval(), subject.images())
    return f"no gradient: {', '.join(without)}" if without else ""


def _backward(model: nn.Module, x: Tensor) -> None:
    torch.manual_seed(0)
    loss = sum(t.float().square().mean() for t in tensors(model(x)) if t.requires_grad)
    loss.backward()


def checkpointing(subject: Subject) -> None:
    """Train with gradient checkpointing: the gradients of a step without."""
    model = subject.fresh()
    switch = getattr(model, "set_grad_checkpointing", None)
    enable = getattr(model, "gradient_checkpointing_enable", None)  # transformers
    if switch is None and enable is None:
        raise Unavailable("the model has no gradient checkpointing")
    _backward(model.train(), subject.images())
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model = subject.fresh().train()
    if switch is not None:
        model.set_grad_checkpointing(True)
    else:
        model.gradient_checkpointing_enable()
    _backward(model, subject.images())
    again = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if again.keys() != gradients.keys():
        raise Different(f"gradients of other parameters: {again.keys() ^ gradients.keys()}")
    scale = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        if (again[name] - gradient).abs().max() > CLOSE * scale:
            raise Different(f"another gradient of {name}")


def autocast(subject: Subject) -> str:
    """Run under bf16 autocast on the CPU: eager outputs within 30 %, the untouched one's dtype."""
    with torch.autocast("cpu", torch.bfloat16):
        results = outputs(subject.model, subject.images())
    agree(results, subject.expected, BF16)
    return ", ".join(str(r.dtype).removeprefix("torch.") for r in results)


def channels_last(subject: Subject) -> None:
    """Run in channels_last: the outputs of the contiguous run."""
    model = subject.fresh().to(memory_format=torch.channels_last)
    x = subject.images().to(memory_format=torch.channels_last)
    agree(outputs(model, x), subject.expected)


def ema(subject: Subject) -> None:
    """Update timm's `ModelEmaV3` with decay 0: the outputs of the model."""
    model = subject.fresh()
    average = ModelEmaV3(model, decay=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    average.update(model)
    images = subject.images()
    agree(outputs(average.module, images), outputs(model, images))


def features_only(subject: Subject) -> str:
    """Build `aa_<name>` with timm's `features_only=True`: anti-aliased, maps of the same shapes."""
    if not subject.sample.in_timm:
        raise Unavailable("not a timm model")
    options = dict(subject.sample.options)
    name = subject.sample.name
    if subject.treated:
        name, options["antialias"] = f"aa_{name}", subject.options
    model = timm.create_model(name, features_only=True, **options).eval()
    if subject.treated and not any(isinstance(m, Antialiased) for m in model.modules()):
        raise Different("the extractor is not anti-aliased")
    return shapes(outputs(model, subject.images()))


def intermediates(subject: Subject) -> str:
    """Call timm's `forward_intermediates`: the same shapes, and `forward_features`' final map."""
    take = getattr(subject.model, "forward_intermediates", None)
    if take is None:
        raise Unavailable("the model has no forward_intermediates")
    with torch.no_grad():
        final, maps = take(subject.images())
        whole = subject.model.forward_features(subject.images())
    same = shapes(tensors(final)) == shapes(tensors(whole))
    if same:
        agree(tensors(final), tensors(whole))
    return f"{shapes(tensors(maps))}; final {shapes(tensors(final))}"


def reset_classifier(subject: Subject) -> str:
    """Call `reset_classifier(7)` and run."""
    model = subject.fresh()
    if not hasattr(model, "reset_classifier"):
        raise Unavailable("the model has no reset_classifier")
    model.reset_classifier(7)
    return shapes(outputs(model, subject.images()))


def reparameterize(subject: Subject) -> None:
    """Merge branches with timm's `reparameterize_model`: equal outputs."""
    modules = subject.model.modules()
    if not any(hasattr(m, method) for m in modules for method in MERGING):
        raise Unavailable("no module of the model merges branches")
    merged = reparameterize_model(subject.fresh())
    agree(outputs(merged, subject.images()), subject.expected)


def int8(subject: Subject) -> None:
    """Quantise linear layers with torchao's `Int8WeightOnlyConfig`: eager outputs within 10 %."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = subject.fresh()
    if not any(type(m) is nn.Linear for m in model.modules()):
        raise Unavailable("the model has no linear layer")
    quantize_(model, Int8WeightOnlyConfig())
    agree(outputs(model, subject.images()), subject.expected, INT8)


def observers(subject: Subject) -> None:
    """Put observers in with `torch.ao`'s `prepare_fx`: equal outputs."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    x = subject.images()
    model: Any = prepare_fx(subject.fresh(), get_default_qconfig_mapping("x86"), (x,))
    agree(outputs(model, x), subject.expected)


def fake_quantization(subject: Subject) -> None:
    """Prepare quantisation-aware training with `torch.ao`'s `prepare_qat`, take a step and run.

    Convolutions that the surgery changed stay in float: `torch.ao` goes by a module's exact class.
    """
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    model = subject.fresh().train()
    model.qconfig = get_default_qat_qconfig("x86")
    prepare_qat(model, inplace=True)
    _backward(model, subject.images())
    agree(outputs(model.eval(), subject.images()), subject.expected, 1.0)
