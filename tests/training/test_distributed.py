"""Several processes: the gradient of one process on all their batches, one run folder, one end."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import team_run
import torch
from safetensors.torch import load_file
from torch import nn
from training_runs import StubTask, assert_equal, folders, make_trainer

from asr import checkpoint
from asr.training import distributed
from asr.training.distributed import Team, held_back, join, leave, own_rank
from asr.training.state import Progress, pack_state, unpack_state
from asr.training.trainer import TrainerConfig


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes went through tests/training/team_run.py, with Gloo on the processor."""
    folder = tmp_path_factory.mktemp("team")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*launcher, team_run.__file__, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize(("name", "accumulate"), [("step", 1), ("accumulated", 2), ("sharded", 2)])
def test_two_processes_have_the_gradient_of_one_on_all_their_batches(ran, tmp_path, name, accumulate):
    parts = [part for share in team_run.SHARES for part in share[:accumulate]]
    expected = team_run.gradients(tmp_path, parts=parts, accumulate=len(parts))
    found = [load_file(ran / f"{name}{rank}.safetensors") for rank in (0, 1)]
    assert_equal(found[0], found[1])
    assert any(gradient.abs().max() > 0.01 for gradient in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[0][key], gradient, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_run_that_one_process_was_told_to_stop_ends_like_one_that_never_stopped(ran, sharding):
    whole, parts = ran / sharding / "whole", ran / sharding / "parts"
    assert folders(whole) == folders(parts)
    ends = [checkpoint.load_training(run / "checkpoints" / "step-00000004") for run in (whole, parts)]
    assert_equal(ends[0][0], ends[1][0])
    assert_equal(ends[0][1].tensors, ends[1][1].tensors)
    assert {**ends[0][1].state, "elapsed_s": 0} == {**ends[1][1].state, "elapsed_s": 0}
    assert_equal(*[checkpoint.load_weights(run / "model") for run in (whole, parts)])


def test_every_process_draws_for_itself_and_its_random_state_is_kept(ran):
    tensors = checkpoint.load_training(ran / "none" / "whole" / "checkpoints" / "step-00000004")[1].tensors
    assert not torch.equal(tensors["random/cpu"], tensors["random/cpu/1"])


# Sharded


def assert_close_ends(first: Path, second: Path, *, step: int) -> None:
    """The runs ended alike but for rounding: weights, averages, moments and the chosen model, of the same form."""
    ends = [checkpoint.load_training(run / "checkpoints" / f"step-{step:08d}") for run in (first, second)]
    chosen = [checkpoint.load_weights(run / "model") for run in (first, second)]
    for one, other in ((ends[0][0], ends[1][0]), (ends[0][1].tensors, ends[1][1].tensors), chosen):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-3, msg=name)


def test_sharding_changes_neither_the_weights_nor_the_form_of_a_checkpoint(ran):
    assert folders(ran / "none" / "whole") == folders(ran / "full" / "whole")
    assert_close_ends(ran / "none" / "whole", ran / "full" / "whole", step=4)


def test_a_run_goes_on_with_another_sharding(ran):
    assert_close_ends(ran / "none-full", ran / "full-none", step=8)


def test_one_process_has_nothing_to_share(tmp_path):
    message = r"^trainer\.sharding is full, but there is one process, which keeps all; start several with torchrun "
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, StubTask(), sharding="full")


def test_an_unknown_sharding_is_refused():
    with pytest.raises(ValueError, match=r"^trainer\.sharding is 'half'; choose one of none, full$"):
        TrainerConfig(sharding="half")


def state_of(team: Team, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, torch.optim.Optimizer, dict]:
    monkeypatch.setattr(Team, "gather", lambda self, value: [value] * self.size)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    return model, optimizer, {"model": model, "optimizer": optimizer, "ema": None, "device": torch.device("cpu")}


def test_another_number_of_processes_is_refused(monkeypatch):
    _, _, parts = state_of(Team(0, 2), monkeypatch)
    saved = pack_state(Progress(step=3), team=Team(0, 2), **parts)
    assert unpack_state(saved, team=Team(1, 2), **parts).step == 3
    message = r"made by 2 processes, not 1, .*; go on with torchrun and 2 processes in all, or give this run another n"
    with pytest.raises(ValueError, match=message):
        unpack_state(saved, team=Team(), **parts)


def test_a_checkpoint_that_does_not_say_how_many_made_it_was_made_by_one(monkeypatch):
    _, _, parts = state_of(Team(), monkeypatch)
    saved = pack_state(Progress(step=3), team=Team(), **parts)
    del saved.state["processes"]
    assert unpack_state(saved, team=Team(), **parts).step == 3


# One process


def test_alone_nothing_is_passed_on():
    team, module = Team(), nn.Linear(2, 1)
    assert (team.leads, team.sum([2, 3.5]), team.max(4), team.gather("a")) == (True, [2, 3.5], 4, ["a"])
    assert team.from_first(lambda: 7) == 7
    assert team.share(module) is module
    with held_back(module, True):
        pass
    before = torch.get_rng_state()
    team.draw_apart(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert own_rank() == 0
    assert join("cpu", num_threads=0) == (Team(), torch.device("cpu"))


# Devices of several processes


@pytest.mark.parametrize(
    ("name", "num_gpus", "expected"),
    [("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:1"), ("cuda", 2, "cuda:1")],
)
def test_every_process_has_a_device_of_its_own(monkeypatch, name, num_gpus, expected):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert distributed._own_device(name, 2) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:1", r"device is 'cuda:1', but each of several processes needs its own; choose auto, cuda or cpu"),
        ("cuda", r"device is 'cuda', but 4 processes share 2 CUDA devices; start as many with torchrun --nproc-per"),
    ],
)
def test_a_device_that_several_processes_would_share_is_refused(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        distributed._own_device(name, 4)


def test_leaving_ends_the_group_that_an_unused_module_holds_in_a_circle(tmp_path):
    """Its threads, at work when the interpreter ends, would abort the process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    group = weakref.ref(torch.distributed.group.WORLD)
    circle: list[object] = [nn.parallel.DistributedDataParallel(nn.Linear(1, 1))]
    circle.append(circle)
    del circle
    leave()
    assert group() is None
