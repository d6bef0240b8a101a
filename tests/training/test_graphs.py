"""Recorded losses: the same loss and gradient as without, recorded once for every shape."""

import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from training_runs import (
    CPU,
    PLAIN,
    FixedBatches,
    HookedTask,
    Notes,
    StubTask,
    make_batches,
    make_task,
    make_trainer,
)

from asr.augment import AugmentConfig, SpecAugmentConfig
from asr.data.batching import BatchPlan, Draw
from asr.data.dataset import Batch, UtteranceDataset
from asr.data.manifest import Utterance
from asr.lattice_free import PhoneTrigrams
from asr.losses import LossConfig
from asr.pronunciation import Lexicon, PhoneEncoder
from asr.training.acceleration import compile_blocks
from asr.training.distributed import Team
from asr.training.graphs import CudaRecorder, RecordedLoss, Recorder
from asr.training.interfaces import RecordableTask
from asr.training.optim import OptimConfig
from asr.training.trainer import TrainerConfig

MASKED = AugmentConfig(speeds=[1.0], spec=SpecAugmentConfig(num_time_masks=2, num_frequency_masks=1))


class ByHand:
    """Records as a GPU does, without doing the work yet, by keeping the function to call it again.

    All results lie in the same memory, as those of graphs may. `num_values` is that of the loss with its parts.
    """

    def __init__(self, num_values: int = 3) -> None:
        self.count = 0
        self.result = torch.zeros(num_values)

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.count += 1

        def replay() -> None:
            self.result.copy_(work())

        return replay, self.result


def batches_of(
    utterances: list[Utterance], *rows: tuple[int, ...], phone_encoder: PhoneEncoder | None = None
) -> list[Batch]:
    dataset = make_batches(utterances, MASKED, phone_encoder=phone_encoder).dataset
    return [dataset[BatchPlan(0, place, [Draw(index, 1.0) for index in each])] for place, each in enumerate(rows)]


