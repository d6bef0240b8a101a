"""Compiled blocks and checkpointed activations: the same numbers, the same names of weights, clear refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import (
    PLAIN,
    FixedBatches,
    StubTask,
    assert_equal,
    copy_of,
    make_batches,
    make_task,
    make_trainer,
)
from utterances import make_utterances

from asr.data.batching import BatchPlan, Draw
from asr.training.acceleration import checkpoint_activations, compile_blocks
from asr.training.interfaces import Validation


class Block(nn.Module):
    """A block that can compute its activations anew."""

    checkpoint_activations = False

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.linear(x)) * x.shape[0]


class Blocks(nn.Module):
    """Two blocks, one of which is to be compiled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = Block(), nn.Linear(4, 1)

    def blocks_to_compile(self) -> list[nn.Module]:
        return [self.first]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_compiled_blocks_give_the_same_for_batches_of_any_size_and_keep_their_names(monkeypatch):
    # PyTorch's compiler as far as the C++ code, whose compilation takes too long for a test.
    compile_block = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, dynamic, options: compile_block(self, backend="eager", dynamic=dynamic)
    )
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    plain, compiled = Blocks(), Blocks()
    compile_blocks(compiled)
    for size in (3, 5, 8):
        x = torch.randn(size, 4)
        for model in (plain, compiled):
            model.zero_grad()
            model(x).sum().backward()
        torch.testing.assert_close(compiled(x), plain(x))
        torch.testing.assert_close(compiled.first.linear.weight.grad, plain.first.linear.weight.grad)
    assert_equal(copy_of(compiled), copy_of(plain))


def test_blocks_are_compiled_for_changing_sizes(monkeypatch):
    calls: list[tuple[nn.Module, dict]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: calls.append((self, settings)))
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/g++")
    model = Blocks()
    compile_blocks(model)
    ((block, settings),) = calls
    assert block is model.first
    assert settings == {"dynamic": True, "options": {"triton.mix_order_reduction": False}}


def test_validation_runs_as_it_is_written(tmp_path, monkeypatch, caplog):
    compile_block, graphs = nn.Module.compile, []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr(
        nn.Module, "compile", lambda self, dynamic, options: compile_block(self, backend=keep, dynamic=dynamic)
    )
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    task = make_task(PLAIN, dropout=0.1)

    def validate() -> Validation:
        with torch.no_grad():
            task.model.encode(torch.randn(1, 4000), torch.tensor([4000]))
        return Validation(1.0, {})

    dataset = make_batches(make_utterances(tmp_path / "speech", [0.6, 0.5]), PLAIN).dataset
    batch = dataset[BatchPlan(0, 0, [Draw(0, 1.0), Draw(1, 1.0)])]
    make_trainer(tmp_path / "run", task, batches=FixedBatches([batch]), validate=validate, compile=True).run()
    assert graphs
    assert all(graphs)
    assert "trainer.compile is true, which takes longer than it saves on a processor; set it false" in caplog.messages


def test_a_missing_compiler_is_named_with_the_ways_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = (
        r"^trainer\.compile is true, but the C\+\+ compiler no-such-compiler is not found; install it, name another by "
        r"the environment's CXX, or set trainer\.compile=false$"
    )
    with pytest.raises(ValueError, match=message):
        compile_blocks(Blocks())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compile", r"trainer\.compile is true, but Linear has no blocks to compile; set it false"),
        (
            "activation_checkpointing",
            r"activation_checkpointing is true, but Linear has no part that can do it; set it",
        ),
    ],
)
def test_a_model_that_cannot_is_refused_before_training(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, StubTask(), **{setting: True})


def test_every_part_that_can_is_told_to_checkpoint_its_activations():
    model = Blocks()
    checkpoint_activations(model)
    assert model.first.checkpoint_activations
    assert not Block().checkpoint_activations


def test_both_are_off_unless_asked_for(tmp_path: Path):
    task = StubTask()
    task.model = Blocks()
    make_trainer(tmp_path, task)
    assert not task.model.first.checkpoint_activations
    assert task.model.first._compiled_call_impl is None
