"""The config of a run that goes on: what it decides may not change, what is newer than the run may come."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launching
import pytest
import yaml


@pytest.fixture
def begun(tmp_path: Path, compose: Callable[..., Any]) -> Path:
    """A run folder with a config and a checkpoint."""
    launching.write_config(compose("train"), tmp_path)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    return tmp_path


def test_settings_that_are_newer_than_a_run_do_not_refuse_it(begun, compose):
    config = yaml.safe_load((begun / "config.yaml").read_text(encoding="utf-8"))
    del config["init_from"], config["trainer"]["compile"], config["loss"]["label_smoothing"]
    (begun / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    launching.write_config(compose("train"), begun)
    assert yaml.safe_load((begun / "config.yaml").read_text(encoding="utf-8"))["trainer"]["compile"] is False


@pytest.mark.parametrize(
    "change",
    ["trainer.compile=true", "trainer.activation_checkpointing=true", "trainer.sharding=full", "device=cpu"],
)
def test_how_it_is_computed_may_change(begun, compose, change):
    launching.write_config(compose("train", change), begun)


def test_what_is_learned_may_not_change(begun, compose):
    with pytest.raises(ValueError, match=r"holds a run with loss\.ctc_weight=0\.3, not 0\.5; give this run another n"):
        launching.write_config(compose("train", "loss.ctc_weight=0.5"), begun)


def test_only_the_first_process_writes_without_its_number(monkeypatch, capsys):
    for rank, line in (("0", "error: no\n"), ("3", "process 3: error: no\n")):
        monkeypatch.setenv("RANK", rank)
        assert launching._fail("error: no", 1) == 1
        assert capsys.readouterr().err == line


def test_recipes_keep_few_kernels(monkeypatch, capsys):
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in names:
        monkeypatch.setenv(name, "")  # undone behind the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(launching.sys, "argv", ["prepare", "no.such.setting=1"])
    with pytest.raises(SystemExit):
        launching.launch("prepare", lambda _: None)
    assert "Key 'no' not in" in capsys.readouterr().err
    assert [os.environ[name] for name in names] == ["64", "64"]
