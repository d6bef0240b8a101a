"""`recipes/train.py init_from=…` from end to end: refused with the overrides that mend it, then trained with them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import train
import yaml
from noise_runs import make_arguments

from asr import checkpoint


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two steps that hardly move the weights, so that they tell where training began."""
    small = ["trainer.max_steps=2", "optim.warmup_steps=0", "optim.lr=1e-6", "data.test=[]", "tracking=none"]
    return [*make_arguments(tmp_path_factory.mktemp("noise")), *small]


def test_what_a_refusal_says_makes_the_run_start_from_the_model(
    arguments: list[str], compose: Callable[..., Any], tmp_path: Path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    start = tiny.save(tmp_path / "start")
    monkeypatch.setattr(train, "run_folder", lambda: tmp_path / "run")
    (tmp_path / "run").mkdir()
    command = [*arguments, f"init_from={start}", "tokenizer=bpe", "tokenizer.vocab_size=12"]
    for _ in range(2):  # first the tokenizer is refused, then the sizes
        with pytest.raises(ValueError, match=r"^init_from: ") as refused:
            train.run(compose("train", *command))
        command += str(refused.value).split("set ")[-1].split()
    train.run(compose("train", *command))
    assert f"starting from the weights of {start}" in caplog.messages
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init_from"] == str(start)
    found, before = checkpoint.load(tmp_path / "run"), checkpoint.load(start)
    assert found.tokenizer.tokens == before.tokenizer.tokens
    for name, weight in before.model.state_dict().items():
        assert float((found.model.state_dict()[name] - weight).abs().max()) < 1e-4, name

    caplog.clear()  # the same command, with more steps, goes on from the run's own checkpoint
    train.run(compose("train", *command, "trainer.max_steps=3"))
    assert f"going on from {tmp_path / 'run' / 'checkpoints' / 'step-00000002'}, step 2" in caplog.messages
    with pytest.raises(ValueError, match=r"holds a run with init_from=.*, not None; give this run another name"):
        train.run(compose("train", *(each for each in command if not each.startswith("init_from"))))


def test_a_path_without_a_model_is_named(arguments: list[str], compose: Callable[..., Any], tmp_path, monkeypatch):
    monkeypatch.setattr(train, "run_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such model; give a model folder or the folder of"):
        train.run(compose("train", *arguments, f"init_from={tmp_path / 'nowhere'}"))