def plain(task: HookedTask, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients without recording."""
    loss = task(batch)
    loss.total.backward()
    found = {name: each.grad.clone() for name, each in task.model.named_parameters()}
    task.zero_grad()
    return float(loss.total.detach()), found


FEW, MANY, OTHERS = (0, 1), (0, 1, 2, 3), (2, 3)


def spell_aloud(utterances: list[Utterance]) -> PhoneEncoder:
    """Each word is spoken as it is spelled, backwards."""
    words = {word for utterance in utterances for word in utterance.text.split()}
    return PhoneEncoder(Lexicon({word: [tuple(word[::-1])] for word in words}), ["a", "b", "c"])


def make_phone_task(utterances: list[Utterance]) -> HookedTask:
    """A task with two CTC heads, whose two views are compared; one learns by MMI too."""
    task = make_task(MASKED, dropout=0.0, phones=["a", "b", "c"])
    task.loss = LossConfig(phone_weight=0.7, phone_mmi_share=0.3, consistency_weight=0.2)
    phones = spell_aloud(utterances)
    task.trigrams = PhoneTrigrams([phones.encode(utterance.text) for utterance in utterances], num_phones=3)
    return task


def check_against_plain(task: HookedTask, batches: list[Batch], recorder: Recorder) -> RecordedLoss:
    expected = [plain(task, batch) for batch in batches]
    on_gpu = batches[0].tokens.is_cuda  # where products are not always computed in the same order
    bounds = {"rtol": 1e-3, "atol": 1e-4} if on_gpu else {"rtol": 1e-4, "atol": 1e-5}
    recorded = RecordedLoss(task, parameters=task.model.parameters(), context=nullcontext, recorder=recorder)
    for batch, (total, gradients) in zip(batches, expected, strict=True):
        loss = recorded(batch)
        assert float(loss.total) == pytest.approx(total, rel=1e-4 if on_gpu else 1e-5)
        views = 2 if task.loss.consistency_weight else 1
        assert loss.count == views * batch.num_tokens
        for name, each in task.model.named_parameters():
            torch.testing.assert_close(each.grad, gradients[name], msg=name, **bounds)
        task.zero_grad()
    return recorded


@pytest.mark.parametrize("consistency_weight", [0.0, 0.2])
def test_loss_and_gradient_of_every_batch_are_those_without_recording(utterances, consistency_weight):
    # The third batch is larger than what the recording of the first shape has memory for.
    batches = batches_of(utterances, FEW, FEW, MANY, MANY, FEW, MANY, OTHERS, FEW)
    task, recorder = make_task(MASKED, dropout=0.0), ByHand(4 if consistency_weight else 3)
    task.loss = LossConfig(consistency_weight=consistency_weight)
    assert len({plain(task, batch)[0] for batch in batches}) == len(batches)  # masks differ from batch to batch
    recorded = check_against_plain(task, batches, recorder)
    assert recorder.count == 2
    assert recorded.names == ["ctc", *(["consistency"] if consistency_weight else []), "attention"]


def test_phones_are_recorded_too(utterances):
    batches = batches_of(utterances, FEW, FEW, MANY, MANY, FEW, MANY, FEW, phone_encoder=spell_aloud(utterances))
    task = make_phone_task(utterances)
    recorded = check_against_plain(task, batches, ByHand(7))
    assert recorded.names == ["ctc", "consistency", "attention", "phone_ctc", "phone_mmi", "phone_consistency"]
    assert float(plain(task, batches[0])[1]["phone_ctc.weight"].abs().max()) > 0


def test_gradients_of_several_batches_add_up_in_place(utterances):
    task = make_task(MASKED, dropout=0.0)
    batches = batches_of(utterances, FEW, FEW, FEW, FEW)
    expected = [plain(task, batch)[1] for batch in batches]
    recorded = RecordedLoss(task, parameters=task.model.parameters(), context=nullcontext, recorder=ByHand())
    recorded(batches[0])
    places = {name: each.grad.data_ptr() for name, each in task.model.named_parameters()}
    losses = [recorded(batch) for batch in batches[1:]]
    assert len({float(loss.total) for loss in losses}) == len(losses)  # of one memory, read after the last replay
    for name, each in task.model.named_parameters():
        assert each.grad.data_ptr() == places[name]
        torch.testing.assert_close(each.grad, sum(found[name] for found in expected), msg=name)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_stay_in_place_from_step_to_step(utterances, set_to_none):
    task = make_task(MASKED, dropout=0.0)
    recorded = RecordedLoss(task, parameters=task.model.parameters(), context=nullcontext, recorder=ByHand())
    places = []
    for batch in batches_of(utterances, FEW, MANY, FEW):
        recorded(batch)
        places.append([each.grad.data_ptr() for each in task.model.parameters()])
        task.zero_grad(set_to_none=set_to_none)
    assert places[0] == places[1] == places[2]


def test_numbers_of_another_type_get_memory_of_their_own():
    task = make_task(MASKED, dropout=0.0)
    recorded = RecordedLoss(task, parameters=task.model.parameters(), context=nullcontext, recorder=ByHand())
    for dtype in (torch.float32, torch.int64, torch.float32):
        assert recorded._place_for("x", torch.zeros(2, 3, dtype=dtype)).dtype == dtype


def test_no_more_shapes_are_recorded_than_there_is_room_for(utterances, monkeypatch):
    monkeypatch.setattr("asr.training.graphs._MOST_GRAPHS", 1)
    task, recorder = make_task(MASKED, dropout=0.0), ByHand()
    check_against_plain(task, batches_of(utterances, FEW, FEW, MANY, MANY, MANY, FEW), recorder)
    assert recorder.count == 1


def run_of_six_steps(folder: Path, utterances: list[Utterance], *, record: bool, device: torch.device) -> Notes:
    """Two batches of unlike shapes for each step."""
    task, notes = make_task(MASKED, dropout=0.0).to(device), Notes()
    batches = FixedBatches(batches_of(utterances, FEW, MANY, OTHERS))
    # On a GPU sums differ in their last digits, and where a gradient is almost zero, Adam makes full steps of them.
    optim = OptimConfig(lr=0.01 if device.type == "cpu" else 1e-9, warmup_steps=2)
    trainer = make_trainer(
        *(folder, task),
        batches=batches,
        tracker=notes,
        device=device,
        optim=optim,
        max_steps=6,
        accumulate=2,
        cuda_graphs=record,
    )
    if record and device.type == "cpu":
        trainer.recorded = RecordedLoss(
            task, parameters=task.model.parameters(), context=trainer._autocast, recorder=ByHand()
        )
    trainer.run()
    if trainer.recorded is not None:
        assert len(trainer.recorded.recordings) > 1
    return notes


def check_training(folder: Path, utterances: list[Utterance], device: torch.device) -> None:
    without = run_of_six_steps(folder / "without", utterances, record=False, device=device)
    recorded = run_of_six_steps(folder / "recorded", utterances, record=True, device=device)
    for step in range(1, 7):
        for name in ("train/loss", "train/ctc", "train/attention", "train/grad_norm"):
            assert recorded.points[step][name] == pytest.approx(without.points[step][name], rel=1e-3), (step, name)


def test_training_with_recordings_is_training_without(tmp_path, utterances):
    check_training(tmp_path, utterances, CPU)


@pytest.mark.parametrize(
    ("device", "size", "triton", "named"),
    [
        ("cpu", 1, True, "on cpu"),
        ("cuda", 2, True, "with 2 processes"),
        ("cuda", 1, False, "without Triton, as PyTorch's CTC loss cannot be recorded"),
    ],
)
def test_where_nothing_is_recorded_the_log_tells(tmp_path, caplog, monkeypatch, device, size, triton, named):
    monkeypatch.setattr("asr.training.task.has_gpu_kernels", lambda: triton)
    trainer = make_trainer(tmp_path, make_task(PLAIN, dropout=0.0))
    trainer.device, trainer.team = torch.device(device), Team(size=size)
    caplog.set_level(logging.INFO)
    assert trainer._recorded_loss() is None
    assert f"trainer.cuda_graphs has no effect {named}" in caplog.text


def test_the_trial_of_the_largest_batch_records_it(tmp_path, utterances):
    task, recorder = make_task(MASKED, dropout=0.0), ByHand()
    trainer = make_trainer(tmp_path, task, batches=FixedBatches(batches_of(utterances, FEW, MANY)))
    trainer.recorded = RecordedLoss(
        task, parameters=task.model.parameters(), context=trainer._autocast, recorder=recorder
    )
    trainer._try_largest_batch()
    assert recorder.count == 1
    assert all(each.grad is None for each in task.model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_checkpointing": True}, "cannot be combined with trainer.activation_checkpointing"),
        ({"sharding": "full"}, "cannot be combined with trainer.sharding"),
    ],
)
def test_settings_that_exclude_each_other_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(cuda_graphs=True, **changes)


def test_a_recogniser_counts_as_one_that_can_on_every_python():
    task = make_task(PLAIN, dropout=0.0)
    assert isinstance(task, RecordableTask)
    for name in vars(RecordableTask):
        if not name.startswith("_"):
            assert inspect.getattr_static(task, name)  # what `isinstance` does from Python 3.12 on


def test_a_task_that_cannot_be_recorded_is_named(tmp_path):
    with pytest.raises(ValueError, match="a StubTask cannot be recorded; set it false"):
        make_trainer(tmp_path, StubTask(), cuda_graphs=True)


def test_batches_padded_to_a_step_have_tokens_padded_too(utterances):
    padded = UtteranceDataset(
        utterances,
        tokenizer=tiny.make_tokenizer(),
        sample_rate=tiny.SAMPLE_RATE,
        augment=None,
        seed=1,
        padding_step_s=0.5,
    )[BatchPlan(0, 0, [Draw(index, 1.0) for index in MANY])]
    assert padded.tokens.shape == (4, 63)  # 64 with the start token
    assert padded.waveforms.shape[1] % (tiny.SAMPLE_RATE // 2) == 0
    exact = batches_of(utterances, MANY)[0]
    assert torch.equal(padded.tokens[:, : exact.tokens.shape[1]], exact.tokens)
    assert not padded.tokens[:, exact.tokens.shape[1] :].any()
    assert torch.equal(padded.token_lengths, exact.token_lengths)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_replays_what_it_would_compute(tmp_path, utterances, compiled):
    device = torch.device("cuda")
    batches = [each.to(device) for each in batches_of(utterances, FEW, FEW, MANY, MANY, FEW, MANY, OTHERS, FEW)]
    task = make_task(MASKED, dropout=0.0).to(device)
    task.loss = LossConfig(consistency_weight=0.2)
    if compiled:
        compile_blocks(task.model)
    assert len(check_against_plain(task, batches, CudaRecorder(device)).recordings) == 2
    if not compiled:
        check_training(tmp_path, utterances, device)
    spoken = batches_of(utterances, FEW, FEW, MANY, MANY, FEW, phone_encoder=spell_aloud(utterances))
    task = make_phone_task(utterances).to(device)
    if compiled:
        compile_blocks(task.model)
    check_against_plain(task, [each.to(device) for each in spoken], CudaRecorder(device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_draw_anew(utterances):
    device = torch.device("cuda")
    task = make_task(PLAIN, dropout=0.5).to(device).train()
    (batch,) = batches_of(utterances, FEW)
    recorded = RecordedLoss(
        task, parameters=task.model.parameters(), context=nullcontext, recorder=CudaRecorder(device)
    )
    totals = {float(recorded(batch.to(device)).total) for _ in range(6)}
    assert len(recorded.recordings) == 1
    assert len(totals) == 6
