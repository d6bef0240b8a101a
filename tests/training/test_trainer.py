"""The training loop: it learns, skips what is not finite, tries the largest batch, and chooses what it promises."""

import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from training_runs import (
    CPU,
    PLAIN,
    FixedBatches,
    Notes,
    StubTask,
    assert_equal,
    copy_of,
    folders,
    make_batches,
    make_task,
    make_trainer,
    save,
)

from asr import checkpoint
from asr.data.batching import BatchPlan, Draw
from asr.data.manifest import Utterance
from asr.tokenizer import CharTokenizer
from asr.training.interfaces import Interrupted, TrainingError, Validation
from asr.training.optim import OptimConfig
from asr.training.task import WordErrorValidation, refuse_other_run
from asr.training.trainer import TrainerConfig


def judged(*metrics: float) -> Callable[[], Validation]:
    """A validation with given results, the last for ever."""
    results = itertools.chain(metrics, itertools.repeat(metrics[-1]))
    return lambda: Validation(next(results), {})


# It learns


def test_the_loss_falls_on_a_handful_of_utterances_and_the_result_is_a_model(tmp_path, utterances):
    task, notes = make_task(PLAIN, dropout=0.0), Notes()
    validation = WordErrorValidation(
        task=task, tokenizer=tiny.make_tokenizer(), utterances=utterances, sample_rate=tiny.SAMPLE_RATE, max_batch_s=9.0
    )
    trainer = make_trainer(
        tmp_path,
        task,
        batches=make_batches(utterances, PLAIN, max_batch_size=5),
        validate=validation,
        tracker=notes,
        optim=OptimConfig(lr=0.03, warmup_steps=5),
        max_steps=30,
        valid_every=15,
        average="none",
    )
    folder = trainer.run()
    assert folder == tmp_path / "model"
    losses = [notes.points[step]["train/loss"] for step in range(1, 31)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert notes.points[30]["train/loss"] == pytest.approx(
        0.3 * notes.points[30]["train/ctc"] + 0.7 * notes.points[30]["train/attention"], rel=1e-4
    )
    assert {"valid/wer", "valid/cer"} <= notes.points[15].keys() & notes.points[30].keys()
    assert {"train/lr", "train/grad_norm", "train/epoch", "speed/audio_s_per_s"} <= notes.points[1].keys()
    assert "valid/transcripts" in notes.texts
    assert "attention/decoder" in notes.images
    assert notes.closed
    loaded = checkpoint.load(tmp_path)
    assert loaded.training["steps"] == 30
    assert loaded.training["checkpoints"][0]["validation"] == min(notes.points[n]["valid/wer"] for n in (15, 30))


def test_two_half_batches_have_the_gradient_of_the_whole_batch(tmp_path, utterances):
    dataset = make_batches(utterances, PLAIN).dataset

    def gradients(name: str, *parts: tuple[int, ...]) -> dict[str, Tensor]:
        batches = FixedBatches([dataset[BatchPlan(0, 0, [Draw(index, 1.0) for index in part])] for part in parts])
        task = make_task(PLAIN, dropout=0.0)
        trainer = make_trainer(
            tmp_path / name,
            task,
            batches=batches,
            optim=OptimConfig(max_grad_norm=0.0),
            max_steps=1,
            accumulate=len(parts),
        )
        found: dict[str, Tensor] = {}
        trainer.optimizer.register_step_pre_hook(
            lambda *_: found.update({key: each.grad.clone() for key, each in task.model.named_parameters()})
        )
        trainer.run()
        return found

    whole, halves = gradients("whole", (0, 1, 2, 3)), gradients("halves", (0, 1, 2), (3,))
    assert any(gradient.abs().max() > 0.01 for gradient in whole.values())
    for key, gradient in whole.items():
        torch.testing.assert_close(halves[key], gradient, atol=1e-5, rtol=1e-4, msg=key)


def test_a_gradient_over_the_limit_is_scaled_down_to_it(tmp_path):
    task = StubTask()
    trainer = make_trainer(tmp_path, task, optim=OptimConfig(max_grad_norm=0.01), max_steps=1)
    norms: list[float] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(nn.utils.get_total_norm([each.grad for each in task.model.parameters()])))
    )
    trainer.run()
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_every_step_has_the_learning_rate_of_its_number(tmp_path):
    notes = Notes()
    make_trainer(tmp_path, StubTask(), tracker=notes, optim=OptimConfig(lr=0.1, warmup_steps=4)).run()
    assert [notes.points[step]["train/lr"] for step in (1, 2, 3, 4)] == pytest.approx([0.025, 0.05, 0.075, 0.1])


# Steps without a finite loss


def not_finite_at(*calls: int) -> Callable[[int], Tensor | None]:
    return lambda call: torch.tensor(float("nan" if call % 2 else "inf")) if call in calls else None


