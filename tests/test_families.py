"""The structural laws over one architecture of every timm family, on the meta device."""

import warnings

import pytest
import timm

from aa_surgery.sweep import representatives, structural_laws, subjects

REPRESENTATIVES = representatives(subjects(["timm"]))


def test_every_family_of_timm_is_represented() -> None:
    families = {
        timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        for name in timm.list_models(exclude_filters="aa_*")
    }
    assert set(REPRESENTATIVES) == families
    assert all(timm.is_model(subject.name) for subject in REPRESENTATIVES.values())


@pytest.mark.parametrize("family", sorted(REPRESENTATIVES))
def test_structural_laws_hold(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the hosts, about their own names and initialisation
        found, laws = structural_laws(REPRESENTATIVES[family])
    assert {law: broken for law, broken in laws.items() if broken} == {}
    assert found.edits + len(found.left) + sum(found.audit_left.values()) > 0
