"""`torchrun recipes/train.py` from end to end: one run folder, one log, told to stop and started again."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import train
from noise_runs import SMALL_MODEL, make_arguments

STEPS = 4
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@dataclass
class Run:
    """A run of two processes that was stopped by SIGTERM once and then went on to its end."""

    folder: Path
    first_error: str
    left_by_first: list[str]
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    work = tmp_path_factory.mktemp("work")
    arguments = [*make_arguments(work / "noise"), *SMALL_MODEL, f"trainer.max_steps={STEPS}", "optim.warmup_steps=2"]
    command = [*TORCHRUN, train.__file__, *arguments]
    settings = {"cwd": work, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)
    assert started.stdout is not None
    for line in started.stdout:
        if f"step 1/{STEPS} " in line:
            started.send_signal(signal.SIGTERM)
            break
    _, error = started.communicate()
    left = sorted(path.name for path in (work / "runs" / "noise" / "checkpoints").iterdir())
    return Run(
        work / "runs" / "noise", error, left, subprocess.run(command, capture_output=True, check=False, **settings)
    )


def test_a_signal_to_torchrun_leaves_one_checkpoint_and_one_line(run: Run):
    (checkpoint,) = [name for name in run.left_by_first if name.startswith("step-")]
    assert int(checkpoint.removeprefix("step-")) < STEPS
    line = f"SIGTERM: saved {run.folder / 'checkpoints' / checkpoint}; the same command goes on from there"
    assert [each for each in run.first_error.splitlines() if "goes on from there" in each] == [line]


def test_the_same_command_goes_on_to_the_end_in_one_folder_with_one_log(run: Run):
    assert run.second.returncode == 0, run.second.stderr[-2000:]
    log = (run.folder / "train.log").read_text(encoding="utf-8")
    for step in range(1, STEPS + 1):
        assert log.count(f"step {step}/{STEPS} ") == 1
    assert log.count("going on from ") == 1
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
    assert names == {"config.yaml", "train.log", "checkpoints", "model", "test"}
    assert len(list(run.folder.glob("events.out.tfevents.*"))) == 2  # one a start, none of the second process
    assert run.second.stdout.count("wrong sentences") == 1
