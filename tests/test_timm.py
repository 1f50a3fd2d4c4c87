import dataclasses
import importlib
import pickle
import warnings

import pytest
import timm
import timm.models
import torch

from aa_surgery import apply_antialias, find_sites
from aa_surgery.errors import FilterError, InputError, NoEffectWarning
from aa_surgery.integrations import antialiased
from aa_surgery.integrations.timm import FAMILY_ALIASES, antialias_options, register
from aa_surgery.layers import BlurPool

SMALL = {
    "resnet18": {},
    "convnext_atto": {},
    "efficientnet_lite0": {},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 2,
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 2),
    },
}
SIZE = 64


def pair(name, **kwargs):
    """An un-prefixed model, its `aa_` twin, with the same weights, and an image for them."""
    size = SMALL[name]
    plain = timm.create_model(
        name, **size, **{k: v for k, v in kwargs.items() if k != "antialias"}
    ).eval()
    treated = timm.create_model(f"aa_{name}", **size, **kwargs).eval()
    treated.load_state_dict(plain.state_dict(), strict=True)
    image = torch.rand(
        2, kwargs.get("in_chans", 3), SIZE, SIZE, generator=torch.Generator().manual_seed(0)
    )
    return plain, treated, image


def blurs(model):
    return [m for m in model.modules() if isinstance(m, BlurPool)]


def outputs(model, image):
    with torch.no_grad():
        result = model(image)
    return list(result) if isinstance(result, (list, tuple)) else [result]


def test_every_architecture_has_an_antialiased_name_and_nothing_else_is_listed():
    plain = timm.list_models(exclude_filters="aa_*")
    families = [f for f in FAMILY_ALIASES if timm.is_model(f"aa_{f}")]
    listed = timm.list_models("aa_*")
    assert len(plain) > 1000
    assert sorted(listed) == sorted(f"aa_{n}" for n in [*plain, *families])
    assert sorted(timm.list_models(module="antialiased")) == sorted(listed)


def test_every_pretrained_tag_has_its_weights_where_the_original_has_them():
    tagged = timm.list_pretrained(exclude_filters="aa_*")
    assert len(tagged) > 1000
    assert {f"aa_{n}" for n in tagged} <= set(timm.list_pretrained("aa_*"))
    for name in tagged:
        original, ours = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(f"aa_{name}")
        assert ours.architecture == f"aa_{original.architecture}"
        assert dataclasses.replace(ours, architecture=original.architecture) == original
    assert (
        timm.get_pretrained_cfg("aa_convnext_tiny.fb_in22k_ft_in1k").hf_hub_id
        == "timm/convnext_tiny.fb_in22k_ft_in1k"
    )


def test_default_tags_are_the_originals():
    for name in timm.list_models(exclude_filters="aa_*"):
        if timm.models.is_model_pretrained(name):
            ours = timm.get_pretrained_cfg(f"aa_{name}")
            assert ours.tag == timm.get_pretrained_cfg(name).tag
            assert timm.models.is_model_pretrained(f"aa_{name}")


def test_entry_point_is_named_picklable_and_importable():
    entry = timm.models.model_entrypoint("aa_resnet18", module_filter="antialiased")
    assert entry.__name__ == "aa_resnet18"
    assert entry.__module__ == antialiased.__name__
    assert pickle.loads(pickle.dumps(entry)) == entry
    assert importlib.import_module(entry.__module__).aa_resnet18 is entry
    assert "resnet18" in entry.__doc__


def test_registering_again_adds_only_what_is_new():
    assert register() == []
    before = timm.list_models()

    def shiftnet_test(pretrained=False, **kwargs):
        return timm.create_model("resnet18", pretrained=pretrained, **kwargs)

    timm.models.register_model(shiftnet_test)
    assert register() == ["aa_shiftnet_test"]
    assert set(timm.list_models()) - set(before) == {"shiftnet_test", "aa_shiftnet_test"}
    assert blurs(timm.create_model("aa_shiftnet_test"))


def test_every_family_alias_builds_what_the_table_says():
    assert {f: t for f, t in FAMILY_ALIASES.items() if not timm.is_model(t)} == {}
    assert [f for f in FAMILY_ALIASES if timm.is_model(f)] == []
    for family, target in FAMILY_ALIASES.items():
        entry = timm.models.model_entrypoint(f"aa_{family}")
        assert (entry.__name__, entry.target) == (f"aa_{family}", target)
        cfg = timm.get_pretrained_cfg(f"aa_{family}")
        assert cfg.hf_hub_id == timm.get_pretrained_cfg(target).hf_hub_id
    model = timm.create_model("aa_resnet", antialias="tri-4")
    assert model.pretrained_cfg["architecture"] == "aa_resnet50"
    assert {b.filter.name for b in blurs(model)} == {"tri-4"}


