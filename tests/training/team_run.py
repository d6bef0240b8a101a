"""What each of several processes does in tests/training/test_distributed.py: started by torchrun with a folder."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import tiny
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from training_runs import PLAIN, FixedBatches, StubTask, make_batches, make_task, make_trainer
from utterances import make_utterances

from asr.augment import AugmentConfig, SpecAugmentConfig
from asr.data.batching import BatchPlan, Draw
from asr.nn.model import Recognizer
from asr.training import distributed
from asr.training.distributed import Team, join, leave
from asr.training.interfaces import Interrupted, TrainingError
from asr.training.optim import OptimConfig
from asr.training.sharding import collect, own_part, whole_weights
from asr.training.task import WordErrorValidation
from asr.training.trainer import Trainer

DURATIONS_S = [0.6, 0.3, 0.45, 0.55, 0.4, 0.5, 0.35]
# Batches of two steps, by process: of unequal counts, so that a mean of means would show.
SHARES = (((0, 1), (4,)), ((2, 3, 5), (6, 1)))
NUM_BLOCKS = 4  # of the recogniser: two of the encoder and two of the decoder
AUGMENT = AugmentConfig(spec=SpecAugmentConfig(time_mask_width=10, frequency_mask_width=5))


def gradients(
    folder: Path, *, parts: list[tuple[int, ...]], accumulate: int, team: Team | None = None, **changes: Any
) -> Any:
    """The gradients of one step, whole, as the optimiser sees them."""
    dataset = make_batches(make_utterances(folder / "speech", DURATIONS_S), PLAIN).dataset
    batches = FixedBatches([dataset[BatchPlan(0, 0, [Draw(index, 1.0) for index in part])] for part in parts])
    task = make_task(PLAIN, dropout=0.0)
    settings = {"max_steps": 1, "accumulate": accumulate, "optim": OptimConfig(max_grad_norm=0.0)}
    trainer = make_trainer(folder, task, batches=batches, team=team, **(settings | changes))
    found: dict[str, Tensor] = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: found.update(
            collect({key: each.grad.clone() for key, each in task.model.named_parameters()}, keep=True)
        )
    )
    trainer.run()
    return found


def save_gradients(folder: Path, team: Team) -> None:
    """Of a step of one batch a process and of one of two, which must be summed over the processes as rarely."""
    sums: list[int] = []

    def counted(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sums[-1] += 1
        return summed(state, bucket)

    summed, distributed._summed = distributed._summed, counted
    own = SHARES[team.rank]
    for name, parts, accumulate in (("step", own[:1], 1), ("accumulated", own, 2)):
        sums.append(0)
        found = gradients(folder / f"{name}{team.rank}", parts=list(parts), accumulate=accumulate, team=team)
        save_file(found, folder / f"{name}{team.rank}.safetensors")
    distributed._summed = summed
    assert sums[0] == sums[1] > 0


def save_sharded_gradients(folder: Path, team: Team) -> None:
    """Of a step of two batches where every process has a part and computes activations anew."""
    num_sums = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_sums
        num_sums += 1
        return summed(*args, **kwargs)

    summed, dist.reduce_scatter_tensor = dist.reduce_scatter_tensor, counted
    name, parts = f"sharded{team.rank}", list(SHARES[team.rank])
    settings = {"accumulate": 2, "sharding": "full", "activation_checkpointing": True}
    save_file(gradients(folder / name, parts=parts, team=team, **settings), folder / f"{name}.safetensors")
    dist.reduce_scatter_tensor = summed
    # In the trial of the largest batch and in the step: once for every block, and once for what is in none.
    assert num_sums == 2 * (NUM_BLOCKS + 1)


def check_parts(trainer: Trainer, team: Team) -> None:
    """Every process has a part of weights, averages and moments, and all weights where it is asked for."""
    weights = {key: each.detach() for key, each in trainer.model.named_parameters()}
    whole = collect(weights, keep=True)
    size = sum(each.numel() for each in whole.values())
    assert collect(weights, keep=False) == {}
    assert trainer.ema is not None
    moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    for tensors in (list(weights.values()), list(trainer.ema.weights.values()), moments):
        own = sum(own_part(each).numel() for each in tensors)
        assert 0.4 * size < own < 0.6 * size
        assert sum(team.gather(own)) == size
    with whole_weights(trainer.shared_task):
        assert all(torch.equal(each, whole[key]) for key, each in trainer.model.named_parameters())
        if team.leads:  # while the other one does nothing
            trainer.task.eval()
            cast(Recognizer, trainer.model).encode(tiny.noise(4000)[None], torch.tensor([4000]))
        assert all(torch.equal(each, whole[key]) for key, each in trainer.model.named_parameters())
    assert sum(own_part(each.detach()).numel() for each in trainer.model.parameters()) < 0.6 * size


def bad_step_of_one(folder: Path, team: Team, *, sharding: str) -> None:
    """The second process has a loss that is not finite at step 2, and then for ever."""
    bad = (2,) if team.rank else ()
    task = StubTask(lambda call: torch.tensor(float("nan")) if call in bad else None)
    trainer = make_trainer(folder / "bad", task, team=team, sharding=sharding)
    trainer.run()
    weights = team.gather(collect({"weight": task.model.weight.detach()}, keep=True)["weight"])
    assert torch.equal(weights[0], weights[1])
    assert team.gather(trainer.at.bad_steps) == [1, 1]

    task = StubTask(lambda call: torch.tensor(float("inf")) if team.rank and call > 1 else None)
    try:
        make_trainer(folder / "worse", task, team=team, sharding=sharding, max_bad_steps=2).run()
    except TrainingError as error:
        own = "b1-0, b1-1, b2-0, b2-1"
        assert str(error).endswith(
            f"2 steps in a row, up to step 3; lower optim.lr or look at these utterances: {own}, {own}"
        )
    else:
        raise AssertionError("went on without a finite loss")


def changed_sharding(folder: Path, team: Team) -> None:
    """A run of 4 steps without sharding goes on with it for 4 more, and the other way round."""
    for first, second in (("none", "full"), ("full", "none")):
        run = folder / f"{first}-{second}"
        make_trainer(run, StubTask(), team=team, sharding=first).run()
        make_trainer(run, StubTask(), team=team, sharding=second, max_steps=8).run()


def speech_run(
    folder: Path, team: Team, *, sharding: str, before: Callable[[int], object] | None = None, seed: int = 1
) -> Trainer:
    """A run with all that draws and is kept: dropout, masks, speeds, the moving average, accumulation."""
    utterances = make_utterances(folder.parent / f"speech{team.rank}", DURATIONS_S)
    task = make_task(AUGMENT, dropout=0.1, seed=seed)
    task.before = before
    torch.manual_seed(seed)
    team.draw_apart(seed)
    validation = WordErrorValidation(
        task=task,
        tokenizer=tiny.make_tokenizer(),
        utterances=utterances[:1],  # fewer than processes
        sample_rate=tiny.SAMPLE_RATE,
        max_batch_s=9.0,
        team=team,
    )
    batches = make_batches(utterances, AUGMENT, max_batch_size=2, team=team)
    settings: dict[str, Any] = {"max_steps": 4, "save_every": 4, "valid_every": 2, "accumulate": 2, "ema_decay": 0.9}
    settings |= {"batches": batches, "validate": validation, "team": team, "sharding": sharding}
    trainer = make_trainer(folder, task, **settings)
    trainer.run()
    return trainer


def interrupted_run(folder: Path, team: Team, *, sharding: str) -> None:
    """The second process alone is told to stop, in its third step; then all go on with other seeds."""

    def stop(number: int) -> None:
        if team.rank == 1 and number == 1 + 2 * 3:  # the first is the trial of the largest batch
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = speech_run(folder / "whole", team, sharding=sharding)
    if sharding == "full":
        check_parts(trainer, team)
    try:
        speech_run(folder / "parts", team, sharding=sharding, before=stop)
    except Interrupted as stopped:
        assert stopped.signal_number == signal.SIGTERM
        assert "step-00000003" in str(stopped)
    else:
        raise AssertionError("did not stop")
    assert (folder / "parts" / "checkpoints" / "step-00000003").is_dir()
    speech_run(folder / "parts", team, sharding=sharding, seed=77)


def main(folder: Path) -> None:
    team, device = join("cpu", num_threads=1)
    assert (team.size, team.local_size, device.type) == (2, 2, "cpu")
    assert team.gather(team.rank) == [0, 1]
    assert team.from_first(lambda: f"made by {team.rank}") == "made by 0"
    assert team.sum([1.0 + team.rank, 5]) == [3.0, 10.0]
    assert team.max(team.rank) == 1
    save_gradients(folder, team)
    save_sharded_gradients(folder, team)
    for sharding in ("none", "full"):
        bad_step_of_one(folder / sharding, team, sharding=sharding)
        interrupted_run(folder / sharding, team, sharding=sharding)
    changed_sharding(folder, team)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
