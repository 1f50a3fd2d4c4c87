"""Laws of the measurements: known answers, independence of batching, exact reduction, bad input."""

from __future__ import annotations

import copy
from itertools import cycle, pairwise

import pytest
import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError
from aa_surgery.evaluation import (
    ShiftConsistency,
    agreement,
    circular_shifts,
    cost,
    count_flops,
    count_parameters,
    crop,
    crop_shifts,
    diagonal_path,
    mean_step_change,
    measure_consistency,
    measure_time_ratio,
    roll,
    shift_confidence,
    shift_pairs,
    staircase_path,
    wilson_interval,
)

SIZE, MARGIN = 16, 8


class Constant(nn.Module):
    """Names class 2 whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(5)[2].expand(len(x), 5)


class Parity(nn.Module):
    """Names class 1 where the crop of a column ramp starts at an odd column, else 0."""

    def forward(self, x: Tensor) -> Tensor:
        odd = (x[:, 0, 0, 0].round().long() % 2).float()
        return torch.stack([1 - odd, odd], dim=1)


class Texture(nn.Module):
    """A small random network: shift-variant, so that its consistency lies between 0 and 100."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.9),
            nn.Linear(128, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def ramp(n: int, side: int = SIZE + MARGIN) -> Tensor:
    """Images whose value is the column number."""
    return torch.arange(side).float().expand(n, 3, side, side)


def noise(n: int, side: int = SIZE + MARGIN) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def measure(model: nn.Module, batches: object, **options: object):
    return measure_consistency(model, batches, size=SIZE, margin=MARGIN, **options)


# Shifts


def test_draws_never_change_between_versions() -> None:
    assert crop_shifts(0, passes=2, seed=0).tolist() == [[[27, 18], [25, 28]], [[23, 1], [25, 12]]]
    assert circular_shifts(12345, seed=7).tolist() == [[[26, -18], [19, 9]]]


def test_draws_depend_on_seed_index_and_pass_alone() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(crop_shifts(9, passes=3, seed=4), crop_shifts(9, passes=8, seed=4)[:3])
    assert torch.equal(before, torch.random.get_rng_state())
    draws = {
        tuple(crop_shifts(index, seed=seed, passes=2)[p].flatten().tolist())
        for index in range(4)
        for seed in range(4)
        for p in range(2)
    }
    assert len(draws) == 32


@pytest.mark.parametrize(
    ("draw", "low", "high"), [(crop_shifts, 0, 31), (circular_shifts, -32, 31)]
)
def test_draws_are_uniform_over_the_whole_range(draw, low: int, high: int) -> None:
    values = torch.cat([draw(i, passes=4) for i in range(1000)]).flatten()
    assert (int(values.min()), int(values.max())) == (low, high)
    counts = torch.bincount(values - low).double()
    expected = len(values) / len(counts)
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 2 * len(counts)  # many standard deviations above the mean, len(counts) - 1


def test_crop_and_roll_move_the_content_as_said() -> None:
    image = torch.arange(36).view(1, 6, 6)
    assert crop(image, (2, 3), 2).tolist() == [[[15, 16], [21, 22]]]
    assert roll(image, (1, -2))[0, 1, 0] == image[0, 0, 2]


# Consistency


@pytest.mark.parametrize("protocol", ["crop", "circular"])
def test_a_constant_classifier_is_wholly_consistent(protocol: str) -> None:
    result = measure(Constant(), [noise(5)], protocol=protocol, passes=2)
    assert (result.consistency, result.images, result.pairs) == (100.0, 5, 10)
    assert result.interval[1] == pytest.approx(100)
    assert result.interval[0] == pytest.approx(wilson_interval(5, 5)[0])


def test_parity_classifier_agrees_exactly_where_offsets_share_parity() -> None:
    passes, n = 5, 40
    offsets = torch.stack([crop_shifts(i, passes, seed=2, margin=MARGIN) for i in range(n)])
    x = offsets[..., 1]
    expected = 100 * float((x[..., 0] % 2 == x[..., 1] % 2).double().mean())
    assert 0 < expected < 100
    result = measure(Parity(), [ramp(n)], passes=passes, seed=2)
    assert result.consistency == pytest.approx(expected)


def test_circular_protocol_rolls_the_central_square() -> None:
    images = noise(3)
    a, b = next(shift_pairs(images, [4, 5, 6], "circular", size=SIZE, margin=MARGIN, seed=1))
    region = images[..., 4:20, 4:20]
    for i, index in enumerate((4, 5, 6)):
        (ya, xa), (yb, xb) = circular_shifts(index, seed=1, margin=MARGIN)[0].tolist()
        assert torch.equal(a[i], region[i].roll((ya, xa), (1, 2)))
        assert torch.equal(b[i], region[i].roll((yb, xb), (1, 2)))


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 5, 2], [12]])
def test_result_is_a_hand_computation_whatever_the_batches(sizes: list[int]) -> None:
    model, images = Texture().eval(), noise(12)
    agreed = 0
    for i in range(12):
        (ya, xa), (yb, xb) = crop_shifts(i, seed=6, margin=MARGIN)[0].tolist()
        a = images[i : i + 1, :, ya : ya + SIZE, xa : xa + SIZE]
        b = images[i : i + 1, :, yb : yb + SIZE, xb : xb + SIZE]
        agreed += int(model(a).argmax() == model(b).argmax())
    assert 0 < agreed < 12
    assert measure(model, images.split(sizes), seed=6).consistency == pytest.approx(
        100 * agreed / 12
    )


