"""How runs learned: their curves over all interruptions, against steps, audio or minutes, behind the runs before them.

Curves come from TensorBoard's events, or from `train.log` where a run was tracked elsewhere or not at all.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, TENSORS, EventAccumulator

from comparison.runs import Run, read_run

AXES = {"steps": "steps", "audio": "hours of audio", "minutes": "minutes of training"}
_SPEED = "speed/audio_s_per_s"

_TIME = r"^\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\]"
_VALIDATION = re.compile(_TIME + r".* - step (?P<step>\d+) validation: (?P<scores>.*) \(best ")
_PROGRESS = re.compile(_TIME + r".* - step (?P<step>\d+)/\d+ .* (?P<speed>\d+) frames/s")
_BEGIN = " - the largest batch fits: "  # logged once by every process that trains


@dataclass(frozen=True, slots=True)
class Event:
    """A value that was written in training.

    Attributes:
        part: Which process wrote it, counted from 0.
        wall_s: When, in s since 1970.
        step: After how many optimiser steps.
        tag: Whose curve.
        value: The point.
    """

    part: int
    wall_s: float
    step: int
    tag: str
    value: float


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve.

    Attributes:
        step: Optimiser steps.
        seconds: Of training, over all interruptions and without the pauses between, in s.
        value: As written.
    """

    step: int
    seconds: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The curves of a run.

    Attributes:
        curves: Points in the order of steps, by tag.
        last_step: Of the last point of any curve.
        seconds: Of training up to that, in s.
        audio_s_per_step: Seconds of audio that a step takes in, on average; None where that is unknown.
    """

    curves: Mapping[str, list[Point]]
    last_step: int
    seconds: float
    audio_s_per_step: float | None

    def place(self, *, axis: str, step: int, seconds: float) -> float:
        """Where a point lies on an axis of `AXES`; audio is in hours.

        Raises:
            ValueError: If the axis is audio, but nothing is known of it.
        """
        if axis == "steps":
            return float(step)
        if axis == "minutes":
            return seconds / 60
        if self.audio_s_per_step is None:
            raise ValueError(f"{_SPEED} has too few points to tell the audio of a step; take axis=steps or minutes")
        return step * self.audio_s_per_step / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve to draw.

    Attributes:
        x, y: The run's own points.
        before: The points of the runs that it started from, the eldest first: x and y.
    """

    x: list[float]
    y: list[float]
    before: list[tuple[float, float]]


def read_history(folder: Path) -> History:
    """Reads the curves of a run that may have been interrupted and resumed; without points if it has only begun."""
    files = sorted(folder.glob("events.out.tfevents.*"))  # their names begin with the time
    events = _merge(_from_events(files) if files else _from_log(folder / "train.log"))
    seconds = _clock(events)
    curves: dict[str, list[Point]] = {}
    for event, elapsed_s in zip(events, seconds, strict=True):
        curves.setdefault(event.tag, []).append(Point(event.step, elapsed_s, event.value))
    return History(
        curves=curves,
        last_step=max((event.step for event in events), default=0),
        seconds=seconds[-1] if seconds else 0.0,
        audio_s_per_step=_audio_per_step(events),
    )


def make_line(run: Run, history: History, *, tag: str, axis: str, join: bool) -> Line | None:
    """One curve of a run, to draw.

    Args:
        run: The run.
        history: Its curves.
        tag: Which of them.
        axis: One of `AXES`.
        join: Whether a run that started from the weights of another is put behind that one, whose curves are read.

    Returns:
        None where the run has no point of that curve.

    Raises:
        ValueError: If the place of points on the axis is unknown, or the run that it started from is not there.
    """
    points = history.curves.get(tag, [])
    if not points:
        return None
    before, offset = _behind(ancestors(run), tag=tag, axis=axis) if join else ([], 0.0)
    return Line(
        x=[offset + history.place(axis=axis, step=point.step, seconds=point.seconds) for point in points],
        y=[point.value for point in points],
        before=before,
    )


