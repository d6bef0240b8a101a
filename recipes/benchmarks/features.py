"""Log-mel features of a batch of audio: this project's beside librosa's, torchaudio's and Kaldi's."""

# B utterances, S samples, T frames, F mel bins

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.features import FeatureConfig, LogMel
from benchmarks import report
from benchmarks.feature_peers import FEATURE_PEERS
from benchmarks.harness import Benchmark, Conditions, Contender, build, measure


@dataclass(frozen=True, slots=True)
class Audio:
    """Utterances, in every form that contenders ask for: nobody's time includes the making of them.

    Attributes:
        waveforms: (B, S) float32 in [-1, 1], zeros behind an utterance's length.
        lengths: (B,) int64, samples.
        rows: Each utterance alone, (S,), on the same device.
        arrays: The same for NumPy, on the processor.
        lists: The same as Python floats.
    """

    waveforms: Tensor
    lengths: Tensor
    rows: list[Tensor]
    arrays: list[np.ndarray]
    lists: list[list[float]]


@dataclass(slots=True, kw_only=True)
class FeaturesBenchmark(Benchmark):
    """How long do log-mel features of utterances take?

    Attributes:
        features: Settings, of all as far as they have them.
        batch_size: Utterances B.
        min_duration_s: Of the shortest utterance; the lengths of the others lie evenly up to the longest.
        max_duration_s: Of the longest.
        peers: Who else takes part, of `FEATURE_PEERS`.
    """

    name: str = "features"
    features: FeatureConfig = field(default_factory=FeatureConfig)
    batch_size: int = 16
    min_duration_s: float = 2.0
    max_duration_s: float = 16.0
    peers: list[str] = field(default_factory=lambda: list(FEATURE_PEERS))

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"benchmark.batch_size is {self.batch_size}; it must be at least 1")
        if not 0.1 <= self.min_duration_s <= self.max_duration_s:
            raise ValueError(
                f"benchmark.min_duration_s {self.min_duration_s:g} and max_duration_s {self.max_duration_s:g} "
                "must be 0.1 or more, the smaller first"
            )
        unknown = [each for each in self.peers if each not in FEATURE_PEERS]
        if unknown:
            raise ValueError(f"benchmark.peers has {unknown}; choose from {', '.join(FEATURE_PEERS)}")

    @torch.inference_mode()
    def run(self, conditions: Conditions) -> dict[str, Any]:
        """Gives the same noise to all."""
        device = conditions.device
        audio = make_audio(self, device)
        peers = [FEATURE_PEERS[peer](self.features, device=device) for peer in self.peers]
        contenders, skipped = build([*own_contenders(self.features, device=device), *peers])
        measured = measure(contenders, [audio], repeats=conditions.repeats, device=device)
        audio_s = int(audio.lengths.sum()) / self.features.sample_rate
        return {
            "work": f"{self.batch_size} utterances of {self.min_duration_s:g} to {self.max_duration_s:g} s",
            "dtype": "float32",
            "shapes": {"waveforms": list(audio.waveforms.shape), "num_mels": self.features.num_mels},
            "audio_s": audio_s,
            "contenders": [report.times(result, measured[0], audio_s=audio_s) for result in measured],
            "skipped": skipped,
        }

    def tables(self, found: dict[str, Any]) -> list[str]:
        """Times of all."""
        return [report.speed_table(found["contenders"])]


def make_audio(benchmark: FeaturesBenchmark, device: torch.device) -> Audio:
    """Quiet noise: what is in the samples makes no difference to the time."""
    durations_s = np.linspace(benchmark.max_duration_s, benchmark.min_duration_s, benchmark.batch_size)
    lengths = [round(duration_s * benchmark.features.sample_rate) for duration_s in durations_s]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(length, generator=generator).mul(0.1).clamp(-1, 1) for length in lengths]
    return Audio(
        waveforms=pad_sequence(rows, batch_first=True).to(device),
        lengths=torch.tensor(lengths, device=device),
        rows=[row.to(device) for row in rows],
        arrays=[row.numpy() for row in rows],
        lists=[row.tolist() for row in rows],
    )


def own_contenders(config: FeatureConfig, *, device: torch.device) -> list[Callable[[], Contender]]:
    """`LogMel` as the models have it, of the batch and of one utterance after the other; it returns (B, T, F)."""
    log_mel = LogMel(config).to(device)

    def batched(audio: Audio) -> Tensor:
        return log_mel(audio.waveforms, audio.lengths)[0]

    def single(audio: Audio) -> list[Tensor]:
        return [log_mel(row[None], audio.lengths[number : number + 1])[0][0] for number, row in enumerate(audio.rows)]

    note = (
        "" if config.normalize == "none" else f"normalised (features.normalize={config.normalize}), which no other is"
    )
    return [
        lambda: Contender("asr, in batches", report.OWN_VERSION, batched, note),
        lambda: Contender("asr, one by one", report.OWN_VERSION, single, note),
    ]
