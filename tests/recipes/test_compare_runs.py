"""Runs compared: what differs, seeds, curves over interruptions, paired differences, pictures, the recipe."""

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compare_runs
import jiwer
import numpy as np
import pytest
import torch
import yaml
from comparison import curves, figures, scores, tables
from comparison.curves import read_history
from comparison.runs import Run, differences, find_runs, group, read_run, text
from PIL import Image
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from asr import evaluate
from asr.data import manifest
from asr.data.manifest import Utterance

CONFIG = {
    "name": "base",
    "seed": 1,
    "init_from": None,
    "num_threads": 1,
    "encoder": {"width": 96, "num_heads": 4, "dropout": 0.1, "intermediate_layers": []},
    "loss": {"ctc_weight": 0.3, "consistency_weight": 0.0},
    "data": {"name": "tones", "manifests": "manifests", "valid": ["dev"]},
}
# Wall clock in s, step, value: a point of a curve.
Points = Sequence[tuple[float, int, float]]


def write_run(folder: Path, *, steps: int = 0, seconds: float = 0.0, **changes: Any) -> Path:
    """A run folder with a config in which keys such as `encoder__width` are changed, and after steps with a model."""
    config = json.loads(json.dumps(CONFIG | {"name": folder.name}))
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = config
        for part in parts:
            place = place[part]
        place[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if steps:
        write_model(folder / "model", steps=steps, seconds=seconds)
    return folder


def write_model(folder: Path, *, steps: int, seconds: float) -> None:
    folder.mkdir(parents=True)
    training = {"training": {"steps": steps, "seconds": seconds}}
    (folder / "config.json").write_text(json.dumps(training), encoding="utf-8")
    save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(5)}, folder / "model.safetensors")


def write_events(folder: Path, *parts: dict[str, Points]) -> Path:
    """TensorBoard's events of one process after the other, as the trainer writes them."""
    for number, tags in enumerate(parts):
        writer = SummaryWriter(str(folder / "part"))
        for tag, points in tags.items():
            for wall_s, step, value in points:
                writer.add_scalar(tag, value, step, walltime=wall_s)
        writer.close()
        (file,) = (folder / "part").iterdir()
        file.rename(folder / f"events.out.tfevents.{1000 + number}.host")
        (folder / "part").rmdir()
    return folder


def runs_of(*folders: Path) -> list[Run]:
    return [read_run(folder) for folder in folders]


# Run folders


def test_folders_are_found_by_name_and_pattern_each_once(tmp_path):
    for name in ("abl-b", "abl-a", "abl-[1]"):
        write_run(tmp_path / name)
    (tmp_path / "abl-none").mkdir()
    patterns = [str(tmp_path / name) for name in ("abl-b", "abl-*", "abl-[1]")]
    assert [path.name for path in find_runs(patterns)] == ["abl-b", "abl-[1]", "abl-a"]
    with pytest.raises(FileNotFoundError, match=r"x-\*: no run folder, which has a config.yaml; name one under runs/"):
        find_runs([str(tmp_path / "x-*")])
    with pytest.raises(FileNotFoundError, match=r"abl-none: no run folder"):
        read_run(tmp_path / "abl-none")


def test_a_run_is_as_far_as_its_newest_checkpoint(tmp_path):
    folder = write_run(tmp_path / "a")
    run = read_run(folder)
    assert (run.steps, run.seconds, run.parameters, run.start) == (0, 0.0, None, None)
    write_model(folder / "checkpoints" / "step-00000010", steps=10, seconds=60.5)
    write_model(folder / "model", steps=7, seconds=40.0)  # of before the number of steps was raised
    run = read_run(folder)
    assert (run.steps, run.seconds, run.parameters) == (10, 60.5, 3 * 4 + 5)


def test_a_config_of_something_else_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("order: 4\n")
    with pytest.raises(ValueError, match=r"config.yaml: no seed, so this is not the config of a training run"):
        read_run(tmp_path)


def test_only_settings_that_matter_differ(tmp_path):
    base, other = runs_of(
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=2, num_threads=2, data__manifests="m", encoder__width=64, loss__ctc_weight=0.5),
    )
    assert differences(other, base) == {"encoder.width": (64, 96), "loss.ctc_weight": (0.5, 0.3)}
    assert differences(base, other) == {"encoder.width": (96, 64), "loss.ctc_weight": (0.3, 0.5)}