@pytest.mark.parametrize("average", ["ema", "none"])
def test_a_step_without_a_finite_loss_is_skipped_counted_and_logged(tmp_path, caplog, average):
    seen: list[dict[str, Tensor]] = []
    task, notes = StubTask(not_finite_at(3, 4)), Notes()
    task.model.register_forward_pre_hook(lambda *_: seen.append(copy_of(task.model)))
    folder = make_trainer(tmp_path, task, tracker=notes, max_steps=6, average=average, valid_every=6).run()
    assert_equal(seen[3], seen[4])  # as step 3 began, so step 4, and so step 5
    assert_equal(seen[3], seen[5])
    assert not torch.equal(seen[5]["weight"], seen[6]["weight"])
    assert not any(tensor.isnan().any() for tensor in checkpoint.load_weights(folder).values())
    assert caplog.messages.count("step 3 skipped: loss or gradient is not finite (1 so far)") == 1
    assert caplog.messages.count("step 4 skipped: loss or gradient is not finite (2 so far)") == 1
    assert notes.points[6]["train/skipped_steps"] == 2
    assert checkpoint.load_training(tmp_path / "checkpoints" / "step-00000006")[1].state["bad_steps"] == 2


def test_a_loss_that_is_not_finite_enters_no_average_of_the_log(tmp_path):
    notes = Notes()
    task = StubTask(not_finite_at(2))
    make_trainer(tmp_path, task, tracker=notes, log_every=4).run()
    assert notes.points.keys() >= {4}
    assert torch.isfinite(torch.tensor(list(notes.points[4].values()))).all()
    assert notes.points[4]["train/loss"] == pytest.approx(notes.points[4]["train/square"])


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path):
    task = StubTask()
    task.model.weight.register_hook(lambda gradient: gradient * float("nan") if len(task.calls) == 3 else gradient)
    trainer = make_trainer(tmp_path, task)
    trainer.run()
    assert trainer.at.bad_steps == 1
    assert not task.model.weight.isnan().any()


def test_half_of_an_accumulated_step_without_a_finite_loss_skips_the_whole_step(tmp_path):
    trainer = make_trainer(tmp_path, StubTask(not_finite_at(2)), accumulate=2)
    trainer.run()
    assert (trainer.at.step, trainer.at.bad_steps) == (4, 1)


def test_too_many_skipped_steps_in_a_row_stop_training_with_the_utterances(tmp_path):
    task = StubTask(not_finite_at(2, 4, 5, 6))
    message = r"not finite in 3 steps in a row, up to step 6; lower optim\.lr or look at these utterances: "
    message += "b0-0, b0-1, b1-0, b1-1, b2-0, b2-1$"
    with pytest.raises(TrainingError, match=message):
        make_trainer(tmp_path, task, max_steps=10, max_bad_steps=3).run()


def test_a_run_stopped_while_all_steps_were_skipped_goes_on(tmp_path):
    def bad_and_stop(call: int) -> Tensor | None:
        if call == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.tensor(float("nan")) if call == 1 else None

    with pytest.raises(Interrupted):
        make_trainer(tmp_path, StubTask(bad_and_stop), average="ema").run()
    trainer = make_trainer(tmp_path, StubTask(), average="ema")
    trainer.run()
    assert (trainer.at.step, trainer.at.bad_steps, trainer.at.bad_steps_in_row) == (4, 1, 0)


# The largest batch


def test_the_largest_batch_is_tried_first_also_by_a_run_that_goes_on(tmp_path):
    task = StubTask(lambda call: os.kill(os.getpid(), signal.SIGTERM) if call == 2 else None)
    with pytest.raises(Interrupted):
        make_trainer(tmp_path, task).run()
    assert [ids[0] for ids in task.calls] == ["b2-0", "b0-0", "b1-0"]
    resumed = StubTask()
    make_trainer(tmp_path, resumed).run()
    assert [ids[0] for ids in resumed.calls] == ["b2-0", "b2-0", "b0-0"]


def test_trying_the_largest_batch_changes_neither_weights_nor_random_state(tmp_path, utterances, augment):
    task = make_task(augment, dropout=0.1)
    torch.manual_seed(4)
    weights, random = copy_of(task.model), torch.get_rng_state()
    drawn: list[bool] = []

    def check(number: int) -> None:
        if number == 2:
            drawn.append(True)
            assert_equal(copy_of(task.model), weights)
            assert torch.equal(torch.get_rng_state(), random)
            assert all(parameter.grad is None for parameter in task.model.parameters())

    task.before = check
    make_trainer(tmp_path, task, batches=make_batches(utterances, augment), max_steps=1).run()
    assert drawn
    assert not torch.equal(torch.get_rng_state(), random)  # dropout does draw


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_want_of_memory_in_the_largest_batch_comes_with_advice(tmp_path, error):
    def fail(_: int) -> None:
        raise error

    message = (
        r"not enough memory on cpu for the largest batch \(2 utterances, 0 s with padding\); lower "
        r"loader\.max_batch_s and raise trainer\.accumulate by as much, or lower loader\.max_duration_s"
    )
    with pytest.raises(TrainingError, match=message):
        make_trainer(tmp_path, StubTask(fail)).run()


