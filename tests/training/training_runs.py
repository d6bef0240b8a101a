"""Small training runs: a stub task that answers at once, and a tiny recogniser on noise."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from asr import checkpoint
from asr.augment import AugmentConfig, SpecAugment, SpecAugmentConfig
from asr.data.batching import BatchPlan
from asr.data.dataset import Batch, LoaderConfig, UtteranceDataset
from asr.data.manifest import Utterance
from asr.losses import Loss, LossConfig
from asr.pronunciation import PhoneEncoder
from asr.training.distributed import Team
from asr.training.interfaces import Batches, TrainingTask, Validation
from asr.training.optim import OptimConfig
from asr.training.task import RecognitionTask, UtteranceBatches
from asr.training.trainer import Trainer, TrainerConfig

CPU = torch.device("cpu")
PLAIN = AugmentConfig(speeds=[1.0], spec=SpecAugmentConfig(num_time_masks=0, num_frequency_masks=0))
save = partial(checkpoint.save, config=tiny.make_config(), tokenizer=tiny.make_tokenizer())


class StubTask(nn.Module):
    """Fits a line to random points. `before` is called with the number of the call, from 0, and may give the loss.

    The trainer's first call of a new run is its trial of the largest batch, so call n is step n.
    """

    def __init__(self, before: Callable[[int], Tensor | None] = lambda _: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        self.before = before
        self.calls: list[list[str]] = []

    def forward(self, batch: Batch) -> Loss:
        self.calls.append(batch.ids)
        given = self.before(len(self.calls) - 1)
        total = (self.model(batch.waveforms) - 1).square().sum()
        return Loss(total if given is None else total * given, len(batch.ids), {"square": total.detach()})


class FixedBatches:
    """The same batches every epoch, in order; the last is the largest."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)

    def start(self, epoch: int, position: int) -> Iterator[tuple[BatchPlan, Batch]]:
        while True:
            for place in range(position, len(self.batches)):
                yield BatchPlan(epoch, place, []), self.batches[place]
            epoch, position = epoch + 1, 0

    def largest(self) -> Batch:
        return self.batches[-1]


class Notes:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self.texts: list[str] = []
        self.images: list[str] = []
        self.closed = False

    def scalars(self, values: dict[str, float], *, step: int) -> None:
        self.points.setdefault(step, {}).update(values)

    def text(self, name: str, text: str, *, step: int) -> None:
        self.texts.append(name)

    def image(self, name: str, image: Tensor, *, step: int) -> None:
        self.images.append(name)

    def close(self) -> None:
        self.closed = True


def stub_batches(number: int = 3, *, size: int = 2) -> FixedBatches:
    generator = torch.Generator().manual_seed(1)
    return FixedBatches(
        [
            Batch(
                waveforms=torch.randn(size, 4, generator=generator),
                lengths=torch.full((size,), 4),
                tokens=torch.zeros(size, 1, dtype=torch.int64),
                token_lengths=torch.ones(size, dtype=torch.int64),
                num_tokens=size,
                ids=[f"b{place}-{row}" for row in range(size)],
                seed=place,
            )
            for place in range(number)
        ]
    )


def make_trainer(
    folder: Path,
    task: TrainingTask,
    *,
    batches: Batches | None = None,
    validate: Callable[[], Validation] | None = None,
    optim: OptimConfig | None = None,
    tracker: Notes | None = None,
    device: torch.device = CPU,
    team: Team | None = None,
    **changes: Any,
) -> Trainer:
    """A trainer of four steps in float32; by default it is judged by its weights, so equal weights rank alike."""

    def by_weights() -> Validation:
        metric = sum(float(parameter.detach().abs().sum()) for parameter in task.model.parameters())
        return Validation(metric, {"valid/size": metric})

    settings = {"max_steps": 4, "valid_every": 2, "save_every": 2, "log_every": 1, "precision": "float32"}
    return Trainer(
        task,
        config=TrainerConfig(**(settings | changes)),
        optim=optim or OptimConfig(lr=0.01, warmup_steps=2),
        batches=batches or stub_batches(),
        validate=validate or by_weights,
        save=save,
        tracker=tracker or Notes(),
        folder=folder,
        device=device,
        sample_rate=tiny.SAMPLE_RATE,
        team=team,
        progress=False,
    )


class HookedTask(RecognitionTask):
    """A recogniser whose `before` is called with the number of the call, from 1; a new run's first is its trial."""

    before: Callable[[int], object] | None = None
    number = 0

    def forward(self, batch: Batch) -> Loss:
        self.number += 1
        if self.before is not None:
            self.before(self.number)
        return super().forward(batch)


def make_task(augment: AugmentConfig, *, dropout: float, seed: int = 1, phones: Sequence[str] = ()) -> HookedTask:
    torch.manual_seed(seed)
    config = tiny.make_config(dropout=dropout, phones=phones)
    model = checkpoint.build_model(config, tiny.make_tokenizer())
    spec_augment = SpecAugment(augment.spec, frame_s=config.features.hop_ms / 1000)
    return HookedTask(model, loss=LossConfig(), spec_augment=spec_augment)


def make_batches(
    utterances: list[Utterance],
    augment: AugmentConfig,
    *,
    max_batch_size: int = 2,
    team: Team | None = None,
    phone_encoder: PhoneEncoder | None = None,
) -> UtteranceBatches:
    dataset = UtteranceDataset(
        utterances,
        tokenizer=tiny.make_tokenizer(),
        sample_rate=tiny.SAMPLE_RATE,
        augment=augment,
        seed=1,
        phone_encoder=phone_encoder,
    )
    loader = LoaderConfig(max_batch_size=max_batch_size)
    return UtteranceBatches(dataset, loader, speeds=augment.speeds, seed=1, pin_memory=False, team=team)


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())