def test_a_key_that_an_older_run_lacks_was_switched_off(tmp_path):
    base, off, on = runs_of(
        write_run(tmp_path / "old"),
        write_run(tmp_path / "off", loss__new_weight=0.0, loss__file=None, loss__list=[]),
        write_run(tmp_path / "on", loss__new_weight=0.2),
    )
    assert differences(off, base) == {}
    assert differences(on, base) == {"loss.new_weight": (0.2, None)}


@pytest.mark.parametrize(
    ("value", "written"), [(None, "–"), (0.2, "0.2"), (True, "true"), ([0.9, 1.0], "[0.9,1.0]"), ("x", "x")]
)
def test_values_are_written_as_on_the_command_line(value, written):
    assert text(value) == written


# Settings


def test_runs_that_differ_in_their_seeds_alone_are_one_setting(tmp_path):
    runs = runs_of(
        write_run(tmp_path / "abl-2", seed=2),
        write_run(tmp_path / "wide-2", seed=2, encoder__width=128),
        write_run(tmp_path / "abl-1"),
        write_run(tmp_path / "wide-1", encoder__width=128),
        write_run(tmp_path / "dropout", encoder__dropout=0.2),
    )
    settings = group(runs, baseline=runs[2])
    assert [[run.folder.name for run in each.runs] for each in settings] == [
        ["abl-1", "abl-2"],
        ["wide-1", "wide-2"],
        ["dropout"],
    ]
    assert [each.title for each in settings] == ["width=96, dropout=0.1 (baseline)", "width=128", "dropout=0.2"]
    assert settings[1].differences == {"encoder.width": (128, 96)}


def test_of_many_differences_a_label_is_the_name_that_runs_share(tmp_path):
    changes = {"encoder__width": 128, "encoder__num_heads": 8, "encoder__dropout": 0.2, "loss__ctc_weight": 0.5}
    runs = runs_of(
        write_run(tmp_path / "base"),
        write_run(tmp_path / "large-seed_1", **changes),
        write_run(tmp_path / "large-seed_2", **changes, seed=2),
        write_run(tmp_path / "one", **(changes | {"loss__ctc_weight": 0.9})),
    )
    assert [each.label for each in group(runs, baseline=runs[0])] == ["base", "large", "one"]
    named = group(runs, baseline=runs[0], labels={"large-seed_2": "ours"})
    assert [each.label for each in named] == ["base", "ours", "one"]


def test_keys_that_end_alike_are_written_whole(tmp_path):
    runs = runs_of(
        write_run(tmp_path / "a", decoder={"dropout": 0.1}),
        write_run(tmp_path / "b", decoder={"dropout": 0.1}, encoder__dropout=0.2),
        write_run(tmp_path / "c", decoder={"dropout": 0.3}),
    )
    labels = [each.label for each in group(runs, baseline=runs[0])]
    assert labels == ["encoder.dropout=0.1, decoder.dropout=0.1", "encoder.dropout=0.2", "decoder.dropout=0.3"]


def test_labels_that_fit_nothing_or_two_settings_are_refused(tmp_path):
    runs = runs_of(write_run(tmp_path / "a"), write_run(tmp_path / "b", encoder__width=64))
    with pytest.raises(ValueError, match=r"labels has 'c', but no run's folder has that name; take it out"):
        group(runs, baseline=runs[0], labels={"c": "x"})
    with pytest.raises(ValueError, match=r"two settings are called 'x'; name them, labels=\[FOLDER: NAME\]"):
        group(runs, baseline=runs[0], labels={"a": "x", "b": "x"})


def test_the_baseline_counts_once_however_it_is_written(tmp_path, monkeypatch):
    write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    (setting,) = group([read_run(Path("a"))], baseline=read_run(tmp_path / "a"))
    assert len(setting.runs) == 1


# Curves


