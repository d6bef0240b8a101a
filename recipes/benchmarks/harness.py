"""Times contenders side by side: the same work for all, taken in turns, repeated after a warm-up."""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

Item = TypeVar("Item")


class Skipped(Exception):  # noqa: N818 - nothing is wrong
    """Why a contender does not take part: it is not installed, or needs another device."""


@contextlib.contextmanager
def imports_of(name: str, *packages: str) -> Iterator[None]:
    """Surrounds the imports of a peer. What it prints meanwhile goes to standard error.

    Args:
        name: Of the peer.
        packages: What pip installs for it, into a folder of its own: peers are no dependencies of the project.

    Raises:
        Skipped: If it is not installed, with the line that installs it.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ImportError as error:
        raise Skipped(f"{name}: {error}; {installation(*packages)}") from None


def installation(*packages: str) -> str:
    """How a peer comes along without a change to the environment."""
    return f"pip install --no-deps --target PEERS {' '.join(packages)}, and run with PYTHONPATH=PEERS"


@dataclass(frozen=True, slots=True)
class Contender:
    """Who takes part.

    Attributes:
        name: Names its row.
        version: Of the package that it comes from.
        run: Does the work of one item and returns what was found.
        note: What a reader of its figures has to know.
    """

    name: str
    version: str
    run: Callable[[Any], Any]
    note: str = ""


@dataclass(slots=True)
class Result:
    """What a contender took and found.

    Attributes:
        contender: Which one.
        seconds: For all items, one number a repeat.
        cpu_seconds: The same of the processor's time, which other programs on a busy machine leave as it is.
        found: What it returned in the first repeat, item by item.
    """

    contender: Contender
    seconds: list[float]
    cpu_seconds: list[float]
    found: list[Any]

    def ratios(self, other: "Result") -> list[float]:
        """How many times the other's seconds this one takes, repeat by repeat."""
        return [own / others for own, others in zip(self.seconds, other.seconds, strict=True)]

    def cpu_ratio(self, other: "Result") -> float:
        """The median of the same of the processor's time."""
        pairs = zip(self.cpu_seconds, other.cpu_seconds, strict=True)
        return statistics.median(own / max(others, 1e-9) for own, others in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What every benchmark is told.

    Attributes:
        device: Where to compute.
        repeats: How often all is timed.
        model: A model folder or a run folder; None for a benchmark without a model.
        manifest: Utterances for it; None likewise.
    """

    device: torch.device
    repeats: int
    model: Path | None = None
    manifest: Path | None = None


@dataclass(slots=True, kw_only=True)
class Benchmark:
    """A kind of benchmark.

    Attributes:
        needs_model: Whether it takes a model and utterances for it.
        processor_only: Whether nothing of it can run on a GPU.
        name: Names the file of results.
    """

    needs_model: ClassVar[bool] = False
    processor_only: ClassVar[bool] = False
    name: str

    def run(self, conditions: Conditions) -> dict[str, Any]:
        """Measures, and returns what was found as plain JSON values.

        Returns:
            `work`, in words; `dtype`; `shapes` of the data by name; `contenders`, as `report.times` has them, the one
            that the others are compared with first; `skipped`, why others did not take part; and more of its own.
        """
        raise NotImplementedError

    def tables(self, found: dict[str, Any]) -> list[str]:
        """What `run` found, for people; `report.speed_table` makes the first table of most."""
        raise NotImplementedError


def build(builders: Sequence[Callable[[], Contender]]) -> tuple[list[Contender], list[str]]:
    """Makes the contenders; those that cannot take part are left out, with the reasons."""
    contenders, reasons = [], []
    for builder in builders:
        try:
            contenders.append(builder())
        except Skipped as reason:
            reasons.append(str(reason))
    return contenders, reasons


def rotated(items: Sequence[Item], repeat: int) -> list[Item]:
    """The order of a repeat: from one to the next another begins, since the first may find the machine otherwise."""
    first = repeat % len(items)
    return [*items[first:], *items[:first]]


def measure(
    contenders: Sequence[Contender], items: Sequence[Any], *, repeats: int, device: torch.device, warm_up: bool = True
) -> list[Result]:
    """Gives every item to all contenders before the next, so that a slow minute of the machine hits all alike.

    Each contender first takes the last item, which should be the smallest, untimed.

    Args:
        contenders: Who takes part.
        items: What each is given, one after the other.
        repeats: How often all is timed.
        device: Whose work is waited for.
        warm_up: Whether that untimed turn is taken.
    """
    for contender in contenders if warm_up else ():
        contender.run(items[-1])
    results = [Result(contender, [0.0] * repeats, [0.0] * repeats, []) for contender in contenders]
    for repeat in range(repeats):
        for item in items:
            for result in rotated(results, repeat):
                found, seconds, cpu_seconds = _timed(result.contender, item, device)
                result.seconds[repeat] += seconds
                result.cpu_seconds[repeat] += cpu_seconds
                if repeat == 0:
                    result.found.append(found)
    return results


def _timed(contender: Contender, item: Any, device: torch.device) -> tuple[Any, float, float]:
    """What is found, after how many seconds, and how many of the processor's."""
    _wait_for(device)
    started, cpu_started = time.perf_counter(), _cpu_time()
    found = contender.run(item)
    _wait_for(device)
    return found, time.perf_counter() - started, _cpu_time() - cpu_started


def _cpu_time() -> float:
    """Seconds that processors spent on this process, and on those that it started and saw end."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
