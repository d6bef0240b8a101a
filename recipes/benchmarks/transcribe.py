"""`asr transcribe` as people run it: short files, one long file, and the start, each in a process of its own."""

# S samples

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import soundfile
import torch
from torch import Tensor

from asr import audio, checkpoint
from asr.cli import DECODINGS
from asr.data import manifest
from asr.data.dataset import load_utterance
from asr.data.manifest import Utterance
from asr.devices import pick_dtype
from asr.report import table
from benchmarks import measured_command, report
from benchmarks.harness import Benchmark, Conditions, Contender, Result, measure

_HOUR_S = 3600


@dataclass(slots=True, kw_only=True)
class TranscribeBenchmark(Benchmark):
    """How long does an hour of audio take in short files and in a long one, in how much memory, and how long a start?

    Attributes:
        file_s: Of a short file.
        num_files: Short files that one command transcribes.
        long_s: Of the long file, rounded to whole short ones: the utterances of the manifest, again and again.
        decoding: The search, as of `asr transcribe --decoding`.
    """

    needs_model: ClassVar[bool] = True
    name: str = "transcribe"
    file_s: float = 10.0
    num_files: int = 360
    long_s: float = 10800.0
    decoding: str = "greedy"

    def __post_init__(self) -> None:
        if self.num_files < 2:
            raise ValueError(f"benchmark.num_files is {self.num_files}; it must be at least 2")
        if not self.file_s >= 0.1 or not self.long_s >= 2 * self.file_s:
            raise ValueError(
                f"benchmark.file_s is {self.file_s:g} and long_s {self.long_s:g}; file_s must be at least 0.1, and "
                "long_s at least twice as long"
            )
        if self.decoding not in DECODINGS:
            raise ValueError(f"benchmark.decoding is {self.decoding!r}; choose one of {', '.join(DECODINGS)}")

    def run(self, conditions: Conditions) -> dict[str, Any]:
        """Writes the audio and runs the commands in turns.

        Raises:
            FileNotFoundError: If there is no such model or manifest.
            ValueError: If a file is broken, a command fails, or the device is a GPU other than the first.
        """
        assert conditions.model is not None and conditions.manifest is not None
        if conditions.device.index:
            raise ValueError(f"device is {conditions.device}, but asr transcribe takes the first GPU; set device=cuda")
        sample_rate = checkpoint.load(conditions.model).sample_rate
        with tempfile.TemporaryDirectory() as folder:
            utterances = manifest.read(conditions.manifest)
            short, long = write_audio(Path(folder), utterances, sample_rate=sample_rate, benchmark=self)
            commands = self._commands(conditions, short, long, Path(folder) / "transcripts")
            commands[-1].run(None)  # finds the model and the program on the disk, so that no later one has to
            commands[-1].peak_bytes.clear()
            contenders = [Contender(command.name, report.OWN_VERSION, command.run) for command in commands]
            measured = measure(
                contenders, [None], repeats=conditions.repeats, device=torch.device("cpu"), warm_up=False
            )
        return {
            "work": f"{self.num_files} files of {self.file_s:g} s, one of {commands[1].audio_s:g} s, {self.decoding}",
            # What the command picks by itself.
            "dtype": str(pick_dtype("auto", device=conditions.device)).removeprefix("torch."),
            "shapes": {"sample_rate": sample_rate},
            "contenders": _rows(measured, commands),
            "skipped": [],
        }

    def tables(self, found: dict[str, Any]) -> list[str]:
        """Time and memory of each command; the last one's time is that of the start."""
        rows = [["", "audio s", "median s", "spread", "CPU s", "peak MB", "s / more hour", "/ first", "spread", "CPU"]]
        for each in found["contenders"]:
            row = [each["name"], f"{each['audio_s']:g}", f"{each['median_s']:.2f}", report.spread(each["seconds"])]
            row += [f"{each['median_cpu_s']:.2f}", f"{max(each['peak_bytes']) / 1e6:.0f}"]
            if each["ratio"] is None:
                row += [""] * 4
            else:
                row += [f"{statistics.median(each['hours_s']):.1f}", f"{each['ratio']:.3f}"]
                row += [report.spread(each["ratios"])]
                row += ["" if each["cpu_ratio"] is None else f"{each['cpu_ratio']:.3f}"]
            rows.append(row)
        return [table(rows)]

    def _commands(self, conditions: Conditions, short: Sequence[Path], long: Path, output: Path) -> list["Command"]:
        program = [sys.executable, "-m", "asr.cli", "transcribe", "--model", str(conditions.model)]
        program += ["--device", conditions.device.type, "--decoding", self.decoding]
        long_s = self.file_s * _num_blocks(self)
        files = [*map(str, short), "--output-dir", str(output)]
        return [
            Command(f"{len(short)} short files", [*program, *files], self.file_s * len(short)),
            Command("one long file", [*program, str(long)], long_s),
            Command("one short file", [*program, str(short[0])], self.file_s),
        ]


