"""Log-mel features: agreement with librosa, and independence of the batch."""

import librosa
import numpy as np
import pytest
import torch

from asr.features import FeatureConfig, LogMel, hz_to_mel, mel_filters, mel_to_hz

SETTINGS = [
    {},
    {"num_mels": 40, "low_hz": 0.0},
    {"sample_rate": 8000, "num_mels": 64, "num_fft": 256, "high_hz": 4000.0},
    {"sample_rate": 22050, "num_mels": 96, "num_fft": 1024, "window_ms": 40.0, "hop_ms": 12.5, "high_hz": 11025.0},
    {"sample_rate": 48000, "num_fft": 2048, "low_hz": 50.0, "high_hz": 16000.0},
]


def speech_like(num_samples: int, seed: int = 0) -> torch.Tensor:
    """A chirp under a slow envelope over noise 34 dB below it: loud and quiet parts, all frequencies."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, num_samples)
    chirp = torch.sin(1e4 * time.square()) * torch.sin(9 * time).clamp_min(0)
    return 0.5 * chirp + 1e-2 * torch.randn(num_samples, generator=generator)


def batch_of(*waveforms: torch.Tensor, padding: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.full((len(waveforms), int(lengths.max())), padding)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return batch, lengths


@pytest.mark.parametrize("settings", SETTINGS)
def test_filters_agree_with_librosa(settings):
    config = FeatureConfig(**settings)
    expected = librosa.filters.mel(
        sr=config.sample_rate, n_fft=config.num_fft, n_mels=config.num_mels, fmin=config.low_hz, fmax=config.high_hz
    )
    np.testing.assert_allclose(mel_filters(config).numpy(), expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_mel_agrees_with_librosa(settings):
    config = FeatureConfig(normalize="none", **settings)
    waveform = speech_like(2 * config.sample_rate + 77)
    expected = librosa.feature.melspectrogram(
        y=waveform.double().numpy(),
        sr=config.sample_rate,
        n_fft=config.num_fft,
        win_length=config.window_samples,
        hop_length=config.hop_samples,
        n_mels=config.num_mels,
        fmin=config.low_hz,
        fmax=config.high_hz,
    )
    features, lengths = LogMel(config)(*batch_of(waveform))
    assert features.shape == (1, lengths[0], config.num_mels)
    expected = np.log(np.maximum(expected, config.log_floor)).T
    np.testing.assert_allclose(features[0].numpy(), expected, atol=1e-4)


def test_mel_scale_is_its_own_inverse_and_agrees_with_librosa():
    frequencies = torch.tensor([0.0, 20.0, 999.0, 1000.0, 1001.0, 8000.0], dtype=torch.float64)
    np.testing.assert_allclose(hz_to_mel(frequencies).numpy(), librosa.hz_to_mel(frequencies.numpy()), rtol=1e-12)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(frequencies)), frequencies)


@pytest.mark.parametrize("normalize", ["utterance", "mean", "none"])
def test_a_batch_gives_what_each_utterance_gives_alone(normalize):
    log_mel = LogMel(FeatureConfig(normalize=normalize))
    waveforms = [speech_like(num_samples, seed=num_samples) for num_samples in (16000, 1, 159, 160, 399, 8001)]
    features, lengths = log_mel(*batch_of(*waveforms))
    for row, length, waveform in zip(features, lengths, waveforms, strict=True):
        alone, alone_length = log_mel(*batch_of(waveform))
        assert length == alone_length == alone.shape[1] == 1 + len(waveform) // 160
        torch.testing.assert_close(row[:length], alone[0], atol=1e-5, rtol=1e-5)
        assert not row[length:].any()


@pytest.mark.parametrize("garbage", [1.0, 1e30, float("nan"), float("inf")])
def test_what_lies_behind_a_length_changes_nothing(garbage):
    log_mel = LogMel(FeatureConfig())
    waveforms = [speech_like(16000), speech_like(5000), speech_like(100)]
    clean, _ = log_mel(*batch_of(*waveforms))
    dirty, _ = log_mel(*batch_of(*waveforms, padding=garbage))
    assert torch.equal(clean, dirty)


def test_normalisation_gives_zero_mean_and_unit_variance_over_valid_frames():
    features, lengths = LogMel(FeatureConfig())(*batch_of(speech_like(32000), speech_like(9000)))
    for row, length in zip(features, lengths, strict=True):
        valid = row[:length]
        torch.testing.assert_close(valid.mean(dim=0), torch.zeros(80), atol=1e-5, rtol=0)
        torch.testing.assert_close(valid.std(dim=0, correction=0), torch.ones(80), atol=1e-3, rtol=0)


def test_normalisation_by_mean_keeps_the_variance():
    batch = batch_of(speech_like(32000))
    plain, _ = LogMel(FeatureConfig(normalize="none"))(*batch)
    features, _ = LogMel(FeatureConfig(normalize="mean"))(*batch)
    torch.testing.assert_close(features, plain - plain.mean(dim=1, keepdim=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_samples", [1, 2, 159, 160, 161, 400])
def test_the_shortest_utterances_are_finite(num_samples):
    features, lengths = LogMel(FeatureConfig())(*batch_of(speech_like(num_samples)))
    assert features.shape[1] == lengths[0] == 1 + num_samples // 160
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_silence_and_a_constant_are_finite(value):
    features, _ = LogMel(FeatureConfig())(torch.full((1, 16000), value), torch.tensor([16000]))
    assert torch.isfinite(features).all()


def test_digital_silence_lies_at_the_floor():
    features, _ = LogMel(FeatureConfig(normalize="none", log_floor=1e-6))(torch.zeros(1, 800), torch.tensor([800]))
    torch.testing.assert_close(features, torch.full((1, 6, 80), np.log(1e-6), dtype=torch.float32))


def test_autocast_and_half_precision_modules_stay_in_float32():
    batch, lengths = batch_of(speech_like(16000), speech_like(4000))
    expected, _ = LogMel(FeatureConfig())(batch, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = LogMel(FeatureConfig())(batch, lengths)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)
    features, _ = LogMel(FeatureConfig()).bfloat16()(batch, lengths)
    assert torch.equal(features, expected)


def test_nothing_is_stored_in_a_checkpoint():
    assert LogMel(FeatureConfig()).state_dict() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_what_the_cpu_gives():
    batch, lengths = batch_of(speech_like(16000), speech_like(4000))
    expected, _ = LogMel(FeatureConfig())(batch, lengths)
    features, frame_lengths = LogMel(FeatureConfig()).cuda()(batch.cuda(), lengths.cuda())
    assert frame_lengths.is_cuda
    torch.testing.assert_close(features.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 0}, "features.sample_rate is 0"),
        ({"num_mels": -1}, "features.num_mels is -1, but must be positive"),
        ({"log_floor": 0.0}, "features.log_floor is 0.0"),
        ({"hop_ms": 30.0}, "features.hop_ms is 30.0, but must be at least one sample and at most window_ms"),
        ({"hop_ms": 0.01}, "features.hop_ms is 0.01"),
        ({"num_fft": 256}, "has 400 samples; use num_fft=512"),
        ({"high_hz": 9000.0}, r"high_hz <= 8000 \(half of sample_rate\)"),
        ({"sample_rate": 8000}, r"high_hz <= 4000"),
        ({"low_hz": 8000.0}, "low_hz"),
        ({"low_hz": -1.0}, "low_hz"),
        ({"normalize": "global"}, "features.normalize is 'global', but must be one of utterance, mean, none"),
    ],
)
def test_config_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**settings)


def test_empty_filters_are_an_error():
    with pytest.raises(
        ValueError, match=r"of num_mels=200 mel bins are narrower .* use fewer mel bins or a larger num_fft"
    ):
        LogMel(FeatureConfig(num_mels=200))


@pytest.mark.parametrize(
    ("waveforms", "lengths", "message"),
    [
        (torch.zeros(100), torch.tensor([100]), r"waveforms \(B, S\)"),
        (torch.zeros(1, 0), torch.tensor([0]), r"got \(1, 0\)"),
        (torch.zeros(2, 100), torch.tensor([100]), r"got \(2, 100\) and \(1,\)"),
        (torch.zeros(1, 100, dtype=torch.int16), torch.tensor([100]), "waveforms are torch.int16"),
    ],
)
def test_input_errors(waveforms, lengths, message):
    with pytest.raises(ValueError, match=message):
        LogMel(FeatureConfig())(waveforms, lengths)
