"""Reading and cutting audio: every format, any rate, whole or in blocks, and one clear line for whatever is wrong."""

import io
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from torch import Tensor

from asr import audio
from asr.audio import SegmentationConfig, Source, find_sources, segment_stream

RATE = 16000
SHORT = SegmentationConfig(min_segment_s=1.0, max_segment_s=2.0)
FORMATS = ["wav", "flac", "ogg", "opus", "mp3"]
LIBRISPEECH = Path(__file__).parents[2] / "shared" / "data" / "LibriSpeech" / "dev-clean"


def chirp(num_samples: int = 7 * RATE + 123) -> np.ndarray:
    """A rising tone with some noise: what lossy codecs render differently after a careless seek."""
    phase = 2 * np.pi * np.cumsum(np.linspace(100, 3000, num_samples)) / RATE
    noise = 0.01 * np.random.default_rng(0).standard_normal(num_samples)
    return (0.3 * np.sin(phase) + noise).astype(np.float32)


def write(path: Path, samples: np.ndarray, sample_rate: int = RATE, **settings) -> Path:
    if path.suffix == ".opus":
        settings |= {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, samples, sample_rate, **settings)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The same 7 s in every format."""
    root = tmp_path_factory.mktemp("audio")
    return {suffix: write(root / f"a.{suffix}", chirp()) for suffix in FORMATS}


def joined(source, **settings) -> torch.Tensor:
    return torch.cat(list(audio.stream(source, **settings)))


# Reading


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_keeps_length_and_signal(files, suffix):
    waveform = audio.load(files[suffix], sample_rate=RATE)
    info = audio.probe(files[suffix])
    assert waveform.dtype == torch.float32 and waveform.shape == (7 * RATE + 123,)
    assert (info.sample_rate, info.num_channels, info.num_samples) == (RATE, 1, len(waveform))
    assert info.duration_s == pytest.approx(7 + 123 / RATE)
    similarity = torch.nn.functional.cosine_similarity(waveform, torch.from_numpy(chirp()), dim=0)
    assert similarity > (0.9999 if suffix in ("wav", "flac") else 0.95)


def test_channels_are_averaged_and_other_rates_are_resampled(tmp_path):
    left, right = chirp(48000), 0.1 * np.ones(48000, np.float32)
    path = write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 48000, subtype="FLOAT")
    assert audio.probe(path).num_channels == 2
    waveform = audio.load(path, sample_rate=48000)
    torch.testing.assert_close(waveform, torch.from_numpy((left + right) / 2))
    assert torch.equal(audio.load(path, sample_rate=RATE), audio.resample(waveform, from_rate=48000, to_rate=RATE))


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_open_stream_reads_like_the_file(files, suffix):
    expected = audio.load(files[suffix], sample_rate=RATE)
    stream = io.BytesIO(files[suffix].read_bytes())
    assert torch.equal(audio.load(stream, sample_rate=RATE), expected)


@pytest.mark.parametrize("read", [audio.load, joined])
def test_a_pipe_reads_like_the_file(files, read):
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(files["flac"].read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(read_end, "rb") as pipe:
        waveform = read(pipe, sample_rate=8000)
    feeder.join()
    torch.testing.assert_close(waveform, audio.load(files["flac"], sample_rate=8000), atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_part_is_the_same_part_of_the_whole(tmp_path, suffix):
    path = write(tmp_path / f"long.{suffix}", np.tile(chirp(), 4))
    whole = audio.load(path, sample_rate=RATE)
    for start_s, end_s in [(0.0, 1.0), (0.01, 0.02), (3.3, 4.7), (21.5, 22.0), (27.9, None), (27.0, len(whole) / RATE)]:
        part = audio.load(path, sample_rate=RATE, start_s=start_s, end_s=end_s)
        expected = whole[round(start_s * RATE) : None if end_s is None else round(end_s * RATE)]
        torch.testing.assert_close(part, expected, atol=1e-6, rtol=0)


def test_a_rounded_end_time_reads_to_the_end(files):
    part = audio.load(files["flac"], sample_rate=RATE, start_s=7.0, end_s=7.015)
    assert part.shape == (123,)


# Reading in blocks


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("sample_rate", [16000, 8000, 22050, 16001])
def test_blocks_are_the_whole(files, suffix, sample_rate):
    whole = audio.load(files[suffix], sample_rate=sample_rate)
    for block_s in (0.1, 0.37, 3.0, 100.0):
        blocks = joined(files[suffix], sample_rate=sample_rate, block_s=block_s)
        torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_samples", [1, 2, 1599, 1600, 1601, 1700, 3200])
def test_short_files_and_short_last_blocks(tmp_path, num_samples):
    path = write(tmp_path / "short.wav", chirp(num_samples))
    for sample_rate in (16000, 11025, 48000):
        whole = audio.load(path, sample_rate=sample_rate)
        assert len(whole) == -(-num_samples * sample_rate // RATE)
        torch.testing.assert_close(joined(path, sample_rate=sample_rate, block_s=0.1), whole, atol=1e-6, rtol=0)


def test_blocks_have_the_asked_length(files):
    lengths = [len(block) for block in audio.stream(files["flac"], sample_rate=RATE, block_s=2.0)]
    assert lengths == [32000, 32000, 32000, 16123]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = write(tmp_path / "long.wav", np.tile(chirp(RATE), 600))
    tracemalloc.start()
    num_samples = sum(len(block) for block in audio.stream(path, sample_rate=8000, block_s=1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_samples == 600 * 8000
    assert peak < 2_000_000, "the whole file would take 38 MB"


# MP3 headers


@pytest.fixture(scope="module")
def mp3(tmp_path_factory) -> tuple[bytes, torch.Tensor]:
    """A variable-rate MP3 that starts with silence, which misleads a guess from the first frames, and its samples."""
    samples = np.concatenate([np.zeros(10 * RATE, np.float32), chirp(), chirp()])
    path = write(tmp_path_factory.mktemp("mp3") / "a.mp3", samples, bitrate_mode="VARIABLE")
    return path.read_bytes(), audio.load(path, sample_rate=RATE)


def second_frame(data: bytes) -> int:
    return data.index(data[:2], 4)


def test_an_mp3_without_a_length_header_is_read_to_its_end(mp3, tmp_path):
    data, expected = mp3
    path = tmp_path / "bare.mp3"
    path.write_bytes(data[second_frame(data) :])
    waveform = audio.load(path, sample_rate=RATE)
    assert audio.probe(path).num_samples == len(waveform)
    # Without the header nothing tells how much the encoder delayed the audio: 576 samples.
    assert 0 <= len(waveform) - len(expected) < 2 * 1152
    torch.testing.assert_close(waveform[576 + 20 * RATE :][:8000], expected[20 * RATE :][:8000], atol=1e-5, rtol=0)


@pytest.mark.parametrize("between", [b"", b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128), b"rubbish" * 100])
def test_joined_mp3s_are_read_to_their_end(mp3, tmp_path, between):
    data, expected = mp3
    path = tmp_path / "joined.mp3"
    path.write_bytes(data + between + data)
    waveform = audio.load(path, sample_rate=RATE)
    assert audio.probe(path).num_samples == len(waveform)
    assert 0 <= len(waveform) - 2 * len(expected) < 8 * 576
    # The last frame before the joint differs, where a decoder would fade into what follows.
    torch.testing.assert_close(waveform[: len(expected) - 1152], expected[:-1152], atol=1e-5, rtol=0)


def test_damage_inside_an_mp3_is_an_error_but_what_lies_behind_it_is_not(mp3, tmp_path):
    data, expected = mp3
    path = tmp_path / "damaged.mp3"
    path.write_bytes(data + b"rubbish" * 3000 + data)
    with pytest.raises(audio.AudioError, match=r"damaged.mp3: is damaged or cut short after"):
        audio.load(path, sample_rate=RATE)
    path.write_bytes(data + b"rubbish" * 3000)
    assert torch.equal(audio.load(path, sample_rate=RATE), expected)


def test_an_mp3_cut_short_has_the_length_of_what_is_there(mp3, tmp_path):
    data, expected = mp3
    path = tmp_path / "cut.mp3"
    path.write_bytes(data[: len(data) // 2])
    waveform = audio.load(path, sample_rate=RATE)
    assert RATE < len(waveform) < len(expected)
    assert audio.probe(path).num_samples == len(waveform)


def test_an_mp3_behind_a_tag_and_other_files_behind_a_tag(mp3, files, tmp_path):
    data, expected = mp3
    tag = b"ID3\x04\x00\x00\x00\x00\x1f\x76" + bytes(0x1F * 128 + 0x76)
    (tmp_path / "tagged.mp3").write_bytes(tag + data)
    assert torch.equal(audio.load(tmp_path / "tagged.mp3", sample_rate=RATE), expected)
    (tmp_path / "tagged.flac").write_bytes(tag + files["flac"].read_bytes())
    assert audio.probe(tmp_path / "tagged.flac") == audio.probe(files["flac"])


# Resampling


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48000, 16000), (44100, 16000), (8000, 16000), (44056, 16000)])
def test_resampling_keeps_tones_and_suppresses_aliases(from_rate, to_rate):
    def tone(frequency: float, rate: int) -> torch.Tensor:
        return torch.sin(2 * np.pi * frequency * torch.arange(2 * rate, dtype=torch.float64) / rate).float()

    half = min(from_rate, to_rate) / 2
    for frequency in (0.02 * half, 0.5 * half, 0.87 * half):
        result = audio.resample(tone(frequency, from_rate), from_rate=from_rate, to_rate=to_rate)
        assert len(result) == 2 * to_rate
        torch.testing.assert_close(result[500:-500], tone(frequency, to_rate)[500:-500], atol=2e-3, rtol=0)
    if from_rate > to_rate:
        result = audio.resample(tone(1.1 * half, from_rate), from_rate=from_rate, to_rate=to_rate)
        assert float(result[500:-500].abs().max()) < 1e-3


def test_resampling_a_batch_and_a_view():
    waveforms = torch.randn(2, 4, 3000).transpose(0, 1)
    for to_rate in (8000, 15999):
        result = audio.resample(waveforms, from_rate=RATE, to_rate=to_rate)
        alone = audio.resample(waveforms[3, 1], from_rate=RATE, to_rate=to_rate)
        torch.testing.assert_close(result[3, 1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rates", [(0, 16000), (16000, -1)])
def test_rates_must_be_positive(rates):
    with pytest.raises(ValueError, match=r"both rates must be positive"):
        audio.resample(torch.zeros(10), from_rate=rates[0], to_rate=rates[1])


# Cutting


def cut(blocks: list[Tensor], config: SegmentationConfig, *, sample_rate: int = RATE) -> list[Tensor]:
    return list(segment_stream(iter(blocks), sample_rate=sample_rate, config=config))


@pytest.mark.parametrize("block_s", [0.1, 0.7, 3.0, 100.0])
@pytest.mark.parametrize("duration_s", [0.01, 1.99, 2.0, 2.01, 13.37])
def test_segments_have_no_gap_no_overlap_and_bounded_lengths(duration_s: float, block_s: float) -> None:
    waveform = tiny.noise(round(duration_s * RATE))
    segments = cut(list(waveform.split(round(block_s * RATE))), SHORT)
    assert torch.equal(torch.cat(segments), waveform)
    lengths_s = [len(segment) / RATE for segment in segments]
    assert max(lengths_s) <= SHORT.max_segment_s
    assert min(lengths_s[:-1], default=SHORT.min_segment_s) >= SHORT.min_segment_s
    assert lengths_s[-1] > 0


def test_segments_do_not_depend_on_the_blocks_of_the_stream() -> None:
    waveform = tiny.noise(15 * RATE)
    expected = cut([waveform], SHORT)
    for size in (1000, 7777, 30_000):
        segments = cut(list(waveform.split(size)), SHORT)
        assert [len(segment) for segment in segments] == [len(segment) for segment in expected]


def test_audio_of_the_longest_length_stays_whole() -> None:
    assert len(cut([tiny.noise(2 * RATE)], SHORT)) == 1
    assert len(cut([tiny.noise(2 * RATE + 1)], SHORT)) == 2


def test_long_audio_is_cut_in_the_middle_of_its_silences() -> None:
    waveform = tiny.noise(6 * RATE)
    for silence_s in (1.5, 3.2, 4.4):
        waveform[round((silence_s - 0.15) * RATE) : round((silence_s + 0.15) * RATE)] = 0
    segments = cut([waveform], SHORT)
    ends_s = torch.tensor([len(segment) / RATE for segment in segments]).cumsum(0).tolist()
    assert ends_s == pytest.approx([1.5, 3.2, 4.4, 6.0], abs=0.1)


@pytest.mark.parametrize("sample_rate", [16_000, 8_000, 11_025])
def test_a_narrow_choice_of_places_to_cut_is_enough(sample_rate: int) -> None:
    config = SegmentationConfig(min_segment_s=1.0, max_segment_s=1.05)
    waveform = tiny.noise(5 * sample_rate)
    segments = cut([waveform], config, sample_rate=sample_rate)
    assert torch.equal(torch.cat(segments), waveform)
    assert all(1.0 <= len(segment) / sample_rate <= 1.05 for segment in segments[:-1])


def test_digital_silence_and_nothing_at_all_are_cut_too() -> None:
    assert sum(len(segment) for segment in cut([torch.zeros(9 * RATE)], SHORT)) == 9 * RATE
    assert cut([], SHORT) == []


@pytest.mark.parametrize(("shortest", "longest"), [(0.5, 2.0), (3.0, 3.0), (5.0, 2.0)])
def test_limits_that_contradict_each_other_are_an_error(shortest: float, longest: float) -> None:
    message = rf"^min_segment_s {shortest:g} and max_segment_s {longest:g}: the first must be at least 1 and below"
    with pytest.raises(ValueError, match=message):
        SegmentationConfig(min_segment_s=shortest, max_segment_s=longest)


@pytest.mark.parametrize("longest", [0.0, -1.0, float("nan")])
def test_a_batch_must_hold_something(longest: float) -> None:
    with pytest.raises(ValueError, match=rf"^max_batch_s is {longest:g}; it must be above 0$"):
        SegmentationConfig(max_batch_s=longest)


# Finding files


def test_a_folder_means_all_audio_below_it_sorted(tmp_path: Path) -> None:
    for name in ("b.flac", "a/c.WAV", "a/d/e.mp3", "a/d/e.f.ogg", "a/notes.txt", "a/d/e.opus.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    sources = find_sources([tmp_path])
    assert [str(source.path.relative_to(tmp_path)) for source in sources] == [
        "a/c.WAV",
        "a/d/e.f.ogg",
        "a/d/e.mp3",
        "b.flac",
    ]
    assert [str(source.relative) for source in sources] == ["a/c", "a/d/e.f", "a/d/e", "b"]


def test_a_file_needs_no_known_ending_and_goes_by_its_name_alone() -> None:
    assert find_sources([Path("x/y.raw"), Path("-")]) == [
        Source(Path("x/y.raw"), Path("y")),
        Source(Path("-"), Path("stdin")),
    ]


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    message = rf"^{tmp_path}: no audio in this folder; expected files of \.flac \.wav \.opus \.ogg \.mp3$"
    with pytest.raises(ValueError, match=message):
        find_sources([tmp_path])


# Writing


@pytest.mark.parametrize("suffix", ["wav", "flac", "WAV"])
def test_save_and_load_give_16_bit_audio_back_exactly(tmp_path, suffix):
    waveform = torch.tensor([0, 1, -1, 12345, -32768, 32767]) / 32768
    audio.save(tmp_path / f"a.{suffix}", waveform, sample_rate=8000)
    assert torch.equal(audio.load(tmp_path / f"a.{suffix}", sample_rate=8000), waveform)


def test_save_clips(tmp_path):
    audio.save(tmp_path / "a.wav", torch.tensor([1.5, -1.5]), sample_rate=8000)
    loaded = audio.load(tmp_path / "a.wav", sample_rate=8000)
    assert loaded.tolist() == [32767 / 32768, -1.0]


@pytest.mark.parametrize(
    ("name", "waveform", "message"),
    [
        ("a.mp3", torch.zeros(10), r"a.mp3: writing .mp3 is not supported; use .flac or .wav"),
        ("a", torch.zeros(10), r"a: writing without a suffix is not supported"),
        ("a.wav", torch.zeros(1, 10), r"a.wav: a waveform of shape \(S,\) is expected, got \(1, 10\)"),
        ("a.wav", torch.tensor([float("inf")]), r"a.wav: the waveform holds NaN or infinite samples"),
        ("none/a.wav", torch.zeros(10), r"none/a.wav: cannot be written \(.*\); check the folder and the free space"),
    ],
)
def test_save_errors(tmp_path, name, waveform, message):
    with pytest.raises(audio.AudioError, match=message):
        audio.save(tmp_path / name, waveform, sample_rate=8000)


# Bad input


def bad_files(root: Path) -> dict[str, str]:
    """Writes every kind of bad file; returns its name and what the message must say."""
    (root / "folder.wav").mkdir()
    (root / "empty.wav").touch()
    (root / "text.wav").write_text("this is no audio\n" * 50)
    write(root / "nothing.wav", np.zeros(0, np.float32))
    samples = chirp(2 * RATE)
    samples[RATE] = np.nan
    write(root / "nan.wav", samples, subtype="FLOAT")
    samples[RATE] = -np.inf
    write(root / "inf.wav", samples, subtype="FLOAT")
    data = write(root / "cut.flac", chirp()).read_bytes()
    (root / "cut.flac").write_bytes(data[: len(data) // 2])
    return {
        "missing.wav": r"cannot be opened \(no such file or directory\); check the path",
        "folder.wav": "is a directory, not an audio file; name a file in it",
        "empty.wav": r"is empty \(0 bytes\); fetch or record it again",
        "text.wav": r"is not audio that can be read \(format not recognised\); expected FLAC, WAV, Ogg Vorbis",
        "nothing.wav": "holds no samples; record it again",
        "nan.wav": "holds a NaN or infinite sample at 1.000 s; convert it again",
        "inf.wav": "holds a NaN or infinite sample at 1.000 s; convert it again",
        "cut.flac": r"is damaged or cut short after .* s \(.*\); fetch or convert it again",
    }


@pytest.mark.parametrize("read", [audio.load, joined])
@pytest.mark.parametrize("sample_rate", [16000, 8000])
def test_bad_files_give_one_line_that_names_them(tmp_path, read, sample_rate):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(audio.AudioError, match=f"{name}: {message}") as caught:
            read(tmp_path / name, sample_rate=sample_rate)
        assert "\n" not in str(caught.value)


def test_probe_errors(tmp_path):
    for name, message in bad_files(tmp_path).items():
        if name not in ("nan.wav", "inf.wav", "cut.flac"):
            with pytest.raises(audio.AudioError, match=f"{name}: {message}"):
                audio.probe(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"no audio at all" * 30])
def test_bad_streams(data):
    with pytest.raises(audio.AudioError, match=r"audio stream: is (empty|not audio)"):
        audio.load(io.BytesIO(data), sample_rate=RATE)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"start_s": -0.1}, r"start_s -0.1 lies outside the file's 0 to 7.008 s"),
        ({"start_s": 7.1}, r"start_s 7.1 lies outside the file's 0 to 7.008 s"),
        ({"start_s": float("nan")}, r"start_s nan lies outside"),
        ({"start_s": 2.0, "end_s": 2.0}, r"end_s 2 must lie behind start_s 2"),
        ({"start_s": 2.0, "end_s": 7.2}, r"end_s 7.2 lies outside the file's 0 to 7.008 s"),
    ],
)
def test_parts_outside_the_file(files, part, message):
    with pytest.raises(audio.AudioError, match=rf"a.flac: {message}"):
        audio.load(files["flac"], sample_rate=RATE, **part)


def test_blocks_must_not_be_tiny(files):
    with pytest.raises(ValueError, match=r"block_s is 0.01, but a block must be at least 0.1 s long"):
        next(audio.stream(files["flac"], sample_rate=RATE, block_s=0.01))


@pytest.mark.real
@pytest.mark.skipif(not LIBRISPEECH.is_dir(), reason="no real speech")
def test_real_speech():
    for path in sorted(LIBRISPEECH.rglob("*.opus"))[:10]:
        waveform = audio.load(path, sample_rate=RATE)
        assert len(waveform) == audio.probe(path).num_samples
        torch.testing.assert_close(joined(path, sample_rate=RATE, block_s=1.3), waveform, atol=1e-6, rtol=0)