@dataclass(slots=True)
class Command:
    """A command that is run again and again.

    Attributes:
        name: Names its row.
        arguments: The program and what it is told.
        audio_s: Seconds of audio that it transcribes.
        peak_bytes: Most memory of every run so far.
    """

    name: str
    arguments: list[str]
    audio_s: float
    peak_bytes: list[int] = field(default_factory=list)

    def run(self, _: None) -> None:
        """Runs it once.

        Raises:
            ValueError: If it fails, with the last line that it said.
        """
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        starter = [sys.executable, "-I", measured_command.__file__, *self.arguments]
        done = subprocess.run(starter, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        if found["exit_code"]:
            said = done.stderr.strip().splitlines() or [f"exit code {found['exit_code']}"]
            raise ValueError(f"{self.name}: asr transcribe failed: {said[-1]}")
        self.peak_bytes.append(found["peak_bytes"])


def write_audio(
    folder: Path, utterances: Sequence[Utterance], *, sample_rate: int, benchmark: TranscribeBenchmark
) -> tuple[list[Path], Path]:
    """Writes short files and the long one; both have the same speech, one utterance right after the other.

    Raises:
        AudioError: If an utterance cannot be read.
    """
    size = round(benchmark.file_s * sample_rate)
    (folder / "short").mkdir()
    short = [folder / "short" / f"{number:05}.wav" for number in range(benchmark.num_files)]
    for path, block in zip(short, blocks(utterances, size, sample_rate=sample_rate), strict=False):
        audio.save(path, block, sample_rate=sample_rate)
    long = folder / "long.wav"
    with soundfile.SoundFile(long, "w", sample_rate, 1, "PCM_16") as file:
        speech = blocks(utterances, size, sample_rate=sample_rate)
        for block in itertools.islice(speech, _num_blocks(benchmark)):
            file.write(block.numpy())
    return short, long


def blocks(utterances: Sequence[Utterance], size: int, *, sample_rate: int) -> Iterator[Tensor]:
    """All utterances again and again, without an end, in blocks (S,) of a size that takes no heed of words."""
    held = torch.zeros(0)
    for utterance in itertools.cycle(utterances):
        held = torch.cat([held, load_utterance(utterance, sample_rate=sample_rate)])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]


def _num_blocks(benchmark: TranscribeBenchmark) -> int:
    return round(benchmark.long_s / benchmark.file_s)


def _rows(measured: Sequence[Result], commands: Sequence["Command"]) -> list[dict[str, Any]]:
    """Times and memory, and what an hour of audio takes beyond the start, which the last command shows."""
    rows = []
    for result, command in zip(measured, commands, strict=True):
        row = report.times(result, measured[0], audio_s=command.audio_s)
        rows.append(row | {"audio_s": command.audio_s, "peak_bytes": command.peak_bytes})
    *files, start = rows
    start |= {"hours_s": None, "ratio": None, "ratios": None, "cpu_ratio": None}
    for row in files:
        row |= {"hours_s": _hours(row, start, "seconds"), "cpu_hours_s": _hours(row, start, "cpu_seconds")}
        row["ratios"] = _quotients(row["hours_s"], files[0]["hours_s"])
        row["ratio"] = _median(row["ratios"])
        row["cpu_ratio"] = _median(_quotients(row["cpu_hours_s"], files[0]["cpu_hours_s"]))
    return rows


def _hours(row: dict[str, Any], start: dict[str, Any], name: str) -> list[float]:
    """Seconds for another hour of audio, in each repeat."""
    hours = (row["audio_s"] - start["audio_s"]) / _HOUR_S
    return [(own - least) / hours for own, least in zip(row[name], start[name], strict=True)]


def _quotients(values: Sequence[float], others: Sequence[float]) -> list[float]:
    # Too little audio takes no longer than the start does, give or take; then there is no ratio.
    return [own / other for own, other in zip(values, others, strict=True) if other > 0]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
