"""Where training's curves, texts and pictures go: TensorBoard, Weights & Biases, or nowhere."""

import html
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

KINDS = ("tensorboard", "wandb", "none")


class Tracker(Protocol):
    """What the trainer writes to."""

    def scalars(self, values: dict[str, float], *, step: int) -> None:
        """Adds a point to each named curve."""

    def text(self, name: str, text: str, *, step: int) -> None:
        """Shows a text, Markdown."""

    def image(self, name: str, image: Tensor, *, step: int) -> None:
        """Shows a picture, (3, height, width) in [0, 1]."""

    def close(self) -> None:
        """Writes what is still held back."""


class NoTracker:
    """Writes nothing."""

    def scalars(self, values: dict[str, float], *, step: int) -> None:
        """Does nothing."""

    def text(self, name: str, text: str, *, step: int) -> None:
        """Does nothing."""

    def image(self, name: str, image: Tensor, *, step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class TensorBoardTracker:
    """Writes TensorBoard events into a folder.

    Raises:
        ImportError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"tracking=tensorboard needs TensorBoard ({error}); pip install tensorboard, or tracking=none"
            ) from None
        self.writer = SummaryWriter(str(folder))

    def scalars(self, values: dict[str, float], *, step: int) -> None:
        """Adds a point to each named curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, *, step: int) -> None:
        """Shows a text, Markdown."""
        self.writer.add_text(name, text, step)

    def image(self, name: str, image: Tensor, *, step: int) -> None:
        """Shows a picture, (3, height, width) in [0, 1]."""
        self.writer.add_image(name, image.float().cpu(), step)

    def close(self) -> None:
        """Writes what is still held back."""
        self.writer.close()


class WandbTracker:
    """Writes to Weights & Biases; offline with the environment's WANDB_MODE=offline.

    Raises:
        ImportError: If wandb is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                f"tracking=wandb needs wandb ({error}); pip install wandb, or tracking=tensorboard"
            ) from None
        self.wandb = wandb
        self.run = wandb.init(dir=str(folder), name=folder.name, project="asr", resume="allow", id=folder.name)

    def scalars(self, values: dict[str, float], *, step: int) -> None:
        """Adds a point to each named curve."""
        self.run.log(values, step=step)

    def text(self, name: str, text: str, *, step: int) -> None:
        """Shows a text."""
        self.run.log({name: self.wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def image(self, name: str, image: Tensor, *, step: int) -> None:
        """Shows a picture, (3, height, width) in [0, 1]."""
        self.run.log({name: self.wandb.Image(image.float().permute(1, 2, 0).cpu().numpy())}, step=step)

    def close(self) -> None:
        """Writes what is still held back."""
        self.run.finish()


def make_tracker(kind: str, folder: Path) -> Tracker:
    """Makes the tracker of that kind for a run folder.

    Raises:
        ValueError: If there is no such kind.
        ImportError: If what it needs is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"tracking is {kind!r}; choose one of {', '.join(KINDS)}")
    if kind == "tensorboard":
        return TensorBoardTracker(folder)
    return WandbTracker(folder) if kind == "wandb" else NoTracker()


# Dark blue, teal, green, yellow: even steps of lightness, readable in grey and to colour-blind eyes.
_COLOURS = ((0.05, 0.03, 0.25), (0.10, 0.35, 0.55), (0.15, 0.60, 0.50), (0.60, 0.80, 0.30), (0.99, 0.95, 0.60))


def picture(values: Tensor, *, scale: int = 1) -> Tensor:
    """Paints a matrix as a picture, its smallest value dark and its largest light.

    Args:
        values: (rows, columns); row 0 is painted at the top.
        scale: Pixels a cell.

    Returns:
        (3, rows · scale, columns · scale) in [0, 1].
    """
    values = values.detach().float().cpu()
    low, high = values.min(), values.max()
    place = (values - low) / (high - low).clamp_min(1e-9) * (len(_COLOURS) - 1)
    below = place.floor().long().clamp(0, len(_COLOURS) - 2)
    colours = torch.tensor(_COLOURS)
    share = (place - below)[..., None]
    image = (1 - share) * colours[below] + share * colours[below + 1]
    return image.permute(2, 0, 1).repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
