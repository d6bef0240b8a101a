"""The training loop: one for every model that returns a `Loss`."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from asr.checkpoint import TrainingState, average, load_training, load_weights
from asr.losses import Loss
from asr.training.interfaces import (
    Batches,
    Interrupted,
    Place,
    Saver,
    TrainingBatch,
    TrainingError,
    TrainingTask,
    Validation,
)
from asr.training.optim import MovingAverage, OptimConfig, build_optimizer, learning_rate
from asr.training.signals import StopSignals
from asr.training.state import Progress, pack_state, unpack_state
from asr.training.tracking import Tracker

logger = logging.getLogger(__name__)

AVERAGES = ("ema", "best", "none")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(slots=True, kw_only=True)
class TrainerConfig:
    """The course of training.

    Attributes:
        max_steps: Optimiser steps in all.
        accumulate: Batches to one step.
        valid_every: Steps from one validation to the next; the last step is always validated.
        save_every: Steps from one checkpoint to the next, from which an interrupted run goes on.
        patience: Validations without a new best after which training stops early; 0 never does.
        precision: `bfloat16` computes matrix products in 16 bits (autocast), `float32` all in 32; `auto` takes
            bfloat16 where the device has instructions for it.
        average: What becomes the model: `ema`, the exponential moving average of the weights at the best validation;
            `best`, the mean of the best checkpoints; `none`, the weights at the best validation.
        ema_decay: Share of the moving average that stays in every step, in [0, 1).
        num_best: Number of checkpoints that `best` averages.
        max_bad_steps: Steps in a row without a finite loss and gradient after which training stops.
        log_every: Steps from one line of the log to the next.
    """

    max_steps: int = 10_000
    accumulate: int = 1
    valid_every: int = 500
    save_every: int = 500
    patience: int = 0
    precision: str = "auto"
    average: str = "ema"
    ema_decay: float = 0.999
    num_best: int = 5
    max_bad_steps: int = 5
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("max_steps", "accumulate", "valid_every", "save_every", "num_best", "max_bad_steps", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        if self.patience < 0:
            raise ValueError(f"trainer.patience is {self.patience}; it must be 0 (never stop early) or more")
        if self.average not in AVERAGES:
            raise ValueError(f"trainer.average is {self.average!r}; choose one of {', '.join(AVERAGES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"trainer.ema_decay is {self.ema_decay}; it must be in [0, 1)")


@dataclass(slots=True)
class _Window:
    """What is summed up from one line of the log to the next; tensors stay on the device until it is written."""

    count: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)
    size: float = 0.0  # seconds of audio, or tokens
    grad_norm: Tensor | None = None
    since: float = field(default_factory=time.monotonic)


class Trainer:
    """Trains a model.

    Args:
        task: Called with a batch, returns a `Loss`; its `model` has all trained weights and is what is saved.
        config: The course of training.
        optim: Optimiser and schedule.
        batches: Where batches come from.
        validate: Judges the model with the weights that it has when called.
        save: Writes weights.
        tracker: Where curves go.
        folder: The run folder; checkpoints go under `checkpoints/`, the result into `model/`.
        device: Where the model is.
        sample_rate: Of the batches' audio, in Hz, or None where batches hold tokens; for the log and for messages.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        task: TrainingTask,
        *,
        config: TrainerConfig,
        optim: OptimConfig,
        batches: Batches,
        validate: Callable[[], Validation],
        save: Saver,
        tracker: Tracker,
        folder: Path,
        device: torch.device,
        sample_rate: int | None,
        progress: bool = True,
    ) -> None:
        self.task, self.model = task, task.model
        self.config, self.optim, self.batches = config, optim, batches
        self.validate, self.save, self.tracker, self.folder = validate, save, tracker, folder
        self.device, self.sample_rate, self.show_progress = device, sample_rate, progress
        self.optimizer = build_optimizer(optim, self.model)
        self.ema = MovingAverage(self.model, decay=config.ema_decay) if config.average == "ema" else None
        self.use_bfloat16 = wants_bfloat16(config.precision, device)
        self.at = Progress()
        self.stop = StopSignals()
        self.bad_ids: list[str] = []  # utterances of the bad steps in a row

    def run(self) -> Path:
        """Trains to the end, from the latest checkpoint if there is one, and returns the folder of the chosen model.

        Raises:
            Interrupted: After SIGINT or SIGTERM, with everything saved.
            TrainingError: If losses stay without a finite value, or the largest batch does not fit into memory.
        """
        try:
            self._resume()
            if self.at.finished:
                logger.info("this run is finished; remove %s to train anew", self.folder)
            else:
                self._try_largest_batch()
                with self.stop:
                    self._loop()
            return self._finish()
        finally:
            self.tracker.close()

    def _loop(self) -> None:
        started = time.monotonic() - self.at.elapsed_s
        stream = self.batches.start(self.at.epoch, self.at.position)
        window = _Window()
        bar = tqdm(
            total=self.config.max_steps, initial=self.at.step, unit="step", disable=None if self.show_progress else True
        )
        with bar, logging_redirect_tqdm():  # lines of the log go above the bar, not through it
            while self.at.step < self.config.max_steps:
                self._step(stream, window)
                self.at.elapsed_s = time.monotonic() - started
                bar.update()
                last = self.at.step == self.config.max_steps
                if self.at.step % self.config.log_every == 0 or last:
                    bar.set_postfix_str(self._log(window))
                    window = _Window()
                paused = time.monotonic()
                if self.at.step % self.config.valid_every == 0 or last:
                    self._validate()
                    self.at.finished = last or self._out_of_patience()
                stopping = self.at.finished or self.stop.number is not None
                if stopping or self.at.step % self.config.save_every == 0:
                    checkpoint = self._save_checkpoint()
                window.since += time.monotonic() - paused  # the log tells the speed of training alone
                if self.stop.number is not None and not self.at.finished:
                    raise Interrupted(self.stop.number, checkpoint)
                if self.at.finished:
                    break

    def _step(self, stream: Iterator[tuple[Place, TrainingBatch]], window: _Window) -> None:
        """One optimiser step over `accumulate` batches."""
        self.task.train()
        total, count = torch.zeros((), device=self.device), 0
        ids: list[str] = []
        for _ in range(self.config.accumulate):
            place, batch = next(stream)
            self.at.epoch, self.at.position = place.epoch, place.position + 1
            ids += batch.ids
            window.size += int(batch.lengths.sum()) / (self.sample_rate or 1)
            loss = self._backward(batch)
            total += loss.total.detach()
            count += loss.count
            for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
                window.parts[name] = window.parts.get(name, 0) + value
        self._update(total, count, ids, window)

    def _backward(self, batch: TrainingBatch) -> Loss:
        """Adds the gradient of a batch's sum to what is there."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            loss = self.task(batch.to(self.device))
        loss.total.backward()
        return loss

    def _update(self, total: Tensor, count: int, ids: list[str], window: _Window) -> None:
        """Divides the gradient by the count, clips it, and steps, unless it is not finite."""
        self.at.step += 1
        parameters = list(self.model.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_div_(gradients, count)
        norm = nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm) & torch.isfinite(total)):
            self._skip(ids, window)
        else:
            if self.optim.max_grad_norm:
                nn.utils.clip_grads_with_norm_(parameters, self.optim.max_grad_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.optim, self.at.step, max_steps=self.config.max_steps)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.model)
            self.at.bad_steps_in_row = 0
            self.bad_ids = []
            window.count += count
            window.grad_norm = norm
        self.optimizer.zero_grad()

    def _skip(self, ids: list[str], window: _Window) -> None:
        """Leaves out a step without a finite loss; its sums must not enter the averages of the log."""
        window.parts.clear()
        window.count = 0
        self.at.bad_steps += 1
        self.at.bad_steps_in_row += 1
        self.bad_ids += ids
        logger.warning("step %d skipped: loss or gradient is not finite (%d so far)", self.at.step, self.at.bad_steps)
        if self.at.bad_steps_in_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"loss or gradient was not finite in {self.at.bad_steps_in_row} steps in a row, up to step "
                f"{self.at.step}; lower optim.lr or look at these utterances: {', '.join(self.bad_ids)}"
            )

    def _log(self, window: _Window) -> str:
        """Writes the averages since the last line; this is where the device is waited for."""
        if not window.count:
            return "no finite loss"
        values = {f"train/{name}": float(value) / window.count for name, value in window.parts.items()}
        seconds = time.monotonic() - window.since
        values["train/lr"] = learning_rate(self.optim, self.at.step, max_steps=self.config.max_steps)
        values["train/grad_norm"] = float(window.grad_norm) if window.grad_norm is not None else 0.0
        size_per_s = window.size / seconds
        if self.sample_rate is None:
            values["speed/tokens_per_s"], speed = size_per_s, f"{size_per_s:.0f} tokens/s"
        else:
            values["speed/audio_s_per_s"], speed = size_per_s, f"{size_per_s * 100:.0f} frames/s"
        values["train/epoch"] = self.at.epoch
        values["train/skipped_steps"] = self.at.bad_steps
        memory = ""
        if self.device.type == "cuda":
            values["speed/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            memory = f" gpu {values['speed/gpu_memory_gb']:.1f} GB"
        self.tracker.scalars(values, step=self.at.step)
        line = f"epoch {self.at.epoch} loss {values['train/loss']:.3f} lr {values['train/lr']:.1e} {speed}{memory}"
        logger.info("step %d/%d %s", self.at.step, self.config.max_steps, line)
        return line

    def _validate(self) -> None:
        """Judges the averaged weights if there are any, else the present ones, and keeps them if they are good."""
        self.task.eval()
        if self.ema is not None:
            self.ema.swap(self.model)
        try:
            found = self.validate()
            self._keep_if_good(found)
        finally:
            if self.ema is not None:
                self.ema.swap(self.model)
        self.tracker.scalars(found.scalars, step=self.at.step)
        for name, text in found.texts.items():
            self.tracker.text(name, text, step=self.at.step)
        for name, image in found.images.items():
            self.tracker.image(name, image, step=self.at.step)
        scores = " ".join(f"{name} {value:.4f}" for name, value in found.scalars.items())
        logger.info("step %d validation: %s (best %.4f)", self.at.step, scores, self.at.best[0][0])

    def _keep_if_good(self, found: Validation) -> None:
        number = self.config.num_best if self.config.average == "best" else 1
        improved = not self.at.best or found.metric < self.at.best[0][0]
        self.at.validations_since_best = 0 if improved else self.at.validations_since_best + 1
        name = f"best-{self.at.step:08d}"
        ranked = sorted([*self.at.best, (found.metric, name)], key=lambda entry: entry[0])
        self.at.best = ranked[:number]
        if any(kept == name for _, kept in self.at.best):
            self.save(self._checkpoints / name, self.model.state_dict(), training=self._summary(found), state=None)
        # What fell out of the best is removed only after the next full checkpoint: until then, resuming needs it.

    def _out_of_patience(self) -> bool:
        if not self.config.patience or self.at.validations_since_best < self.config.patience:
            return False
        logger.info("stopped early: no better validation in %d", self.at.validations_since_best)
        return True

    def _finish(self) -> Path:
        """Writes the chosen weights as the result of the run."""
        names = [name for _, name in self.at.best]
        states = [load_weights(self._checkpoints / name) for name in names]
        folder = self.folder / "model"
        training = {
            "steps": self.at.step,
            "seconds": round(self.at.elapsed_s, 1),
            "skipped_steps": self.at.bad_steps,
            "average": self.config.average,
            "checkpoints": [{"name": name, "validation": metric} for metric, name in self.at.best],
        }
        self.save(folder, average(states), training=training, state=None)
        return folder

    def _summary(self, found: Validation) -> dict[str, Any]:
        return {"steps": self.at.step, "seconds": round(self.at.elapsed_s, 1), "validation": found.scalars}

    # Checkpoints

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _save_checkpoint(self) -> Path:
        folder = self._checkpoints / f"step-{self.at.step:08d}"
        training = {"steps": self.at.step, "seconds": round(self.at.elapsed_s, 1)}
        self.save(folder, self.model.state_dict(), training=training, state=self._pack())
        kept = {folder.name, *(name for _, name in self.at.best)}
        for old in self._checkpoints.iterdir():
            if old.name not in kept and old.name.startswith(("step-", "best-")):
                shutil.rmtree(old)
        return folder

    def _pack(self) -> TrainingState:
        return pack_state(self.at, model=self.model, optimizer=self.optimizer, ema=self.ema, device=self.device)

    def _resume(self) -> None:
        """Goes on from the latest checkpoint, if there is one."""
        folders = sorted(self._checkpoints.glob("step-*"))
        if not folders:
            return
        weights, saved = load_training(folders[-1])
        self.model.load_state_dict(weights)
        self.at = unpack_state(saved, model=self.model, optimizer=self.optimizer, ema=self.ema, device=self.device)
        if self.at.step < self.config.max_steps and not self._out_of_patience():
            self.at.finished = False  # the number of steps was raised
        if not self.at.finished and self.at.step >= self.config.max_steps:
            raise ValueError(
                f"{folders[-1]} is at step {self.at.step} already, but trainer.max_steps is {self.config.max_steps}; "
                f"set it to {self.at.step + 1} or more"
            )
        logger.info("going on from %s, step %d", folders[-1], self.at.step)

    def _try_largest_batch(self) -> None:
        """Runs the largest batch forward and backward, so that want of memory shows at once; changes nothing."""
        batch = self.batches.largest()
        size, limits = self._describe(batch)
        states = torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        started = time.monotonic()
        self.task.train()
        try:
            self._backward(batch)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise TrainingError(
                f"not enough memory on {self.device} for the largest batch ({size}); lower loader.{limits[0]} and "
                f"raise trainer.accumulate by as much, or lower loader.{limits[1]}"
            ) from error
        finally:
            self.optimizer.zero_grad()
            torch.set_rng_state(states[0])
            if states[1] is not None:
                torch.cuda.set_rng_state(states[1], self.device)
        logger.info("the largest batch fits: %s, %.1f s a step", size, time.monotonic() - started)

    def _describe(self, batch: TrainingBatch) -> tuple[str, tuple[str, str]]:
        """How large a batch is, and the settings that limit batches and their rows."""
        rows, padded = len(batch.lengths), len(batch.lengths) * int(batch.lengths.max())
        if self.sample_rate is None:
            return f"{rows} sentences, {padded} tokens with padding", ("max_batch_tokens", "max_sentence_tokens")
        return f"{rows} utterances, {padded / self.sample_rate:.0f} s with padding", ("max_batch_s", "max_duration_s")


def _is_out_of_memory(error: Exception) -> bool:
    # On processors PyTorch raises a plain RuntimeError, known only by its text.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def wants_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: as asked, or by `auto` where the device has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
