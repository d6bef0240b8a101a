"""Log-mel features of others. Only torchaudio is a dependency of the project."""

# B utterances, S samples, T frames, F mel bins

from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr.features import FeatureConfig
from benchmarks.harness import Contender, imports_of

_KALDI = "Kaldi's features: other windows, HTK's scale, an emphasis of high frequencies, no padding at the ends"


def librosa_features(config: FeatureConfig) -> Contender:
    """librosa's `melspectrogram`, one utterance at a time; the same numbers as this project's.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("librosa", "librosa", "numba", "llvmlite", "soxr", "lazy_loader", "audioread", "pooch"):
        import librosa

    def compute(audio: Any) -> list[np.ndarray]:
        return [_librosa_log_mel(librosa, array, config) for array in audio.arrays]

    note = "on the processor, one by one; it makes its filters anew every time"
    return Contender("librosa", metadata.version("librosa"), compute, note)


def _librosa_log_mel(librosa: Any, array: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """(S,) to (T, F)."""
    mel = librosa.feature.melspectrogram(
        y=array,
        sr=config.sample_rate,
        n_fft=config.num_fft,
        hop_length=config.hop_samples,
        win_length=config.window_samples,
        n_mels=config.num_mels,
        fmin=config.low_hz,
        fmax=config.high_hz,
    )  # (F, T)
    return np.log(np.maximum(mel, config.log_floor)).T


def torchaudio_features(config: FeatureConfig, *, device: torch.device) -> Contender:
    """torchaudio's `MelSpectrogram` of the batch; the same numbers as this project's.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("torchaudio", "torchaudio"):
        from torchaudio.transforms import MelSpectrogram
    transform = MelSpectrogram(
        config.sample_rate,
        n_fft=config.num_fft,
        win_length=config.window_samples,
        hop_length=config.hop_samples,
        f_min=config.low_hz,
        f_max=config.high_hz,
        n_mels=config.num_mels,
        pad_mode="constant",
        norm="slaney",
        mel_scale="slaney",
    ).to(device)

    def compute(audio: Any) -> Tensor:
        return transform(audio.waveforms).clamp_min(config.log_floor).log().transpose(1, 2)  # (B, T, F)

    return Contender("torchaudio MelSpectrogram, in batches", metadata.version("torchaudio"), compute)


def torchaudio_kaldi_features(config: FeatureConfig) -> Contender:
    """torchaudio's copy of Kaldi's features, one utterance at a time.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("torchaudio", "torchaudio"):
        from torchaudio.compliance import kaldi
    compute_one = partial(
        kaldi.fbank,
        sample_frequency=config.sample_rate,
        frame_length=config.window_ms,
        frame_shift=config.hop_ms,
        num_mel_bins=config.num_mels,
        low_freq=config.low_hz,
        high_freq=config.high_hz,
    )

    def compute(audio: Any) -> list[Tensor]:
        return [compute_one(row[None]) for row in audio.rows]  # (T, F) each

    return Contender("torchaudio kaldi.fbank", metadata.version("torchaudio"), compute, f"one by one; {_KALDI}")


def kaldi_native_features(config: FeatureConfig) -> Contender:
    """kaldi-native-fbank, one utterance at a time.

    Raises:
        Skipped: If it is not installed.
    """
    with imports_of("kaldi-native-fbank", "kaldi-native-fbank", "kaldi-native-fbank-core"):
        import kaldi_native_fbank
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.window_ms
    options.frame_opts.frame_shift_ms = config.hop_ms
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = config.num_mels
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz

    def compute_one(samples: list[float]) -> np.ndarray:
        extractor = kaldi_native_fbank.OnlineFbank(options)
        extractor.accept_waveform(config.sample_rate, samples)
        extractor.input_finished()
        return np.stack([extractor.get_frame(frame) for frame in range(extractor.num_frames_ready)])  # (T, F)

    def compute(audio: Any) -> list[np.ndarray]:
        return [compute_one(samples) for samples in audio.lists]

    note = f"on the processor, one by one, given lists, which it reads faster than arrays; {_KALDI}"
    return Contender("kaldi-native-fbank", metadata.version("kaldi-native-fbank"), compute, note)


FEATURE_PEERS: dict[str, Callable[..., Callable[[], Contender]]] = {
    "librosa": lambda config, *, device: lambda: librosa_features(config),
    "torchaudio": lambda config, *, device: lambda: torchaudio_features(config, device=device),
    "torchaudio_kaldi": lambda config, *, device: lambda: torchaudio_kaldi_features(config),
    "kaldi_native": lambda config, *, device: lambda: kaldi_native_features(config),
}
