"""The training loop: one for every model that returns a `Loss`."""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from asr.checkpoint import average, load_training, load_weights
from asr.devices import PRECISIONS, pick_dtype
from asr.losses import Loss
from asr.training.acceleration import blocks_of, checkpoint_activations, compile_blocks
from asr.training.distributed import Team, held_back
from asr.training.graphs import CudaRecorder, RecordedLoss
from asr.training.interfaces import (
    Batches,
    Interrupted,
    Place,
    RecordableTask,
    Saver,
    TrainingBatch,
    TrainingError,
    TrainingTask,
    Validation,
)
from asr.training.optim import MovingAverage, OptimConfig, build_optimizer, learning_rate
from asr.training.sharding import SHARDINGS, collect, load_weights_into, own_part, whole_weights
from asr.training.signals import StopSignals
from asr.training.state import Progress, pack_state, unpack_state
from asr.training.tracking import Tracker
from asr.training.trial import try_largest_batch
from asr.training.waits import count_waits, describe_waits
from asr.training.window import Window

logger = logging.getLogger(__name__)

AVERAGES = ("ema", "best", "none")


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
        compile: Whether to compile the model's blocks, which takes minutes and then saves time on a GPU; needs a C++
            compiler. On processors, what is compiled for batches of any size takes longer than as it is.
        cuda_graphs: Whether a GPU records loss and gradient of a batch once for every shape and then replays them,
            which saves a small model most of its time and takes up to twice the memory; for batches of few shapes
            (`loader.padding_step_s`). For recognisers; of no effect on a processor, without Triton, and where several
            processes train together.
        activation_checkpointing: Whether to keep activations only from block to block and compute the rest anew in
            the backward pass: about a third more time, a fraction of the memory.
        sharding: Of several processes, with `none` each has the whole model; with `full` it keeps a part of weights,
            averages and moments, and of gradients after the last batch of a step, which takes less memory and more
            exchange. In bfloat16 it saves most along with `activation_checkpointing`, as else 16-bit copies of the
            weights wait for the backward pass. Validation has the whole weights for a while.
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
    compile: bool = False
    cuda_graphs: bool = False
    activation_checkpointing: bool = False
    sharding: str = "none"
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
        if self.sharding not in SHARDINGS:
            raise ValueError(f"trainer.sharding is {self.sharding!r}; choose one of {', '.join(SHARDINGS)}")
        if self.cuda_graphs and (self.activation_checkpointing or self.sharding != "none"):
            other = "activation_checkpointing" if self.activation_checkpointing else "sharding"
            raise ValueError(f"trainer.cuda_graphs cannot be combined with trainer.{other}; leave one of them out")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"trainer.ema_decay is {self.ema_decay}; it must be in [0, 1)")


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
        team: The processes that train together, each with batches of its own; the first one writes.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the model cannot be compiled, recorded or sharded, or cannot checkpoint its activations, although
            the settings ask for it.
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
        team: Team | None = None,
        progress: bool = True,
    ) -> None:
        self.task, self.model = task, task.model
        self.config, self.optim, self.batches = config, optim, batches
        self.validate, self.save, self.tracker, self.folder = validate, save, tracker, folder
        self.device, self.sample_rate, self.team = device, sample_rate, team or Team()
        self.show_progress = progress and self.team.leads
        if config.activation_checkpointing:
            checkpoint_activations(self.model)
        if config.compile:
            if device.type == "cpu":
                logger.warning("trainer.compile is true, which takes longer than it saves on a processor; set it false")
            compile_blocks(self.model)
        self.shared_task = self.team.share(
            cast(nn.Module, task), sharding=config.sharding, blocks=blocks_of(self.model), device_type=device.type
        )
        self.optimizer = build_optimizer(optim, self.model)
        self.ema = MovingAverage(self.model, decay=config.ema_decay) if config.average == "ema" else None
        self.use_bfloat16 = pick_dtype(config.precision, device=device) == torch.bfloat16
        self.recorded = self._recorded_loss() if config.cuda_graphs else None
        self.at = Progress()
        self.stop = StopSignals()
        self.unsettled: list[tuple[int, Tensor, list[str]]] = []  # steps, whether they were good, their utterances
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
        window = Window()
        bar = tqdm(
            total=self.config.max_steps, initial=self.at.step, unit="step", disable=None if self.show_progress else True
        )
        # Closed here, as workers that nobody tells to end would keep the process from ending. Lines of the log go above
        # the bar, not through it.
        with closing(self.batches.start(self.at.epoch, self.at.position)) as stream, bar, logging_redirect_tqdm():
            while self.at.step < self.config.max_steps:
                if window.host_waits is None:
                    with count_waits(self.device) as window.host_waits:
                        self._step(stream, window)
                else:
                    self._step(stream, window)
                self.at.elapsed_s = time.monotonic() - started
                bar.update()
                last = self.at.step == self.config.max_steps
                if self.at.step % self.config.log_every == 0 or last:
                    bar.set_postfix_str(self._log(window))
                    window = Window()
                paused = time.monotonic()
                if self.at.step % self.config.valid_every == 0 or last:
                    self._validate()
                    self.at.finished = last or self._out_of_patience()
                signal_number = self.team.max(self.stop.number or 0)  # whoever was told, all stop after the same step
                if self.at.finished or signal_number or self.at.step % self.config.save_every == 0:
                    checkpoint = self._save_checkpoint()
                window.since += time.monotonic() - paused  # the log tells the speed of training alone
                if signal_number and not self.at.finished:
                    raise Interrupted(signal_number, checkpoint)
                if self.at.finished:
                    break

    def _step(self, stream: Iterator[tuple[Place, TrainingBatch]], window: Window) -> None:
        """One optimiser step over `accumulate` batches of every process."""
        self.task.train()
        total, count = torch.zeros((), device=self.device), 0
        parts: dict[str, Tensor] = {}
        ids: list[str] = []
        for number in range(1, self.config.accumulate + 1):
            asked = time.monotonic()
            place, batch = next(stream)
            window.add_batch(batch, waited_s=time.monotonic() - asked)
            self.at.epoch, self.at.position = place.epoch, place.position + 1
            ids += batch.ids
            loss = self._backward(batch, hold=number < self.config.accumulate)
            total += loss.total.detach()
            count += loss.count
            for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
                parts[name] = parts[name] + value if name in parts else value
        self.at.step += 1
        norm, good = self._update(total, int(self.team.sum([count])[0]))
        window.add_step(parts, count=count, grad_norm=norm, good=good)
        self.unsettled.append((self.at.step, good, ids))
        if self.device.type == "cpu":  # elsewhere that would wait for the device in every step
            self._settle()

    def _backward(self, batch: TrainingBatch, *, hold: bool = False) -> Loss:
        """Adds the gradient of a batch's sum to what is there, and sums it over all processes unless told to hold."""
        if self.recorded is not None:
            return self.recorded(batch.to(self.device))
        with held_back(self.shared_task, hold):
            with self._autocast():
                loss: Loss = self.shared_task(batch.to(self.device))
            loss.total.backward()
        return loss

    def _recorded_loss(self) -> RecordedLoss | None:
        """What records and replays the work of a batch; None where that is of no effect, which the log tells.

        Raises:
            ValueError: If the task cannot be recorded.
        """
        if not isinstance(self.task, RecordableTask):
            kind = type(self.task).__name__
            raise ValueError(f"trainer.cuda_graphs is true, but a {kind} cannot be recorded; set it false")
        if self.device.type != "cuda":
            obstacle: str | None = f"on {self.device}"
        elif self.team.size > 1:
            obstacle = f"with {self.team.size} processes"
        else:
            obstacle = self.task.obstacle()
        if obstacle:
            logger.info("trainer.cuda_graphs has no effect %s", obstacle)
            return None
        recorder = CudaRecorder(self.device)
        return RecordedLoss(self.task, parameters=self.model.parameters(), context=self._autocast, recorder=recorder)

    def _autocast(self) -> torch.autocast:
        """Matrix products in the precision of choice; 16-bit copies of sharded weights are not kept."""
        cached = self.config.sharding == "none"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16, cache_enabled=cached)

    def _update(self, total: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Divides the gradient by the count, clips it, and steps, unless it is not finite.

        What is not finite is left out on the device itself, so the processor goes on without waiting for it.

        Returns:
            The gradient's norm, and whether norm and total were finite; the same in all processes.
        """
        parameters = list(self.model.parameters())
        gradients = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._foreach_div_(gradients, count)
        norm = self._over_all_shards(nn.utils.get_total_norm(gradients))
        good = torch.isfinite(norm) & torch.isfinite(self.team.sum_on_device(total))
        if self.optim.max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.optim.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, self.at.step, max_steps=self.config.max_steps)
        # What torch.amp.GradScaler tells a fused optimiser: where it is 1, nothing is changed.
        self.optimizer.found_inf = good.logical_not().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, good=good)
        self.optimizer.zero_grad()
        return norm, good

    def _over_all_shards(self, norm: Tensor) -> Tensor:
        """The norm of what all processes have, from that of what this one has."""
        if self.config.sharding == "none":
            return norm
        return self.team.sum_on_device(norm.double().square()).sqrt().to(norm.dtype)

    def _settle(self) -> None:
        """Counts and reports the steps that were left out since the last call; here the device is waited for."""
        unsettled, self.unsettled = self.unsettled, []
        flags = torch.stack([good for _, good, _ in unsettled]).tolist() if unsettled else []
        for (step, _, ids), good in zip(unsettled, flags, strict=True):
            if good:
                self.at.bad_steps_in_row, self.bad_ids = 0, []
            else:
                self._count_bad_step(step, ids)

    def _count_bad_step(self, step: int, ids: list[str]) -> None:
        self.at.bad_steps += 1
        self.at.bad_steps_in_row += 1
        self.bad_ids += ids
        logger.warning("step %d skipped: loss or gradient is not finite (%d so far)", step, self.at.bad_steps)
        if self.at.bad_steps_in_row >= self.config.max_bad_steps:
            named = ", ".join(each for own in self.team.gather(self.bad_ids) for each in own)
            raise TrainingError(
                f"loss or gradient was not finite in {self.at.bad_steps_in_row} steps in a row, up to step "
                f"{step}; lower optim.lr or look at these utterances: {named}"
            )

    def _log(self, window: Window) -> str:
        """Writes the averages since the last line."""
        self._settle()
        values = window.averages(self.team, sample_rate=self.sample_rate)
        if "train/loss" not in values:
            return "no finite loss"
        values["train/lr"] = learning_rate(self.optim, self.at.step, max_steps=self.config.max_steps)
        values["train/epoch"] = self.at.epoch
        values["train/skipped_steps"] = self.at.bad_steps
        if self.sample_rate is None:
            speed = f"{values['speed/tokens_per_s']:.0f} tokens/s"
        else:
            speed = f"{values['speed/audio_s_per_s'] * 100:.0f} frames/s"
        memory = ""
        if self.device.type == "cuda":
            values["speed/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            memory = f" gpu {values['speed/gpu_memory_gb']:.1f} GB"
            waits = window.host_waits or Counter()
            values["speed/host_waits"] = waits.total()
            memory = f"{memory} syncs {describe_waits(waits)}"
        self.tracker.scalars(values, step=self.at.step)
        shares = f"pad {values['data/padding']:.1%} wait {values['data/waiting']:.1%}"
        line = f"epoch {self.at.epoch} loss {values['train/loss']:.3f} lr {values['train/lr']:.1e}"
        line = f"{line} {speed}{memory} {shares}"
        logger.info("step %d/%d %s", self.at.step, self.config.max_steps, line)
        return line

    def _validate(self) -> None:
        """Judges the averaged weights if there are any, else the present ones, and keeps them if they are good."""
        self.task.eval()
        if self.ema is not None:
            self.ema.swap(self.model)
        try:
            # Compiled code is for training alone: for validation it would take minutes to make anew.
            with whole_weights(self.shared_task), torch.compiler.set_stance("force_eager"):
                found = self.validate()
            # The choice of checkpoints must be the same everywhere, to the last digit.
            found.metric = self.team.from_first(lambda: found.metric)
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
            weights = collect(self.model.state_dict(), keep=self.team.leads)
            if self.team.leads:
                self.save(self._checkpoints / name, weights, training=self._summary(found), state=None)
        # What fell out of the best is removed only after the next full checkpoint: until then, resuming needs it.

    def _out_of_patience(self) -> bool:
        if not self.config.patience or self.at.validations_since_best < self.config.patience:
            return False
        logger.info("stopped early: no better validation in %d", self.at.validations_since_best)
        return True

    def _finish(self) -> Path:
        """Writes the chosen weights as the result of the run."""
        folder = self.folder / "model"
        if self.team.leads:
            states = [load_weights(self._checkpoints / name) for _, name in self.at.best]
            training = {
                "steps": self.at.step,
                "seconds": round(self.at.elapsed_s, 1),
                "skipped_steps": self.at.bad_steps,
                "average": self.config.average,
                "checkpoints": [{"name": name, "validation": metric} for metric, name in self.at.best],
            }
            self.save(folder, average(states), training=training, state=None)
        self.team.wait()
        return folder

    def _summary(self, found: Validation) -> dict[str, Any]:
        return {"steps": self.at.step, "seconds": round(self.at.elapsed_s, 1), "validation": found.scalars}

    # Checkpoints

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _save_checkpoint(self) -> Path:
        self._settle()
        folder = self._checkpoints / f"step-{self.at.step:08d}"
        state = pack_state(
            self.at, model=self.model, optimizer=self.optimizer, ema=self.ema, device=self.device, team=self.team
        )
        weights = collect(self.model.state_dict(), keep=self.team.leads)
        if self.team.leads:
            training = {"steps": self.at.step, "seconds": round(self.at.elapsed_s, 1)}
            self.save(folder, weights, training=training, state=state)
            kept = {folder.name, *(name for _, name in self.at.best)}
            for old in self._checkpoints.iterdir():
                if old.name not in kept and old.name.startswith(("step-", "best-")):
                    shutil.rmtree(old)
        self.team.wait()  # a process that ended sooner would have torchrun end the one that writes
        return folder

    def _resume(self) -> None:
        """Goes on from the latest checkpoint, if there is one."""
        folders = sorted(self._checkpoints.glob("step-*"))
        if not folders:
            return
        weights, saved = load_training(folders[-1])
        load_weights_into(self.model, weights)
        self.at = unpack_state(
            saved, model=self.model, optimizer=self.optimizer, ema=self.ema, device=self.device, team=self.team
        )
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
        self.task.train()
        try:
            try_largest_batch(
                self.batches.largest(),
                compute=self._try,
                reserve=self._room_for_moments,
                device=self.device,
                sample_rate=self.sample_rate,
            )
        finally:
            self.optimizer.zero_grad()

    def _try(self, batch: TrainingBatch) -> None:
        """Computes a batch as in training; a shape that comes for the second time is recorded, in memory of its own."""
        for _ in range(1 if self.recorded is None else 2):
            self._backward(batch)

    def _room_for_moments(self) -> list[Tensor]:
        """Tensors as large as what AdamW has of every parameter from its first step on."""
        missing = [each for each in self.model.parameters() if each.requires_grad and each not in self.optimizer.state]
        return [torch.empty_like(parameter) for parameter in missing for _ in range(2)]
