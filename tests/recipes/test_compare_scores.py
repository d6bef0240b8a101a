"""Runs compared: scores with paired differences, pictures, the recipe."""

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare_runs
import jiwer
import numpy as np
import pytest
from comparison import figures, scores, tables
from comparison.curves import read_history
from comparison.runs import group
from PIL import Image
from run_folders import Scoring, damaged, make_scoring, runs_of, write_events, write_run

from asr import evaluate


@pytest.fixture
def scoring(tmp_path: Path) -> Scoring:
    return make_scoring(tmp_path)


# Scores


def score(scoring: Scoring, *folders: Path) -> list[scores.Scored]:
    runs = runs_of(*folders)
    settings = group(runs, baseline=runs[0])
    return scores.score_settings(settings, set_folder="test", references=scoring.folder / "test.jsonl")


def test_single_runs_are_scored_and_compared_as_asr_evaluate_does(scoring):
    base, other = damaged(1, 1, 0, 1), damaged(0, 1, 2, 1, 1)
    first, second = score(scoring, scoring.write("a", base), scoring.write("b", other, encoder__width=64))
    ids = list(scoring.references)
    alone = evaluate.score(scoring.references, dict(zip(ids, base, strict=True)))
    assert (first.wer, first.ci95, first.spread) == (alone.wer, alone.wer_ci95, None)
    assert (first.difference, first.difference_ci95, first.p_value) == (0.0, None, None)
    expected = evaluate.compare(
        scoring.references, dict(zip(ids, base, strict=True)), dict(zip(ids, other, strict=True))
    )
    assert (second.difference, second.difference_ci95) == (expected.difference, expected.ci95)
    assert second.p_value == expected.p_value


