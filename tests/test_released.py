"""The command with the model that comes with the package, whose place a tiny one takes here, and without any."""

import os
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path, PurePath

import pytest
import tiny

from asr import hub
from asr.checkpoint import find_model
from asr.cli import main
from asr.decoding.compact_ngram import write_compact
from asr.ngrams.training import NgramTrainingConfig, train
from asr.transcriber import transcribe
from asr.variants import DefaultSearch, write_tuned

ROOT = Path(__file__).parents[1]
NO_MODEL = (
    "error: no model came with this installation; name one: a model folder, a run folder, or OWNER/NAME on the hub\n"
)


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """The folder of the package's model, with a language model and a default search; `good.wav` is at hand."""
    folder = shutil.copytree(tiny_folder, tmp_path / "released")
    (tmp_path / "text.txt").write_text("cab\ncab cab\n" * 20)
    write_compact(folder / "words.ngram", train([tmp_path / "text.txt"], NgramTrainingConfig(order=2)).tables)
    write_tuned(folder / "decoding.json", {}, about={}, default=DefaultSearch(mode="prefix_beam", beam_size=4))
    (folder / "README.md").write_text("# A model\n")
    monkeypatch.setattr(hub, "RELEASED", folder)
    monkeypatch.chdir(tmp_path)
    tiny.write_noise(Path("good.wav"))
    return folder


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(list(arguments))
    output = capsys.readouterr()
    return code, output.out, output.err


def test_transcribe_needs_no_option(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("transcribe", "good.wav", capsys=capsys)
    assert (code, err) == (0, "") and out.strip()
    own = ["--model", str(released), "--decoding", "prefix_beam", "--beam-size", "4"]
    assert run("transcribe", "good.wav", *own, "--lm", str(released / "words.ngram"), capsys=capsys)[1] == out
    assert run("transcribe", "good.wav", *own, "--lm", "none", capsys=capsys)[1] != out


def test_options_take_the_place_of_what_the_model_proposes(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = transcribe(tiny.make_loaded(), Path("good.wav")).text
    assert run("transcribe", "good.wav", "--decoding", "greedy", capsys=capsys) == (0, f"{expected}\n", "")


def test_align_needs_no_model(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.txt").write_text("a cab\n")
    code, out, err = run("align", "good.wav", "good.txt", capsys=capsys)
    assert (code, err) == (0, "")
    assert [line.split()[4] for line in out.splitlines()] == ["a", "cab"]


def test_info_shows_the_model_of_the_package(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("info", capsys=capsys)
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["model"] == str(released)
    assert rows["search"] == "prefix_beam, beam 4"
    assert "words.ngram" in rows["files"]


@pytest.mark.parametrize("command", [["transcribe", "good.wav"], ["align", "good.wav", "good.txt"], ["info"]])
def test_without_a_model_every_command_says_what_to_do_in_one_line(
    released: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    Path("good.txt").write_text("a cab\n")
    monkeypatch.setattr(hub, "RELEASED", released / "nothing")
    assert run(*command, capsys=capsys) == (1, "", NO_MODEL)


def test_a_model_is_found_by_its_name_on_the_hub(
    released: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FakeHub:
        @staticmethod
        def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
            assert name == "someone/tiny" and all(
                any(fnmatch(file.name, pattern) for pattern in allow_patterns) for file in released.iterdir()
            )
            return str(released)

    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub)
    by_name = run("transcribe", "good.wav", "--model", "someone/tiny", capsys=capsys)
    assert by_name == run("transcribe", "good.wav", capsys=capsys) and by_name[0] == 0


def test_a_wheel_takes_the_folder_along() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["asr"]
    for file in ("released/model.safetensors", "released/neural/model.safetensors"):
        assert any(PurePath(file).match(pattern) for pattern in patterns), file  # here * stays within a folder
    assert "huggingface_hub" in project["project"]["optional-dependencies"]["hub"][0]
    assert not any("huggingface" in each for each in project["project"]["dependencies"])


def test_the_model_of_the_package_transcribes_where_there_is_one(tmp_path: Path) -> None:
    if not hub.RELEASED.is_dir():
        pytest.skip("no model is released in asr/released")
    folder = find_model(hub.RELEASED)
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 25e6
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: ")
    tiny.write_noise(tmp_path / "noise.wav", sample_rate=16000)
    command = [sys.executable, "-m", "asr.cli", "transcribe", "noise.wav", "--device", "cpu", "--format", "json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
