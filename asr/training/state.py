"""The state of a training run as tensors and JSON: what a checkpoint holds beside the model."""

from dataclasses import asdict, dataclass, field, fields

import torch
from torch import nn

from asr.checkpoint import TrainingState
from asr.training.distributed import Team
from asr.training.optim import MovingAverage, optimizer_tensors, restore_optimizer
from asr.training.sharding import collect, part_like


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
    team: Team,
) -> TrainingState:
    """Gathers all that decides how training goes on, random states of all processes included.

    Where the model is sharded, only the first process gets it all, in the form that it has without sharding.
    """
    tensors = optimizer_tensors(optimizer, model)
    if ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.weights.items()}
    tensors = collect(tensors, keep=team.leads)
    for rank, states in enumerate(team.gather(_random_states(device))):
        tensors |= {_name(kind, rank): state for kind, state in states.items()}
    state = {**asdict(progress), "ema_updates": 0 if ema is None else int(ema.num_updates), "processes": team.size}
    return TrainingState(tensors=tensors, state=state)


def unpack_state(
    saved: TrainingState,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: MovingAverage | None,
    device: torch.device,
    team: Team,
) -> Progress:
    """Puts back what `pack_state` gathered.

    Raises:
        ValueError: If the checkpoint has no moving average, but this run keeps one, or if it is of another number of
            processes.
    """
    processes = saved.state.get("processes", 1)  # the first checkpoints did not say, and were of one
    if processes != team.size:
        raise ValueError(
            f"the checkpoint was made by {processes} processes, not {team.size}, which would change what a batch is; "
            f"go on with torchrun and {processes} processes in all, or give this run another name"
        )
    restore_optimizer(optimizer, model, saved.tensors)
    if ema is not None:
        # Not by the number of updates: it is 0 where every step so far was skipped.
        if not any(name.startswith("ema/") for name in saved.tensors):
            raise ValueError("the checkpoint has no moving average of the weights; go on with trainer.average=best")
        for name, tensor in ema.weights.items():
            tensor.copy_(part_like(saved.tensors[f"ema/{name}"], tensor))
        ema.num_updates.fill_(saved.state["ema_updates"])
    torch.set_rng_state(saved.tensors[_name("cpu", team.rank)])
    if device.type == "cuda" and _name("cuda", team.rank) in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors[_name("cuda", team.rank)], device)
    progress = Progress(**{each.name: saved.state[each.name] for each in fields(Progress)})
    progress.best = [(metric, name) for metric, name in progress.best]
    return progress


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _name(kind: str, rank: int) -> str:
    """The first process has the names that a single one has."""
    return f"random/{kind}" if rank == 0 else f"random/{kind}/{rank}"
