"""Memory is given back where the system can, and kernels of ever new sizes do not pile up."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asr import garbage
from asr.cli import main
from asr.garbage import MemoryReturns, give_back_memory, keep_few_kernels, without_collections
from asr.speech_model import load_model

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
# A hundred sizes twice over; prints nothing itself, but oneDNN says what it made and what it still had.
SIZES_TWICE = """
import sys
from asr.garbage import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
import torch
weight = torch.zeros(64, 64, 5)
for size in [*range(64, 164)] * 2:
    torch.nn.functional.conv1d(torch.zeros(2, 64, size), weight)
"""


def test_memory_is_given_back_where_the_system_can() -> None:
    give_back_memory()
    assert (garbage._trim() is None) == (not sys.platform.startswith("linux"))


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_is_as_it_was_before(was_enabled: bool) -> None:
    try:
        (gc.enable if was_enabled else gc.disable)()
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_few_kernels_are_kept() -> None:
    assert num_found_again("all") >= 90
    assert num_found_again("few") == 0


def num_found_again(kept: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    process = subprocess.run(
        [sys.executable, "-c", SIZES_TWICE, kept],
        env=environment | {"ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
    )
    made = [line for line in process.stdout.splitlines() if ",convolution," in line]
    assert sum("create:cache_miss" in line for line in made) >= 90
    return sum("create:cache_hit" in line for line in made)


def test_few_kernels_are_kept_where_speech_is_transcribed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # undone behind the test
        monkeypatch.delenv(name)
    load_model(tiny_folder, device="cpu")
    assert [os.environ.pop(name, None) for name in NAMES] == ["64", "64"]
    assert main(["transcribe", "no-such-file.wav", "--model", str(tiny_folder)]) == 1
    assert [os.environ.get(name) for name in NAMES] == ["64", "64"]


def test_what_the_environment_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.setenv(NAMES[1], "")  # undone behind the test
    monkeypatch.delenv(NAMES[1])
    keep_few_kernels()
    assert [os.environ[name] for name in NAMES] == ["7", "64"]


def test_memory_is_given_back_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    now_s = [100.0]
    monkeypatch.setattr("asr.garbage.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("asr.garbage.give_back_memory", lambda: given.append(now_s[0]))
    give_back = MemoryReturns()
    for passed_s in (0.3, 0.3, 0.3, 0.3, 0.7, 0.7, 5.0):
        now_s[0] += passed_s
        give_back()
    assert given == pytest.approx([101.2, 102.6, 107.6])
