"""What the trainer asks of a model, its batches and its validation, and how it ends."""

import signal
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from asr.checkpoint import TrainingState
from asr.losses import Loss


@dataclass(slots=True)
class Validation:
    """What a validation found.

    Attributes:
        metric: Lower is better; it chooses the checkpoint.
        scalars: Curves.
        texts: Markdown, by name.
        images: (3, height, width) in [0, 1], by name.
    """

    metric: float
    scalars: dict[str, float]
    texts: dict[str, str] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)


class TrainingBatch(Protocol):
    """What the trainer itself asks of a batch; the rest is between the batches and the task.

    Attributes:
        ids: What to look at when its loss is not finite.
        lengths: Samples of audio or tokens of every row, (B,) integers.
        row_limit: The setting of the loader that limits them, by name.
    """

    ids: list[str]
    lengths: Tensor
    row_limit: ClassVar[str]

    @property
    def padded_length(self) -> int:
        """Samples or tokens that every row has with its padding."""

    def to(self, device: torch.device) -> Self:
        """Returns the batch with its tensors on the device."""


class Place(Protocol):
    """Where a batch stands: its epoch, and its position in that epoch."""

    @property
    def epoch(self) -> int: ...

    @property
    def position(self) -> int: ...


class TrainingTask(Protocol):
    """A model together with its loss: a module."""

    @property
    def model(self) -> nn.Module:
        """All that is trained, and what is saved."""

    def __call__(self, batch: Any) -> Loss:
        """The loss of a batch of the kind that its `Batches` give."""

    def train(self) -> Any:
        """Goes to training mode."""

    def eval(self) -> Any:
        """Goes to evaluation mode."""


@dataclass(slots=True)
class LossInputs:
    """What a loss is computed from.

    Attributes:
        tensors: On the device, by name.
        count: What the sum is divided by.
    """

    tensors: dict[str, Tensor]
    count: int


@runtime_checkable
class RecordableTask(Protocol):
    """A task whose work on the device is the same for all batches of the same shapes, so that it can be recorded.

    Methods alone: from Python 3.12 on, `isinstance` does not find a module's submodules.
    """

    def obstacle(self) -> str | None:
        """What keeps its work from being recorded here, in words for the log; None where nothing does."""

    def prepare(self, batch: Any) -> LossInputs:
        """All that depends on more of a batch than tensors, such as random draws from its seed; nothing is trained."""

    def compute(self, inputs: LossInputs) -> Loss:
        """The loss; its total and parts depend on tensors alone, and not on the count."""


class Batches(Protocol):
    """Where batches come from."""

    def start(self, epoch: int, position: int) -> Generator[tuple[Place, TrainingBatch], None, None]:
        """Batches without end, from a place in an epoch on; what makes them ends when the generator is closed."""

    def largest(self) -> TrainingBatch:
        """The batch that needs most memory."""


class Saver(Protocol):
    """Writes a model folder, atomically."""

    def __call__(
        self, folder: Path, weights: dict[str, Tensor], *, training: dict[str, Any], state: TrainingState | None
    ) -> None: ...


class Interrupted(Exception):  # noqa: N818 (no fault: it says that a signal was obeyed)
    """Training was told to stop and has saved; `signal_number` is what told it."""

    def __init__(self, signal_number: int, folder: Path) -> None:
        super().__init__(f"{signal.Signals(signal_number).name}: saved {folder}; the same command goes on from there")
        self.signal_number = signal_number


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""
