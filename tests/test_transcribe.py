"""Files to transcripts: one, long ones in bounded memory, many in shared batches; bad files, Ctrl-C and progress."""

import io
import itertools
import signal
import sys
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from torch import Tensor

from asr import audio
from asr.audio import SegmentationConfig, find_sources
from asr.checkpoint import LoadedModel
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.search import DecodingConfig, Encoding, Recognition, Search
from asr.nn.model import Recognizer
from asr.transcribe import refuse_clashes, transcribe_files
from asr.transcriber import Transcriber, transcribe
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


# Where transcripts go


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
    # Formats round to 16 bits differently, which a model of random weights may tell apart in bfloat16.
    exact = Transcriber(loaded, precision="float32")
    expected = exact(tiny.write_noise(tmp_path / "plain.wav"), name="x")
    other = exact(tiny.write_noise(tmp_path / f"other{suffix}", num_channels=num_channels), name="x")
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

    def encode(model: Recognizer, waveforms: Tensor, lengths: Tensor, *, dtype: torch.dtype) -> Tensor:
        if batches_s is not None:
            batches_s.append(waveforms.numel() / RATE)
        return lengths

    def search(self: Search, lengths: Tensor) -> list[Recognition]:
        log_probs = torch.full((4, 6), 1 / 6).log()
        return [Recognition([Hypothesis(tokens, 0.0)], log_probs) for _ in lengths]

    monkeypatch.setattr("asr.transcriber.encode_batch", encode)
    monkeypatch.setattr(Search, "__call__", search)