def ancestors(run: Run) -> list[Run]:
    """The runs whose weights a run started from, one after the other, the eldest first.

    Raises:
        ValueError: If one of them is not there.
    """
    return [] if run.start is None else [*ancestors(parent := read_run(run.start)), parent]


def _behind(runs: Iterable[Run], *, tag: str, axis: str) -> tuple[list[tuple[float, float]], float]:
    """The curve of runs one behind the other, and where on the axis they end."""
    points: list[tuple[float, float]] = []
    offset = 0.0
    for run in runs:
        history = read_history(run.folder)
        points += [
            (offset + history.place(axis=axis, step=point.step, seconds=point.seconds), point.value)
            for point in history.curves.get(tag, [])
        ]
        offset += history.place(axis=axis, step=history.last_step, seconds=history.seconds)
    return points, offset


def _from_events(files: Iterable[Path]) -> Iterator[Event]:
    for part, file in enumerate(files):
        found = EventAccumulator(str(file), size_guidance={SCALARS: 0, IMAGES: 1, TENSORS: 1}).Reload()
        for tag in found.Tags()[SCALARS]:
            for scalar in found.Scalars(tag):
                yield Event(part, scalar.wall_time, scalar.step, tag, scalar.value)


def _from_log(path: Path) -> Iterator[Event]:
    part = 0
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if _BEGIN in line:
            part += 1
        elif found := _VALIDATION.match(line):
            words = found["scores"].split()
            for tag, value in zip(words[::2], words[1::2], strict=True):
                yield Event(part, _wall_s(found["time"]), int(found["step"]), tag, float(value))
        elif found := _PROGRESS.match(line):
            # The log tells the speed in frames of 10 ms.
            yield Event(part, _wall_s(found["time"]), int(found["step"]), _SPEED, int(found["speed"]) / 100)


def _wall_s(time: str) -> float:
    return datetime.strptime(time, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _merge(events: Iterable[Event]) -> list[Event]:
    """All parts in the order of time; of steps that a later process took once more, its own points count."""
    kept: list[Event] = []
    part: list[Event] = []
    for event in [*sorted(events, key=lambda event: (event.part, event.wall_s)), None]:
        if event is None or (part and event.part != part[0].part):
            first = min((each.step for each in part), default=0)
            kept = [each for each in kept if each.step < first] + part
            part = []
        if event is not None:
            part.append(event)
    return kept


def _clock(events: list[Event]) -> list[float]:
    """Seconds of training at each event.

    Between two events of one process its clock counts. What passed before a process wrote its first event is unknown:
    its steps are counted at the run's average pace, so that neither pauses nor the reading of the corpus count.
    """
    together = [(one, other) for one, other in pairwise(events) if one.part == other.part]
    num_steps = sum(other.step - one.step for one, other in together)
    pace_s = sum(other.wall_s - one.wall_s for one, other in together) / num_steps if num_steps else 0.0
    seconds = [events[0].step * pace_s] if events else []
    for one, other in pairwise(events):
        same = one.part == other.part
        seconds.append(seconds[-1] + (other.wall_s - one.wall_s if same else (other.step - one.step) * pace_s))
    return seconds


def _audio_per_step(events: list[Event]) -> float | None:
    """Seconds of audio a step, by the speed that was logged and the time from one line of the log to the next.

    The speed is that of training alone, so stretches in which a validation lies are left out, and one that begins with
    a validation is counted from its end.
    """
    validated = {(event.part, event.step): event.wall_s for event in events if event.tag.startswith("valid/")}
    speeds = [event for event in events if event.tag == _SPEED]
    audio_s, num_steps = 0.0, 0
    for one, other in pairwise(speeds):
        inside = any(part == one.part and one.step < step < other.step for part, step in validated)
        if one.part == other.part and not inside:
            begin_s = max(one.wall_s, validated.get((one.part, one.step), 0.0))
            audio_s += other.value * (other.wall_s - begin_s)
            num_steps += other.step - one.step
    return audio_s / num_steps if num_steps else None
