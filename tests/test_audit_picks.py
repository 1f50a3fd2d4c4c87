"""The audit where samples are taken by number, or a map is taken apart and joined again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from auditing import BLUR, IMAGE, Apply, sites_of, verdicts_of
from einops import rearrange, reduce

from aa_surgery.audit import audit
from aa_surgery.layers import BlurPool

EVEN = torch.arange(0, 64, 2)

SAMPLED = {
    "unbind and stack": (lambda x: torch.stack(x.unbind(2)[::2], 2), "slice 2x1"),
    "unbind twice": (
        lambda x: torch.stack([torch.stack(r.unbind(2)[1::4], 2) for r in x.unbind(2)[::2]], 2),
        "slice 2x4",
    ),
    "a loop of rows": (
        lambda x: torch.stack([x[:, :, i] for i in range(0, 64, 4)], 2),
        "slice 4x1",
    ),
    "a loop of strips": (
        lambda x: torch.cat([x[..., i : i + 1] for i in range(1, 64, 2)], 3),
        "slice 1x2",
    ),
    "split and cat": (lambda x: torch.cat(x.split(1, 2)[::2], 2), "slice 2x1"),
    "chunk and cat, backwards": (lambda x: torch.cat(x.chunk(64, 3)[::-2], 3), "slice 1x2"),
    "means of chunks": (
        lambda x: torch.stack([part.mean(2) for part in x.chunk(32, 2)], 2),
        "slice 2x1",
    ),
    "index": (lambda x: x[:, :, EVEN], "slice 2x1"),
    "index, backwards": (lambda x: x[..., EVEN.flip(0)], "slice 1x2"),
    "index of two axes": (lambda x: x[:, :, EVEN[:, None], EVEN], "slice 2x2"),
    "index of axes apart": (lambda x: x.movedim(1, 2)[:, EVEN[:, None], :, EVEN], "slice 2x2"),
    "index by a mask": (lambda x: x[:, :, torch.arange(64) % 4 == 1], "slice 4x1"),
    "index of tokens": (
        lambda x: x.flatten(2).mT[:, torch.arange(4096).view(64, 64)[::2, 1::2].flatten()],
        "slice 2x2",
    ),
    "index_select": (lambda x: x.index_select(3, EVEN), "slice 1x2"),
    "gather": (lambda x: x.gather(3, EVEN.expand(1, 3, 64, 32)), "slice 1x2"),
    "gather of tokens": (
        lambda x: x.flatten(2).gather(2, torch.arange(0, 4096, 2).expand(1, 3, 2048)),
        "slice 1x2",
    ),
    "take_along_dim": (
        lambda x: torch.take_along_dim(x, EVEN.view(1, 1, 32, 1), 2),
        "slice 2x1",
    ),
    "take": (lambda x: x.take(torch.arange(0, 3 * 64 * 64, 2).view(1, 3, 64, 32)), "slice 1x2"),
    "masked_select": (
        lambda x: x.masked_select(torch.arange(64) % 2 == 0).view(1, 3, 64, 32),
        "slice 1x2",
    ),
    "as_strided": (
        lambda x: x.as_strided((1, 3, 32, 16), (12288, 4096, 128, 4)),
        "slice 2x4",
    ),
    "patches by as_strided": (
        lambda x: x.as_strided((1, 8, 8, 3, 8, 8), (12288, 512, 8, 4096, 64, 1)).flatten(3),
        "space_to_depth 8x8",
    ),
    "one axis": (lambda x: x[..., ::2], "slice 1x2"),
    "einops, patches": (
        lambda x: rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=8, q=8),
        "space_to_depth 8x8",
    ),
    "einops, depth": (
        lambda x: rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2),
        "space_to_depth 2x2",
    ),
    "einops, phase": (
        lambda x: rearrange(x, "b c (h p) (w q) -> p q b c h w", p=2, q=2)[0, 1],
        "slice 2x2",
    ),
    "unfold without overlap": (
        lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).transpose(1, 3).flatten(3),
        "space_to_depth 4x4",
    ),
    "phases joined as channels": (
        lambda x: torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1),
        "slice 2x2",
    ),
}
POOLED = {
    "means over phases": (lambda x: x.view(1, 3, 32, 2, 32, 2).mean((3, 5)), "avg_pool 2x2"),
    "maxima over phases": (lambda x: x.unflatten(2, (16, 4)).amax(3), "max_pool 4x1"),
    "windows by unfold": (lambda x: x.unfold(2, 3, 2).amax(-1), "max_pool 2x1"),
    "einops, mean": (
        lambda x: reduce(x, "b c (h p) (w q) -> b c h w", "mean", p=2, q=4),
        "avg_pool 2x4",
    ),
    "einops, max": (
        lambda x: reduce(x, "b c (h p) (w q) -> b c h w", "max", p=2, q=2),
        "max_pool 2x2",
    ),
    "means of token groups": (
        lambda x: x.flatten(2).mT.reshape(1, 2048, 2, 3).mean(2),
        "avg_pool 1x2",
    ),
    "einsum over phases": (
        lambda x: torch.einsum("bchpwq,pq->bchw", x.view(1, 3, 32, 2, 32, 2), torch.rand(2, 2)),
        "conv 2x2",
    ),
    "matmul over phases": (lambda x: x.view(1, 3, 64, 32, 2) @ torch.rand(2, 1), "conv 1x2"),
    "aten conv": (
        lambda x: torch.ops.aten.conv2d(x, torch.randn(4, 3, 3, 3), None, [2, 2]),
        "conv 2x2",
    ),
    "torch.convolution": (
        lambda x: torch.convolution(
            x, torch.randn(4, 3, 3, 3), None, [2, 1], [1, 1], [1, 1], False, [0, 0], 1
        ),
        "conv 2x1",
    ),
    "aten max pool": (lambda x: torch.ops.aten.max_pool2d(x, [2, 2]), "max_pool 2x2"),
    "max pool with indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        "max_pool 2x2",
    ),
    "adaptive pool that shrinks": (
        lambda x: F.adaptive_avg_pool2d(x, (None, 8)),
        "adaptive_pool 1x8",
    ),
    "grid_sample that shrinks": (
        lambda x: F.grid_sample(x, torch.zeros(1, 16, 32, 2), align_corners=False),
        "interpolate 4x2",
    ),
    "resized by size": (lambda x: F.interpolate(x, size=(32, 40)), "interpolate 2x1.6"),
    "resized in one dimension": (
        lambda x: F.interpolate(x.flatten(2), size=1024, mode="linear"),
        "interpolate 4",
    ),
}

CLEAN = {
    "all rows again": lambda x: torch.stack(x.unbind(2), 2),
    "all rows, upside down": lambda x: torch.stack(x.unbind(2)[::-1], 2),
    "all rows, shuffled": lambda x: torch.stack([x[:, :, i] for i in torch.randperm(64)], 2),
    "first and last row": lambda x: torch.stack([x[:, :, 0], x[:, :, -1]], 1),
    "a recurrent layer": lambda x: torch.stack(_states(x.flatten(2).mT[:, :16]), 1),
    "shuffled by index": lambda x: x[:, :, torch.randperm(64)],
    "repeated by index": lambda x: x[..., torch.arange(128) // 2],
    "cropped by index": lambda x: x[:, :, torch.arange(8, 56)],
    "channels by index": lambda x: x[:, torch.tensor([2, 0])],
    "samples of the batch": lambda x: torch.cat([x] * 5)[torch.tensor([0, 3, 4])],
    "a token": lambda x: x.flatten(2).mT[:, torch.tensor([0])],
    "the content's choice": lambda x: x.flatten(2).gather(2, x.flatten(2).topk(100)[1]),
    "narrow": lambda x: x.narrow(2, 4, 40),
    "as_strided, a copy": lambda x: x.as_strided((1, 3, 64, 64), (12288, 4096, 64, 1)),
    "as_strided, windows": lambda x: x.as_strided(
        (1, 8, 8, 8, 8, 3), (12288, 512, 8, 64, 1, 4096)
    ).reshape(64, 64, 3),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 2, stride=2).relu() * 2, (64, 64), 2, stride=2),
    "patches processed apart": lambda x: F.fold(
        F.unfold(x, 2, stride=2).reshape(1, 3, 4, -1).softmax(-1).reshape(1, 12, -1),
        (64, 64),
        2,
        stride=2,
    ),
    "there and back, computed with between": lambda x: F.pixel_shuffle(
        F.pixel_unshuffle(x, 4).sigmoid(), 4
    ),
    "einops there and back": lambda x: rearrange(
        rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=8, q=8).relu(),
        "b (h w) (p q c) -> b c (h p) (w q)",
        h=8, p=8, q=8,
    ),
    "einops windows": lambda x: rearrange(
        rearrange(x, "b c (h p) (w q) -> (b h w) (p q) c", p=8, q=8).softmax(1),
        "(b h w) (p q) c -> b c (h p) (w q)",
        h=8, w=8, p=8,
    ),
    "einops mean of all": lambda x: reduce(x, "b c h w -> b c", "mean"),
    "strips": lambda x: rearrange(
        rearrange(x, "b c (n h) w -> (b n) (h w) c", n=8).softmax(1),
        "(b n) (h w) c -> b c (n h) w",
        n=8, w=64,
    ),
    "tubes of frames": lambda x: rearrange(
        rearrange(x.view(1, 3, 4, 16, 64), "b c (t s) h w -> (b t) (s h w) c", s=2).softmax(1),
        "(b t) (s h w) c -> b c (t s) h w",
        t=2, h=16, w=64,
    ),
    "phases into the batch": lambda x: torch.cat([x[:, :, 0::2], x[:, :, 1::2]], 0),
    "phases and back": lambda x: torch.stack(
        torch.cat([x[:, :, 0::2], x[:, :, 1::2]], 0).relu().chunk(2, 0), 3
    ).flatten(2, 3),
    "a grid of the same size": lambda x: F.grid_sample(
        x, torch.zeros(1, 64, 64, 2), align_corners=False
    ),
    "adaptive pool to the same size": lambda x: F.adaptive_avg_pool2d(x, (64, 64)),
}  # fmt: skip


def _states(steps: torch.Tensor) -> list[torch.Tensor]:
    state, states = torch.zeros(1, 3), []
    for step in steps.unbind(1):
        state = (step + state).tanh()
        states.append(state)
    return states


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_that_are_moved_are_seen(name):
    function, expected = SAMPLED[name]
    assert sites_of(lambda m, x: function(x).relu()) == [f" {expected}"]
    assert sites_of(lambda m, x: function(x)) == [f" {expected}"]


@pytest.mark.parametrize("name", SAMPLED)
def test_a_filter_before_them_treats_them(name):
    function, expected = SAMPLED[name]
    rate = max(int(s) for s in expected.split()[-1].split("x"))
    blur = BlurPool("tri-3", (1, 1), rate=(rate, rate))
    assert verdicts_of(lambda m, x: function(m.blur(x)).relu(), blur=blur) == ["treated"]


@pytest.mark.parametrize("name", POOLED)
def test_samples_that_are_computed_with_are_seen(name):
    function, expected = POOLED[name]
    assert sites_of(lambda m, x: function(x)) == [f" {expected}"]
    assert verdicts_of(lambda m, x: function(x)) == ["untreated"]


@pytest.mark.parametrize("name", CLEAN)
def test_what_loses_no_position_is_not_reported(name):
    assert sites_of(lambda m, x: CLEAN[name](x)) == []
    assert sites_of(lambda m, x: CLEAN[name](x).relu()) == []


def test_arithmetic_before_the_parts_undoes_the_filter():
    def rows(m, x):
        return torch.stack([r.relu() for r in m.blur(x).relu().unbind(2)[::2]], 2)

    assert verdicts_of(rows, **BLUR) == ["untreated"]
    assert verdicts_of(lambda m, x: rows(m, x), blur=torch.nn.Identity()) == ["untreated"]


def test_a_filter_stays_with_parts_that_are_computed_with():
    rows = lambda m, x: torch.stack([r.relu() for r in m.blur(x).unbind(2)[::2]], 2)  # noqa: E731
    assert verdicts_of(rows, **BLUR) == ["treated"]


@pytest.mark.parametrize("step", [1, 2])
def test_every_second_frame_is_seen_through_a_network(step):
    video, conv = torch.randn(1, 3, 8, 16, 16), torch.nn.Conv2d(3, 4, 3)
    frames = lambda m, x: torch.stack([m.conv(f) for f in x.unbind(2)[::step]], 2)  # noqa: E731
    assert sites_of(frames, video, conv=conv) == [" slice 2"] * (step - 1)


@pytest.mark.parametrize(
    "irregular",
    [
        lambda x: x[:, :, torch.tensor([0, 3, 4, 9, 30])],
        lambda x: x.index_select(2, torch.tensor([0, 3, 4, 9, 30])),
        lambda x: x.gather(3, torch.randint(0, 64, (1, 3, 64, 30))),
        lambda x: x.flatten(2)[:, :, torch.tensor([0, 300, 4000, 9])],
        lambda x: torch.stack([x[:, :, i] for i in (0, 3, 4, 9, 30)], 2),
    ],
)
def test_what_keeps_fewer_without_a_step_is_listed(irregular):
    report = audit(Apply(lambda m, x: irregular(x).relu()), IMAGE)
    assert not report.rows
    assert len(report.unread) == 1


def test_on_the_meta_device_an_index_is_listed():
    report = audit(Apply(lambda m, x: x[:, :, EVEN.to("meta")]), IMAGE.to("meta"))
    assert (report.rows, report.unread) == ((), ("(model): index",))


@pytest.mark.parametrize("name", ["einops, patches", "einops, depth", "phases joined as channels"])
def test_sizes_are_those_of_the_positions(name):
    function, expected = SAMPLED[name]
    stride = tuple(int(s) for s in expected.split()[-1].split("x"))
    (row,) = audit(Apply(lambda m, x: function(x).relu()), IMAGE).rows
    assert (row.size_in, row.size_out) == ((64, 64), tuple(64 // s for s in stride))