def test_seeds_are_averaged_and_drawn_together_with_their_utterance(scoring):
    of_base = [damaged(1, 1, 0, 1), damaged(2, 0, 0, 1, 1)]
    of_other = [damaged(0, 1, 2, 1, 1), damaged(0, 2, 2, 0, 1, 1), damaged(1, 1, 3, 0, 2)]
    folders = [scoring.write(f"a{number}", each, seed=number) for number, each in enumerate(of_base)]
    folders += [
        scoring.write(f"b{number}", each, seed=number, encoder__width=64) for number, each in enumerate(of_other)
    ]
    first, second = score(scoring, *folders)
    references = list(scoring.references.values())
    assert first.wers == pytest.approx([jiwer.wer(references, each) for each in of_base])
    assert second.wer == pytest.approx(statistics.fmean(jiwer.wer(references, each) for each in of_other))
    assert second.spread == pytest.approx(statistics.stdev(second.wers))
    assert second.difference == pytest.approx(second.wer - first.wer)

    # An independent bootstrap over utterances of the mean counts of errors.
    def errors(runs: list[list[str]]) -> np.ndarray:
        counts = [[jiwer.wer(one, other) * len(one.split()) for one, other in zip(references, run, strict=True)]
                  for run in runs]  # fmt: skip
        return np.mean(counts, axis=0)

    words = np.array([len(each.split()) for each in references])
    drawn = np.random.default_rng(5).integers(len(words), size=(40_000, len(words)))
    differences = (errors(of_other) - errors(of_base))[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    assert second.difference_ci95 == pytest.approx(np.quantile(differences, (0.025, 0.975)), abs=0.02)
    rates = errors(of_other)[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    assert second.ci95 == pytest.approx(np.quantile(rates, (0.025, 0.975)), abs=0.02)


def test_the_same_transcripts_do_not_differ_and_more_copies_do_not_make_an_interval_narrower(scoring):
    hypotheses = damaged(1, 1, 0, 1, 0, 1)
    folders = [scoring.write(f"a{number}", hypotheses, seed=number) for number in range(3)]
    folders.append(scoring.write("b", hypotheses, encoder__width=64))
    many, one = score(scoring, *folders)
    assert (one.difference, one.difference_ci95, one.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert many.ci95 == pytest.approx(one.ci95, abs=0.03)
    assert many.spread == 0


def test_runs_without_scores_are_left_out_and_named(scoring):
    base = scoring.write("a", damaged(1))
    unscored, begun = write_run(scoring.folder / "a2", seed=2), write_run(scoring.folder / "b", encoder__width=64)
    runs = runs_of(base, unscored, begun)
    settings = group(runs, baseline=runs[0])
    found = scores.score_settings(settings, set_folder="test", references=scoring.folder / "test.jsonl")
    assert [[run.folder.name for run in each.runs] for each in found] == [["a"]]
    histories = {run.folder: read_history(run.folder) for run in runs}
    said = tables.notes(runs, scored=found, set_folder="test", histories=histories, tags=["valid/wer"], joined=False)
    assert [line for line in said if line.startswith(str(scoring.folder))] == [
        f"{unscored} has no scores of test.",
        f"{begun} has no scores of test.",
        f"{unscored} has no valid/wer.",
        f"{begun} has no valid/wer.",
    ]
    header, first, *_ = tables.rows(settings, scored=found, histories=histories, tag="valid/wer")
    assert dict(zip(header, first, strict=True))["seeds"] == "1, 2 (scored: 1)"


def test_a_baseline_without_scores_of_the_set_is_told_what_it_has(scoring):
    (base,) = runs_of(scoring.write("a", damaged(1)))
    settings = group([base], baseline=base)
    with pytest.raises(FileNotFoundError, match=r"a: the baseline has no scores of set=other; it has test$"):
        scores.score_settings(settings, set_folder="other", references=None)
    with pytest.raises(FileNotFoundError, match=r"manifests/test.jsonl: no such manifest; name the one of the set wit"):
        scores.score_settings(settings, set_folder="test", references=None)
    shutil.rmtree(base.folder / "test")
    with pytest.raises(FileNotFoundError, match=r"a: the baseline has no scores at all; evaluate it first, or leave s"):
        scores.score_settings(settings, set_folder="test", references=None)


def test_scores_that_the_manifest_does_not_give_are_refused(scoring):
    (base,) = runs_of(scoring.write("a", damaged(1), wer=0.5))
    with pytest.raises(
        ValueError, match=r"results.json: its WER is 50.00 %, but the transcripts beside it give 5.88 %"
    ):
        score(scoring, base.folder)
    (base.folder / "test" / "transcripts.txt").write_text("x one\n")
    with pytest.raises(
        ValueError, match=r"a/test: 7 of 7 references have no hypothesis: .*; name the manifest that it"
    ):
        score(scoring, base.folder)


# Pictures


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.05, 0.9, [0.05, 0.1, 0.2, 0.5]),
        (900.0, 12000.0, [1000, 2000, 5000, 10000]),
        (0.55, 0.66, [0.56, 0.58, 0.6, 0.62, 0.64, 0.66]),
    ],
)
def test_a_logarithmic_axis_has_ticks_in_any_range(low, high, expected):
    assert figures._log_ticks(low, high) == pytest.approx(expected)


def test_a_long_name_leaves_room_for_the_picture(tmp_path):
    (run,) = runs_of(write_run(tmp_path / ("a" * 60)))
    (setting,) = group([run], baseline=run)
    assert setting.title == "a" * 60 + " (baseline)"
    assert figures._short(setting) == "a" * 44 + "… (baseline)"


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.5, 0.52, 0.9], [0.46, 0.56, 0.9]),
        ([0.4, 0.5, 0.5, 0.5], [0.325, 0.425, 0.525, 0.625]),
        ([], []),
    ],
)
def test_names_move_apart_and_stay_near_their_lines(heights, expected):
    assert figures.spread(heights, gap=0.1) == pytest.approx(expected)


# The recipe


@pytest.fixture
def ablation(scoring: Scoring) -> Scoring:
    for seed in (1, 2):
        scoring.write(f"abl-seed_{seed}", damaged(seed, 1, 1), seed=seed)
        scoring.write(f"abl-w-seed_{seed}", damaged(0, 1, seed), seed=seed, loss__consistency_weight=0.2)
    scoring.write("abl-small", damaged(2, 2, 4, 1), encoder__width=64, init_from=str(scoring.folder / "abl-seed_1"))
    return scoring


