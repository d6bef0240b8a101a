"""Augmentation for training: SpecAugment on features; speed, reverberation and noise on waveforms.

Every draw comes from a `torch.Generator` on the CPU that the caller passes, so a seed fixes the result.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from asr import audio
from asr.nn.masks import valid_mask

# B utterances, S samples, T frames, F mel bins, M masks

# Below this power (-100 dB of full scale) a signal counts as silent, and no noise level relative to it makes sense.
_SILENCE_POWER = 1e-10
# Decoded noise and impulse responses are kept up to this size in each process; what comes after is read every time.
_CACHE_BYTES = 1 << 30


@dataclass(slots=True, kw_only=True)
class SpecAugmentConfig:
    """Settings of `SpecAugment`.

    Attributes:
        num_time_masks: time masks of an utterance, or their largest number where `time_masks_per_second` sets it.
        time_masks_per_second: above 0, the number of time masks grows with the utterance: this many a second, rounded,
            at least 1 and at most `num_time_masks` (adaptive SpecAugment, Park et al. 2020). 0 turns this off.
        time_mask_width: widest time mask in frames; the width of a mask is drawn evenly from 0 to this.
        max_time_fraction: no single time mask is wider than this fraction of the utterance's frames.
        num_frequency_masks: frequency masks of an utterance.
        frequency_mask_width: widest frequency mask in mel bins; the width is drawn evenly from 0 to this.

    Raises:
        ValueError: a setting is out of range.
    """

    num_time_masks: int = 2
    time_masks_per_second: float = 0.0
    time_mask_width: int = 40
    max_time_fraction: float = 0.2
    num_frequency_masks: int = 2
    frequency_mask_width: int = 27

    def __post_init__(self) -> None:
        names = ("num_time_masks", "time_masks_per_second", "time_mask_width", "num_frequency_masks")
        for name in (*names, "frequency_mask_width"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"augment.spec.{name} is {getattr(self, name)}, but must not be negative")
        _check_fraction("spec.max_time_fraction", self.max_time_fraction)
        if self.time_masks_per_second > 0 and self.num_time_masks == 0:
            raise ValueError(
                "augment.spec.time_masks_per_second is above 0, but num_time_masks, its upper limit, is 0; raise it"
            )


@dataclass(slots=True, kw_only=True)
class AugmentConfig:
    """Settings of all augmentation.

    Attributes:
        speeds: factors of the speech rate, one of which is drawn for every utterance; [1.0] leaves it as it is.
        noise_dir: folder of noise recordings, searched at any depth.
        noise_probability: fraction of utterances that get noise.
        snr_db_min: lowest signal-to-noise ratio, to the mean power of an utterance with its pause; the ratio is drawn
            evenly, in decibels.
        snr_db_max: highest signal-to-noise ratio in decibels.
        reverb_dir: folder of recorded room impulse responses, searched at any depth.
        reverb_probability: fraction of utterances that are put into a room.
        pause_probability: fraction of utterances that get a pause before or behind them, filled with faint noise: a
            recogniser that never heard one takes it for speech. Who plans the batches draws them (`Draw.pause_s`).
        pause_max_s: longest pause in seconds; its length is drawn evenly.
        spec: SpecAugment.

    Raises:
        ValueError: a setting is out of range, or a probability is set without its folder.
    """

    speeds: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    noise_dir: Path | None = None
    noise_probability: float = 0.0
    snr_db_min: float = 5.0
    snr_db_max: float = 30.0
    reverb_dir: Path | None = None
    reverb_probability: float = 0.0
    pause_probability: float = 0.0
    pause_max_s: float = 5.0
    spec: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)

    def __post_init__(self) -> None:
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"augment.speeds is {self.speeds}, but one or more factors from 0.5 to 2 are needed")
        for kind in ("noise", "reverb"):
            probability = getattr(self, f"{kind}_probability")
            _check_fraction(f"{kind}_probability", probability)
            if probability > 0 and getattr(self, f"{kind}_dir") is None:
                raise ValueError(f"augment.{kind}_probability is {probability}, but {kind}_dir names no folder; set it")
        _check_fraction("pause_probability", self.pause_probability)
        if not 0 < self.pause_max_s < math.inf:
            raise ValueError(f"augment.pause_max_s is {self.pause_max_s}; it must be a finite number above 0")
        if not self.snr_db_min <= self.snr_db_max:
            raise ValueError(
                f"augment.snr_db_min is {self.snr_db_min}, but must be at most snr_db_max ({self.snr_db_max})"
            )


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"augment.{name} is {value}, but must lie between 0 and 1")


class SpecAugment(nn.Module):
    """Masks stretches of frames and bands of mel bins with zeros (Park et al. 2019, without time warping).

    Features that are normalised to zero mean lose nothing but the masked parts. The identity in evaluation mode.

    Args:
        config: numbers and widths of the masks.
        frame_s: seconds from one frame to the next, for `time_masks_per_second`.
    """

    def __init__(self, config: SpecAugmentConfig, *, frame_s: float = 0.01) -> None:
        super().__init__()
        self.config = config
        self.frame_s = frame_s

    def forward(self, features: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """Mask every utterance on its own; no frame behind an utterance's length is touched.

        The draws are made on the CPU for one utterance after the other, so the masks of the first n utterances do not
        depend on what else is in the batch. Nothing waits for the device.

        Args:
            features: (B, T, F), normalised to zero mean.
            lengths: (B,) int64, valid frames.
            generator: on the CPU.

        Returns:
            (B, T, F), a new tensor in training mode.
        """
        if not self.training:
            return features
        num_utterances, num_frames, num_bins = features.shape
        num_masks = self.config.num_time_masks + self.config.num_frequency_masks
        draws = torch.rand(num_utterances, num_masks, 2, generator=generator).to(features.device, non_blocking=True)
        time_draws, frequency_draws = draws.split([self.config.num_time_masks, self.config.num_frequency_masks], dim=1)

        widest = (self.config.max_time_fraction * lengths).long().clamp_max(self.config.time_mask_width)  # (B,)
        in_time = _spans(time_draws, widest, lengths, num_frames) & self._active_masks(lengths)[..., None]  # (B, M, T)
        widest = torch.full_like(lengths, min(self.config.frequency_mask_width, num_bins))
        in_frequency = _spans(frequency_draws, widest, torch.full_like(lengths, num_bins), num_bins)  # (B, M, F)

        masked = in_time.any(dim=1)[:, :, None] | in_frequency.any(dim=1)[:, None, :]  # (B, T, F)
        return features.masked_fill(masked & valid_mask(lengths, num_frames)[..., None], 0.0)

    def _active_masks(self, lengths: Tensor) -> Tensor:
        """Which of the drawn time masks an utterance uses: (B, M) booleans."""
        num_masks = torch.full_like(lengths, self.config.num_time_masks)
        if self.config.time_masks_per_second > 0:
            wanted = (lengths * (self.config.time_masks_per_second * self.frame_s)).round().long()
            num_masks = wanted.clamp(1, self.config.num_time_masks)
        return valid_mask(num_masks, self.config.num_time_masks)


def _spans(draws: Tensor, widest: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Random stretches inside each row's length.

    Args:
        draws: (B, M, 2) in [0, 1), one number for the width and one for the start.
        widest: (B,) int64, largest width, at most the length.
        lengths: (B,) int64.
        size: positions of the result.

    Returns:
        (B, M, size) booleans; the width is even on 0..widest, the start even on 0..length - width.
    """
    widths = (draws[..., 0] * (widest[:, None] + 1)).long()  # (B, M)
    starts = (draws[..., 1] * (lengths[:, None] - widths + 1)).long()  # (B, M)
    positions = torch.arange(size, device=draws.device)
    return (positions >= starts[..., None]) & (positions < (starts + widths)[..., None])


