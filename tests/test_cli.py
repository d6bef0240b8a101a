import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asr.cli import main

REFERENCE = "u1 The cat sat\nu2 on the blue mat\nu3 good morning\n"
HYPOTHESIS = "u1 the cat sits\nu2 on blue mat today\nu3 good morning\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a reference and a hypothesis."""
    monkeypatch.chdir(tmp_path)
    Path("ref.txt").write_text(REFERENCE)
    Path("hyp.txt").write_text(HYPOTHESIS)
    return tmp_path


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# The command itself


def test_help_needs_no_torch() -> None:
    code = "import sys; from asr.cli import build_parser; build_parser().format_help(); print('torch' in sys.modules)"
    assert run_python(code).stdout == "False\n"


def test_what_transcription_needs_does_not_import_the_compiler() -> None:
    """It takes three quarters of a second, which would be a fifth of the time to the first transcript."""
    code = (
        "import sys, asr.speech_model, asr.transcriber, asr.recognition; "
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy', 'triton') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    # The fastest of a few, since the machine may be busy.
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        result = run_python("from asr.cli import main; main(['--help'])")
        durations.append(time.perf_counter() - start)
        assert "commands:" in result.stdout
    assert min(durations) < 0.3


def test_garbage_is_collected_again_once_torch_is_imported() -> None:
    code = (
        "import gc; from asr.cli import main; code = main(['transcribe', 'nothing.flac']); "
        "import sys; print(code, gc.isenabled(), 'torch' in sys.modules, gc.get_stats()[0]['collections'] < 100)"
    )
    result = run_python(code)
    assert result.stdout == "1 True True True\n"
    assert result.stderr.startswith("error: nothing.flac: ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("asr 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["score", "ref.txt"], "the following arguments are required: HYPOTHESIS"),
        (["score", "a", "b", "--errors", "-1"], "'-1' is not a whole number of 0 or more"),
        (["score", "a", "b", "--errors", "many"], "'many' is not a whole number of 0 or more"),
        (["score", "a", "b", "--json", "--errors", "3"], "not allowed with argument --json"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err


def test_interrupt(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asr.evaluate.score", interrupted)
    assert main(["score", "ref.txt", "hyp.txt"]) == 130
    assert capsys.readouterr() == ("", "")


def test_reader_that_leaves_early(files: Path) -> None:
    code = "import sys; from asr.cli import main; sys.exit(main(['score', 'ref.txt', 'hyp.txt']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


# asr score


def test_score(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "ref.txt", "hyp.txt"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    table, confusions, title, first, second = output.out.split("\n\n")
    assert table.splitlines()[1].split()[:3] == ["hyp.txt", "33.33", "%"]
    assert confusions.splitlines()[0] == "substituted  sat → sits (1)"
    assert title == "utterances with errors: 2 of 3, the worst first:"
    assert first.startswith("u2: 2 errors in 4 words: 1 deleted, 1 inserted\nREF: on the blue mat *****\n")
    assert second.startswith("u1: 1 error in 3 words")


def test_number_of_errors_shown(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "ref.txt", "hyp.txt", "--errors", "1"]) == 0
    assert capsys.readouterr().out.count("REF:") == 1
    assert main(["score", "ref.txt", "hyp.txt", "--errors", "0"]) == 0
    assert "utterances with errors" not in capsys.readouterr().out


def test_score_of_a_perfect_hypothesis(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "ref.txt", "ref.txt"]) == 0
    table, title = capsys.readouterr().out.split("\n\n")
    assert table.splitlines()[1].split()[:3] == ["ref.txt", "0.00", "%"]
    assert title == "utterances with errors: 0 of 3\n"


def test_score_as_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "ref.txt", "hyp.txt", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["wer"] == pytest.approx(3 / 9)
    assert (figures["substitutions"], figures["deletions"], figures["insertions"]) == (1, 1, 1)
    assert "comparison" not in figures


def test_comparison(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The same file name in another folder is another run.
    (files / "new").mkdir()
    (files / "new" / "hyp.txt").write_text(REFERENCE)
    assert main(["score", "ref.txt", "hyp.txt", "--compare", "new/hyp.txt"]) == 0
    table, comparison, heading, *_ = capsys.readouterr().out.split("\n\n")
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [["hyp.txt", "33.33"], ["new/hyp.txt", "0.00"]]
    assert comparison.splitlines()[3].split() == ["difference", "-33.33", "points"]
    assert heading == "errors of hyp.txt:"
    assert main(["score", "ref.txt", "hyp.txt", "--compare", "new/hyp.txt", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["comparison"]["difference"] == pytest.approx(-3 / 9)
    assert figures["comparison"]["wer_a"] == figures["wer"]


def test_manifests_bring_speakers(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"id": f"u{index}", "audio": f"{index}.flac", "duration_s": 1.0, "text": text, "speaker": speaker}
        for index, (text, speaker) in enumerate([("the cat sat", "ann"), ("on the mat", "bob")], start=1)
    ]
    Path("ref.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("short.txt").write_text("u1 the cat sat\nu2 on mat\n")
    assert main(["score", "ref.jsonl", "short.txt", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["by_speaker"]["bob"] == {"utterances": 1, "words": 3, "wer": pytest.approx(1 / 3)}
    assert figures["wer_ci95_by_speaker"] is not None
    assert main(["score", "ref.jsonl", "ref.jsonl"]) == 0
    assert "by speaker" in capsys.readouterr().out


def test_rows_fit_a_terminal(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ref.txt").write_text("u1 " + "word " * 50)
    Path("hyp.txt").write_text("u1 " + "ward " * 50)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["score", "ref.txt", "hyp.txt"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("REF:")]
    assert max(map(len, rows)) == 39


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "error: bad.txt: No such file or directory\n"),
        (b"", "error: bad.txt: no utterances; expected lines of an utterance id and its words\n"),
        (b"u1 a\nu1 b\n", "error: bad.txt:2: utterance u1 was given on line 1 already\n"),
        (b"u1 \xff\n", "error: bad.txt:1: byte 4 of the line is not UTF-8 text; convert the file to UTF-8\n"),
        (
            b"u1 a\n",
            "error: 2 of 3 references have no hypothesis: u2, u3; "
            "give an empty hypothesis where nothing was recognised\n",
        ),
        (REFERENCE.encode() + b"u9 a\n", "error: 1 of 4 hypotheses have no reference: u9\n"),
    ],
)
def test_bad_hypotheses(files: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("bad.txt").write_bytes(content)
    for arguments in (["bad.txt"], ["hyp.txt", "--compare", "bad.txt"]):
        assert main(["score", "ref.txt", *arguments]) == 1
        assert capsys.readouterr() == ("", message)


def test_directory_in_place_of_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", ".", "hyp.txt"]) == 1
    assert capsys.readouterr().err == "error: .: Is a directory\n"