def test_a_comparison_from_end_to_end(ablation, compose: Callable[..., Any], tmp_path, capsys):
    settings = [f"runs=[{tmp_path}/abl-*]", f"baseline={tmp_path}/abl-seed_1", f"manifest={tmp_path}/test.jsonl"]
    output = tmp_path / "out"
    compare_runs.run(
        compose("compare_runs", *settings, "set=test", f"output={output}", "join=true", "labels=[abl-small: small one]")
    )
    printed = capsys.readouterr().out.splitlines()
    header, *lines = printed[:4]
    assert header.split()[:6] == ["setting", "seeds", "steps", "minutes", "parameters", "best"]
    assert [line[:22].rstrip() for line in lines] == ["init_from=–, width=96,", "consistency_weight=0.2", "small one"]
    assert lines[1].split()[1:9] == ["1,", "2", "4", "1.5", "0.00", "M", "25.00", "%"]
    assert any(line.startswith("small one: init_from=") and "encoder.width=64 (96)" in line for line in printed)
    assert printed[-3:] == [str(output / name) for name in ("comparison.md", "curves.png", "ablation.png")]
    page = (output / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert page[0] == "# Runs compared"
    assert page[2].startswith("| setting | seeds |")
    assert page[3].count("---") == page[2].count("|") - 1
    assert page[-2:] == ["![curves](curves.png)", "![ablation](ablation.png)"]
    for name in ("curves.png", "ablation.png"):
        assert (output / name).stat().st_size < 80_000
        assert Image.open(output / name).width == 900


def test_pictures_as_svg_have_their_words_as_text(ablation, compose: Callable[..., Any], tmp_path):
    settings = [f"runs=[{tmp_path}/abl-*]", f"manifest={tmp_path}/test.jsonl", "set=test", f"output={tmp_path}/out"]
    axes = ["axis=minutes", "log_x=true", "log_y=true", "curves=[valid/wer]"]
    compare_runs.run(compose("compare_runs", *settings, *axes, "format=svg", "baseline=" + str(tmp_path / "abl-small")))
    drawn = (tmp_path / "out" / "curves.svg").read_text(encoding="utf-8")
    for words in ("minutes of training", "WER in validation", "30 %", "abl-small (baseline)  25.00 %"):
        assert words in drawn
    drawn = (tmp_path / "out" / "ablation.svg").read_text(encoding="utf-8")
    for words in ("difference in WER to the baseline on test", "(baseline)", "hollow: single seeds"):
        assert words in drawn


def test_runs_without_scores_are_compared_by_their_curves(compose: Callable[..., Any], tmp_path, capsys):
    folder = write_events(write_run(tmp_path / "a"), {"valid/perplexity": [(1.0, 1, 1234.5), (2.0, 2, 900.25)]})
    write_run(tmp_path / "b", encoder__width=64, data__valid=["other"])
    settings = [f"runs=[{folder},{tmp_path}/b]", f"output={tmp_path}/out", "curves=[valid/perplexity]"]
    compare_runs.run(compose("compare_runs", *settings))
    printed = capsys.readouterr().out
    assert "best valid/perplexity" in printed and "900.2" in printed
    assert "WER" not in printed.splitlines()[0]
    assert f"{tmp_path}/b has no valid/perplexity." in printed
    assert (
        f"Validated on sets of different names, whose curves compare only if they are the same: {folder} on" in printed
    )
    assert not (tmp_path / "out" / "ablation.png").exists()


def test_a_curve_that_no_run_has_is_named_with_those_there_are(compose: Callable[..., Any], tmp_path):
    folder = write_events(write_run(tmp_path / "a"), {"valid/wer": [(1.0, 1, 0.5)]})
    with pytest.raises(ValueError, match=r"curves has 'valid/were', which no run has; choose from valid/wer"):
        compare_runs.run(compose("compare_runs", f"runs=[{folder}]", f"output={tmp_path}", "curves=[valid/were]"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("axis=epochs", "axis is 'epochs'; choose one of steps, audio, minutes"),
        ("format=gif", "format is 'gif'; choose one of png, svg"),
        ("runs=[]", "runs is empty; name at least one"),
        ("curves=[]", "curves is empty; name at least one"),
        ("dpi=0", "dpi is 0; it must be at least 1"),
        ("labels=[a]", "labels has 'a'; write each as FOLDER: LABEL"),
    ],
)
def test_settings_out_of_range_are_named(compose: Callable[..., Any], override, message):
    with pytest.raises(ValueError, match=message):
        compose("compare_runs", "runs=[x]", override)
