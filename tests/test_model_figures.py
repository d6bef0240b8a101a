"""What was measured of a model: taken from evaluations, kept beside the weights, shown by `asr info`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asr import checkpoint
from asr.model_figures import Figures, collect_figures, describe, read_figures, size, write_figures
from asr.variants import DefaultSearch, write_tuned


def results(
    name: str = "dev", *, wer: float = 0.25, mode: str = "joint", ngram: str | None = "a.arpa"
) -> dict[str, Any]:
    """What an evaluation writes, as far as it matters here."""
    return {
        "set": name,
        "utterances": 3,
        "words": 1200,
        "wer": wer,
        "wer_ci95": [wer - 0.02, wer + 0.02],
        "wer_ci95_by_speaker": None,
        "cer": wer / 2,
        "rtfx": 41.7,
        "decoding": {"mode": mode, "beam_size": 16, "lm": {"ngram": ngram, "neural": None}},
        "by_speaker": {"b": {"wer": 0.5}, "a": {"wer": 0.1}, "c": {"wer": 0.2}},
    }


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_figures_name_the_search_and_the_spread_of_speakers() -> None:
    figures = Figures.from_results(results())
    assert (figures.search, figures.beam_size, figures.speakers) == ("joint+ngram", 16, 3)
    assert figures.wer_of_speakers == [0.1, 0.2, 0.5]
    assert Figures.from_results(results() | {"by_speaker": {}}).wer_of_speakers is None


def test_evaluations_below_a_folder_are_found_and_the_best_of_a_set_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "dev" / "greedy" / "results.json", results(wer=0.6, mode="greedy", ngram=None))
    write(tmp_path / "dev" / "joint" / "results.json", results())
    single = write(tmp_path / "elsewhere.json", results("an4"))
    found = collect_figures([tmp_path, single])
    assert [(each.set, each.search) for each in found] == [
        ("an4", "joint+ngram"),
        ("dev", "joint+ngram"),
        ("dev", "greedy"),
    ]


def test_figures_come_back_from_a_folder(tmp_path: Path) -> None:
    assert read_figures(tmp_path) == []
    figures = [Figures.from_results(results()), Figures.from_results(results("an4"))]
    write_figures(tmp_path, figures)
    assert read_figures(tmp_path) == figures


def test_two_evaluations_of_one_search_are_an_error(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "results.json", results())
    with pytest.raises(ValueError) as caught:
        collect_figures([tmp_path])
    one, two = (tmp_path / name / "results.json" for name in ("one", "two"))
    assert str(caught.value) == f"{one} and {two} both score joint+ngram on dev; name one of them"


def test_a_folder_without_an_evaluation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no results\.json below it; recipes/evaluate\.py writes it$"):
        collect_figures([tmp_path])
    with pytest.raises(FileNotFoundError):
        collect_figures([tmp_path / "no.json"])


@pytest.mark.parametrize("content", [[], {}, {"results": []}, results() | {"decoding": None}])
def test_what_is_no_evaluation_is_an_error(tmp_path: Path, content: object) -> None:
    path = write(tmp_path / "results.json", content)
    with pytest.raises(ValueError, match=rf"^{path}: not the result of an evaluation \("):
        collect_figures([path])


@pytest.mark.parametrize("content", [{}, {"results": [{"set": "dev"}]}, []])
def test_broken_figures_of_a_model_are_an_error(tmp_path: Path, content: object) -> None:
    path = write(tmp_path / "results.json", content)
    with pytest.raises(ValueError, match=rf"^{path}: not the figures of a model \(.*\); remove it, or copy the folder"):
        read_figures(tmp_path)


def test_a_description_shows_files_default_search_and_figures(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    write_tuned(folder / "decoding.json", {}, about={}, default=DefaultSearch(mode="joint", beam_size=5))
    write_figures(folder, [Figures.from_results(results())])
    text = describe(checkpoint.load(folder))
    lines = text.splitlines()
    assert "search      joint, beam 5" in lines
    assert f"model.safetensors {size(folder / 'model.safetensors')}" in text
    assert lines[-2].split() == [
        "set",
        "search",
        "WER",
        "95",
        "%",
        "interval",
        "speakers",
        "CER",
        "times",
        "real",
        "time",
    ]
    assert lines[-1].split() == [
        *("dev", "joint+ngram", "25.00", "%", "23.0", "–", "27.0", "10", "/", "20", "/", "50", "12.50", "%", "42")
    ]  # fmt: skip


def test_sizes_are_read_by_people(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for num_bytes, text in ((0, "0.0 kB"), (99_940, "99.9 kB"), (100_000, "0.1 MB"), (5_400_000, "5.4 MB")):
        file.write_bytes(bytes(num_bytes))
        assert size(file) == text
