"""What worked on the original works after the surgery."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from models import build
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from aa_surgery import apply_antialias
from aa_surgery.surgery.classes import Antialiased

# a conv swapped with its activation, one blurred before its reader, a rewritten patch merging,
# rewritten SAME convs, patchify convs
NAMES = [
    "resnet18",
    "torchvision:resnet18",
    "torchvision:swin_t",
    "tf_efficientnet_lite0",
    "convnext_atto",
]
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return apply_antialias(build(request.param))


@pytest.fixture
def expected(model: nn.Module) -> Tensor:
    return run(model)


def run(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


def pickled(model: nn.Module, tmp_path: Path) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module, tmp_path: Path) -> nn.Module:
    torch.save(model, tmp_path / "model.pt")
    return torch.load(tmp_path / "model.pt", weights_only=False)


@pytest.mark.parametrize("way", [lambda m, _: copy.deepcopy(m), pickled, saved])
def test_copies_are_equal_and_independent(
    model: nn.Module, expected: Tensor, tmp_path: Path, way: Callable[..., nn.Module]
) -> None:
    twin = way(model, tmp_path)
    assert [type(m).__name__ for m in twin.modules()] == [type(m).__name__ for m in model.modules()]
    assert torch.equal(run(twin), expected)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(run(model), expected)


def test_another_process_loads_the_whole_model(
    model: nn.Module, expected: Tensor, tmp_path: Path
) -> None:
    torch.save((model, X, expected), tmp_path / "all.pt")
    code = (
        "import sys, torch; m, x, y = torch.load(sys.argv[1], weights_only=False);"
        "torch.testing.assert_close(m(x), y)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path / "all.pt"], check=True)


def test_compile_full_graph(model: nn.Module, expected: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled), expected, rtol=1e-4, atol=1e-4)


def test_export_with_dynamic_batch(model: nn.Module, expected: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},))
    exported = program.module()
    torch.testing.assert_close(run(exported), expected, rtol=1e-4, atol=1e-4)
    more = torch.cat([X, X, X])
    torch.testing.assert_close(run(exported, more), run(model, more), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_onnx_with_dynamic_batch(model: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1, max=16)
    torch.onnx.export(model, (X,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x in (X, torch.cat([X, X, X])):
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), run(model, x), rtol=1e-3, atol=1e-3)


def test_autocast_channels_last_and_half_precision(model: nn.Module, expected: Tensor) -> None:
    scale = expected.abs().max()
    channels_last = run(
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        X.to(memory_format=torch.channels_last),
    )
    torch.testing.assert_close(channels_last, expected, rtol=1e-3, atol=1e-3 * scale.item())
    with torch.autocast("cpu", torch.bfloat16):
        automatic = run(model)
    assert automatic.dtype == torch.bfloat16
    assert (automatic.float() - expected).abs().max() < 0.1 * scale
    lowered = run(copy.deepcopy(model).to(torch.bfloat16), X.bfloat16())
    assert lowered.dtype == torch.bfloat16
    assert (lowered.float() - expected).abs().max() < 0.1 * scale


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_resize_runs_in_half_precision(mode: str) -> None:
    model = apply_antialias(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Upsample(None, 0.5, mode)).eval())
    expected = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = run(model)
    lowered = run(model.to(torch.bfloat16), X.bfloat16())
    for result in (automatic, lowered):
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "torchvision:swin_t"])
def test_observers_of_quantisation_find_their_places(name: str) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = apply_antialias(build(name))
    expected = run(model)
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (X,))
    torch.testing.assert_close(run(prepared), expected, rtol=1e-3, atol=1e-3)
    assert any(name.startswith("activation_post_process") for name, _ in prepared.named_modules())


@pytest.mark.filterwarnings("ignore")
def test_training_with_fake_quantisation() -> None:
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    model = apply_antialias(build("resnet18")).train()
    model.qconfig = get_default_qat_qconfig("x86")
    prepare_qat(model, inplace=True)
    model(X).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_training_continues_with_an_optimizer_made_before() -> None:
    model = build("resnet18", num_classes=4).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    apply_antialias(model)
    target = torch.tensor([1, 3])
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(X), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_ema_copy_follows(model: nn.Module) -> None:
    ema = ModelEmaV3(model, decay=0.0)
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    ema.update(model)
    torch.testing.assert_close(run(ema.module), run(model))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_timm_methods(name: str) -> None:
    plain, model = build(name), apply_antialias(build(name))
    features = model.forward_features(X)
    torch.testing.assert_close(model.forward_head(features), run(model))
    final, stages = model.forward_intermediates(X)
    torch.testing.assert_close(final, features)
    assert [s.shape for s in stages] == [s.shape for s in plain.forward_intermediates(X)[1]]
    model.reset_classifier(7)
    assert run(model).shape == (2, 7)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = apply_antialias(build("convnext_atto")).train()
        model.set_grad_checkpointing(checkpointed)
        model(X).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_features_only_blurs_what_the_classifier_blurs(name: str) -> None:
    model = timm.create_model(f"aa_{name}", features_only=True).eval()
    shapes = [f.shape for f in timm.create_model(name, features_only=True).eval()(X)]
    assert [f.shape for f in run(model)] == shapes
    whole = apply_antialias(timm.create_model(name).eval())
    count = sum(isinstance(m, Antialiased) for m in whole.modules())
    assert sum(isinstance(m, Antialiased) for m in model.modules()) == count


def _ddp_worker(rank: int, port: int, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    model = apply_antialias(build("resnet18", num_classes=3)).train()
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(X + rank).square().sum().backward()
    torch.save(model.layer2[0].conv1.weight.grad, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_ddp_worker, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.abs().sum() > 0
    assert torch.equal(first, second)


def test_symbolic_trace_of_the_whole_model() -> None:
    model = apply_antialias(build("torchvision:resnet18"))
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(run(traced), run(model))
