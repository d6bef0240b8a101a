"""Log-mel features, computed in batches on the device where the module lives."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from asr.nn.masks import valid_mask

# B utterances, S samples, T frames, N frequency bins of the transform, F mel bins

NORMALIZATIONS = ("utterance", "mean", "none")

# Added to the variance, so that a bin that never changes (one frame, digital silence) becomes zero instead of NaN.
# Speech has a variance of several units in the log-mel domain.
_VARIANCE_EPSILON = 1e-5


@dataclass(slots=True, kw_only=True)
class FeatureConfig:
    """Settings of `LogMel`.

    Attributes:
        sample_rate: Hz of the waveforms.
        num_mels: mel bins F.
        window_ms: length of the Hann window.
        hop_ms: step from frame to frame.
        num_fft: points of the transform, at least the samples of a window.
        low_hz: lower edge of the lowest mel bin.
        high_hz: upper edge of the highest mel bin, at most half of `sample_rate`.
        log_floor: smallest mel power before the logarithm, for samples in [-1, 1].
        normalize: "utterance": zero mean and unit variance of every bin over the utterance; "mean": zero mean only;
            "none": the plain logarithm.

    Raises:
        ValueError: a setting is out of range, or two contradict each other.
    """

    sample_rate: int = 16000
    num_mels: int = 80
    window_ms: float = 25.0
    hop_ms: float = 10.0
    num_fft: int = 512
    low_hz: float = 20.0
    high_hz: float = 8000.0
    # White noise at -77 dB of full scale (5 steps of 16-bit audio) has a mel power of 1e-7 in every bin. That is 24 dB
    # above the rounding noise of 16-bit audio and below any room, so speech is untouched, while digital silence and the
    # bands that a lossy codec such as Opus empties all become the same value.
    log_floor: float = 1e-7
    normalize: str = "utterance"

    def __post_init__(self) -> None:
        for name in ("sample_rate", "num_mels", "window_ms", "hop_ms", "num_fft", "log_floor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"features.{name} is {getattr(self, name)}, but must be positive")
        if self.hop_samples < 1 or self.hop_ms > self.window_ms:
            raise ValueError(
                f"features.hop_ms is {self.hop_ms}, but must be at least one sample and at most window_ms "
                f"({self.window_ms}), or audio between the windows is lost"
            )
        if self.num_fft < self.window_samples:
            raise ValueError(
                f"features.num_fft is {self.num_fft}, but a window of {self.window_ms} ms at {self.sample_rate} Hz has "
                f"{self.window_samples} samples; use num_fft={2 ** math.ceil(math.log2(self.window_samples))}"
            )
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(
                f"features.low_hz and high_hz are {self.low_hz} and {self.high_hz}, but 0 <= low_hz < high_hz <= "
                f"{self.sample_rate / 2:g} (half of sample_rate) is needed"
            )
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(
                f"features.normalize is {self.normalize!r}, but must be one of {', '.join(NORMALIZATIONS)}"
            )

    @property
    def window_samples(self) -> int:
        """Samples of a window."""
        return round(self.window_ms * self.sample_rate / 1000)

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_ms * self.sample_rate / 1000)

    @property
    def frame_s(self) -> float:
        """Seconds from one frame to the next. Frame t is centred at t * frame_s."""
        return self.hop_samples / self.sample_rate


class LogMel(nn.Module):
    """Log-mel filter bank features with per-utterance normalisation.

    Power spectrum |STFT|^2 of Hann windows centred at multiples of the hop (zeros beyond both ends of the utterance),
    mel bins of equal area (Slaney's scale), natural logarithm. `librosa.feature.melspectrogram` with its defaults
    (`center=True, pad_mode="constant", power=2.0, norm="slaney", htk=False`) gives the same numbers.

    An utterance's features do not depend on the batch it is in, nor on what lies behind its length. Computed in float32
    whatever the autocast or the module's own precision. There is nothing to train, and nothing in the state dict.

    Args:
        config: the settings; `config.num_mels` is the width of the result.

    Raises:
        ValueError: so many mel bins that some would be narrower than the transform's resolution and stay empty.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self._register(torch.get_default_device())

    def _register(self, device: torch.device) -> None:
        """Build the window (window samples,) and the filters (F, N) from the config."""
        window = torch.hann_window(self.config.window_samples, device=device, dtype=torch.float32)
        filters = mel_filters(self.config).to(device)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "LogMel":
        super()._apply(fn, recurse)
        # model.bfloat16() would round the filters for good; they are built anew in float32 where they now live.
        if self.filters.dtype != torch.float32:
            self._register(self.filters.device)
        return self

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames of each utterance, (B,) int64, from its samples, (B,) int64."""
        return 1 + lengths // self.config.hop_samples

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of a padded batch.

        Args:
            waveforms: (B, S) floating point in [-1, 1], S >= 1; anything may stand behind an utterance's length.
            lengths: (B,) int64, samples of each utterance, each from 1 to S.

        Returns:
            features: (B, T, F) float32 with T = 1 + S // hop; zero in the frames behind an utterance's length.
            lengths: (B,) int64, valid frames of each utterance.

        Raises:
            ValueError: a wrong shape, or integer samples.
        """
        if waveforms.ndim != 2 or lengths.shape != waveforms.shape[:1] or waveforms.shape[1] == 0:
            raise ValueError(
                f"waveforms (B, S) with S >= 1 and lengths (B,) are expected, got {tuple(waveforms.shape)} and "
                f"{tuple(lengths.shape)}"
            )
        if not waveforms.is_floating_point():
            raise ValueError(f"waveforms are {waveforms.dtype}; expected floating point samples in [-1, 1]")
        with torch.autocast(waveforms.device.type, enabled=False):
            compute = self._log_mel_of_each if waveforms.device.type == "cpu" else self._log_mel_of_all
            features = compute(waveforms.float(), lengths)  # (B, T, F)
            num_frames = self.frame_lengths(lengths)
            mask = valid_mask(num_frames, features.shape[1]).unsqueeze(-1)  # (B, T, 1)
            return self._normalize(features, mask), num_frames

    def _log_mel_of_all(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, F), as one batch, without knowing the lengths on the processor."""
        # Zeros, not a product with the mask: garbage behind the length may be NaN.
        samples = torch.where(valid_mask(lengths, waveforms.shape[1]), waveforms, 0.0)
        return self._log_mel(samples)

    def _log_mel_of_each(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The same, one by one: on processors the buffers of a batch outgrow the caches, and padding costs work."""
        each = [self._log_mel(row[None, :length])[0] for row, length in zip(waveforms, lengths.tolist(), strict=True)]
        num_frames = 1 + waveforms.shape[1] // self.config.hop_samples
        features = pad_sequence(each, batch_first=True)  # (B, longest, F)
        return F.pad(features, (0, 0, 0, num_frames - features.shape[1]))

    def _log_mel(self, samples: Tensor) -> Tensor:
        """(B, S) -> (B, T, F), natural logarithm of the mel power."""
        spectrum = torch.stft(
            samples,
            self.config.num_fft,
            hop_length=self.config.hop_samples,
            win_length=self.config.window_samples,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )  # (B, N, T)
        power = spectrum.real.square() + spectrum.imag.square()
        # In float64: matrix products round by the shape of the batch, and normalising over few frames magnifies that.
        mel = torch.matmul(self.filters.double(), power.double()).float()  # (B, F, T)
        return mel.clamp_min(self.config.log_floor).log().transpose(1, 2)

    def _normalize(self, features: Tensor, mask: Tensor) -> Tensor:
        """Mean and variance of every bin over the valid frames; zeros elsewhere."""
        features = torch.where(mask, features, 0.0)
        if self.config.normalize == "none":
            return features
        count = mask.sum(dim=1, keepdim=True).clamp_min(1)  # (B, 1, 1)
        mean = features.sum(dim=1, keepdim=True) / count  # (B, 1, F)
        centred = torch.where(mask, features - mean, 0.0)
        if self.config.normalize == "mean":
            return centred
        # Two passes: the mean of squares minus the square of the mean would lose digits.
        variance = centred.square().sum(dim=1, keepdim=True) / count  # (B, 1, F)
        return centred * torch.rsqrt(variance + _VARIANCE_EPSILON)


def hz_to_mel(frequency: Tensor) -> Tensor:
    """Slaney's mel scale (Auditory Toolbox, 1998): linear, 3 mel per 200 Hz, up to 1 kHz, then 27 mel per factor 6.4.

    Args:
        frequency: Hz, any shape.

    Returns:
        Mels, same shape.
    """
    linear = frequency * 3 / 200
    logarithmic = 15 + torch.log(frequency.clamp_min(1000) / 1000) * 27 / math.log(6.4)
    return torch.where(frequency < 1000, linear, logarithmic)


def mel_to_hz(mel: Tensor) -> Tensor:
    """The inverse of `hz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel.clamp_min(15) - 15) * math.log(6.4) / 27))


def mel_filters(config: FeatureConfig) -> Tensor:
    """Triangular filters between points that are evenly spaced in mel, each of area 1 over frequency in Hz.

    Slaney's scale is used because its filters are at least 37 Hz wide to either side for 80 bins up to 8 kHz, more than
    the 31 Hz of a 512-point transform; with the HTK scale (22 Hz) the lowest bins would hold no frequency at all.

    Returns:
        (F, N) float32 with N = num_fft // 2 + 1, on the CPU.

    Raises:
        ValueError: a filter lies between two frequencies of the transform and would stay empty.
    """
    # In float64: the differences of neighbouring edges lose digits.
    frequencies = torch.linspace(
        0, config.sample_rate / 2, config.num_fft // 2 + 1, dtype=torch.float64, device="cpu"
    )  # (N,)
    limits = hz_to_mel(torch.tensor([config.low_hz, config.high_hz], dtype=torch.float64, device="cpu"))
    points = torch.linspace(0, 1, config.num_mels + 2, dtype=torch.float64, device="cpu")
    edges = mel_to_hz(limits[0] + (limits[1] - limits[0]) * points)  # (F + 2,)
    lower, centre, upper = (edges[i : i + config.num_mels, None] for i in range(3))  # (F, 1) each
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    filters = torch.minimum(rising, falling).clamp_min(0) * 2 / (upper - lower)  # (F, N)
    empty = (filters.sum(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{len(empty)} of num_mels={config.num_mels} mel bins are narrower than a step of num_fft={config.num_fft} "
            f"at {config.sample_rate} Hz and would stay empty; use fewer mel bins or a larger num_fft"
        )
    return filters.float()