def test_a_run_that_was_interrupted_is_one_curve_without_the_pause(tmp_path):
    # 10 s a step; a pause of an hour after step 3, of which the first event of the second process is at step 5.
    first = {"valid/wer": [(1010.0, 1, 0.9), (1020.0, 2, 0.8), (1030.0, 3, 0.7)]}
    second = {"valid/wer": [(5000.0, 5, 0.5), (5010.0, 6, 0.4)]}
    history = read_history(write_events(write_run(tmp_path / "a"), first, {}, second))
    points = history.curves["valid/wer"]
    assert [point.step for point in points] == [1, 2, 3, 5, 6]
    assert [point.value for point in points] == pytest.approx([0.9, 0.8, 0.7, 0.5, 0.4])
    assert [point.seconds for point in points] == pytest.approx([10, 20, 30, 50, 60])
    assert (history.last_step, history.seconds) == (6, pytest.approx(60))


def test_steps_that_were_taken_twice_after_a_crash_count_once(tmp_path):
    first = {"train/loss": [(1010.0, 1, 9.0), (1020.0, 2, 8.0), (1030.0, 3, 7.0), (1040.0, 4, 6.0)]}
    second = {"train/loss": [(2000.0, 3, 7.5), (2010.0, 4, 6.5)]}
    points = read_history(write_events(write_run(tmp_path / "a"), first, second)).curves["train/loss"]
    assert [(point.step, point.value) for point in points] == [(1, 9.0), (2, 8.0), (3, 7.5), (4, 6.5)]
    assert [point.seconds for point in points] == pytest.approx([10, 20, 30, 40])


def test_audio_of_a_step_is_that_of_training_without_validation(tmp_path):
    # 8 s of audio a second, 5 s a step; the validation at step 20 takes 100 s, and that at step 25 lies in a stretch.
    speed = [(1050.0, 10, 8.0), (1100.0, 20, 8.0), (1250.0, 30, 2.0), (1300.0, 40, 8.0)]
    clean = {"speed/audio_s_per_s": speed[:2], "valid/wer": [(1200.0, 20, 0.5)]}
    assert read_history(write_events(write_run(tmp_path / "a"), clean)).audio_s_per_step == pytest.approx(40)
    stretch = {"speed/audio_s_per_s": [speed[0], speed[2]], "valid/wer": [(1200.0, 25, 0.5)]}
    assert read_history(write_events(write_run(tmp_path / "b"), stretch)).audio_s_per_step is None
    after = {"speed/audio_s_per_s": [speed[1], (1250.0, 30, 8.0)], "valid/wer": [(1200.0, 20, 0.5)]}
    assert read_history(write_events(write_run(tmp_path / "c"), after)).audio_s_per_step == pytest.approx(40)


def test_points_lie_in_steps_minutes_and_hours_of_audio(tmp_path):
    events = {"speed/audio_s_per_s": [(1060.0, 10, 60.0), (1120.0, 20, 60.0)], "valid/wer": [(1120.0, 20, 0.5)]}
    (run,) = runs_of(write_events(write_run(tmp_path / "a"), events))
    history = read_history(run.folder)
    places = {
        axis: line.x
        for axis in curves.AXES
        if (line := curves.make_line(run, history, tag="valid/wer", axis=axis, join=False))
    }
    assert places == {"steps": [20], "minutes": [pytest.approx(2)], "audio": [pytest.approx(2)]}
    assert curves.make_line(run, history, tag="valid/cer", axis="steps", join=False) is None


def test_audio_that_is_unknown_is_refused(tmp_path):
    history = read_history(write_events(write_run(tmp_path / "a"), {"valid/wer": [(1.0, 1, 0.5)]}))
    with pytest.raises(ValueError, match=r"speed/audio_s_per_s has too few points to tell the audio of a step; take"):
        history.place(axis="audio", step=1, seconds=1.0)


@pytest.mark.parametrize("place", ["", "model", "checkpoints/step-00000004"])
def test_a_run_is_drawn_behind_the_runs_that_it_started_from(tmp_path, place):
    points = {"valid/wer": [(1000.0 + 10 * step, step, 1 / step) for step in (2, 4)]}
    eldest = write_events(write_run(tmp_path / "eldest"), points)
    parent = write_events(write_run(tmp_path / "parent", init_from=str(eldest / place)), points)
    (run,) = runs_of(write_events(write_run(tmp_path / "child", init_from=str(parent / place)), points))
    line = curves.make_line(run, read_history(run.folder), tag="valid/wer", axis="steps", join=True)
    assert line == curves.Line(x=[10, 12], y=[0.5, 0.25], before=[(2, 0.5), (4, 0.25), (6, 0.5), (8, 0.25)])
    minutes = curves.make_line(run, read_history(run.folder), tag="valid/wer", axis="minutes", join=True)
    assert minutes is not None
    assert minutes.x == pytest.approx([100 / 60, 120 / 60])
    assert [each.folder.name for each in curves.ancestors(run)] == ["eldest", "parent"]
    shutil.rmtree(eldest)
    with pytest.raises(ValueError, match=r"parent: it started from .*, which is not in a run folder; draw it alone wi"):
        curves.make_line(run, read_history(run.folder), tag="valid/wer", axis="steps", join=True)