def speed(waveform: Tensor, factor: float) -> Tensor:
    """Speak faster or slower by resampling; the pitch changes with the speed (Ko et al. 2015).

    Args:
        waveform: (..., S).
        factor: above 1 is faster and shorter. It is rounded to a fraction with a denominator of at most 100.

    Returns:
        (..., ceil(S / factor)).

    Raises:
        ValueError: the factor lies outside 0.5 to 2.
    """
    if not 0.5 <= factor <= 2:
        raise ValueError(f"speed factor {factor} is out of range; use 0.5 to 2")
    ratio = Fraction(factor).limit_denominator(100)
    return audio.resample(waveform, from_rate=ratio.numerator, to_rate=ratio.denominator)


class WaveAugment:
    """Pauses, reverberation and noise for one waveform at a time; rooms and noise from folders of recordings.

    The folders are listed at once; a recording is read, resampled and kept when it is first drawn.

    Args:
        config: probabilities, ranges and folders.
        sample_rate: Hz of all waveforms.
        group: names the settings in messages.

    Raises:
        audio.AudioError: a folder in use is missing or holds no audio.
    """

    def __init__(self, config: AugmentConfig, *, sample_rate: int, group: str = "augment") -> None:
        self.config = config
        self.sample_rate = sample_rate
        self._noises = _list_audio(config.noise_dir, f"{group}.noise_dir") if config.noise_probability > 0 else []
        self._rooms = _list_audio(config.reverb_dir, f"{group}.reverb_dir") if config.reverb_probability > 0 else []
        self._cache: dict[Path, Tensor] = {}
        self._cached_bytes = 0

    def __call__(self, waveform: Tensor, *, pause_s: float = 0.0, generator: torch.Generator) -> Tensor:
        """Put an utterance into a drawn room and add drawn noise, each with its probability.

        The same number of draws is made whatever happens, so that switching one of the two leaves the other unchanged.

        Args:
            waveform: (S,) float32 on the CPU, at `sample_rate`.
            pause_s: seconds of a pause that is put before or behind the utterance first.
            generator: on the CPU.

        Returns:
            (S + pause,) float32, in time with the input but for the pause. It may leave [-1, 1].

        Raises:
            ValueError: a shape other than (S,).
            audio.AudioError: a recording cannot be used.
        """
        if waveform.ndim != 1:
            raise ValueError(f"a waveform of shape (S,) is expected, got {tuple(waveform.shape)}")
        draws = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        if pause_s > 0:
            waveform = add_pause(waveform, round(pause_s * self.sample_rate), generator=generator)
        if draws[0] < self.config.reverb_probability:
            path = self._rooms[int(draws[1] * len(self._rooms))]
            response = self._read(path)
            if float(response.abs().max()) == 0.0:
                raise audio.AudioError(f"{path}: is silent and no room impulse response; remove it")
            waveform = reverberate(waveform, response)
        if draws[2] < self.config.noise_probability:
            noise = self._read(self._noises[int(draws[3] * len(self._noises))])
            snr_db = self.config.snr_db_min + draws[5] * (self.config.snr_db_max - self.config.snr_db_min)
            waveform = add_noise(waveform, noise, snr_db=snr_db, offset=int(draws[4] * len(noise)))
        return waveform

    def _read(self, path: Path) -> Tensor:
        """A recording at the common rate, from memory where it has been read before."""
        if path in self._cache:
            return self._cache[path]
        waveform = audio.load(path, sample_rate=self.sample_rate)
        num_bytes = waveform.numel() * waveform.element_size()
        if self._cached_bytes + num_bytes <= _CACHE_BYTES:
            self._cache[path] = waveform
            self._cached_bytes += num_bytes
        return waveform