def test_deprecated_names_work_with_their_warning_and_stay_unlisted():
    deprecated = timm.models.get_deprecated_models()
    ours = {k for k in deprecated if k.startswith("aa_")}
    assert ours == {f"aa_{k}" for k in deprecated if not k.startswith("aa_")}
    name = next(k for k, v in deprecated.items() if v == "convnext_tiny.fb_in22k_ft_in1k")
    assert f"aa_{name}" not in timm.list_models("aa_*")
    with pytest.warns(UserWarning, match="deprecated"):
        model = timm.create_model(f"aa_{name}", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    assert blurs(model)
    assert model.pretrained_cfg["tag"] == "fb_in22k_ft_in1k"


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"features_only": True},
        {"features_only": True, "out_indices": (1, 2)},
        {"num_classes": 7, "in_chans": 1},
        {"num_classes": 0, "global_pool": ""},
    ],
    ids=["plain", "features", "some-features", "classes-channels", "headless"],
)
def test_options_mean_what_they_mean_without_the_prefix(name, options):
    if name.startswith("swin") and options.get("global_pool") == "":
        options = {"num_classes": 0}
    plain, same, image = pair(name, antialias={"filter": "identity"}, **options)
    assert type(same) is type(plain) or isinstance(same, type(plain))
    for a, b in zip(outputs(plain, image), outputs(same, image), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    _, treated, _ = pair(name, **options)
    for a, b in zip(outputs(plain, image), outputs(treated, image), strict=True):
        assert a.shape == b.shape
        assert not torch.equal(a, b)
    assert treated.state_dict().keys() == plain.state_dict().keys()
    if "features_only" in options:
        assert treated.feature_info.channels() == plain.feature_info.channels()
        assert treated.feature_info.reduction() == plain.feature_info.reduction()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet18", {"feature_cls": "dict"}),
        ("resnet18", {"feature_cls": "hook"}),
        ("efficientnet_lite0", {}),
        ("efficientnet_lite0", {"feature_cls": "hook"}),
        ("convnext_atto", {}),
        ("efficientformer_l1", {}),
    ],
    ids=lambda value: value.get("feature_cls", "default") if isinstance(value, dict) else value,
)
def test_features_are_those_of_the_whole_antialiased_model(name, options):
    whole = timm.create_model(f"aa_{name}").eval()
    part = timm.create_model(f"aa_{name}", features_only=True, **options).eval()
    weights = whole.state_dict()
    # timm's wrappers prefix the names, or join two levels of them by `_`.
    known = {k.replace(".", "_"): v for k, v in weights.items()}
    state = {}
    for key in part.state_dict():
        bare = key.removeprefix("body.").removeprefix("model.").replace(".", "_")
        state[key] = known[bare]
    part.load_state_dict(state, strict=True)
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        wanted = whole.forward_intermediates(image, intermediates_only=True)
        features = part(image)
    features = list(features.values()) if isinstance(features, dict) else features
    assert len(features) >= 4
    for feature, want in zip(features, wanted[-len(features) :], strict=True):
        torch.testing.assert_close(feature, want, rtol=1e-4, atol=1e-4)


def test_surgery_is_that_of_apply_antialias_on_the_original():
    plain, treated, image = pair("resnet18", antialias={"filter": "binomial-5"})
    expected = apply_antialias(plain, filter="binomial-5")
    assert torch.equal(outputs(expected, image)[0], outputs(treated, image)[0])


def test_checkpoints_and_pretrained_files_of_the_original_load(tmp_path):
    plain = timm.create_model("resnet18", num_classes=5).eval()
    file = tmp_path / "plain.pth"
    torch.save(plain.state_dict(), file)
    by_path = timm.create_model("aa_resnet18", num_classes=5, checkpoint_path=str(file)).eval()
    by_pretrained = timm.create_model(
        "aa_resnet18.a1_in1k",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 5},
    ).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    expected = outputs(apply_antialias(plain), image)[0]
    for model in (by_path, by_pretrained):
        assert torch.equal(outputs(model, image)[0], expected)


def test_export_for_the_hub_comes_back_antialiased(tmp_path):
    model = timm.create_model("aa_resnet18", num_classes=3, antialias={"filter": "tri-4"}).eval()
    timm.models.save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    assert torch.equal(outputs(again, image)[0], outputs(model, image)[0])
    assert again.pretrained_cfg["architecture"] == "aa_resnet18"


def test_false_leaves_the_model_untouched():
    plain, same, image = pair("resnet18", antialias=False)
    assert [type(m) for m in same.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(outputs(same, image)[0], outputs(plain, image)[0])


@pytest.mark.parametrize(
    ("antialias", "options"),
    [
        (None, {}),
        (True, {}),
        (False, None),
        ("tri-4", {"filter": "tri-4"}),
        ([0.5, 0.5], {"filter": [0.5, 0.5]}),
        ({"placement": "pre"}, {"placement": "pre"}),
    ],
)
def test_antialias_takes_a_flag_a_filter_or_keywords(antialias, options):
    assert antialias_options(antialias) == options


@pytest.mark.parametrize(
    ("antialias", "error", "said"),
    [
        (3, InputError, "antialias=3"),
        ("gauss", FilterError, "gauss"),
        ({"filtre": "tri-3"}, TypeError, "filtre"),
    ],
)
def test_bad_antialias_names_the_culprit(antialias, error, said):
    with pytest.raises(error, match=said):
        timm.create_model("aa_resnet18", antialias=antialias)


def test_unknown_names_give_timms_own_errors():
    with pytest.raises(RuntimeError, match=r"Unknown model \(aa_resnet_eighteen\)"):
        timm.create_model("aa_resnet_eighteen")
    with pytest.raises(RuntimeError, match="nope"):
        timm.create_model("aa_resnet18.nope")


def test_model_with_nothing_to_treat_warns():
    name, tiny = "vit_tiny_patch16_224", {"depth": 1}
    with pytest.warns(NoEffectWarning):
        model = timm.create_model(f"aa_{name}", **tiny)
    assert blurs(model) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        treated = timm.create_model(f"aa_{name}", **tiny, antialias={"max_stride": None})
    assert len(blurs(treated)) == len(find_sites(timm.create_model(name, **tiny))) == 1


def test_init_weights_restores_the_blurs_of_a_model_that_left_the_meta_device() -> None:
    expected = timm.create_model("aa_iformer_t")
    model = timm.create_model("aa_iformer_t", device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    model.init_weights()
    kernels = dict(model.named_buffers())
    blurs = {n: b for n, b in expected.named_buffers() if n.endswith(".kernel")}
    assert blurs
    assert all(torch.equal(kernels[name], kernel) for name, kernel in blurs.items())
