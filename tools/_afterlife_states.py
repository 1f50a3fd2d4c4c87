"""After-life operations that change a model's modules or its storage, or come amid surgery."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

import torch
from _afterlife_models import Subject, noise, outputs
from _afterlife_operations import Different, Unavailable, agree, shapes
from torch import nn

from aa_surgery import NoEffectWarning, SurgeryError, apply_antialias

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)
INTERRUPTS = 12
"""Places, evenly spread over the calls of a surgery, at which it is interrupted."""

_INTERRUPTED = ("aa_surgery/", "torch/fx/")  # where Python cannot swallow it, as it does in __del__


def synchronised(subject: Subject) -> None:
    """Convert with `SyncBatchNorm.convert_sync_batchnorm`: equal outputs."""
    model = subject.unused()
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise Unavailable("the model has no batch norm")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    agree(outputs(converted, subject.images()), subject.expected)


def replaced(subject: Subject) -> None:
    """Replace every activation, then the first convolution for grey images: sizes, or an error.

    The error must be a `SurgeryError`, raised by the next forward.
    """
    model = subject.unused()
    found = [n for n, m in model.named_modules() if isinstance(m, ACTIVATIONS)]
    for name in found:
        _replace(model, name, nn.Tanh())
    if found:
        _sizes_or_error(model, subject, channels=3)
    grey = subject.unused()
    name, first = next(
        ((n, m) for n, m in grey.named_modules() if isinstance(m, nn.Conv2d)), ("", None)
    )
    if first is None or first.in_channels != 3 or first.groups != 1:
        if not found:
            raise Unavailable("no module of the model is one that people replace")
        return
    conv = nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride, first.padding)
    _replace(grey, name, conv)
    _sizes_or_error(grey, subject, channels=1)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _sizes_or_error(model: nn.Module, subject: Subject, channels: int) -> None:
    images = noise(2, subject.size)[:, :channels]
    try:
        results = outputs(model, images)
    except SurgeryError:
        return
    if shapes(results) != shapes(subject.expected):
        raise Different(f"shapes {shapes(results)} instead of {shapes(subject.expected)}")


def lora(subject: Subject) -> None:
    """Add peft's LoRA to convolutions and linear layers: equal outputs; also after merging."""
    from peft import LoraConfig, get_peft_model

    model = subject.unused()
    targets = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
    ]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets)).eval()
    x = subject.images()
    agree(outputs(adapted, x), subject.expected)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # zero at first, so that nothing of LoRA had been seen
                parameter.copy_(1e-2 * torch.randn(parameter.shape, generator=generator))
    tuned = outputs(adapted, x)
    agree(outputs(adapted.merge_and_unload(), x), tuned)


def emptied(subject: Subject) -> None:
    """Build on the meta device, then `to_empty` and `load_state_dict`: equal outputs."""
    model = _on_meta(subject)
    model.to_empty(device="cpu")
    model.load_state_dict(subject.model.state_dict())
    agree(outputs(model, subject.images()), subject.expected)


def assigned(subject: Subject) -> None:
    """Build on the meta device, then `load_state_dict(assign=True)`: equal outputs."""
    model = _on_meta(subject)
    model.load_state_dict(subject.model.state_dict(), assign=True)
    agree(outputs(model, subject.images()), subject.expected)


def _on_meta(subject: Subject) -> nn.Module:
    with torch.device("meta"):
        model = subject.sample.build()
    if subject.treated:
        apply_antialias(model, **subject.options)
    return model


def threads(subject: Subject) -> None:
    """Run another model in a thread during surgery: the outputs of before; the surgery is whole."""
    served, images, stop = subject.original, subject.images(), threading.Event()
    expected = outputs(served, images)
    errors: list[BaseException] = []
    started = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                agree(outputs(served, images), expected, 0.0)
            except BaseException as error:
                errors.append(error)
            started.set()

    server = threading.Thread(target=serve)
    server.start()
    try:
        started.wait()
        model = subject.unused()
    finally:
        stop.set()
        server.join()
    if errors:
        raise errors[0]
    agree(outputs(model, images), subject.expected)
    agree(outputs(served, images), expected, 0.0)


def interrupted(subject: Subject) -> None:
    """Interrupt surgery at many places with `KeyboardInterrupt`: the model is as it was."""
    if not subject.treated:
        return
    model = subject.sample.build()
    model.load_state_dict(subject.original.state_dict())
    images, before = subject.images(), _state(model)
    expected = outputs(model, images)
    # a first surgery fills caches, so that the ones after it make as many calls
    twins = [subject.sample.build() for _ in range(2)]
    total = [_surgery(twin, subject) for twin in twins][-1]
    for part in range(1, INTERRUPTS + 1):
        _surgery(model, subject, total * part // (INTERRUPTS + 1))
        if _state(model) != before:
            raise Different(f"interrupted after {part} of {INTERRUPTS} parts: not as it was")
        agree(outputs(model, images), expected, 0.0)


def _surgery(model: nn.Module, subject: Subject, stop: int = 0) -> int:
    """Treat the model; at call number `stop` of ours or fx's, raise `KeyboardInterrupt`.

    Returns:
        How many calls there were.
    """
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and any(p in frame.f_code.co_filename for p in _INTERRUPTED)
        if stop and calls == stop:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # a net without a site
        sys.setprofile(count)
        try:
            apply_antialias(model, **subject.options)
        except KeyboardInterrupt:
            return calls
        finally:
            sys.setprofile(None)
    if calls >= stop > 0:
        raise Different("the surgery swallowed the interrupt")
    return calls


def _state(model: nn.Module) -> dict[str, object]:
    """Return what surgery changes: classes, attributes, hooks, and torch's own methods."""
    found: dict[str, object] = {
        f"{name}.{attribute}": id(value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in ("_parameters", "_buffers")
    }
    found |= {f"{name}.class": type(module) for name, module in model.named_modules()}
    found |= {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    return found | {"call": nn.Module.__call__, "getattr": nn.Module.__getattr__}