# How much fainter than speech the noise of a pause is, in decibels: from a noisy street to a quiet studio.
_PAUSE_DB = (10.0, 80.0)


def add_pause(waveform: Tensor, num_samples: int, *, generator: torch.Generator) -> Tensor:
    """Put a stretch of noise before or behind an utterance, as likely the one as the other.

    Its spectrum falls as f^-a in power, with `a` drawn evenly from 0 (white noise) to 2 (brown); its level, from 10 to
    80 dB below that of the utterance.

    Args:
        waveform: (S,).
        num_samples: of the pause.
        generator: on the CPU.

    Returns:
        (S + num_samples,).
    """
    behind, colour, level = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    size = _fast_size(max(2, num_samples))
    white = torch.fft.rfft(torch.randn(size, generator=generator))
    frequencies = torch.arange(len(white)).clamp_min(1)
    noise = torch.fft.irfft(white * frequencies ** (-colour), size)[:num_samples]
    loudness = waveform.square().mean() / noise.square().mean().clamp_min(_SILENCE_POWER)
    noise = noise * loudness.sqrt() * 10 ** (-(_PAUSE_DB[0] + level * (_PAUSE_DB[1] - _PAUSE_DB[0])) / 20)
    return torch.cat([waveform, noise] if behind < 0.5 else [noise, waveform])


def reverberate(waveform: Tensor, response: Tensor) -> Tensor:
    """Convolve with a room impulse response.

    Args:
        waveform: (S,).
        response: (R,), not silent. Its largest peak is taken for the direct path.

    Returns:
        (S,): the direct path arrives when the input does, the tail behind S is cut off. The response is scaled to
        energy 1, which keeps the level of speech about as it was.
    """
    direct = int(response.abs().argmax())
    response = response / torch.linalg.vector_norm(response)
    size = _fast_size(len(waveform) + len(response) - 1)
    spectrum = torch.fft.rfft(waveform, size) * torch.fft.rfft(response, size)
    return torch.fft.irfft(spectrum, size)[direct : direct + len(waveform)].clone()


def _fast_size(size: int) -> int:
    """The smallest 2^n, 3 * 2^n or 5 * 2^n that is at least `size`: lengths at which an FFT is fast."""
    return min(factor << max(0, math.ceil(math.log2(size / factor))) for factor in (1, 3, 5))


def add_noise(waveform: Tensor, noise: Tensor, *, snr_db: float, offset: int = 0) -> Tensor:
    """Mix noise in at a signal-to-noise ratio.

    Args:
        waveform: (S,).
        noise: (N,), N >= 1. It is read from `offset` on, and again from its start as often as needed.
        snr_db: ratio of the mean power of `waveform` to that of the noise that is added, in decibels.
        offset: first noise sample, from 0 to N - 1.

    Returns:
        (S,); `waveform` itself where it or the stretch of noise is silent, since no ratio is defined then.
    """
    num_repeats = math.ceil((offset + len(waveform)) / len(noise))
    stretch = noise.repeat(num_repeats)[offset : offset + len(waveform)]  # (S,)
    signal_power = float(waveform.square().mean())
    noise_power = float(stretch.square().mean())
    if signal_power < _SILENCE_POWER or noise_power < _SILENCE_POWER:
        return waveform
    return waveform + stretch * math.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))


def _list_audio(folder: Path | None, setting: str) -> list[Path]:
    """All audio files under a folder, in a fixed order."""
    if folder is None or not folder.is_dir():
        raise audio.AudioError(f"{folder}: no such folder; set {setting} to a folder of audio files")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.AUDIO_SUFFIXES)
    if not paths:
        raise audio.AudioError(
            f"{folder}: holds no audio ({' '.join(audio.AUDIO_SUFFIXES)}); set {setting} to a folder that does"
        )
    return paths
