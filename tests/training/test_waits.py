"""What makes the processor wait for the GPU is counted, place by place."""

import warnings
from collections import Counter

import pytest
import torch

from asr.training.waits import count_waits, describe_waits

WAITED = "called a synchronizing CUDA operation (Triggered internally at c10/cuda/CUDAFunctions.cpp:148.)"


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Stands in for PyTorch's switch, which needs a GPU; holds all modes that were set, the present one last."""
    held: list[object] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: held[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", held.append)
    return held


def wait_at(line: int) -> None:
    warnings.warn_explicit(WAITED, UserWarning, "/somewhere/losses.py", line)


def test_waits_are_counted_by_place(modes):
    with count_waits(torch.device("cuda")) as waits:
        assert modes == [0, "warn"]
        for line in (7, 9, 7):
            wait_at(line)
    assert waits == {"losses.py:7": 2, "losses.py:9": 1}
    assert modes == [0, "warn", 0]


def test_other_warnings_are_still_shown(modes):
    with pytest.warns(UserWarning, match="something else") as shown, count_waits(torch.device("cuda")) as waits:
        warnings.warn("something else", stacklevel=1)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        wait_at(3)
    assert [str(each.message) for each in shown] == ["something else"]
    assert waits.total() == 1


def test_the_switch_is_put_back_after_an_error(modes):
    with pytest.raises(RuntimeError, match="broken"), count_waits(torch.device("cuda")):
        raise RuntimeError("broken")
    assert modes[-1] == 0


def test_nothing_is_counted_on_a_processor():
    with pytest.warns(UserWarning, match="synchronizing"), count_waits(torch.device("cpu")) as waits:
        wait_at(3)
    assert not waits


def test_the_most_frequent_place_is_named_first():
    assert describe_waits(Counter()) == "0"
    assert describe_waits(Counter({"a.py:1": 1, "b.py:2": 2})) == "3 (b.py:2 x 2, a.py:1)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reading_a_number_from_a_gpu_is_a_wait():
    numbers = torch.ones(3, device="cuda")
    with count_waits(numbers.device) as waits:
        numbers.sum()
        numbers.sum().item()
        float(numbers[0])
    assert waits.total() == 2
    assert all(place.startswith("test_waits.py:") for place in waits)
