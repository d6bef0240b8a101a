"""`asr align`: a known text gets times, in audio of any length, and what does not fit is one clear line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from asr.alignment import align_file, align_waveform, ctc_log_probs
from asr.audio import SegmentationConfig
from asr.checkpoint import LoadedModel
from asr.cli import main
from asr.decoding.search import Encoding, encode
from asr.nn.model import Recognizer
from asr.transcriber import Transcriber

RATE = tiny.SAMPLE_RATE


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny.make_loaded()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """A working directory with the model `model`, the file `good.wav` of a second and a text for it, `good.txt`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "model")
    tiny.write_noise(Path("good.wav"))
    Path("good.txt").write_text("A b,\nca!\n")
    return tmp_path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["align", *arguments, "--model", "model", "--device", "cpu"])
    output = capsys.readouterr()
    return code, output.out, output.err


# The command


def test_words_of_the_normalised_text_come_out_as_ctm(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["good.wav", "good.txt"], capsys)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [(file, channel, word) for file, channel, _, _, word, _ in rows] == [
        ("good", "1", "a"),
        ("good", "1", "b"),
        ("good", "1", "ca"),
    ]
    starts_s = [float(start) for _, _, start, *_ in rows]
    assert starts_s == sorted(set(starts_s)) and starts_s[-1] < 1.0


def test_json_and_textgrid_hold_the_whole_text(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcript = json.loads(run(["good.wav", "good.txt", "--format", "json"], capsys)[1])
    assert (transcript["audio"], transcript["duration_s"], transcript["text"]) == ("good.wav", 1.0, "a b ca")
    (segment,) = transcript["segments"]
    assert (segment["start_s"], segment["end_s"], len(segment["words"])) == (0.0, 1.0, 3)
    code, out, _ = run(["good.wav", "good.txt", "--format", "textgrid"], capsys)
    assert code == 0
    assert out.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n')
    assert '            text = "a b ca"\n' in out


def test_other_formats_are_wrong_usage(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["good.wav", "good.txt", "--format", "txt"], capsys)
    assert caught.value.code == 2
    assert "choose from" in capsys.readouterr().err


BAD_TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b" ?\n", "good.wav: the text holds no words; write down what is said in the audio"),
    "unknown": (
        b"a 2 b",
        "good.wav: the tokenizer has no token for '2' (U+0032) in the text 'a 2 b'; write it with the model's "
        "characters, numbers as words",
    ),
    "long": (
        b"ab" * 12 + b"cc c",
        "good.wav: the text needs 29 frames of 40 ms at least, but the 1.00 s of audio have 26; check that text and "
        "audio belong together",
    ),
    "latin": (b"a caf\xe9", "bad.txt: byte 6 is not UTF-8 text; convert the file to UTF-8"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_text_that_does_not_fit_is_one_clear_line(
    workplace: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_TEXTS[name]
    Path("bad.txt").write_bytes(content)
    assert run(["good.wav", "bad.txt"], capsys) == (1, "", f"error: {message}\n")


def test_missing_files_are_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no.wav", "good.txt"], capsys) == (
        1,
        "",
        "error: no.wav: cannot be opened (no such file or directory); check the path\n",
    )
    assert run(["good.wav", "no.txt"], capsys) == (1, "", "error: no.txt: No such file or directory\n")


def test_a_model_that_answers_with_nan_is_one_clear_line(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model.ctc, "forward", lambda frames: frames @ torch.full((tiny.WIDTH, 6), torch.nan))
    path = tiny.write_noise(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=rf"^{path}: the model's output is not a number \(NaN\)"):
        align_file(loaded, path, "a b")


# The alignment


def test_what_the_model_recognises_is_aligned_as_in_its_transcript(loaded: LoadedModel, tmp_path: Path) -> None:
    # Noise in which the tiny model hears no two spaces in a row, which would be tokens, but no text.
    path = tiny.write_noise(tmp_path / "a.wav", duration_s=2.0, seed=1)
    transcript = Transcriber(loaded, precision="float32")(path)  # as alignment computes
    assert len(transcript.segments[0].words) > 3
    aligned, searched = align_file(loaded, path, transcript.text), transcript.segments[0]
    assert searched.scores and not aligned.segments[0].scores  # nothing was searched
    assert aligned == replace(transcript, segments=[replace(searched, scores={})])


def test_short_audio_is_heard_as_one(loaded: LoadedModel) -> None:
    waveform = tiny.noise(3 * RATE)
    expected = encode(loaded.model, waveform[None], torch.tensor([len(waveform)])).log_probs[0]
    assert torch.equal(ctc_log_probs(loaded, waveform), expected)


@pytest.mark.parametrize("num_samples", [1, 319, 320, 5 * RATE, 5 * RATE + 1, 5 * RATE + 319, 7 * RATE + 77])
def test_cuts_of_long_audio_keep_every_frame_in_its_place(
    loaded: LoadedModel, num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform = torch.arange(num_samples, dtype=torch.float32) + 1
    heard: list[int] = []

    def hear(model: Recognizer, waveforms: Tensor, lengths: Tensor) -> Encoding:
        """Frames that say which sample stands at their centre; behind the end there is none."""
        heard.append(waveforms.shape[1])
        padded = torch.cat([waveforms[0], torch.zeros(320)])
        centres = padded[None, : 320 * model.num_frames(waveforms.shape[1]) : 320, None]  # (1, T', 1)
        return Encoding(centres, lengths, centres)

    monkeypatch.setattr("asr.alignment.encode", hear)
    config = SegmentationConfig(min_segment_s=1.0, max_segment_s=2.0)
    frames = ctc_log_probs(loaded, waveform, segmentation=config)[:, 0]
    assert len(frames) == loaded.model.num_frames(num_samples)
    inside = [min(320 * frame + 1, num_samples + 1) for frame in range(len(frames))]
    assert frames.tolist() == [float(sample) if sample <= num_samples else 0.0 for sample in inside]
    assert max(heard) <= 2 * RATE + 320
    assert (len(heard) > 1) == (num_samples > 2 * RATE)


def test_long_audio_is_aligned_across_its_cuts(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SegmentationConfig(min_segment_s=1.0, max_segment_s=2.0)
    monkeypatch.setattr("asr.alignment.SegmentationConfig", lambda: config)
    segment = align_waveform(loaded, tiny.noise(8 * RATE), "a b c ab " * 10)
    assert (segment.start_s, segment.end_s, len(segment.words)) == (0.0, 8.0, 40)
    edges = [edge for word in segment.words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges) and edges[-1] <= 8.0
