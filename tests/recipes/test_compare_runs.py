"""Runs compared: what differs between them, seeds, curves over interruptions."""

import shutil
from pathlib import Path

import pytest
from comparison import curves
from comparison.curves import read_history
from comparison.runs import differences, find_runs, group, read_run, text
from run_folders import runs_of, write_events, write_model, write_run

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
