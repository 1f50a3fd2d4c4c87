"""Fine-tune an anti-aliased model, or any model, on a folder of images; resumes when killed.

`python tools/finetune.py DATA --model aa_resnet18 --pretrained --output out/resnet18`
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import _finetune_state as files
import timm
import torch
from _finetune_data import Data, class_count, find_images, load_images, readable, seed_all
from _finetune_model import Models, build_models, make_task
from _finetune_options import essential, parse, surgery
from _finetune_train import Trainer
from timm.data import resolve_data_config
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor

from aa_surgery.adapt.recalibrate import Recalibration, recalibrate
from aa_surgery.errors import SurgeryError
from aa_surgery.integrations.timm import PREFIX

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 for bad input."""
    options = parse(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            finetune(options)
    except (SurgeryError, OSError) as error:
        say("error", str(error))
        return BAD_INPUT
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def say(kind: str, text: str) -> None:
    """Print one line to stderr."""
    print(f"finetune: {kind}: {' '.join(text.split())}", file=sys.stderr)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as the one line that concerns the user."""
    say("warning", str(message))


def finetune(options: argparse.Namespace) -> Trainer:
    """Train to the end, from the start or from where a killed run was; return the trained.

    Raises:
        SurgeryError: The input is no good; the message says what to do.
    """
    where = init_distributed_device_so(device=options.device)
    device, rank, world = torch.device(where["device"]), where["global_rank"], where["world_size"]
    splits = find_images(options)
    classes = class_count(splits[0])
    seed_all(options.seed)
    models = build_models(options, classes)
    config = resolve_data_config(
        {"img_size": options.size, "crop_pct": options.crop_pct}, model=models.student
    )
    data = load_images(options, config, splits, rank, world)
    identity = {**essential(options), "images": data.fingerprint, "processes": str(world)}
    options.output.mkdir(parents=True, exist_ok=True)
    state = files.load(options.output, identity)
    layout = torch.channels_last if options.channels_last else torch.preserve_format
    models.student.to(device, memory_format=layout)
    if options.recalibrate and state is None:
        found = recalibrated(models, data, device)
        if rank == 0:
            print(found, flush=True)
    task = make_task(options, models, classes, device)
    del models  # the untouched one is needed no more, unless it teaches
    trainer = Trainer(options, task, data, identity, rank, world)
    if state is not None:
        trainer.restore(state)
        if rank == 0:
            print(f"goes on at epoch {trainer.epoch}, step {trainer.step}", flush=True)
    if world > 1:
        task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)
    trainer.fit()
    if rank == 0:
        print(how_to_load(options, classes))
    return trainer


def how_to_load(options: argparse.Namespace, classes: int) -> str:
    """Return the line of Python that loads the result, blurs included."""
    best = options.output / files.BEST
    if not timm.is_model(options.model):
        return f"the best weights: {best}"
    wanted = surgery(options)
    treated = (options.antialias or wanted) and not options.model.startswith(PREFIX)
    name = f"{PREFIX if treated else ''}{options.model}"
    arguments = [repr(name), f"num_classes={classes}"]
    arguments += [f"{key}={value!r}" for key, value in options.model_arg]
    if wanted:
        words = {k: f"Plan.load({str(v)!r})" if k == "plan" else repr(v) for k, v in wanted.items()}
        arguments += [f"antialias=dict({', '.join(f'{k}={v}' for k, v in words.items())})"]
    arguments += [f"checkpoint_path={str(best)!r}"]
    return f"load it: timm.create_model({', '.join(arguments)})"


def recalibrated(models: Models, data: Data, device: torch.device) -> Recalibration:
    """Correct the statistics of the student's norms by what the surgery changed."""

    def images() -> Iterator[Tensor]:
        for batch, _, _ in readable(data.adapt):
            yield batch.to(device)

    return recalibrate(models.student, models.original.to(device), images())


if __name__ == "__main__":
    raise SystemExit(main())
