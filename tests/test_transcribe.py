"""Files to transcripts: cutting long audio, folders, what the command prints, and every kind of bad file."""

import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from asr import audio
from asr.checkpoint import LoadedModel
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.search import DecodingConfig, Encoding, Recognition, Search
from asr.nn.model import Recognizer
from asr.transcribe import (
    SegmentationConfig,
    Source,
    find_sources,
    refuse_clashes,
    segment_stream,
    transcribe,
)
from asr.transcript import Transcript

RATE = tiny.SAMPLE_RATE
SHORT = SegmentationConfig(min_segment_s=1.0, max_segment_s=2.0, max_batch_s=5.0)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny.make_loaded()


def assert_well_formed(transcript: Transcript) -> None:
    """Segments follow each other from zero to the end; words lie in order inside their segment."""
    edges = [0.0, *(segment.end_s for segment in transcript.segments)]
    assert [segment.start_s for segment in transcript.segments] == edges[:-1]
    assert edges[-1] == transcript.duration_s
    assert transcript.text == " ".join(segment.text for segment in transcript.segments if segment.text)
    for segment in transcript.segments:
        assert segment.text == " ".join(word.word for word in segment.words)
        times = [segment.start_s, *(time for word in segment.words for time in (word.start_s, word.end_s))]
        assert [*times, segment.end_s] == sorted([*times, segment.end_s])
        assert all(0 <= word.confidence <= 1 for word in segment.words)
        assert 0 <= segment.confidence <= 1


# Cutting a stream


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


def test_two_files_with_one_transcript_are_an_error() -> None:
    sources = find_sources([Path("a/x.wav"), Path("b/x.flac")])
    message = r"^a/x\.wav and b/x\.flac would both become the transcript x; transcribe them apart$"
    with pytest.raises(ValueError, match=message):
        refuse_clashes(sources)
    refuse_clashes(find_sources([Path("a/x.wav"), Path("a/y.wav")]))


# One transcript


