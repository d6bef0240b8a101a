"""`asr transcribe` and `asr info`: what they print, where files go, and every kind of bad file as one clear line."""

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny

from asr import devices
from asr.checkpoint import LoadedModel
from asr.cli import DECODINGS, PRECISIONS, main
from asr.confidence import Calibration
from asr.decoding.search import MODES, DecodingConfig
from asr.transcribe import transcribe_files
from asr.transcriber import transcribe


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny.make_loaded()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """A working directory with the model `model` and the file `good.wav`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "model")
    tiny.write_noise(Path("good.wav"))
    return tmp_path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["transcribe", *arguments, "--model", "model", "--device", "cpu"])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_one_file_prints_its_words_and_nothing_else(
    workplace: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = transcribe(loaded, Path("good.wav")).text
    assert expected
    assert run(["good.wav"], capsys) == (0, f"{expected}\n", "")


def test_json_has_the_promised_fields_in_the_promised_order(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["good.wav", "--format", "json"], capsys)
    assert (code, err) == (0, "")
    transcript = json.loads(out)
    assert list(transcript) == ["audio", "duration_s", "text", "confidence", "segments"]
    assert transcript["audio"] == "good.wav" and transcript["duration_s"] == 1.0
    assert isinstance(transcript["text"], str) and isinstance(transcript["confidence"], float)
    (segment,) = transcript["segments"]
    assert list(segment) == ["start_s", "end_s", "text", "confidence", "words", "tokens", "scores"]
    assert list(segment["scores"]) == ["total", "ctc"]
    assert segment["tokens"][0].keys() == {"token", "start_s", "end_s", "confidence"}
    assert segment["words"][0]["start_s"] in {token["start_s"] for token in segment["tokens"]}
    assert (segment["start_s"], segment["end_s"]) == (0.0, 1.0)
    assert segment["words"]
    for word in segment["words"]:
        assert list(word) == ["word", "start_s", "end_s", "confidence"]
        assert isinstance(word["word"], str) and isinstance(word["start_s"], float)


def test_an_output_folder_mirrors_the_folders_that_were_given(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("a/b.flac", "a/c/d.e.wav", "f.ogg")):
        tiny.write_noise(workplace / "speech" / name, seed=number)
    code, out, err = run(["speech", "good.wav", "--output-dir", "out/deep", "--format", "json"], capsys)
    assert (code, out) == (0, "")
    files = sorted(str(file.relative_to("out/deep")) for file in Path("out/deep").rglob("*") if file.is_file())
    assert files == ["a/b.json", "a/c/d.e.json", "f.json", "good.json"]
    assert json.loads(Path("out/deep/a/b.json").read_text())["audio"] == "speech/a/b.flac"
    assert err.startswith("4 of 4 files, 0.1 minutes, ") and err.endswith(" times real time; out/deep\n")


def test_clashes_are_found_before_anything_is_written_and_only_where_files_are(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_noise(Path("other/good.flac"))
    files = ["good.wav", "other/good.flac"]
    assert main(["transcribe", *files, "--model", "model", "--output-dir", "out"]) == 1
    assert capsys.readouterr() == (
        "",
        "error: good.wav and other/good.flac would both become the transcript good; transcribe them apart\n",
    )
    assert not Path("out").exists()
    assert main(["transcribe", *files, "--model", "model"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_text_files_hold_one_line(workplace: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["good.wav", "--output-dir", "out"], capsys)[0] == 0
    assert Path("out/good.txt").read_text() == transcribe(loaded, Path("good.wav")).text + "\n"


@pytest.mark.parametrize(
    ("format", "ending", "beginning"),
    [
        ("srt", ".srt", "1\n00:00:0"),
        ("vtt", ".vtt", "WEBVTT\n\n00:00:0"),
        ("ctm", ".ctm", "good 1 "),
        ("textgrid", ".TextGrid", 'File type = "ooTextFile"\n'),
    ],
)
def test_other_formats_go_to_standard_output_or_to_files_with_their_own_endings(
    workplace: Path, format: str, ending: str, beginning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["good.wav", "--format", format], capsys)
    assert (code, err) == (0, "")
    assert out.startswith(beginning)
    assert run(["good.wav", "--format", format, "--output-dir", "out"], capsys)[0] == 0
    assert Path(f"out/good{ending}").read_text() == out


def test_ctm_of_several_files_follows_and_subtitles_and_textgrids_need_a_folder(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("good.wav", "other.wav")
    one = run(["good.wav", "--format", "ctm"], capsys)[1]
    both = run(["good.wav", "other.wav", "--format", "ctm"], capsys)
    assert both == (0, one + one.replace("good 1", "other 1"), "")
    for format in ("srt", "vtt", "textgrid"):
        assert run(["good.wav", "other.wav", "--format", format], capsys) == (
            1,
            "",
            f"error: 2 files cannot follow each other as {format} on standard output; name a folder for their "
            "transcripts with --output-dir\n",
        )
    assert run(["good.wav", "other.wav", "--format", "srt", "--output-dir", "out"], capsys)[0] == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["good.srt", "other.srt"]


def test_a_dash_reads_standard_input(
    workplace: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("good.wav").read_bytes())))
    code, out, err = run(["-", "--format", "json"], capsys)
    assert (code, err) == (0, "")
    assert json.loads(out)["audio"] == "-"
    assert json.loads(out)["text"] == transcribe(loaded, Path("good.wav")).text


def test_joint_search_can_be_asked_for(
    workplace: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = transcribe(loaded, Path("good.wav"), decoding=DecodingConfig(mode="joint")).text
    assert run(["good.wav", "--decoding", "joint"], capsys) == (0, f"{expected}\n", "")


def write_wav(name: str, samples: list[float]) -> None:
    soundfile.write(name, np.array(samples, dtype=np.float32), tiny.SAMPLE_RATE, subtype="FLOAT")


BAD_FILES: dict[str, tuple[Callable[[str], object], str]] = {
    "missing.wav": (lambda _: None, "cannot be opened (no such file or directory); check the path"),
    "empty.wav": (lambda name: Path(name).touch(), "is empty (0 bytes); fetch or record it again"),
    "text.wav": (
        lambda name: Path(name).write_text("this is no audio\n"),
        "is not audio that can be read (format not recognised); expected FLAC, WAV, Ogg Vorbis, Ogg Opus or MP3, so "
        "convert it to one of these",
    ),
    "no_samples.wav": (lambda name: write_wav(name, []), "holds no samples; record it again"),
    "nan.wav": (
        lambda name: write_wav(name, [0.1] * 4000 + [math.nan] + [0.1] * 4000),
        "holds a NaN or infinite sample at 0.500 s; convert it again",
    ),
    "infinite_power.wav": (
        lambda name: write_wav(name, [1e30, -1e30] * 1000),
        "the model's output is not a number (NaN); its weights or its input are damaged",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_clear_line_and_exit_code_1(
    workplace: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD_FILES[name]
    make(name)
    assert run([name], capsys) == (1, "", f"error: {name}: {message}\n")


def test_bad_files_do_not_stop_the_others(
    workplace: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (make, _) in BAD_FILES.items():
        make(name)
    expected = transcribe(loaded, Path("good.wav")).text
    code, out, err = run([*BAD_FILES, "good.wav"], capsys)
    assert (code, out) == (1, f"good.wav: {expected}\n")
    assert err == "".join(f"error: {name}: {message}\n" for name, (_, message) in BAD_FILES.items())

    code, out, err = run([*BAD_FILES, "good.wav", "--output-dir", "out"], capsys)
    assert (code, out) == (1, "")
    assert [path.name for path in Path("out").iterdir()] == ["good.txt"]
    assert err.splitlines()[-1].startswith(f"1 of {1 + len(BAD_FILES)} files, ")


def test_a_file_that_breaks_off_in_the_middle_leaves_no_transcript(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny.write_noise(Path("cut.flac"), duration_s=20).read_bytes()
    Path("cut.flac").write_bytes(whole[: len(whole) // 2])
    code, out, err = run(["cut.flac", "--output-dir", "out"], capsys)
    assert (code, out) == (1, "")
    assert err.startswith("error: cut.flac: is damaged or cut short after ")
    assert not Path("out").exists()


def test_no_files_at_all_is_wrong_usage(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["transcribe", "--model", "model"])
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_an_unknown_format_is_an_error(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match=r"^format is 'doc'; choose one of txt, json"):
        transcribe_files(loaded, [Path("a.wav")], format="doc", output_dir=None)


# Models on the command line


@pytest.mark.parametrize("command", [["transcribe", "good.wav", "--model", "model"], ["info", "model"]])
def test_a_model_cut_short_is_one_line(workplace: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert main(command) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: model/model.safetensors: cut short or damaged (")
    assert line.endswith("); copy it again or use another checkpoint")


@pytest.mark.parametrize("command", [["transcribe", "good.wav", "--model", "no"], ["info", "no"]])
def test_a_missing_model_is_one_line(workplace: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 1
    assert capsys.readouterr() == (
        "",
        "error: no: no such model; give a model folder or the folder of a finished run\n",
    )


def test_joint_search_without_a_decoder_is_one_line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("model")
    tiny.save(Path("model"), num_decoder_layers=0)
    assert run(["good.wav", "--decoding", "joint"], capsys) == (
        1,
        "",
        "error: decoding.mode is 'joint', but this model has no attention decoder; "
        "use mode greedy, prefix_beam or lexicon\n",
    )


def test_info_tells_what_a_model_is_made_of(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "model"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    rows = dict(line.split(maxsplit=1) for line in output.out.splitlines())
    assert rows["model"] == "model"
    assert rows["parameters"] == f"{tiny.make_model().num_parameters():,}"
    assert rows["tokens"] == "6 (char)"
    assert rows["frame"] == "40 ms"
    assert json.loads(rows["encoder"])["width"] == tiny.WIDTH
    assert json.loads(rows["training"]) == {"steps": 3}


def test_the_texts_of_several_files_follow_their_names(
    workplace: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("good.wav", "other.wav")
    text = transcribe(loaded, Path("good.wav")).text
    assert run(["good.wav", "other.wav"], capsys) == (0, f"good.wav: {text}\nother.wav: {text}\n", "")


def test_an_output_folder_that_is_a_file_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["good.wav", "--output-dir", "good.wav"], capsys)
    assert (code, out) == (1, "")
    assert err == "error: good.wav: is a file; name a folder for the transcripts\n"


def test_the_command_knows_all_ways_to_search() -> None:
    assert DECODINGS == MODES
    assert PRECISIONS == devices.PRECISIONS


def test_a_language_model_and_hotwords_take_part(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights so strong that they decide; the plain search says something else."""
    Path("lm.arpa").write_text(ARPA, encoding="utf-8")
    Path("names.txt").write_text("abba\t500\n", encoding="utf-8")
    plain = run(["good.wav", "--decoding", "prefix_beam"], capsys)
    with_words = run(["good.wav", "--hotwords", "names.txt"], capsys)
    assert plain[0] == with_words[0] == 0
    assert "abba" in with_words[1].split() and "abba" not in plain[1].split()
    tuned = {"weights": {"lm.ngram_weight": 1.5}, "calibration": Calibration().to_dict()}
    Path("model/decoding.json").write_text(json.dumps({"searches": {"prefix_beam+ngram": tuned}}))
    assert set(run(["good.wav", "--lm", "lm.arpa"], capsys)[1].split()) <= {"c"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beam-size", "7"], "--beam-size is 7, but greedy search has no beam; choose another --decoding"),
        (["--lm", "a.arpa", "--lm", "b.arpa"], "--lm names a.arpa and b.arpa; give one ngram language model"),
        (["--decoding", "joint", "--beam-size", "0"], "decoding.beam_size is 0; it must be at least 1"),
    ],
)
def test_options_that_do_not_fit_together_are_one_line(
    workplace: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["good.wav", *arguments], capsys) == (1, "", f"error: {message}\n")


def test_a_language_model_that_does_not_exist_is_one_line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "error: lm.arpa: no such language model; name an ARPA file or a compact one (.ngram)\n"
    assert run(["good.wav", "--lm", "lm.arpa"], capsys) == (1, "", message)


ARPA = """\\data\\
ngram 1=4

\\1-grams:
-99 <s>
-1.0 </s>
-30 <unk>
-0.05 c

\\end\\
"""
