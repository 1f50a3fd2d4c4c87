"""The audit against the positions that survive: a map of coordinates goes through the same ops."""

from __future__ import annotations

import math

import torch
from auditing import Apply
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aa_surgery.audit import audit

HEIGHT, WIDTH = 12, 24


def coordinates() -> Tensor:
    """Return a map whose samples say where they stand."""
    return torch.arange(2 * HEIGHT * WIDTH, dtype=torch.float32).view(1, 2, HEIGHT, WIDTH)


def truth(y: Tensor) -> tuple[set[int], set[int]]:
    """Return the distances of neighbouring samples, of those that are left, along both axes."""
    place = y.long() % (HEIGHT * WIDTH)
    return gaps(place // WIDTH), gaps(place % WIDTH)


def is_grid(y: Tensor) -> bool:
    """Return whether every row that is left has the same columns: no quincunx."""
    left = y.long().unique()
    place = left % (HEIGHT * WIDTH)
    parts = (left // (HEIGHT * WIDTH), place // WIDTH, place % WIDTH)
    return len(left) == math.prod(len(p.unique()) for p in parts)


def gaps(positions: Tensor) -> set[int]:
    return set(positions.unique().diff().tolist()) or {1}


def split(x: Tensor, dim: int, k: int) -> Tensor:
    return x.unflatten(dim, (x.shape[dim] // k, k)) if x.shape[dim] % k == 0 and dim != 1 else x


def merge(x: Tensor, dim: int, k: int) -> Tensor:
    """Join two axes of which none are channels."""
    return x.flatten(dim, dim + 1) if 1 < dim < x.ndim - 1 else x


def move(x: Tensor, dim: int, k: int) -> Tensor:
    to = 2 + k % (x.ndim - 2)
    return x.movedim(dim, to) if dim != 1 else x


def stepped(x: Tensor, dim: int, k: int) -> Tensor:
    return x[(slice(None),) * dim + (slice(k % 2, None, k),)] if x.shape[dim] > k else x


def chosen(x: Tensor, dim: int, k: int) -> Tensor:
    return x.select(dim, k % x.shape[dim]) if x.ndim > 3 and dim != 1 else x


def cropped(x: Tensor, dim: int, k: int) -> Tensor:
    whole = x.ndim == 4 and x.shape[dim] > 4  # what is cropped of joined axes is no grid any more
    return x.narrow(dim, 0, x.shape[dim] - 1) if whole else x


def flipped(x: Tensor, dim: int, k: int) -> Tensor:
    return x.flip(dim)


def indexed(x: Tensor, dim: int, k: int) -> Tensor:
    return x.index_select(dim, torch.arange(k % 2, x.shape[dim], k)) if x.shape[dim] > k else x


def gathered(x: Tensor, dim: int, k: int) -> Tensor:
    if x.shape[dim] <= k:
        return x
    index = torch.arange(0, x.shape[dim], k)
    shape = [len(index) if d == dim else n for d, n in enumerate(x.shape)]
    view = [-1 if d == dim else 1 for d in range(x.ndim)]
    return x.gather(dim, index.view(view).expand(shape))


def joined(x: Tensor, dim: int, k: int) -> Tensor:
    return torch.stack(x.unbind(dim)[::k], dim) if x.shape[dim] > 2 * k else x


def copied(x: Tensor, dim: int, k: int) -> Tensor:
    return x.contiguous(memory_format=torch.contiguous_format)


OPS = [
    split, split, merge, move, stepped, chosen, cropped, flipped, indexed, gathered, joined, copied,
]  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(OPS), st.integers(2, 5), st.sampled_from([2, 3, 4])),
    max_size=5,
)


def through(x: Tensor, steps) -> Tensor:
    for op, dim, k in steps:
        x = op(x, min(dim, x.ndim - 1), k)
    return x


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STEPS)
def test_the_audit_knows_which_positions_survive(steps):
    """Of what is left without a regular step (two of three phases) it may say either."""
    left = through(coordinates(), steps)
    rows, columns = truth(left)
    report = audit(Apply(lambda m, x: through(x, steps).relu()), coordinates())
    if rows == columns == {1} and is_grid(left):
        assert not report.rows
    elif len(rows) == len(columns) == 1 < max(rows | columns) and not report.unread:
        (row,) = report.rows
        assert max(row.stride) == max(rows | columns)


def test_a_step_is_never_only_listed_where_its_axis_is_whole():
    """The fuzz above lets what is listed pass: of plain axes nothing is."""
    for op in (stepped, indexed, gathered, joined):
        for dim in (2, 3):
            report = audit(Apply(lambda m, x, op=op, dim=dim: op(x, dim, 3)), coordinates())
            assert [max(r.stride) for r in report.rows] == [3]