def test_a_transcript_has_words_in_order_within_its_duration(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tiny.write_noise(tmp_path / "a.wav", duration_s=7.3)
    transcript = transcribe(loaded, path, segmentation=SHORT)
    assert transcript.audio == str(path)
    assert transcript.duration_s == pytest.approx(7.3)
    assert len(transcript.segments) > 3
    assert len(transcript.text.split()) > 10, "the tiny model says something"
    assert_well_formed(transcript)


def test_segments_of_one_batch_get_the_transcripts_that_they_get_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tiny.write_noise(tmp_path / "a.wav", duration_s=7.3)
    together = transcribe(loaded, path, segmentation=SHORT)
    one_by_one = SegmentationConfig(min_segment_s=1.0, max_segment_s=2.0, max_batch_s=0.1)
    alone = transcribe(loaded, path, segmentation=one_by_one)
    assert alone.text == together.text
    words = [[word for segment in each.segments for word in segment.words] for each in (alone, together)]
    for first, second in zip(*words, strict=True):
        assert (first.word, first.start_s, first.end_s) == (second.word, second.start_s, second.end_s)
        assert first.confidence == pytest.approx(second.confidence, abs=1e-3)


@pytest.mark.parametrize("num_channels", [1, 2, 5])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_channels_and_lossless_formats_do_not_matter(
    loaded: LoadedModel, tmp_path: Path, suffix: str, num_channels: int
) -> None:
    expected = transcribe(loaded, tiny.write_noise(tmp_path / "plain.wav"), name="x")
    other = transcribe(loaded, tiny.write_noise(tmp_path / f"other{suffix}", num_channels=num_channels), name="x")
    assert other.text == expected.text
    assert other.duration_s == expected.duration_s


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
@pytest.mark.parametrize("sample_rate", [8_000, 48_000])
def test_any_format_at_any_rate_gives_a_well_formed_transcript(
    loaded: LoadedModel, tmp_path: Path, suffix: str, sample_rate: int
) -> None:
    path = tiny.write_noise(tmp_path / f"a{suffix}", duration_s=2.5, sample_rate=sample_rate, num_channels=2)
    transcript = transcribe(loaded, path, segmentation=SHORT)
    assert transcript.duration_s == pytest.approx(2.5, abs=0.01)
    assert_well_formed(transcript)


@pytest.mark.parametrize("num_samples", [1, 79, 320, 321])
def test_the_shortest_audio_has_a_transcript(loaded: LoadedModel, tmp_path: Path, num_samples: int) -> None:
    path = tiny.write_noise(tmp_path / "short.wav", duration_s=num_samples / RATE)
    transcript = transcribe(loaded, path)
    assert len(transcript.segments) == 1
    assert_well_formed(transcript)


def test_joint_search_gives_a_well_formed_transcript(loaded: LoadedModel, tmp_path: Path) -> None:
    config = DecodingConfig(mode="joint", beam_size=3)
    transcript = transcribe(loaded, tiny.write_noise(tmp_path / "a.wav"), decoding=config)
    assert transcript.text
    assert_well_formed(transcript)


def test_audio_without_words_has_an_empty_text_and_full_confidence(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_search(monkeypatch, tokens=())
    transcript = transcribe(loaded, tiny.write_noise(tmp_path / "a.wav"))
    assert (transcript.text, transcript.confidence) == ("", 1.0)
    assert transcript.segments[0].words == []


# Long audio


def stub_search(
    monkeypatch: pytest.MonkeyPatch, *, batches_s: list[float] | None = None, tokens: tuple[int, ...] = (3,)
) -> None:
    """Hears the same everywhere, and notes how much audio each batch holds, padding included."""

    def encode(model: Recognizer, waveforms: Tensor, lengths: Tensor) -> Tensor:
        if batches_s is not None:
            batches_s.append(waveforms.numel() / RATE)
        return lengths

    def search(self: Search, lengths: Tensor) -> list[Recognition]:
        log_probs = torch.full((4, 6), 1 / 6).log()
        return [Recognition([Hypothesis(tokens, 0.0)], log_probs) for _ in lengths]

    monkeypatch.setattr("asr.transcribe.encode", encode)
    monkeypatch.setattr(Search, "__call__", search)


def test_long_audio_is_read_and_recognised_in_bounded_memory(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty minutes: blocks are let go of, and recognition keeps pace with reading."""
    num_blocks, block_s = 40, 30.0
    batches_s: list[float] = []
    blocks: list[weakref.ref[Tensor]] = []
    held: list[int] = []
    waiting_s: list[float] = []

    def stream(_: object, **__: object) -> Iterator[Tensor]:
        for number in range(num_blocks):
            held.append(sum(block() is not None for block in blocks))
            waiting_s.append(number * block_s - sum(batches_s))
            block = tiny.noise(round(block_s * RATE), seed=number)
            blocks.append(weakref.ref(block))
            yield block
            del block

    monkeypatch.setattr(audio, "stream", stream)
    stub_search(monkeypatch, batches_s=batches_s)
    config = SegmentationConfig()
    transcript = transcribe(loaded, Path("long.flac"))
    assert transcript.duration_s == num_blocks * block_s
    assert_well_formed(transcript)
    assert len(transcript.text.split()) == len(transcript.segments)
    assert max(segment.end_s - segment.start_s for segment in transcript.segments) <= config.max_segment_s
    assert max(batches_s) <= config.max_batch_s
    assert max(held) <= 1
    assert max(waiting_s) <= config.max_batch_s + config.max_segment_s + block_s


def test_segments_with_and_without_words_join_to_one_text(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = itertools.cycle([(3,), (), (4, 2, 5)])

    def search(self: Search, encoding: Encoding) -> list[Recognition]:
        log_probs = torch.full((9, 6), 1 / 6).log()
        return [Recognition([Hypothesis(next(spoken), 0.0)], log_probs) for _ in encoding.lengths]

    monkeypatch.setattr(Search, "__call__", search)
    transcript = transcribe(loaded, tiny.write_noise(tmp_path / "a.wav", duration_s=4.5), segmentation=SHORT)
    assert [segment.text for segment in transcript.segments[:3]] == ["a", "", "b c"]
    assert transcript.text.startswith("a b c")
    assert_well_formed(transcript)