def test_long_audio_is_read_and_recognised_in_bounded_memory(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an hour: blocks are let go of, and reading keeps pace with recognition."""
    num_blocks, block_s = 60, 30.0
    batches_s: list[float] = []
    blocks: list[weakref.ref[Tensor]] = []
    held: list[int] = []
    waiting_s: list[float] = []

    def stream(_: object, **__: object) -> Generator[Tensor, None, None]:
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
    # What the batches are chosen from, the batch at work, segments that wait to be looked at, what is being cut.
    ahead_s = 5 * config.max_batch_s + 9 * config.max_segment_s + config.max_segment_s + block_s
    assert max(waiting_s) <= ahead_s < num_blocks * block_s / 2


def test_segments_with_and_without_words_join_to_one_text(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = itertools.cycle([(3,), (), (4, 2, 5)])

    def search(self: Search, encoding: Encoding) -> list[Recognition]:
        log_probs = torch.full((9, 6), 1 / 6).log()
        return [Recognition([Hypothesis(next(spoken), 0.0)], log_probs) for _ in encoding.lengths]

    monkeypatch.setattr(Search, "__call__", search)
    one_by_one = SegmentationConfig(min_segment_s=1.0, max_segment_s=2.0, max_batch_s=0.1)
    transcript = transcribe(loaded, tiny.write_noise(tmp_path / "a.wav", duration_s=4.5), segmentation=one_by_one)
    assert [segment.text for segment in transcript.segments[:3]] == ["a", "", "b c"]
    assert transcript.text.startswith("a b c")
    assert_well_formed(transcript)


# Many files


def named(paths: list[Path]) -> list[tuple[str, Path]]:
    return [(path.name, path) for path in paths]


def write_many(folder: Path, durations_s: list[float]) -> list[Path]:
    return [
        tiny.write_noise(folder / f"{number}.wav", duration_s=duration_s, seed=number)
        for number, duration_s in enumerate(durations_s)
    ]


@pytest.mark.parametrize("mode", ["greedy", "joint"])
def test_files_that_share_batches_get_the_transcripts_that_they_get_alone(
    loaded: LoadedModel, tmp_path: Path, mode: str
) -> None:
    paths = write_many(tmp_path, [0.3, 7.3, 1.0, 0.02, 2.5, 1.9, 4.1, 0.5, 3.3])
    transcriber = Transcriber(loaded, decoding=DecodingConfig(mode=mode, beam_size=3), segmentation=SHORT)
    together = [outcome.get() for outcome in transcriber.stream(named(paths))]
    assert [each.audio for each in together] == [path.name for path in paths]
    for path, transcript in zip(paths, together, strict=True):
        alone = transcriber(path, name=path.name)
        assert_well_formed(transcript)
        assert (transcript.text, transcript.duration_s) == (alone.text, alone.duration_s)
        for first, second in zip(alone.segments, transcript.segments, strict=True):
            assert (first.start_s, first.end_s) == (second.start_s, second.end_s)
            assert [word.start_s for word in first.words] == [word.start_s for word in second.words]
            assert first.scores == pytest.approx(second.scores, abs=1e-3)


def test_transcripts_come_while_later_files_are_not_even_opened(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = write_many(tmp_path, [1.0] * 40)
    opened: list[str] = []

    def inputs() -> Iterator[tuple[str, Path]]:
        for entry in named(paths):
            opened.append(entry[0])
            yield entry

    config = SegmentationConfig(max_batch_s=2.0)
    with closing(Transcriber(loaded, segmentation=config).stream(inputs())) as outcomes:
        first = next(outcomes).get()
        assert first.audio == "0.wav"
        assert len(opened) <= 8 + 8 + 2, "four batches of two, what waits in line, what is being read"
        assert [outcome.get().audio for outcome in outcomes] == [path.name for path in paths[1:]]


def test_batches_are_full_of_audio_and_not_of_padding(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations_s = torch.rand(120, generator=torch.Generator().manual_seed(0)).mul(9).add(1).tolist()
    batches_s: list[float] = []
    stub_search(monkeypatch, batches_s=batches_s)
    config = SegmentationConfig(max_batch_s=40.0)
    list(Transcriber(loaded, segmentation=config).stream(named(write_many(tmp_path, durations_s))))
    assert sum(batches_s) < 1.25 * sum(durations_s), "in the order of the files it would be 1.6 times"


def test_a_file_without_a_number_for_an_answer_does_not_spoil_its_batch(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = write_many(tmp_path, [1.0, 1.0, 1.0, 1.0])
    soundfile.write(paths[2], np.array([1e30, -1e30] * 60_000, np.float32), RATE, subtype="FLOAT")
    transcriber = Transcriber(loaded, segmentation=SHORT)
    outcomes = list(transcriber.stream(named(paths)))
    with pytest.raises(audio.AudioError, match=r"^2\.wav: the model's output is not a number"):
        outcomes[2].get()
    for number in (0, 1, 3):
        assert outcomes[number].get().text == transcriber(paths[number]).text != ""


def test_bad_files_alone_and_no_files_at_all(loaded: LoadedModel, tmp_path: Path) -> None:
    transcriber = Transcriber(loaded)
    assert list(transcriber.stream([])) == []
    outcomes = list(transcriber.stream(named([tmp_path / "no.wav", tmp_path / "nothing.wav"])))
    for outcome, name in zip(outcomes, ["no", "nothing"], strict=True):
        with pytest.raises(audio.AudioError, match=rf"^{name}\.wav: cannot be opened"):
            outcome.get()


def test_a_bad_file_is_not_read_to_its_end(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    num_read = 0

    def stream(_: object, **__: object) -> Generator[Tensor, None, None]:
        nonlocal num_read
        for _number in range(1000):
            num_read += 1
            yield torch.full((RATE,), 1e30)

    monkeypatch.setattr(audio, "stream", stream)
    (outcome,) = Transcriber(loaded, segmentation=SHORT).stream([("loud.wav", Path("loud.wav"))])
    with pytest.raises(audio.AudioError, match=r"^loud\.wav: the model's output is not a number"):
        outcome.get()
    assert num_read < 100


# Breaking off


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_broken_off_recognition_leaves_no_thread_and_no_open_file(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    def encode(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("asr.transcriber.encode_batch", encode)
    path = tiny.write_noise(tmp_path / "a.wav", duration_s=60)
    with pytest.raises(fault):
        transcribe_files(loaded, [path], format="txt", output_dir=None, segmentation=SHORT)
    assert readers() == []


def test_a_reader_that_hangs_does_not_keep_the_interruption_from_working(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_released = threading.Event()

    def stream(_: object, **__: object) -> Generator[Tensor, None, None]:
        is_released.wait(30)
        yield tiny.noise(RATE)

    monkeypatch.setattr(audio, "stream", stream)
    monkeypatch.setattr("asr.recognition._LONGEST_WAIT_S", 0.05)
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        transcribe(loaded, Path("far.wav"))
    is_released.set()
    for thread in readers():
        thread.join(5)
    assert readers() == []


# Progress


class Terminal(io.StringIO):
    """Where a person looks on."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("num_files", "expected"), [(1, "5 of 5 s |"), (2, "1 of 2 files |")])
def test_progress_is_seconds_of_one_file_or_number_of_files_and_the_speed(
    loaded: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    num_files: int,
    expected: str,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("asr.transcribe._PROGRESS_DELAY_S", 0.0)
    paths = write_many(tmp_path, [5.0] * num_files)
    transcribe_files(loaded, list(paths), format="txt", output_dir=None, segmentation=SHORT)
    assert expected in terminal.getvalue()
    assert f"{5 * num_files / 60:.1f} minutes, " in terminal.getvalue()
    assert " times real time" in terminal.getvalue()
    assert capsys.readouterr().out.count("\n") == num_files
    terminal.truncate(0)
    transcribe_files(loaded, list(paths), format="txt", output_dir=None, progress=False)
    assert terminal.getvalue() == ""


def test_memory_may_be_given_back_behind_every_batch(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr("asr.transcriber.MemoryReturns", lambda: lambda: given.append(1))
    config = SegmentationConfig(max_batch_s=1.0)
    list(Transcriber(loaded, segmentation=config).stream(named(write_many(tmp_path, [0.9, 0.8, 0.7]))))
    assert len(given) == 3
