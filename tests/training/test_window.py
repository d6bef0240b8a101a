"""The figures between two lines of the log, and the trial of the largest batch's room."""

import time

import pytest
import torch
from training_runs import Notes, StubTask, make_trainer, stub_batches

from asr.training.distributed import Team
from asr.training.trial import size_that_fills
from asr.training.window import Window


def add_step(window: Window, loss: float, *, count: int = 2, good: bool = True) -> None:
    parts = {"loss": torch.tensor(loss), "ctc": torch.tensor(2 * loss)}
    window.add_step(parts, count=count, grad_norm=torch.tensor(loss), good=torch.tensor(good))


def test_losses_are_averaged_by_what_they_count_and_bad_steps_are_left_out():
    window = Window()
    add_step(window, 4.0)
    add_step(window, float("nan"), count=100, good=False)
    add_step(window, 8.0, count=6)
    add_step(window, float("inf"), good=False)
    window.add_batch(stub_batches().largest(), waited_s=0.0)
    values = window.averages(Team(), sample_rate=None)
    assert (values["train/loss"], values["train/ctc"], values["train/grad_norm"]) == (12 / 8, 24 / 8, 8.0)


def test_without_a_good_step_there_is_no_loss():
    window = Window()
    add_step(window, float("nan"), good=False)
    window.add_batch(stub_batches().largest(), waited_s=0.0)
    assert "train/loss" not in window.averages(Team(), sample_rate=None)


def test_padding_waiting_and_speed_are_those_of_the_window():
    window, batch = Window(), stub_batches().largest()
    batch.lengths = torch.tensor([4, 2])
    window.add_batch(batch, waited_s=0.5)
    batch.lengths = torch.tensor([3, 3])  # padded to a step, beyond the longest
    window.add_batch(batch, waited_s=0.25)
    window.since = time.monotonic() - 3.0
    values = window.averages(Team(), sample_rate=2)
    assert values["data/padding"] == pytest.approx(1 - 12 / 16)
    assert values["data/waiting"] == pytest.approx(0.25, rel=0.05)
    assert values["speed/audio_s_per_s"] == pytest.approx(2.0, rel=0.05)
    window.since = time.monotonic() - 3.0
    assert window.averages(Team(), sample_rate=None)["speed/tokens_per_s"] == pytest.approx(4.0, rel=0.05)


def test_the_line_of_the_log_tells_padding_and_waiting(tmp_path, caplog):
    caplog.set_level("INFO")
    notes, batches = Notes(), stub_batches()
    for batch in batches.batches:
        batch.lengths = torch.tensor([4, 3])
    make_trainer(tmp_path, StubTask(), batches=batches, tracker=notes).run()
    (line,) = [message for message in caplog.messages if message.startswith("step 2/4 epoch")]
    assert " pad 12.5% wait " in line
    assert notes.points[2]["data/padding"] == pytest.approx(1 / 8)
    assert 0 <= notes.points[2]["data/waiting"] < 1


# The trial of the largest batch


def test_the_room_that_is_left_is_filled_in_proportion():
    # 40 of 100 bytes are in use without a batch, and one of 200 s needs 20 more: 90 % hold 500 s.
    assert size_that_fills(0.9, size=200.0, before=40, peak=60, total=100) == pytest.approx(500.0)
    assert size_that_fills(0.9, size=200.0, before=95, peak=99, total=100) == 0.0


def test_the_trial_has_as_much_in_memory_as_the_optimiser_will_keep(tmp_path):
    trainer = make_trainer(tmp_path, StubTask())
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert sum(tensor.numel() for tensor in trainer._room_for_moments()) == 2 * weights
    trainer.run()
    assert trainer._room_for_moments() == []
