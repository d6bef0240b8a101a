"""What training sums up from one line of the log to the next."""

import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asr.training.distributed import Team
from asr.training.interfaces import TrainingBatch


@dataclass(slots=True)
class Window:
    """Sums over the steps since the last line; tensors stay on the device until the next one is written.

    Attributes:
        size: Samples of audio or tokens, without padding.
        padded_size: The same with padding.
        waited_s: Seconds in which training waited for its batches; without workers, in which it made them.
        since: When the window began, on the monotonic clock.
        host_waits: Where the first step waited for the GPU; None before that step.
    """

    count: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
    grad_norm: Tensor | None = None
    size: int = 0
    padded_size: int = 0
    waited_s: float = 0.0
    since: float = field(default_factory=time.monotonic)
    host_waits: Counter[str] | None = None

    def add_batch(self, batch: TrainingBatch, *, waited_s: float) -> None:
        """Counts a batch that is still on the processor, and how long it was waited for."""
        self.size += int(batch.lengths.sum())
        self.padded_size += len(batch.lengths) * batch.padded_length
        self.waited_s += waited_s

    def add_step(self, parts: dict[str, Tensor], *, count: int, grad_norm: Tensor, good: Tensor) -> None:
        """Adds the sums of a step; of one that is not `good`, nothing, as a single NaN would spoil the averages."""
        for name, value in parts.items():
            self.parts[name] = torch.where(good, value, 0.0) + self.parts.get(name, 0.0)
        self.count = torch.where(good, count, 0) + (0 if self.count is None else self.count)
        self.grad_norm = torch.where(good, grad_norm, 0.0 if self.grad_norm is None else self.grad_norm)

    def averages(self, team: Team, *, sample_rate: int | None) -> dict[str, float]:
        """The averages over all processes, by the names of their curves; this is where the device is waited for.

        Args:
            team: The processes.
            sample_rate: Of the audio, in Hz, or None where batches hold tokens.

        Returns:
            Losses, sizes and shares; no losses where no step was good.
        """
        seconds = time.monotonic() - self.since
        own = [float(self.count) if self.count is not None else 0.0, *map(float, self.parts.values())]
        size, padded_size, count, *sums = team.sum([self.size, self.padded_size, *own])
        values = {f"train/{name}": total / count for name, total in zip(self.parts, sums, strict=True) if count}
        values["train/grad_norm"] = float(self.grad_norm) if self.grad_norm is not None else 0.0
        values["data/padding"] = 1 - size / padded_size
        values["data/waiting"] = self.waited_s / seconds
        if sample_rate is None:
            values["speed/tokens_per_s"] = size / seconds
        else:
            values["speed/audio_s_per_s"] = size / sample_rate / seconds
        return values
