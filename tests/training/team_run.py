"""What each of several processes does in tests/training/test_distributed.py: started by torchrun with a folder."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from training_runs import PLAIN, FixedBatches, StubTask, make_batches, make_task, make_trainer
from utterances import make_utterances

from asr.augment import AugmentConfig, SpecAugmentConfig
from asr.data.batching import BatchPlan, Draw
from asr.training import distributed
from asr.training.distributed import Team, join, leave
from asr.training.interfaces import Interrupted, TrainingError
from asr.training.optim import OptimConfig
from asr.training.task import WordErrorValidation

DURATIONS_S = [0.6, 0.3, 0.45, 0.55, 0.4, 0.5, 0.35]
# Batches of two steps, by process: of unequal counts, so that a mean of means would show.
SHARES = (((0, 1), (4,)), ((2, 3, 5), (6, 1)))
AUGMENT = AugmentConfig(spec=SpecAugmentConfig(time_mask_width=10, frequency_mask_width=5))


def gradients(folder: Path, *, parts: list[tuple[int, ...]], accumulate: int, team: Team | None = None) -> Any:
    """The gradients of one step, as the optimiser sees them."""
    dataset = make_batches(make_utterances(folder / "speech", DURATIONS_S), PLAIN).dataset
    batches = FixedBatches([dataset[BatchPlan(0, 0, [Draw(index, 1.0) for index in part])] for part in parts])
    task = make_task(PLAIN, dropout=0.0)
    settings = {"max_steps": 1, "accumulate": accumulate, "optim": OptimConfig(max_grad_norm=0.0)}
    trainer = make_trainer(folder, task, batches=batches, team=team, **settings)
    found: dict[str, Tensor] = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: found.update({key: each.grad.clone() for key, each in task.model.named_parameters()})
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


def bad_step_of_one(folder: Path, team: Team) -> None:
    """The second process has a loss that is not finite at step 2, and then for ever."""
    bad = (2,) if team.rank else ()
    task = StubTask(lambda call: torch.tensor(float("nan")) if call in bad else None)
    trainer = make_trainer(folder / "bad", task, team=team)
    trainer.run()
    weights = team.gather(task.model.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert team.gather(trainer.at.bad_steps) == [1, 1]

    task = StubTask(lambda call: torch.tensor(float("inf")) if team.rank and call > 1 else None)
    try:
        make_trainer(folder / "worse", task, team=team, max_bad_steps=2).run()
    except TrainingError as error:
        own = "b1-0, b1-1, b2-0, b2-1"
        assert str(error).endswith(
            f"2 steps in a row, up to step 3; lower optim.lr or look at these utterances: {own}, {own}"
        )
    else:
        raise AssertionError("went on without a finite loss")


def speech_run(folder: Path, team: Team, *, before: Callable[[int], object] | None = None, seed: int = 1) -> None:
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
    settings = {"max_steps": 8, "save_every": 3, "valid_every": 4, "accumulate": 2, "ema_decay": 0.9}
    make_trainer(folder, task, batches=batches, validate=validation, team=team, **settings).run()


def interrupted_run(folder: Path, team: Team) -> None:
    """The second process alone is told to stop, in its fifth step; then all go on with other seeds."""

    def stop(number: int) -> None:
        if team.rank == 1 and number == 1 + 2 * 5:  # the first is the trial of the largest batch
            os.kill(os.getpid(), signal.SIGTERM)

    speech_run(folder / "whole", team)
    try:
        speech_run(folder / "parts", team, before=stop)
    except Interrupted as stopped:
        assert stopped.signal_number == signal.SIGTERM
        assert "step-00000005" in str(stopped)
    else:
        raise AssertionError("did not stop")
    assert (folder / "parts" / "checkpoints" / "step-00000005").is_dir()
    speech_run(folder / "parts", team, seed=77)


def main(folder: Path) -> None:
    team, device = join("cpu", num_threads=1)
    assert (team.size, team.local_size, device.type) == (2, 2, "cpu")
    assert team.gather(team.rank) == [0, 1]
    assert team.from_first(lambda: f"made by {team.rank}") == "made by 0"
    assert team.sum([1.0 + team.rank, 5]) == [3.0, 10.0]
    assert team.max(team.rank) == 1
    save_gradients(folder, team)
    bad_step_of_one(folder, team)
    interrupted_run(folder, team)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
