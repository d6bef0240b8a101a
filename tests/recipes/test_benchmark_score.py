"""Benchmark of scoring: invented texts with as many errors as asked for, and the recipe from end to end."""

import json
from collections.abc import Callable
from typing import Any

import benchmark
import pytest
from benchmarks.score import ScoreBenchmark, make_texts


def test_texts_are_always_the_same_and_have_about_as_many_errors_as_asked_for():
    kind = ScoreBenchmark(num_utterances=100, num_words=10, error_rate=0.2, num_draws=10)
    texts = make_texts(kind)
    assert texts == make_texts(kind)
    assert all(len(text.split()) == 10 for text in texts.references.values())
    assert len(set(texts.speakers.values())) == 40
    own, jiwers = (contender.run(texts) for contender in kind.contenders())
    assert own == jiwers == pytest.approx(0.2, abs=0.05)
    flawless = make_texts(ScoreBenchmark(num_utterances=5, error_rate=0))
    assert flawless.references == flawless.hypotheses


def test_the_recipe_compares_with_jiwer(compose: Callable[..., Any], tmp_path, capsys):
    settings = ["benchmark.num_utterances=20", "benchmark.num_draws=50", "repeats=2", "num_threads=0"]
    benchmark.run(compose("benchmark", "benchmark=score", f"output={tmp_path}", *settings))
    found = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))
    assert found["device"] == "cpu"
    own, jiwers = found["contenders"]
    assert own["wer"] == jiwers["wer"]
    assert capsys.readouterr().out.startswith("score: 20 utterances of 20 words, 50 draws, 2 repeats; ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_draws=0", "benchmark.num_draws is 0; it must be at least 1"),
        ("error_rate=1.5", "benchmark.error_rate is 1.5; it must be from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_named(compose: Callable[..., Any], override, message):
    with pytest.raises(ValueError, match=message):
        compose("benchmark", "benchmark=score", f"benchmark.{override}")