def test_order_does_not_matter_where_indices_are_given() -> None:
    model, images, labels = Texture(), noise(12), torch.arange(12) % 4
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    straight = measure(model, [(images, labels)], passes=3)
    shuffled = measure(model, [(images[o], labels[o], o) for o in order.split(5)], passes=3)
    assert straight == shuffled
    assert straight.top1 is not None


def test_top1_is_that_of_the_central_crop() -> None:
    model, images = Texture().eval(), noise(12)
    labels = torch.arange(12) % 4
    expected = 100 * float((model(images[..., 4:20, 4:20]).argmax(1) == labels).double().mean())
    assert 0 < expected < 100
    assert measure(model, [(images, labels)]).top1 == pytest.approx(expected)
    assert measure(model, [images]).top1 is None


def test_every_modules_mode_comes_back() -> None:
    model = Texture().train()
    model.body[1].eval()
    before = [m.training for m in model.modules()]
    measure(model, [noise(2)])
    with pytest.raises(InputError):
        measure(model, [noise(2, side=SIZE)])
    assert [m.training for m in model.modules()] == before


def test_progress_counts_every_image() -> None:
    seen: list[int] = []
    measure(Constant(), noise(5).split(2), progress=seen.append)
    assert seen == [2, 2, 1]


def test_clustered_interval_lies_between_images_and_pairs() -> None:
    result = measure(Parity(), [ramp(30)], passes=20)
    width = result.interval[1] - result.interval[0]
    p = result.consistency / 100

    def wilson_width(n: int) -> float:
        low, high = wilson_interval(p * n, n)
        return high - low

    assert wilson_width(600) - 1e-9 <= width <= wilson_width(30) + 1e-9


# The metric


def batches_of_logits() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, generator=g), torch.randn(n, 3, generator=g)) for n in (7, 4, 10)]


def test_metric_is_the_plain_mean_of_agreements() -> None:
    metric = ShiftConsistency()
    batches = batches_of_logits()
    for a, b in batches:
        metric.update(a, b)
    expected = 100 * torch.cat([agreement(a, b) for a, b in batches]).float().mean()
    assert 0 < expected < 100
    assert metric.compute() == pytest.approx(float(expected))
    metric.reset()
    metric.update(torch.tensor([1, 2]), torch.tensor([1, 0]))
    assert metric.compute() == 50


def test_two_processes_metrics_reduce_to_the_whole() -> None:
    whole, first, second = ShiftConsistency(), ShiftConsistency(), ShiftConsistency()
    for i, (a, b) in enumerate(batches_of_logits()):
        whole.update(a, b)
        (first, second)[i % 2].update(a, b)
    # What torchmetrics does across processes: gather each state, then reduce it by its function.
    for name, reduce in first._reductions.items():
        gathered = torch.stack([getattr(first, name), getattr(second, name)])
        setattr(first, name, reduce(gathered))
    first._computed = None
    assert first.compute() == whole.compute()


def test_metric_merges_copies_and_forwards() -> None:
    whole, part = ShiftConsistency(), ShiftConsistency()
    batches = batches_of_logits()
    for a, b in batches:
        assert whole(a, b) == pytest.approx(100 * float(agreement(a, b).float().mean()))
    part.update(*batches[0])
    other = copy.deepcopy(part)
    other.reset()
    for a, b in batches[1:]:
        other.update(a, b)
    part.merge_state(other)
    assert part.compute() == whole.compute()


