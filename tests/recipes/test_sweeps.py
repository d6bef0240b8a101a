"""Sweeps: the names of their runs, and a sweep from end to end that is started again with one more seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sweeps
import train
import yaml
from comparison.curves import read_history
from comparison.runs import group, read_run

SMALL = [
    *("data=synthetic", "data.hours_train=0.03", "data.num_valid=3", "data.num_test=3", "decoding=greedy"),
    *("encoder.num_layers=1", "encoder.width=16", "encoder.num_heads=2", "encoder.feedforward_width=16"),
    *("encoder.kernel_size=3", "encoder.subsampling_channels=2", "decoder.num_heads=2", "decoder.feedforward_width=16"),
    *("loader.max_batch_s=20", "trainer.valid_every=1", "trainer.save_every=1", "trainer.log_every=1"),
    *("device=cpu", "num_threads=1", "name=abl", "optim.warmup_steps=1"),
]
# One process for several commands: most of the time of a small one is Python's imports.
DRIVER = """
import json, sys
from launching import launch
import train
for arguments in json.load(sys.stdin):
    sys.argv[1:] = arguments
    launch("train", train.run)
"""


@pytest.mark.parametrize(
    ("arguments", "task", "expected"),
    [
        (["-m", "seed=1,2", "optim.lr=0.1"], ["seed=2", "optim.lr=0.1"], "-seed_2"),
        (["-m", "seed=1,2", "loss.x=0,0.2"], ["seed=1", "loss.x=0.2"], "-loss.x_0.2-seed_1"),
        (["-m", "loss.x=0,0.2", "seed=3,1"], ["loss.x=0.2", "seed=1"], "-loss.x_0.2-seed_1"),
        (["-m", "seed=range(1,4)"], ["seed=3"], "-seed_3"),
        (["-m", "augment.speeds=[1.0],[0.9,1.1]"], ["augment.speeds=[0.9,1.1]"], "-augment.speeds_0.9_1.1"),
        (["-m", "init_from=runs/a,runs/b"], ["init_from=runs/b"], "-init_from_runs_b"),
        (["-m", "+x.y=1e-3,2e-3"], ["+x.y=1e-3"], "-x.y_1e-3"),
        (["-m", "name=a,b", "encoder=x_1m,x_5m"], ["name=a", "encoder=x_5m"], "-encoder_x_5m"),
        (["--multirun", "--config-dir=x", "seed=1"], ["seed=1"], ""),
        (["seed=1", "data.train=[a,b]"], ["seed=1", "data.train=[a,b]"], ""),
    ],
)
def test_a_run_is_named_after_what_its_sweep_varies(arguments, task, expected):
    assert sweeps.suffix(task, arguments=arguments) == expected


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds for one step; then the sweep once more, in another order, with one more seed and one more step."""
    cwd = tmp_path_factory.mktemp("work")
    commands = [
        ["-m", *SMALL, "trainer.max_steps=1", "loss.consistency_weight=0.2", "seed=1,2"],
        ["-m", *SMALL, "trainer.max_steps=2", "loss.consistency_weight=0.2", "seed=3,2,1"],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(train.__file__).parent)}
    command = [sys.executable, "-c", DRIVER]
    subprocess.run(
        command, input=json.dumps(commands), cwd=cwd, env=environment, text=True, check=True, capture_output=True
    )
    return cwd / "runs"


NAMES = ["abl-seed_1", "abl-seed_2", "abl-seed_3"]


def test_every_run_of_a_sweep_has_a_folder_of_its_own_and_is_named_in_its_results(runs: Path):
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == NAMES
    for name in NAMES:
        config = yaml.safe_load((runs / name / "config.yaml").read_text(encoding="utf-8"))
        assert f"abl-seed_{config['seed']}" == name
        results = json.loads((runs / name / "synthetic-test" / "results.json").read_text(encoding="utf-8"))
        assert Path(results["checkpoint"]).parts[-2:] == (name, "model")


def test_a_sweep_that_is_started_again_goes_on_with_its_runs(runs: Path):
    for name in NAMES:
        log = (runs / name / "train.log").read_text(encoding="utf-8")
        assert log.count("going on from") == (0 if name.endswith("seed_3") else 1)
        assert [log.count(f"step {step} validation") for step in (1, 2)] == [1, 1]
        assert read_run(runs / name).steps == 2


def test_the_runs_of_a_sweep_over_seeds_are_one_setting(runs: Path):
    found = [read_run(runs / name) for name in NAMES]
    (setting,) = group(found, baseline=found[0])
    assert [run.seed for run in setting.runs] == [1, 2, 3]
    assert setting.title == "abl (baseline)"


def test_log_and_events_of_a_real_run_tell_the_same(runs: Path, tmp_path: Path):
    (tmp_path / "train.log").write_bytes((runs / NAMES[0] / "train.log").read_bytes())
    events, log = read_history(runs / NAMES[0]), read_history(tmp_path)
    assert log.curves.keys() == {"valid/wer", "valid/cer", "speed/audio_s_per_s"}
    for tag in ("valid/wer", "valid/cer"):
        of_log, of_events = log.curves[tag], events.curves[tag]
        assert [point.step for point in of_log] == [point.step for point in of_events] == [1, 2]
        assert [point.value for point in of_log] == pytest.approx([point.value for point in of_events], abs=1e-4)
    assert log.last_step == events.last_step == 2
