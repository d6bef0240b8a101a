"""Batches made ahead: the same in one process or several, in order; faults and signals."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest
import torch

from asr.data.sentence_batches import SentenceBatch
from asr.data.workers import made_ahead


def plans() -> Iterator[int]:
    return itertools.count()


def make(plan: int) -> torch.Tensor:
    return torch.arange(plan + 1)


def fail(plan: int) -> torch.Tensor:
    if plan == 3:
        raise FileNotFoundError("3.wav: there is no such file")
    return make(plan)


def ahead(num_workers: int, maker=make):
    return made_ahead(plans, maker, num_workers=num_workers, pin_memory=False, seed=1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors, on purpose
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_workers_change_nothing_neither_the_order_nor_the_global_generator(num_workers: int) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = list(itertools.islice(ahead(num_workers), 8))
    assert [plan for plan, _ in found] == list(range(8))
    assert all(torch.equal(made, make(plan)) for plan, made in found)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_fault_is_one_clear_line_whoever_makes_it_behind_all_that_comes_before(num_workers: int) -> None:
    stream = ahead(num_workers, fail)
    assert [plan for plan, _ in itertools.islice(stream, 3)] == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match=r"^3\.wav: there is no such file$") as caught:
        next(stream)
    assert not multiprocessing.active_children(), "nobody is left, though the exception still holds the iterator"
    assert caught.value


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_of_the_plans_is_one_clear_line_too(num_workers: int) -> None:
    def broken() -> Iterator[int]:
        yield from range(3)
        raise ValueError("seed is -1; it must not be negative")

    stream = made_ahead(broken, make, num_workers=num_workers, pin_memory=False, seed=1)
    assert [plan for plan, _ in itertools.islice(stream, 3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^seed is -1; it must not be negative$"):
        next(stream)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_for_a_gpu_are_in_page_locked_memory(num_workers: int) -> None:
    def batch(plan: int) -> SentenceBatch:
        return SentenceBatch(tokens=torch.full((2, 3), plan), lengths=torch.tensor([3, 2]), num_tokens=7, ids=["one"])

    for plan, made in itertools.islice(made_ahead(plans, batch, num_workers=num_workers, pin_memory=True, seed=1), 3):
        assert made.tokens.is_pinned() and made.lengths.is_pinned()
        moved = made.to(torch.device("cuda"))
        assert moved.tokens.tolist() == [[plan] * 3] * 2
        assert (moved.num_tokens, moved.ids) == (7, ["one"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_signal_to_all_processes_leaves_the_workers_at_work() -> None:
    stream = ahead(2)
    first = list(itertools.islice(stream, 2))  # one of each worker: both are at work
    others = {child.pid for child in multiprocessing.active_children()}
    assert len(others) == 2
    for number in (signal.SIGINT, signal.SIGTERM):
        for pid in others:
            os.kill(pid, number)
    rest = list(itertools.islice(stream, 12))  # more than what is made ahead
    assert [plan for plan, _ in first + rest] == list(range(14))
    stream.close()
    assert not multiprocessing.active_children()
