"""Damaged and edited plans: one line that names the field, or a model of the same sizes."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from aa_surgery import Plan, apply_antialias, plan_antialias
from aa_surgery.errors import PlanError, SurgeryError
from aa_surgery.rules import Edit, Left
from aa_surgery.sites import Anchor, Site, Unread

BAD = (None, "x", -1, 0, [], {}, 1e9, True, 7, [1, 1], "post", 10**12)
Place = tuple[Any, ...]


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1, 2), nn.AvgPool2d(2)
    )


class Forward(nn.Module):
    """Ops in a forward, and a site that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.conv = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.avg_pool2d(torch.relu(self.conv(x))[..., ::2, ::2], 2)
        return y.flatten(1)[:, :8] + self.patches(x).mean()


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {
    "small": (small, {}, 64),
    "forward": (Forward, {}, 32),
    "learned": (small, {"method": "learned"}, 64),
    "lps": (small, {"method": {"name": "lps", "tau": 0.5}, "circular": True}, 64),
    "test_resnet": (lambda: timm.create_model("test_resnet"), {"preset": "zhang2019"}, 64),
    "test_efficientnet": (lambda: timm.create_model("test_efficientnet"), {}, 64),
}


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    """The place of every value in a document, those of lists and objects among them."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*place, key)
        yield from leaves(item, (*place, key))


def at(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def document_of(name: str) -> dict[str, Any]:
    make, options, _ = MODELS[name]
    torch.manual_seed(0)
    document = json.loads(json.dumps(plan_antialias(make().eval(), **options).to_dict()))
    assert document["sites"]
    return document


def check(name: str, document: dict[str, Any], what: Any) -> bool:
    """Whether the document is refused; if not, it makes a model of the same sizes."""
    make, _, size = MODELS[name]
    model, x = make().eval(), torch.zeros(1, 3, size, size)
    classes = [type(m) for m in model.modules()]
    try:
        apply_antialias(model, plan=Plan.from_dict(document))
    except SurgeryError:
        assert [type(m) for m in model.modules()] == classes, what
        return True
    with torch.no_grad():
        assert model(x).shape == make().eval()(x).shape, what
    return False


@pytest.mark.filterwarnings("ignore::aa_surgery.NoEffectWarning")
@pytest.mark.parametrize("name", MODELS)
def test_every_value_of_a_plan_in_turn(name: str) -> None:
    good, refused, tried = document_of(name), 0, 0
    assert check(name, good, "as it is") is False
    places = list(leaves(good))
    few = len(places) > 100
    for number, place in enumerate(places):
        before = at(good, place)
        others = [v for v in BAD if v != before or type(v) is not type(before)]
        for bad in [others[number % len(others)]] if few else others:
            document = copy.deepcopy(good)
            at(document, place[:-1])[place[-1]] = bad
            tried += 1
            refused += check(name, document, (place, bad))
    assert refused > tried / 2


@pytest.mark.filterwarnings("ignore::aa_surgery.NoEffectWarning")
@pytest.mark.parametrize("name", MODELS)
def test_values_of_one_site_at_another(name: str) -> None:
    good = document_of(name)
    sites = good["sites"]
    for number, other in zip(range(len(sites)), [*range(1, len(sites)), 0], strict=True):
        for key in sites[number].keys() & sites[other].keys():
            document = copy.deepcopy(good)
            document["sites"][number][key] = copy.deepcopy(sites[other][key])
            check(name, document, (number, other, key))
    for number, site in enumerate(sites):
        for one, two in (("op_stride", "blur_stride"), ("blur_stride", "rate"), ("note", "leader")):
            if one in site:
                document = copy.deepcopy(good)
                document["sites"][number] |= {one: site[two], two: site[one]}
                check(name, document, (number, one, two))


@pytest.mark.parametrize(
    ("place", "bad", "said"),
    [
        (("sites", 0, "op_stride"), [2, 2], "op_stride"),
        (("sites", 0, "blur_stride"), [1, 1], "blur_stride"),
        (("sites", 0, "rate"), [4, 4], "rate"),
        (("sites", 0, "anchor", "path"), "2", "anchor"),
        (("sites", 0, "anchor", "kind"), "behind", "sites[0].anchor.kind"),
        (("sites", 0, "placement"), "pre", "0: no rule gives"),
        (("sites", 0, "site", "stride"), [3, 3], "0: "),
        (("sites", 0, "site", "stride", 0), "2", "sites[0].site.stride[0]"),
        (("sites", 0, "site", "groups"), True, "sites[0].site.groups"),
        (("sites", 0, "site", "op"), "convolution", "sites[0].site.op"),
        (("sites", 0, "filter"), [1, 2, 1], "sites[0].filter: "),
        (("sites", 0, "method"), "blurr", "sites[0].method: "),
        (("sites", 0, "padding_mode"), "mirror", "sites[0].padding_mode"),
        (("sites", 0, "channels"), 4, "channels"),
        (("sites", 0, "leader"), "2", "leader"),
        (("sites", 0, "colour"), "red", "sites[0] has a field 'colour'"),
        (("sites", 1, "site", "name"), "0", "twice about '0'"),
        (("sites", 1, "pool_kernel"), [9, 9], "pool_kernel"),
        (("circular",), "no", "circular"),
        (("format",), True, "format"),
        (("format",), 2, "reads format 1"),
        (("new_keys",), "x", "new_keys"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, place: Place, bad: Any, said: str) -> None:
    document = document_of("small")
    at(document, place[:-1])[place[-1]] = bad
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(document))
    with pytest.raises(PlanError) as caught:
        Plan.load(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_a_plan_changed_in_python_is_checked_too() -> None:
    plan = plan_antialias(small())
    wrong = dataclasses.replace(plan.edits[0], blur_stride=(1, 1))
    for decisions in ((wrong, *plan.decisions[1:]), ("x",), (*plan.decisions, plan.decisions[0])):
        model = small()
        with pytest.raises(PlanError):
            apply_antialias(model, plan=dataclasses.replace(plan, decisions=decisions))
        assert type(model[0]) is nn.Conv2d
    fewer = dataclasses.replace(plan, decisions=plan.decisions[:1])
    assert type(apply_antialias(small(), plan=fewer)[2]) is nn.MaxPool2d


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_is_the_same_from_its_file(name: str, tmp_path: Path) -> None:
    plan = Plan.from_dict(document_of(name))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_without_edits_and_one_with_a_byte_order_mark(tmp_path: Path) -> None:
    plan = plan_antialias(nn.Conv2d(3, 4, 3))
    assert Plan.from_dict(plan.to_dict()) == plan
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.to_dict()), encoding="utf-8-sig")
    assert Plan.load(file) == plan


def test_what_a_field_is_by_default_may_be_missing() -> None:
    document = document_of("forward")
    plan = Plan.from_dict(document)
    for kind, records in {
        Edit: document["sites"],
        Left: document["sites"],
        Site: [item["site"] for item in document["sites"]],
        Anchor: [item["anchor"] for item in document["sites"] if item.get("anchor")],
        Unread: document["unread"],
    }.items():
        usual = {f.name: f.default for f in dataclasses.fields(kind)}
        for record in records:
            for name in [n for n, value in record.items() if n in usual]:
                plain = list(usual[name]) if isinstance(usual[name], tuple) else usual[name]
                if record[name] == plain:
                    del record[name]
    del document["new_keys"], document["circular"]
    assert Plan.from_dict(document) == plan


def test_a_failing_write_leaves_the_old_plan(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "plan.json"
    file.write_text("old")

    def full(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text.encode()[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PlanError, match="No space left"):
        plan_antialias(small()).save(file)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("plan.json", b"old")
    ]
