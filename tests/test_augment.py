"""Augmentation: seeds fix it, limits hold, and neither padding nor timing changes."""

import math
from pathlib import Path

import pytest
import torch

from asr import audio
from asr.augment import (
    AugmentConfig,
    SpecAugment,
    SpecAugmentConfig,
    WaveAugment,
    add_noise,
    add_pause,
    reverberate,
    speed,
)

RATE = 16000
DATA = Path(__file__).parents[2] / "shared" / "data"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=seeded(seed))


def snr_db(signal: torch.Tensor, mixed: torch.Tensor) -> float:
    return 10 * math.log10(float(signal.square().mean()) / float((mixed - signal).square().mean()))


def runs(flags: torch.Tensor) -> list[int]:
    """Lengths of the stretches of True."""
    lengths, current = [], 0
    for flag in [*flags.tolist(), False]:
        if flag:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of two noises (one at another rate) and one of two rooms."""
    root = tmp_path_factory.mktemp("augment")
    for name in ("noise/deep", "rooms"):
        (root / name).mkdir(parents=True)
    audio.save(root / "noise" / "a.wav", noise_of(8000, 1), sample_rate=RATE)
    audio.save(root / "noise" / "deep" / "b.flac", noise_of(30000, 2), sample_rate=8000)
    decay = torch.exp(-torch.arange(3000) / 400)
    for seed in (1, 2):
        room = noise_of(3000, seed) * decay
        room[100 * seed] = 0.9
        audio.save(root / "rooms" / f"{seed}.flac", room, sample_rate=RATE)
    return root


def wave_augment(root: Path, **settings) -> WaveAugment:
    config = AugmentConfig(noise_dir=root / "noise", reverb_dir=root / "rooms", **settings)
    return WaveAugment(config, sample_rate=RATE)


# SpecAugment


def test_spec_augment_is_fixed_by_the_seed():
    augment = SpecAugment(SpecAugmentConfig())
    features, lengths = torch.ones(4, 300, 80), torch.tensor([300, 200, 100, 10])
    first = augment(features, lengths, seeded(1))
    assert torch.equal(first, augment(features, lengths, seeded(1)))
    assert not torch.equal(first, augment(features, lengths, seeded(2)))


def test_every_utterance_has_its_own_masks_whatever_follows_it_in_the_batch():
    augment = SpecAugment(SpecAugmentConfig(time_masks_per_second=1.0, num_time_masks=5))
    features, lengths = torch.ones(3, 300, 80), torch.tensor([300, 300, 200])
    together = augment(features, lengths, seeded(1))
    assert not torch.equal(together[0], together[1])
    assert torch.equal(augment(features[:1], lengths[:1], seeded(1)), together[:1])
    assert torch.equal(augment(features[:2], lengths[:2], seeded(1)), together[:2])


def test_spec_augment_is_the_identity_in_evaluation():
    features = torch.ones(2, 50, 80)
    assert SpecAugment(SpecAugmentConfig()).eval()(features, torch.tensor([50, 20]), seeded(1)) is features


def test_padding_is_never_touched_and_the_input_is_kept():
    augment = SpecAugment(SpecAugmentConfig(num_time_masks=8, max_time_fraction=1.0, num_frequency_masks=4))
    features, lengths = torch.ones(5, 100, 40), torch.tensor([100, 70, 30, 2, 1])
    for seed in range(30):
        masked = augment(features, lengths, seeded(seed))
        assert all(bool(row[length:].all()) for row, length in zip(masked, lengths, strict=True))
    assert bool(features.all())


def test_time_masks_keep_their_number_and_width():
    config = SpecAugmentConfig(num_time_masks=3, time_mask_width=10, num_frequency_masks=0)
    features, lengths = torch.ones(200, 500, 8), torch.full((200,), 500)
    masked = SpecAugment(config)(features, lengths, seeded(0))[:, :, 0] == 0  # (B, T)
    assert all(len(runs(row)) <= 3 for row in masked)
    assert int(masked.sum(dim=1).max()) <= 30
    # The width is even on 0 to 10, so its mean is 5.
    assert 14 <= float(masked.sum(dim=1).float().mean()) <= 15.5
    assert bool(masked[:, 0].any()) and bool(masked[:, -1].any()), "the edges can be masked too"


def test_frequency_masks_keep_their_number_and_width():
    config = SpecAugmentConfig(num_time_masks=0, num_frequency_masks=2, frequency_mask_width=7)
    masked = SpecAugment(config)(torch.ones(200, 10, 80), torch.full((200,), 10), seeded(0)) == 0  # (B, T, F)
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    assert all(len(runs(row)) <= 2 for row in masked[:, 0])
    assert 6 <= float(masked[:, 0].sum(dim=1).float().mean()) <= 7.2
    assert int(masked[:, 0].sum(dim=1).max()) == 14


def test_a_time_mask_is_at_most_its_fraction_of_a_short_utterance():
    config = SpecAugmentConfig(num_time_masks=1, time_mask_width=50, max_time_fraction=0.1, num_frequency_masks=0)
    masked = SpecAugment(config)(torch.ones(300, 60, 4), torch.full((300,), 60), seeded(0))[:, :, 0] == 0
    assert int(masked.sum(dim=1).max()) == 6


def test_the_number_of_time_masks_grows_with_the_length():
    config = SpecAugmentConfig(
        num_time_masks=6, time_masks_per_second=2.0, time_mask_width=4, max_time_fraction=1.0, num_frequency_masks=0
    )
    lengths = torch.tensor([1000, 200, 100, 10]).repeat_interleave(200)
    masked = SpecAugment(config)(torch.ones(800, 1000, 4), lengths, seeded(0))[:, :, 0] == 0
    most = [max(len(runs(row)) for row in part) for part in masked.split(200)]
    assert most == [6, 4, 2, 1]


def test_masks_wider_than_the_features_are_cut_to_them():
    config = SpecAugmentConfig(frequency_mask_width=100, time_mask_width=100, max_time_fraction=1.0)
    assert SpecAugment(config)(torch.ones(3, 5, 4), torch.tensor([5, 3, 1]), seeded(0)).shape == (3, 5, 4)


# Speed


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.85])
def test_speed_changes_length_and_pitch(factor):
    time = torch.arange(RATE, dtype=torch.float64) / RATE
    faster = speed(torch.sin(2 * math.pi * 500 * time).float(), factor)
    assert len(faster) == math.ceil(round(RATE / factor, 6))
    expected = torch.sin(2 * math.pi * 500 * factor * torch.arange(len(faster), dtype=torch.float64) / RATE).float()
    torch.testing.assert_close(faster[500:-500], expected[500:-500], atol=1e-4, rtol=0)


def test_speed_one_changes_nothing():
    waveform = noise_of(1000)
    assert speed(waveform, 1.0) is waveform


def test_speed_out_of_range():
    with pytest.raises(ValueError, match=r"speed factor 3 is out of range; use 0.5 to 2"):
        speed(noise_of(100), 3)


# Noise and rooms


@pytest.mark.parametrize("ratio", [-5.0, 0.0, 17.3, 40.0])
@pytest.mark.parametrize(("num_noise", "offset"), [(100, 99), (4000, 0), (50000, 49000)])
def test_the_signal_to_noise_ratio_is_exact(ratio, num_noise, offset):
    signal = noise_of(20000, 3)
    mixed = add_noise(signal, noise_of(num_noise, 4), snr_db=ratio, offset=offset)
    assert snr_db(signal, mixed) == pytest.approx(ratio, abs=0.1)


def test_noise_is_repeated_from_its_offset():
    signal, noise = noise_of(10, 1), noise_of(4, 2)
    added = add_noise(signal, noise, snr_db=0.0, offset=3) - signal
    expected = noise[torch.tensor([3, 0, 1, 2, 3, 0, 1, 2, 3, 0])]
    torch.testing.assert_close(added / added.norm(), expected / expected.norm())


@pytest.mark.parametrize(("signal", "noise"), [(torch.zeros(100), noise_of(100)), (noise_of(100), torch.zeros(30))])
def test_silence_is_left_as_it_is(signal, noise):
    assert add_noise(signal, noise, snr_db=10.0) is signal


def test_a_room_keeps_length_and_direct_path_and_is_a_convolution():
    waveform, room = noise_of(5000, 1), noise_of(900, 2) * torch.exp(-torch.arange(900) / 100)
    room[37] = 2.0
    result = reverberate(waveform, room)
    full = torch.nn.functional.conv1d(waveform[None, None], (room / room.norm()).flip(0)[None, None], padding=899)
    torch.testing.assert_close(result, full[0, 0, 37 : 37 + 5000], atol=1e-5, rtol=1e-4)
    click = torch.zeros(5000)
    click[1234] = 1.0
    assert int(reverberate(click, room).abs().argmax()) == 1234


@pytest.mark.parametrize("num_samples", [1, 2, 3, 50])
def test_a_room_longer_than_the_utterance(num_samples):
    assert reverberate(noise_of(num_samples), noise_of(400, 1)).shape == (num_samples,)


def test_a_pause_is_noise_fainter_than_the_utterance():
    waveform = torch.randn(RATE, generator=seeded(0))
    levels, slopes = [], []
    for seed in range(300):
        found = add_pause(waveform, 4000, generator=seeded(seed))
        behind = torch.equal(found[:RATE], waveform)
        assert behind or torch.equal(found[4000:], waveform)
        pause = found[RATE:] if behind else found[:4000]
        levels.append(10 * math.log10(float(waveform.square().mean() / pause.square().mean())))
        power = torch.fft.rfft(pause).abs().square()
        slopes.append(math.log2(float(power[100:200].mean() / power[200:400].mean())))  # an octave
    assert 10 - 1e-3 < min(levels) < 14
    assert 76 < max(levels) < 80 + 1e-3
    assert min(slopes) < 0.3
    assert max(slopes) > 1.5


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5, 1000])
def test_pauses_of_any_length_beside_any_utterance_are_finite(num_samples):
    for waveform in (torch.zeros(100), torch.ones(1)):
        found = add_pause(waveform, num_samples, generator=seeded(1))
        assert len(found) == len(waveform) + num_samples
        assert found.isfinite().all()


def test_a_pause_comes_before_the_room(folders):
    """A room rings on in the pause."""
    dry = torch.cat([torch.zeros(RATE - 1), torch.ones(1)])
    augment = wave_augment(folders, reverb_probability=1.0)
    seed = next(
        n
        for n in range(20)
        if float(WaveAugment(AugmentConfig(), sample_rate=RATE)(dry, pause_s=0.5, generator=seeded(n))[RATE - 1]) == 1.0
    )
    found = augment(dry, pause_s=0.5, generator=seeded(seed))
    assert float(found[RATE:].abs().max()) > 0.05 * float(found.abs().max())


def test_wave_augment_is_fixed_by_the_seed_and_keeps_the_length(folders):
    augment = wave_augment(folders, noise_probability=1.0, reverb_probability=1.0)
    waveform = noise_of(12345, 5)
    first = augment(waveform, generator=seeded(1))
    assert first.shape == waveform.shape and first.dtype == torch.float32
    assert torch.equal(first, augment(waveform, generator=seeded(1)))
    fresh = wave_augment(folders, noise_probability=1.0, reverb_probability=1.0)
    assert torch.equal(first, fresh(waveform, generator=seeded(1))), "memory of earlier calls changes nothing"
    assert not torch.equal(first, augment(waveform, generator=seeded(2)))


def test_drawn_ratios_lie_in_their_range(folders):
    augment = wave_augment(folders, noise_probability=1.0, snr_db_min=3.0, snr_db_max=9.0)
    signal = noise_of(6000, 6)
    ratios = [snr_db(signal, augment(signal, generator=seeded(seed))) for seed in range(40)]
    assert 2.9 <= min(ratios) < 4 and 8 < max(ratios) <= 9.1


def test_probabilities_are_kept(folders):
    augment = wave_augment(folders, noise_probability=0.3)
    waveform = noise_of(500, 7)
    changed = sum(not torch.equal(waveform, augment(waveform, generator=seeded(seed))) for seed in range(300))
    assert 60 <= changed <= 120
    untouched = wave_augment(folders)
    assert all(untouched(waveform, generator=seeded(seed)) is waveform for seed in range(5))


def test_noise_does_not_depend_on_whether_rooms_are_on(folders):
    waveform = torch.zeros(2000)
    waveform[700] = 1.0
    dry = wave_augment(folders, noise_probability=1.0)
    both = wave_augment(folders, noise_probability=1.0, reverb_probability=1.0)
    noise = dry(waveform, generator=seeded(3)) - waveform
    wet = [reverberate(waveform, both._read(path)) for path in both._rooms]
    added = [both(waveform, generator=seeded(3)) - candidate for candidate in wet]
    alike = [float(torch.nn.functional.cosine_similarity(noise, other, dim=0)) for other in added]
    assert max(alike) > 0.999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speeds": []}, r"augment.speeds is \[\]"),
        ({"speeds": [1.0, 3.0]}, r"augment.speeds is \[1.0, 3.0\], but one or more factors from 0.5 to 2"),
        ({"noise_probability": 1.5, "noise_dir": Path()}, "augment.noise_probability is 1.5, but must lie between 0"),
        ({"noise_probability": 0.5}, "augment.noise_probability is 0.5, but noise_dir names no folder"),
        ({"reverb_probability": 0.5}, "augment.reverb_probability is 0.5, but reverb_dir names no folder"),
        ({"pause_probability": -0.1}, "augment.pause_probability is -0.1, but must lie between 0 and 1"),
        ({"pause_max_s": 0.0}, "augment.pause_max_s is 0.0; it must be a finite number above 0"),
        ({"pause_max_s": math.inf}, "augment.pause_max_s is inf; it must be a finite number above 0"),
        ({"snr_db_min": 20.0, "snr_db_max": 10.0}, r"augment.snr_db_min is 20.0, but must be at most snr_db_max \(10"),
    ],
)
def test_config_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_time_masks": -1}, "augment.spec.num_time_masks is -1, but must not be negative"),
        ({"frequency_mask_width": -2}, "augment.spec.frequency_mask_width is -2"),
        ({"max_time_fraction": 1.1}, "augment.spec.max_time_fraction is 1.1, but must lie between 0 and 1"),
        ({"num_time_masks": 0, "time_masks_per_second": 1.0}, "its upper limit, is 0; raise it"),
    ],
)
def test_spec_config_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        SpecAugmentConfig(**settings)


def test_folder_errors(tmp_path):
    config = AugmentConfig(noise_dir=tmp_path / "missing", noise_probability=0.5)
    with pytest.raises(audio.AudioError, match=r"missing: no such folder; set augment.noise_dir"):
        WaveAugment(config, sample_rate=RATE)
    (tmp_path / "notes.txt").write_text("nothing to hear")
    config = AugmentConfig(reverb_dir=tmp_path, reverb_probability=0.5)
    with pytest.raises(audio.AudioError, match=r"holds no audio .*; set augment.reverb_dir"):
        WaveAugment(config, sample_rate=RATE)


def test_bad_recordings_and_shapes(tmp_path):
    audio.save(tmp_path / "silent.wav", torch.zeros(100), sample_rate=RATE)
    augment = WaveAugment(AugmentConfig(reverb_dir=tmp_path, reverb_probability=1.0), sample_rate=RATE)
    with pytest.raises(audio.AudioError, match=r"silent.wav: is silent and no room impulse response; remove it"):
        augment(noise_of(100), generator=seeded(0))
    with pytest.raises(ValueError, match=r"shape \(S,\) is expected, got \(1, 100\)"):
        augment(torch.zeros(1, 100), generator=seeded(0))


@pytest.mark.real
@pytest.mark.skipif(not (DATA / "noise").is_dir() or not (DATA / "rir").is_dir(), reason="no real noise and rooms")
def test_real_noise_and_rooms():
    config = AugmentConfig(
        noise_dir=DATA / "noise", noise_probability=1.0, reverb_dir=DATA / "rir", reverb_probability=1.0
    )
    augment = WaveAugment(config, sample_rate=RATE)
    waveform = noise_of(5 * RATE)
    for seed in range(20):
        result = augment(waveform, generator=seeded(seed))
        assert result.shape == waveform.shape and bool(torch.isfinite(result).all())
        assert 0.2 < float(result.norm() / waveform.norm()) < 5
