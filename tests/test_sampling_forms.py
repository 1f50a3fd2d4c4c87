"""Every way to write a sampling is an edit, or is left with its reason; nothing else is one."""

from __future__ import annotations

import ast
import copy
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, plan_antialias, remove_antialias

Function = Callable[[Tensor], Tensor]
aten = torch.ops.aten


class Behind(nn.Module):
    """A conv, and a forward that samples its map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)
        self.point = nn.Parameter(torch.randn(4, 4, 1, 1))


_CLASS = """
class Form(Behind):
    def forward(self, x):
        x = torch.relu(self.conv(x)){weight}
        return {form}
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str], nn.Module]:
    """Make the net whose own forward has a form of one of the tables below, as a user writes it."""

    def make(table: str, name: str) -> nn.Module:
        tree = ast.parse(Path(__file__).read_text())
        values = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        forms = values[table]
        assert isinstance(forms, ast.Dict)
        keys = [key.value for key in forms.keys if isinstance(key, ast.Constant)]
        form = forms.values[keys.index(name)]
        form = form.elts[0] if isinstance(form, ast.Tuple) else form
        body = ast.unparse(form.body) if isinstance(form, ast.Lambda) else f"{form.id}(x)"
        weight = "\n        w = self.point" if table == "WEIGHTED" else ""
        file = tmp_path / "form.py"
        file.write_text(_CLASS.format(weight=weight, form=body))
        spec = importlib.util.spec_from_file_location(f"form_of_{tmp_path.name}", file)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        vars(module).update({n: v for n, v in globals().items() if not n.startswith("__")})
        spec.loader.exec_module(module)
        return module.Form()

    return make


def over_views(x: Tensor, op: str) -> Tensor:
    n, c, h, w = x.shape
    return getattr(x.view(n, c, h // 2, 2, w // 2, 2), op)((3, 5))


def over_rows(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 4, w).mean(3)


def channels_last(x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def patches(x: Tensor) -> Tensor:
    n, c, _, _ = x.shape
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(n, -1, c * 4)


TREATED: dict[str, tuple[Function, tuple[int, ...]]] = {
    "resized by a ratio": (lambda x: F.interpolate(x, (x.shape[2] // 2, x.size(3) // 4)), (2, 4)),
    "resized smoothly": (
        lambda x: F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2), mode="bilinear"),
        (2, 2),
    ),
    "mean over views": (lambda x: over_views(x, "mean"), (2, 2)),
    "maximum over views": (lambda x: over_views(x, "amax"), (2, 2)),
    "mean over rows": (over_rows, (4, 1)),
    "mean of tokens": (channels_last, (2, 2)),
    "windows": (lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)), (2, 2)),
    "windows that overlap": (lambda x: x.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2)), (2, 2)),
    "windows of one axis": (lambda x: x.unfold(2, 2, 2).mean(-1), (2, 1)),
    "patches": (patches, (2, 2)),
    "last axis": (lambda x: x[..., ::2], (1, 2)),
    "rows": (lambda x: x[:, :, ::2], (2, 1)),
    "rows, from behind": (lambda x: x[..., 1::2, :], (2, 1)),
    "index_select": (lambda x: x.index_select(2, torch.arange(0, x.shape[2], 2)), (2, 1)),
    "unbound": (lambda x: torch.stack(x.unbind(2)[::2], 2), (2, 1)),
    "split": (lambda x: torch.cat(x.split(1, 3)[::2], 3), (1, 2)),
    "aten slice": (lambda x: aten.slice.Tensor(x, 2, 0, None, 2), (2, 1)),
    "aten max pool": (lambda x: aten.max_pool2d(x, [2, 2], [2, 2]), (2, 2)),
    "aten average pool": (lambda x: aten.avg_pool2d.default(x, [2, 2], [2, 2]), (2, 2)),
}
WEIGHTED = {
    "aten conv": lambda x, w: aten.conv2d.default(x, w, None, [2, 2]),
    "aten convolution": lambda x, w: aten.convolution(
        x, w, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1
    ),
    "convolution": lambda x, w: torch.convolution(
        x, w, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1
    ),
    "torch.conv2d": lambda x, w: torch.conv2d(x, w, None, 2),
}


def holds(net: nn.Module, stride: tuple[int, ...]) -> None:
    """Assert the laws of a net with one site."""
    torch.manual_seed(0)
    net = net.double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = net(x)
    (edit,) = plan_antialias(net).edits
    assert edit.site.stride == stride
    for placement in ("auto", "post", "pre"):
        same = apply_antialias(copy.deepcopy(net), filter="identity", placement=placement)
        torch.testing.assert_close(same(x), expected)
    treated = apply_antialias(net)
    assert treated(x).shape == expected.shape
    assert not torch.allclose(treated(x), expected)
    assert audit(treated, x).ok
    assert torch.equal(remove_antialias(treated)(x), expected)


