"""Runs that are stopped, by a signal or a crash, end like runs that never were."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_runs import StubTask, assert_equal, copy_of, folders, make_batches, make_task, make_trainer

from asr import checkpoint
from asr.augment import AugmentConfig
from asr.data.manifest import Utterance
from asr.training.interfaces import Interrupted
from asr.training.optim import OptimConfig


def run_speech(
    folder: Path,
    utterances: list[Utterance],
    augment: AugmentConfig,
    *,
    before: Callable[[int], object] | None = None,
    seed: int = 1,
    schedule: str = "cosine",
    **changes: Any,
) -> None:
    task = make_task(augment, dropout=0.1, seed=seed)
    task.before = before
    settings = {"max_steps": 8, "save_every": 3, "valid_every": 2, "ema_decay": 0.9, "num_best": 2}
    optim = OptimConfig(lr=0.01, warmup_steps=3, schedule=schedule)
    batches = make_batches(utterances, augment)
    make_trainer(folder, task, batches=batches, optim=optim, **(settings | changes)).run()


def assert_same_end(first: Path, second: Path) -> None:
    """The runs ended alike: weights, averages, optimiser, random state, place in the epoch, choice of checkpoints."""
    assert folders(first) == folders(second)
    (last,) = [name for name in folders(first) if name.startswith("step-")]
    ends = [checkpoint.load_training(run / "checkpoints" / last) for run in (first, second)]
    assert_equal(ends[0][0], ends[1][0])
    assert_equal(ends[0][1].tensors, ends[1][1].tensors)
    assert {**ends[0][1].state, "elapsed_s": 0} == {**ends[1][1].state, "elapsed_s": 0}
    assert_equal(*[checkpoint.load_weights(run / "model") for run in (first, second)])


@pytest.mark.parametrize(("average", "accumulate"), [("ema", 1), ("ema", 2), ("best", 1), ("none", 1)])
def test_a_run_that_a_signal_stopped_in_mid_epoch_ends_like_one_that_never_stopped(
    tmp_path, utterances, augment, average, accumulate
):
    settings = {"average": average, "accumulate": accumulate}
    run_speech(tmp_path / "whole", utterances, augment, **settings)

    def stop(number: int) -> None:
        if number == 1 + 5 * accumulate:  # the first is the trial of the largest batch
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="step-00000005"):
        run_speech(tmp_path / "parts", utterances, augment, before=stop, **settings)
    state = checkpoint.load_training(tmp_path / "parts" / "checkpoints" / "step-00000005")[1].state
    assert state["position"] in (1, 2)  # of three batches: in mid-epoch
    run_speech(tmp_path / "parts", utterances, augment, seed=77, **settings)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("average", ["ema", "best"])
def test_a_run_that_crashed_ends_like_one_that_never_stopped(tmp_path, utterances, augment, average):
    run_speech(tmp_path / "whole", utterances, augment, average=average)

    def crash(number: int) -> None:
        if number == 6:  # after the validation of step 4, before the checkpoint of step 6
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run_speech(tmp_path / "parts", utterances, augment, before=crash, average=average)
    assert "step-00000003" in folders(tmp_path / "parts")
    run_speech(tmp_path / "parts", utterances, augment, seed=77, average=average)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_with_more_steps_ends_like_one_that_had_them_from_the_start(tmp_path, utterances, augment):
    settings = {"schedule": "inverse_sqrt", "average": "ema"}
    run_speech(tmp_path / "whole", utterances, augment, **settings)
    run_speech(tmp_path / "parts", utterances, augment, max_steps=4, **settings)
    run_speech(tmp_path / "parts", utterances, augment, seed=77, **settings)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_does_not_train_again(tmp_path):
    make_trainer(tmp_path, StubTask()).run()
    before = checkpoint.load_weights(tmp_path / "model")
    task = StubTask()
    assert make_trainer(tmp_path, task).run() == tmp_path / "model"
    assert task.calls == []
    assert_equal(checkpoint.load_weights(tmp_path / "model"), before)


def test_a_checkpoint_without_moving_average_cannot_go_on_with_one(tmp_path):
    make_trainer(tmp_path, StubTask(), average="none").run()
    with pytest.raises(ValueError, match=r"no moving average of the weights; go on with trainer\.average=best"):
        make_trainer(tmp_path, StubTask(), average="ema").run()


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_everything_and_stops(tmp_path, number):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    task = StubTask(lambda call: os.kill(os.getpid(), number) if call == 3 else None)
    with pytest.raises(Interrupted) as stopped:
        make_trainer(tmp_path, task, max_steps=100, save_every=50).run()
    folder = tmp_path / "checkpoints" / "step-00000003"
    assert str(stopped.value) == f"{number.name}: saved {folder}; the same command goes on from there"
    assert stopped.value.signal_number == number
    weights, saved = checkpoint.load_training(folder)
    assert_equal(weights, copy_of(task.model))
    assert (saved.state["step"], saved.state["finished"]) == (3, False)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    def twice(call: int) -> None:
        if call == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, StubTask(twice)).run()
    assert folders(tmp_path) == ["best-00000002", "step-00000002"]
