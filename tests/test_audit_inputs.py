"""The audit of what models are given: integers, objects, the wrong things."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from auditing import BLUR, IMAGE, RESNET18, Apply, sites, timm_model
from torch import Tensor, nn

from aa_surgery.audit import AuditReport, audit
from aa_surgery.errors import InputError

IDS = torch.randint(0, 10, (2, 16), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 10, (1, 16, 16), generator=torch.Generator().manual_seed(0))
BYTES = LABELS.expand(3, 16, 16)[None].to(torch.uint8)


def report_of(function, x: object) -> AuditReport:
    torch.manual_seed(0)
    model = Apply(function, embed=nn.Embedding(10, 4), conv=nn.Conv2d(4, 4, 3, 2, 1), **BLUR)
    return audit(model, x)


def one_hot(x: Tensor) -> Tensor:
    return F.one_hot(x, 10).permute(0, 3, 1, 2).float()


SAMPLED = {
    "embedded, conv": (
        lambda m, x: m.conv(m.embed(x).permute(0, 3, 1, 2)),
        LABELS,
        "conv conv 2x2",
    ),
    "embedded, slice": (lambda m, x: m.embed(x)[:, ::2, ::2].relu(), LABELS, " slice 2x2"),
    "embedded, mean of pairs": (
        lambda m, x: m.embed(x).unflatten(1, (8, 2)).mean(2),
        LABELS,
        " avg_pool 2x1",
    ),
    "one channel embedded": (
        lambda m, x: m.embed(x[:, 0])[:, ::2, ::2].relu(),
        LABELS[None],
        " slice 2x2",
    ),
    "tokens, slice": (lambda m, x: m.embed(x)[:, ::2].relu(), IDS, " slice 2"),
    "tokens, pool": (lambda m, x: F.max_pool1d(m.embed(x).mT, 2), IDS, " max_pool 2"),
    "one-hot, slice": (lambda m, x: one_hot(x)[..., ::2].relu(), LABELS, " slice 1x2"),
    "one-hot, pool": (lambda m, x: F.avg_pool2d(one_hot(x), 2), LABELS, " avg_pool 2x2"),
    "one-hot by scatter": (
        lambda m, x: torch.zeros(1, 10, 16, 16).scatter_(1, x[:, None], 1.0)[:, :, ::2].relu(),
        LABELS,
        " slice 2x1",
    ),
    "one-hot by comparison": (
        lambda m, x: (x[..., None] == torch.arange(10)).float()[:, ::2, ::2].relu(),
        LABELS,
        " slice 2x2",
    ),
    "palette": (lambda m, x: torch.rand(9, 3)[x % 9][:, ::2].relu(), LABELS, " slice 2x1"),
    "palette of channels": (
        lambda m, x: torch.rand(3, 10)[:, x][..., ::2].relu(),
        LABELS,
        " slice 1x2",
    ),
    "palette by index_select": (
        lambda m, x: torch.rand(10, 3).index_select(0, x.flatten()).view(1, 16, 16, 3)[:, ::4] + 1,
        LABELS,
        " slice 4x1",
    ),
    "where": (lambda m, x: torch.where(x > 3, 1.0, 0.0)[:, ::2] + 1, LABELS, " slice 2x1"),
    "bytes": (lambda m, x: F.max_pool2d(x / 255, 2), BYTES, " max_pool 2x2"),
    "bytes, colours last": (
        lambda m, x: x.float().permute(0, 3, 1, 2)[:, :, ::2].relu(),
        BYTES.movedim(1, -1),
        " slice 2x1",
    ),
    "bytes, one picture": (
        lambda m, x: (x / 255)[::2, ::4].relu(),
        BYTES[0].movedim(0, -1),
        " slice 2x4",
    ),
    "mask": (
        lambda m, x: F.interpolate(x[:, None].float(), size=8),
        LABELS > 4,
        " interpolate 2x2",
    ),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_integers_are_followed(name):
    function, x, expected = SAMPLED[name]
    report = report_of(function, x)
    assert sites(report) == [expected]
    assert not report.ok
    assert not report.unread


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda m, x: m.embed(x).relu().mean(1), IDS),
        (lambda m, x: m.embed(x)[..., ::2].relu(), LABELS),
        (lambda m, x: m.embed(x)[:, 0].relu(), IDS),
        (lambda m, x: F.embedding_bag(x, m.embed.weight), IDS),
        (lambda m, x: one_hot(x).mean((2, 3)), LABELS),
        (lambda m, x: F.conv2d(x / 255, torch.randn(4, 3, 3, 3)), BYTES),
    ],
)
def test_integers_that_keep_their_rate_are_clean(function, x):
    report = report_of(function, x)
    assert (report.rows, report.unread) == ((), ())


def test_a_filtered_embedding_is_treated():
    def filtered(m, x):
        y = m.embed(x).permute(0, 3, 1, 2)
        return m.blur(y)[:, :, ::2, ::2].relu()

    assert report_of(filtered, LABELS).ok


@pytest.mark.parametrize("x", [LABELS, LABELS > 4, BYTES[0], IDS[None]])
def test_integers_sampled_as_such_are_left(x):
    (row,) = report_of(lambda m, x: x[:, ::2, ::2] ^ x[:, ::2, ::2], x).rows
    assert row.verdict == "left"
    assert "labels, masks and bytes" in row.reason


@dataclass
class Sample:
    image: Tensor
    ids: Tensor


class Reads(nn.Module):
    """Take an object, change it, and give an object with untouched views in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.pool = nn.MaxPool1d(2)

    def forward(self, sample):
        sample.image += 1
        tokens = self.pool(self.embed(sample.ids).mT)
        return Sample({"nested": [sample.image[:, :, ::2]]}, (tokens, sample.image[..., ::4]))


