"""Batches that processes of their own make ahead of training, in the order of their plans."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

Plan = TypeVar("Plan")
Made = TypeVar("Made")


class _Planned(IterableDataset[Any], Generic[Plan, Made]):
    """The batches of every n-th plan, for worker n of a loader; a fault of the user in the end, to be raised outside.

    PyTorch would raise it there too, but with the traceback of the worker as its message.
    """

    def __init__(self, plans: Callable[[], Iterator[Plan]], make: Callable[[Plan], Made]) -> None:
        self.plans, self.make = plans, make

    def __iter__(self) -> Iterator[tuple[Plan | None, Made | Exception]]:
        worker = torch.utils.data.get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            for count, plan in enumerate(self.plans()):
                if count % step == number:
                    yield plan, self.make(plan)
        except (ValueError, OSError) as fault:
            yield None, fault


def made_ahead(
    plans: Callable[[], Iterator[Plan]],
    make: Callable[[Plan], Made],
    *,
    num_workers: int,
    pin_memory: bool,
    seed: int,
) -> Generator[tuple[Plan, Made], None, None]:
    """Plans and what is made of them, in their order, whatever the number of workers.

    Args:
        plans: Gives the plans from the first on; every worker asks for itself.
        make: Makes a batch; the same of the same plan.
        num_workers: Processes; 0 makes each batch here when it is asked for.
        pin_memory: Whether to put batches into page-locked memory, by their `pin_memory`, for a GPU.
        seed: Of the global generators in the workers.

    Raises:
        ValueError, OSError: What `plans` or `make` raises.
    """
    # The loader draws a seed for its workers; from the global generator, that would change what training draws.
    loader = DataLoader(
        _Planned(plans, make),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_start_worker if num_workers else None,
    )
    others = set(multiprocessing.active_children())
    batches: Any = iter(loader)
    workers = set(multiprocessing.active_children()) - others
    try:
        for plan, made in batches:
            if isinstance(made, Exception):
                raise made
            yield plan, made
    finally:
        if workers:
            # Deleting the iterator is not enough: the traceback of an exception may hold it.
            batches._shutdown_workers()
        for worker in workers:  # they ignore SIGTERM: one that did not end would keep this process from ending
            worker.kill()


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A signal to the process group stops training after its step, which still needs its batches.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