def test_any_other_error_in_the_largest_batch_is_left_as_it_is(tmp_path):
    def fail(_: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        make_trainer(tmp_path, StubTask(fail)).run()


# Choice of the model


@pytest.fixture
def validated(tmp_path: Path) -> Iterator[Callable[..., tuple[dict[str, Tensor], list[dict[str, Tensor]]]]]:
    """Trains five steps with given validations; gives the model and the weights of every validation."""

    def train(*metrics: float, **changes: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        task, results, seen = StubTask(), judged(*metrics), []

        def validate() -> Validation:
            assert not task.training
            seen.append(copy_of(task.model))
            return results()

        settings = {"max_steps": 5, "valid_every": 1, "save_every": 1}
        folder = make_trainer(tmp_path, task, validate=validate, **(settings | changes)).run()
        return checkpoint.load_weights(folder), seen

    yield train


def test_none_is_the_weights_of_the_best_validation(validated):
    model, seen = validated(0.5, 0.3, 0.4, 0.3, 0.6, average="none")
    assert_equal(model, seen[1])


def test_best_is_the_mean_of_the_best_checkpoints(validated):
    model, seen = validated(0.5, 0.2, 0.6, 0.4, 0.3, average="best", num_best=3)
    for name, tensor in model.items():
        torch.testing.assert_close(tensor, (seen[1][name] + seen[3][name] + seen[4][name]) / 3)


def test_best_with_fewer_validations_than_it_averages_takes_them_all(validated):
    model, seen = validated(0.5, 0.2, average="best", num_best=5, max_steps=2)
    for name, tensor in model.items():
        torch.testing.assert_close(tensor, (seen[0][name] + seen[1][name]) / 2)


def test_ema_is_the_moving_average_at_the_best_validation(tmp_path):
    # What is judged and kept is the average, while training goes on from the weights themselves.
    present: list[dict[str, Tensor]] = []
    judged_weights: list[dict[str, Tensor]] = []
    task = StubTask()
    results = judged(0.5, 0.2, 0.3, 0.4)

    def validate() -> Validation:
        judged_weights.append(copy_of(task.model))
        return results()

    trainer = make_trainer(tmp_path, task, validate=validate, valid_every=1, average="ema", ema_decay=0.5)
    average = copy_of(task.model)
    trainer.optimizer.register_step_post_hook(lambda *_: present.append(copy_of(task.model)))
    folder = trainer.run()
    for number, (weights, seen) in enumerate(zip(present, judged_weights, strict=True), start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
        for name, tensor in seen.items():
            torch.testing.assert_close(tensor, average[name])
    assert_equal(checkpoint.load_weights(folder), judged_weights[1])
    assert_equal(copy_of(task.model), present[-1])


@pytest.mark.parametrize(("average", "num_best", "bests"), [("best", 2, [2, 5]), ("ema", 2, [2]), ("none", 1, [2])])
def test_only_the_latest_checkpoint_and_the_best_are_kept(validated, tmp_path, average, num_best, bests):
    validated(0.5, 0.2, 0.6, 0.4, 0.3, average=average, num_best=num_best)
    assert folders(tmp_path) == [*(f"best-{step:08d}" for step in bests), "step-00000005"]


def test_the_number_of_kept_checkpoints_is_bounded_all_the_time(tmp_path):
    counts: list[int] = []
    falling = itertools.count(100, -1)

    def validate() -> Validation:
        counts.append(len(folders(tmp_path)) if (tmp_path / "checkpoints").exists() else 0)
        return Validation(float(next(falling)), {})

    make_trainer(
        tmp_path, StubTask(), validate=validate, max_steps=20, valid_every=2, save_every=4, average="best", num_best=2
    ).run()
    assert max(counts) <= 1 + 2 + 2  # the full one, the best two, and two since the full one


def test_training_stops_when_validations_stay_without_a_new_best(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    results = judged(0.9, 0.5, 0.6, 0.5, 0.4)
    trainer = make_trainer(tmp_path, StubTask(), validate=results, max_steps=50, valid_every=1, patience=2)
    trainer.run()
    assert trainer.at.step == 4
    assert "stopped early: no better validation in 2" in caplog.messages
    again = StubTask()
    make_trainer(tmp_path, again, max_steps=50, valid_every=1, patience=2).run()
    assert again.calls == []


def test_without_patience_training_goes_to_the_last_step(tmp_path):
    trainer = make_trainer(tmp_path, StubTask(), validate=judged(0.1, 0.5), max_steps=12, valid_every=1)
    trainer.run()
    assert trainer.at.step == 12


def test_the_last_step_is_validated_and_saved_whatever_the_intervals(tmp_path):
    notes = Notes()
    make_trainer(tmp_path, StubTask(), tracker=notes, valid_every=100, save_every=100, log_every=100).run()
    assert {"valid/size", "train/loss"} <= notes.points[4].keys()
    assert folders(tmp_path) == ["best-00000004", "step-00000004"]


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, r"trainer\.max_steps is 0; it must be at least 1"),
        ({"accumulate": 0}, r"trainer\.accumulate is 0; it must be at least 1"),
        ({"valid_every": -5}, r"trainer\.valid_every is -5; it must be at least 1"),
        ({"save_every": 0}, r"trainer\.save_every is 0; it must be at least 1"),
        ({"num_best": 0}, r"trainer\.num_best is 0; it must be at least 1"),
        ({"max_bad_steps": 0}, r"trainer\.max_bad_steps is 0; it must be at least 1"),
        ({"log_every": 0}, r"trainer\.log_every is 0; it must be at least 1"),
        ({"patience": -1}, r"trainer\.patience is -1; it must be 0 \(never stop early\) or more"),
        ({"average": "swa"}, r"trainer\.average is 'swa'; choose one of ema, best, none"),
        ({"precision": "fp16"}, r"trainer\.precision is 'fp16'; choose one of auto, float32, bfloat16"),
        ({"ema_decay": 1.0}, r"trainer\.ema_decay is 1\.0; it must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**changes)


def test_a_run_folder_of_another_model_is_refused_with_the_difference(tmp_path):
    config, tokenizer = tiny.make_config(), tiny.make_tokenizer()
    refuse_other_run(tmp_path, config, tokenizer)  # nothing is there yet
    save(tmp_path / "checkpoints" / "step-00000002", {}, training={})
    refuse_other_run(tmp_path, config, tokenizer)
    others = [
        (replace(config, encoder=replace(config.encoder, width=32)), "encoder.width 16, not 32"),
        (replace(config, features=replace(config.features, num_mels=20)), "features.num_mels 16, not 20"),
        (replace(config, decoder=replace(config.decoder, num_layers=0)), "decoder.num_layers 2, not 0"),
    ]
    for other, difference in others:
        with pytest.raises(ValueError) as refused:
            refuse_other_run(tmp_path, other, tokenizer)
        advice = "give this run another name, or remove that folder"
        assert str(refused.value) == f"{tmp_path} holds a run with {difference}; {advice}"
    message = "holds a run with another tokenizer, of 6 tokens; give this run another name"
    with pytest.raises(ValueError, match=message):
        refuse_other_run(tmp_path, config, CharTokenizer.train(["a b x"]))


# Precision


def losses_of_two_steps(folder: Path, utterances: list[Utterance], device: torch.device, precision: str) -> list[float]:
    notes, task = Notes(), make_task(PLAIN, dropout=0.0)
    task.to(device)
    batches = make_batches(utterances, PLAIN, max_batch_size=5)
    make_trainer(folder, task, batches=batches, tracker=notes, device=device, max_steps=2, precision=precision).run()
    return [notes.points[step]["train/loss"] for step in (1, 2)]


def test_bfloat16_trains_on_a_processor_and_gives_nearly_the_same_loss(tmp_path, utterances):
    exact = losses_of_two_steps(tmp_path / "exact", utterances, CPU, "float32")
    rounded = losses_of_two_steps(tmp_path / "rounded", utterances, CPU, "bfloat16")
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact
    weights = checkpoint.load_weights(tmp_path / "rounded" / "model")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.02)])
def test_a_gpu_gives_the_loss_of_a_processor(tmp_path, utterances, precision, tolerance):
    expected = losses_of_two_steps(tmp_path / "cpu", utterances, CPU, "float32")
    found = losses_of_two_steps(tmp_path / "gpu", utterances, torch.device("cuda"), precision)
    assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_the_gpu(tmp_path, utterances):
    task, notes = make_task(PLAIN, dropout=0.1), Notes()
    task.to("cuda")
    batches = make_batches(utterances, PLAIN, max_batch_size=5)
    device = torch.device("cuda")
    make_trainer(
        tmp_path, task, batches=batches, tracker=notes, device=device, max_steps=4, log_every=2, valid_every=4
    ).run()
    assert notes.points[4]["speed/host_waits"] == 0  # the first steps of all may prepare kernels