def test_metric_and_measure_agree() -> None:
    model, images, metric = Texture().eval(), noise(12), ShiftConsistency()
    for a, b in shift_pairs(images, range(12), size=SIZE, margin=MARGIN, passes=2):
        metric.update(model(a), model(b))
    measured = measure(model, [images], passes=2)
    assert float(metric.compute()) == pytest.approx(measured.consistency)


# Stability


def test_paths_move_one_pixel_at_a_time() -> None:
    walk = staircase_path(32)
    assert (len(walk), walk[-1]) == (65, (32, 32))
    assert all(abs(y - v) + abs(x - u) == 1 for (y, x), (v, u) in pairwise(walk))
    assert walk[1] == (0, 1)
    assert diagonal_path(32)[-1] == (32, 32)


def test_confidence_is_followed_along_the_path() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = x[:, 0, 0, 0]
            return torch.stack([value, torch.zeros_like(value)], dim=1)

    image = torch.rand(3, 24, 24)
    path = diagonal_path(8)
    expected = torch.sigmoid(image[0].diagonal()[:9])
    confidence = shift_confidence(Sum(), image, 0, path, size=16, batch_size=4)
    torch.testing.assert_close(confidence, expected)
    assert mean_step_change(confidence) == pytest.approx(100 * float(expected.diff().abs().mean()))


# Cost


def test_flops_are_twice_the_multiply_accumulates() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(150, 7))
    assert count_flops(model, torch.rand(1, 4, 5, 5)) == 2 * (25 * 6 * 2 * 9 + 150 * 7)
    assert count_parameters(model) == 6 * 2 * 9 + 6 + 150 * 7 + 7
    assert model.training


def test_time_ratio_is_that_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    class Taking(nn.Module):
        """Moves the clock by the next of its durations (s)."""

        def __init__(self, *durations: float) -> None:
            super().__init__()
            self.durations = cycle(durations)

        def forward(self, x: Tensor) -> Tensor:
            nonlocal clock
            clock += next(self.durations)
            return x

    monkeypatch.setattr(cost, "perf_counter", lambda: clock)
    first, second = Taking(0.002), Taking(0.005, 0.006, 0.1)
    result = measure_time_ratio(first, second, torch.zeros(1), repeats=6, warmup=3)
    assert result.ratio == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([noise(1)[0]], {}, r"needs \(N, C, H, W\).*unsqueeze"),
        ([noise(1, side=20)], {}, r"20x20 px.*needs 24 px.*size=12"),
        ([noise(1)], {"protocol": "diagonal"}, "protocol 'diagonal' is unknown"),
        ([noise(1)], {"passes": 0}, "passes 0"),
        ([noise(1)], {"seed": -1}, "seed -1"),
        ([(noise(2), None, [1])], {}, "1 indices for 2 images"),
        ([(noise(2), torch.zeros(3).long())], {}, r"labels of shape \(3,\)"),
        ([(noise(2), torch.zeros(2))], {}, "integer class"),
        ([["a.jpg"]], {}, "give images"),
        ([], {}, "no image to measure"),
    ],
)
def test_bad_batches_are_refused(batches: object, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(Constant(), batches, **options)


def test_models_that_return_no_logits_are_refused() -> None:
    with pytest.raises(InputError, match=r"Conv2d returned \(2, 4, 14, 14\)"):
        measure(nn.Conv2d(3, 4, 3), [noise(2)])
    with pytest.raises(InputError, match="NaN"):
        agreement(torch.tensor([[float("nan"), 1]]), torch.tensor([[0.0, 1]]))
    with pytest.raises(InputError, match="shapes"):
        ShiftConsistency().update(torch.zeros(2, 3), torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("image", "class_index", "path", "message"),
    [
        (torch.rand(1, 3, 24, 24), 0, None, r"needs one image, \(C, H, W\)"),
        (torch.rand(3, 20, 20), 0, None, "needs 48 px"),
        (torch.rand(3, 24, 24), 9, diagonal_path(2), "class 9: the model has 5"),
        (torch.rand(3, 24, 24), 0, [(-1, 0)], "none negative"),
    ],
)
def test_stability_refuses_bad_input(image, class_index, path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        shift_confidence(Constant(), image, class_index, path, size=SIZE)
