"""The state of a training run as tensors and JSON: what a checkpoint holds beside the model."""

from dataclasses import asdict, dataclass, field, fields

import torch
from torch import nn

from asr.checkpoint import TrainingState
from asr.training.optim import MovingAverage, optimizer_tensors, restore_optimizer


@dataclass(slots=True)
class Progress:
    """Where training stands; all of it is saved.

    Attributes:
        step: Optimiser steps taken.
        epoch: Epoch of the next batch.
        position: Of the next batch in its epoch.
        bad_steps: Steps skipped for want of a finite loss, in all.
        bad_steps_in_row: The same since the last good step.
        elapsed_s: Seconds of training, over all interruptions.
        validations_since_best: Validations since the best one.
        finished: Whether there is nothing left to do.
        best: Validation metric and checkpoint name of the best, best first.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    bad_steps: int = 0
    bad_steps_in_row: int = 0
    elapsed_s: float = 0.0
    validations_since_best: int = 0
    finished: bool = False
    best: list[tuple[float, str]] = field(default_factory=list)


def pack_state(
    progress: Progress,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: MovingAverage | None,
    device: torch.device,
) -> TrainingState:
    """Gathers all that decides how training goes on, random states included."""
    tensors = optimizer_tensors(optimizer, model)
    if ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.weights.items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    state = {**asdict(progress), "ema_updates": 0 if ema is None else ema.num_updates}
    return TrainingState(tensors=tensors, state=state)


def unpack_state(
    saved: TrainingState,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: MovingAverage | None,
    device: torch.device,
) -> Progress:
    """Puts back what `pack_state` gathered.

    Raises:
        ValueError: If the checkpoint has no moving average, but this run keeps one.
    """
    restore_optimizer(optimizer, model, saved.tensors)
    if ema is not None:
        # Not by the number of updates: it is 0 where every step so far was skipped.
        if not any(name.startswith("ema/") for name in saved.tensors):
            raise ValueError("the checkpoint has no moving average of the weights; go on with trainer.average=best")
        for name, tensor in ema.weights.items():
            tensor.copy_(saved.tensors[f"ema/{name}"])
        ema.num_updates = saved.state["ema_updates"]
    torch.set_rng_state(saved.tensors["random/cpu"])
    if device.type == "cuda" and "random/cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["random/cuda"], device)
    progress = Progress(**{each.name: saved.state[each.name] for each in fields(Progress)})
    progress.best = [(metric, name) for metric, name in progress.best]
    return progress