@pytest.mark.parametrize("kind", [Sample, SimpleNamespace])
def test_objects_are_read_copied_and_followed(kind):
    sample = kind(image=IMAGE.clone(), ids=IDS)
    report = audit(Reads(), sample)
    assert sites(report) == ["pool max_pool 2", " slice 2x1", " slice 1x4"]
    assert torch.equal(sample.image, IMAGE)


def test_dicts_and_keywords_are_read():
    class Net(nn.Module):
        def forward(self, batch, *, scale):
            return {"out": (F.max_pool2d(batch["image"], 2), scale[:, :, ::2])}

    report = audit(Net(), {"image": IMAGE, "n": 3}, scale=IMAGE)
    assert sites(report) == [" max_pool 2x2", " slice 2x1"]


def test_what_cannot_be_copied_is_given_as_it_is():
    lock = threading.Lock()
    model = Apply(lambda m, batch: F.max_pool2d(batch[0], 2) if batch[1] is lock else None)
    assert sites(audit(model, [IMAGE, lock])) == [" max_pool 2x2"]


@pytest.mark.parametrize("bad", [3, "x", None, [1.0, 2.0], IMAGE.numpy(), ()])
def test_inputs_without_a_tensor_are_refused(bad):
    with pytest.raises(InputError, match="no tensor"):
        audit(nn.ReLU(), bad)


def test_wrong_inputs_are_refused():
    model = timm_model("resnet18")
    for bad in (IMAGE[0, 0], IMAGE.double(), IMAGE.to("meta"), torch.zeros(1, 4, 8, 8)):
        with pytest.raises(InputError, match="fails on inputs of shape"):
            audit(model, bad)


def test_other_inputs_change_no_row():
    model = timm_model("resnet18")
    inputs = (
        torch.zeros(0, 3, 64, 64),
        IMAGE.clone().requires_grad_() * 1,
        IMAGE.contiguous(memory_format=torch.channels_last),
        IMAGE.expand(4, -1, -1, -1),
    )
    for x in inputs:
        assert sites(audit(model, x)) == RESNET18
    unbatched = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
    assert sites(audit(unbatched, IMAGE[0])) == ["0 conv 2x2", "1 max_pool 2x2"]
