"""The audit around the run: modes and compiled parts, threads, interrupts, half a treatment."""

from __future__ import annotations

import json
import threading

import pytest
import torch
import torch.nn.functional as F
from auditing import IMAGE, RESNET18, Apply, sites, timm_model
from torch import nn
from torch.nn.modules import module as hooks

from aa_surgery.audit import audit
from aa_surgery.errors import InputError, SurgeryError, UnsupportedSiteError

POOL = {"pool": nn.MaxPool2d(2)}


def no_hooks() -> bool:
    return not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks


@torch.inference_mode()
def in_inference(m, x):
    return m.pool(x)


def in_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.pool(F.conv2d(x, torch.randn(3, 3, 3, 3)))


def with_gradients(m, x):
    with torch.enable_grad():
        y = m.pool(x.requires_grad_())
        return torch.autograd.grad(y.sum(), x)[0]


def in_place(m, x):
    x.mul_(2).clamp_(0)
    y = torch.empty(1, 3, 32, 32)
    y[:, :, :16] = m.pool(x)[:, :, :16]
    return y.relu_()


def caught(m, x):
    try:
        m.broken(x)
    except ZeroDivisionError:
        return m.pool(x)


class Broken(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError


@pytest.mark.parametrize("function", [in_inference, in_autocast, with_gradients, in_place, caught])
def test_modes_inside_change_nothing(function):
    assert ["pool max_pool 2x2"] == sites(audit(Apply(function, broken=Broken(), **POOL), IMAGE))


def test_modes_outside_change_nothing():
    model = timm_model("resnet18")
    for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert sites(audit(model, IMAGE)) == RESNET18
    assert sites(audit(model.train(), IMAGE)) == RESNET18
    assert model.training


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_compiled_parts_run_eagerly_under_their_own_names():
    model = timm_model("resnet18").eval()
    model.layer2 = torch.compile(model.layer2, backend="eager")
    model.layer3.compile(backend="eager")
    with torch.no_grad():
        model(IMAGE)
    assert sites(audit(model, IMAGE)) == RESNET18
    torch.compiler.reset()


def test_other_threads_pass_by():
    """While one thread is audited, another runs modules of the same model."""
    shared, failed = nn.MaxPool2d(2), []
    started, done = threading.Event(), threading.Event()

    def other():
        started.wait()
        try:
            for _ in range(20):
                shared(IMAGE)
        except Exception as error:
            failed.append(error)
        done.set()

    def slow(m, x):
        started.set()
        done.wait()
        return m.pool(x)

    thread = threading.Thread(target=other)
    thread.start()
    report = audit(Apply(slow, pool=shared), IMAGE)
    thread.join()
    assert not failed
    assert [(r.name, r.calls) for r in report.rows] == [("pool", 1)]


def test_audits_in_threads_do_not_mix():
    found = {}

    def run(k):
        model = nn.Sequential(*(nn.MaxPool2d(2) for _ in range(k)))
        found[k] = [sites(audit(model, IMAGE)) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(k,)) for k in (1, 2, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {k: [[f"{i} max_pool 2x2" for i in range(k)]] * 5 for k in (1, 2, 3)}
    assert no_hooks()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_nothing_behind(error):
    def interrupted(m, x):
        m.norm(x)
        m.norm.running_mean += 1
        raise error

    model = Apply(interrupted, norm=nn.BatchNorm2d(3)).train()
    with pytest.raises(error):
        audit(model, IMAGE)
    assert no_hooks()
    assert model.training
    assert model.norm.training
    assert not model.norm.running_mean.any()
    assert sites(audit(nn.MaxPool2d(2), IMAGE)) == [" max_pool 2x2"]


def half_gone(m, x):
    m.pool(x)
    raise UnsupportedSiteError("conv1: its blur is gone with relu; apply_antialias again")


def test_half_a_treatment_breaks_the_report():
    report = audit(Apply(half_gone, **POOL), IMAGE)
    assert report.broken == ("conv1: its blur is gone with relu; apply_antialias again",)
    assert sites(report) == ["pool max_pool 2x2"]
    assert not report.ok
    assert "broken: conv1: its blur is gone" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["broken"] == list(report.broken)
    assert no_hooks()


def test_a_broken_report_is_not_ok_without_rows():
    def gone(m, x):
        raise SurgeryError("half")

    report = audit(Apply(gone), IMAGE)
    assert (report.rows, report.ok) == ((), False)


def test_an_input_that_a_layer_refuses_is_no_broken_treatment():
    def refuses(m, x):
        raise InputError("needs 4 axes")

    with pytest.raises(InputError, match="needs 4 axes"):
        audit(Apply(refuses), IMAGE)