def test_a_run_that_has_only_begun_has_no_curve(tmp_path):
    history = read_history(write_run(tmp_path / "a"))
    assert (history.curves, history.last_step, history.seconds, history.audio_s_per_step) == ({}, 0, 0.0, None)


def test_without_events_the_log_is_read(tmp_path):
    folder = write_run(tmp_path / "a")
    name = "[asr.training.trainer][INFO] - "
    lines = [
        f"[2026-01-01 10:00:00,000]{name}the largest batch fits: 3 utterances, 48 s with padding, 0.6 s a step",
        f"[2026-01-01 10:01:00,000]{name}step 10/30 epoch 1 loss 0.982 lr 3.3e-04 6000 frames/s",
        f"[2026-01-01 10:02:00,000]{name}step 20/30 epoch 1 loss 0.782 lr 3.3e-04 6000 frames/s pad 5.0%",
        f"[2026-01-01 10:02:06,500]{name}step 20 validation: valid/wer 0.8988 valid/cer 0.5878 (best 0.8988)",
        f"[2026-01-01 12:00:00,000]{name}the largest batch fits: 3 utterances, 48 s with padding, 0.6 s a step",
        f"[2026-01-01 12:01:00,000]{name}step 30/30 epoch 1 loss 0.682 lr 3.3e-04 6000 frames/s",
        f"[2026-01-01 12:01:06,500]{name}step 30 validation: valid/wer 0.5 valid/cer 0.25 (best 0.5)",
    ]
    (folder / "train.log").write_text("\n".join(lines), encoding="utf-8")
    history = read_history(folder)
    assert [(point.step, point.value) for point in history.curves["valid/cer"]] == [(20, 0.5878), (30, 0.25)]
    assert history.audio_s_per_step == pytest.approx(360)
    assert history.seconds == pytest.approx(200, abs=20)


# Scores

TEXTS = ["one two three", "four five", "six seven eight nine", "ten", "one three five seven", "two", "nine eight"]


@dataclass
class Scoring:
    """A manifest, and runs that are scored on it."""

    folder: Path
    references: dict[str, str]

    def write(self, name: str, hypotheses: Sequence[str], *, wer: float | None = None, **changes: Any) -> Path:
        run = write_run(self.folder / name, steps=4, seconds=90.0, **changes)
        write_events(run, {"valid/wer": [(1000.0, 2, 0.5), (1060.0, 4, 0.25)]})
        place = run / "test"
        place.mkdir()
        found = dict(zip(self.references, hypotheses, strict=True))
        rate = evaluate.score(self.references, found, num_draws=1).wer if wer is None else wer
        (place / "results.json").write_text(json.dumps({"set": "test", "wer": rate}), encoding="utf-8")
        lines = [f"{key} {said}\n" for key, said in found.items()]
        (place / "transcripts.txt").write_text("".join(lines), encoding="utf-8")
        return run


@pytest.fixture
def scoring(tmp_path: Path) -> Scoring:
    utterances = [
        Utterance(id=f"u{number}", audio=Path("a.wav"), duration_s=1.0, text=said) for number, said in enumerate(TEXTS)
    ]
    manifest.write(tmp_path / "test.jsonl", utterances)
    return Scoring(tmp_path, {each.id: each.text for each in utterances})


def damaged(*errors: int) -> list[str]:
    """The texts, with so many words of each replaced."""
    found = []
    for number, said in enumerate(TEXTS):
        words = said.split()
        count = errors[number] if number < len(errors) else 0
        found.append(" ".join(["wrong"] * count + words[count:]))
    return found


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