@pytest.mark.parametrize("name", TREATED)
def test_treated(name: str, written: Callable[[str, str], nn.Module]) -> None:
    net, (_, stride) = written("TREATED", name), TREATED[name]
    if name == "resized smoothly":
        (edit,) = plan_antialias(net).edits
        assert (edit.placement, edit.site.stride) == ("resample", stride)
        return
    holds(net, stride)


@pytest.mark.parametrize("name", WEIGHTED)
def test_treated_with_a_weight(name: str, written: Callable[[str, str], nn.Module]) -> None:
    holds(written("WEIGHTED", name), (2, 2))


LEFT: dict[str, Function] = {
    "resized to a number": lambda x: F.interpolate(x, size=(8, 8), mode="bilinear"),
    "resized to part of itself": lambda x: F.interpolate(x, size=x.shape[2] * 3 // 4),
    "stride of its size": lambda x: F.max_pool2d(x, 2, stride=x.shape[-1] // 8),
    "window of its size": lambda x: F.avg_pool2d(x, x.shape[-1] // 4),
    "with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "to seven bins": lambda x: F.adaptive_avg_pool2d(x, (None, 7)),
    "gathered": lambda x: x.gather(2, torch.zeros(2, 4, 8, 16, dtype=torch.long)),
    "picked": lambda x: x[:, :, torch.arange(0, 16, 2)],
    "by a grid": lambda x: F.grid_sample(x, x.new_zeros(2, 8, 8, 2)),
    "chunks": lambda x: torch.cat(x.chunk(8, 2)[::2], 2),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name: str, written: Callable[[str, str], nn.Module]) -> None:
    plan = plan_antialias(written("LEFT", name), max_stride=None)
    assert plan.edits == ()
    assert len(plan.left) == 1
    assert len(plan.left[0].reason) > 20


NOTHING: dict[str, Function] = {
    "channels": lambda x: x[:, ::2],
    "images": lambda x: x[::2],
    "turned round": lambda x: x.flip(2),
    "as large": lambda x: F.interpolate(x, size=x.shape[2:]),
    "enlarged": lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2)),
    "to one row": lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
    "selected channels": lambda x: x.index_select(1, torch.arange(0, 4, 2)),
    "every row": lambda x: torch.stack(x.unbind(2), 2),
    "features": lambda x: x.flatten(2).transpose(1, 2)[..., ::2],
}


@pytest.mark.parametrize("name", NOTHING)
def test_no_sampling(name: str, written: Callable[[str, str], nn.Module]) -> None:
    plan = plan_antialias(written("NOTHING", name), max_stride=None)
    assert (plan.decisions, plan.unread) == ((), ())


LAYERS = {
    "n c (h a) (w b) -> n (c a b) h w": (2, 2),
    "n c (h a) (w b) -> n (h w) (a b c)": (2, 2),
    "n c h (w a) -> n h w (c a)": (2,),
}


@pytest.mark.parametrize("pattern", LAYERS)
def test_rearranging_layers_are_blurred_before(pattern: str) -> None:
    lengths = {name: 2 for name in "ab" if name in pattern}
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), Rearrange(pattern, **lengths))
    holds(net, LAYERS[pattern])


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_reducing_layers_are_blurred_before(reduction: str) -> None:
    layer = Reduce("n c (h 2) (w 2) -> n c h w", reduction)
    holds(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), layer), (2, 2))


@pytest.mark.parametrize(
    "pattern",
    [
        "n c (h a) (w b) -> (n h w) c a b",
        "n c (h a) (w b) -> n h w a b c",
        "n c (a h) (b w) -> n (a b c) h w",
        "n c h w -> n (h w) c",
    ],
)
def test_windows_of_einops_are_no_sites(pattern: str) -> None:
    lengths = {name: 2 for name in "ab" if name in pattern}
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), Rearrange(pattern, **lengths))
    plan = plan_antialias(net)
    assert (plan.decisions, plan.unread) == ((), ())


def test_layers_of_einops_keep_their_blurs_when_they_are_copied() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), Rearrange("n c (h a) w -> n (c a) h w", a=2))
    treated = apply_antialias(net.eval())
    x = torch.randn(1, 3, 8, 8)
    for twin in (copy.deepcopy(treated), pickle.loads(pickle.dumps(treated))):
        assert torch.equal(twin(x), treated(x))
        assert not twin[1].training


def test_strides_of_numpy_are_strides() -> None:
    holds(nn.Sequential(nn.Conv2d(3, 4, 3, tuple(np.array([2, 2])), 1), nn.ReLU()), (2, 2))


def test_vit_pytorch_patches_are_blurred_before() -> None:
    import vit_pytorch

    net = vit_pytorch.SimpleViT(
        image_size=16, patch_size=4, num_classes=3, dim=8, depth=1, heads=1, mlp_dim=8
    ).eval()
    assert [str(edit.anchor) for edit in plan_antialias(net).edits] == [
        "before to_patch_embedding.0"
    ]
    assert audit(apply_antialias(net), torch.randn(1, 3, 16, 16)).ok
