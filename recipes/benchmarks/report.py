"""What a benchmark found: as JSON, with all that a figure depends on, and as tables for people."""

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from asr.report import table
from benchmarks.harness import Benchmark, Conditions, Result

OWN_VERSION = metadata.version("asr-attention")


def surroundings(benchmark: Benchmark, conditions: Conditions) -> dict[str, Any]:
    """What figures depend on beside the contenders: settings, machine, device, threads and versions."""
    named = {"model": conditions.model, "manifest": conditions.manifest}
    return {name: str(path) for name, path in named.items() if path is not None} | {
        "benchmark": asdict(benchmark),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "device": str(conditions.device),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("asr-attention", "torch", "torchaudio", "numpy")},
        "repeats": conditions.repeats,
    }


def text(benchmark: Benchmark, found: dict[str, Any]) -> str:
    """The same for people: what was done and where, tables, notes, and who did not take part."""
    where = found["machine"]
    device = where["gpu"] if found["device"].startswith("cuda") else where["cpu"]
    title = (
        f"{found['benchmark']['name']}: {found['work']}, {found['repeats']} repeats; {device}, {found['threads']} of "
        f"{where['cores']} cores, load {where['load']}, {found['dtype']}"
    )
    notes = [f"{each['name']}: {each['note']}" for each in found["contenders"] if each["note"]]
    skipped = [f"skipped: {reason}" for reason in found["skipped"]]
    return "\n\n".join(filter(None, [title, *benchmark.tables(found), "\n".join(notes), "\n".join(skipped)]))


def times(result: Result, first: Result, *, audio_s: float | None = None) -> dict[str, Any]:
    """Medians over the repeats, and all repeats. The ratio to the first is the median of that of each repeat.

    Args:
        result: Of whom.
        first: Whose times are the measure.
        audio_s: Seconds of audio of all items, where it is audio.
    """
    median_s, ratios = statistics.median(result.seconds), result.ratios(first)
    speed = {} if audio_s is None else {"rtf": median_s / audio_s, "rtfx": audio_s / median_s}
    return {
        "name": result.contender.name,
        "version": result.contender.version,
        "note": result.contender.note,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "median_s": median_s,
        "median_cpu_s": statistics.median(result.cpu_seconds),
        **speed,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": result.cpu_ratio(first),
    }


def speed_table(contenders: Sequence[dict[str, Any]]) -> str:
    """One row of times for each contender; spreads are from the least to the most of the repeats."""
    header = ["", "version", "median s", "spread", "CPU s", "times real time", "time / first", "spread", "CPU / first"]
    rows = [header]
    for each in contenders:
        seconds = [f"{each['median_s']:.3f}", spread(each["seconds"]), f"{each['median_cpu_s']:.3f}"]
        speed = f"{each['rtfx']:.1f}" if "rtfx" in each else ""
        ratios = [f"{each['ratio']:.2f}", spread(each["ratios"]), f"{each['cpu_ratio']:.2f}"]
        rows.append([each["name"], each["version"], *seconds, speed, *ratios])
    shown = [column for column in range(len(header)) if any(row[column] for row in rows[1:])]
    return table([[row[column] for column in shown] for row in rows])


def spread(values: Sequence[float]) -> str:
    """The least and the most of some values."""
    return f"{min(values):.2f} – {max(values):.2f}"


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, load of the last minute, and GPU where there is one.

    A load above the number of threads says that other programs ran at the same time.
    """
    names = [
        line.split(":", 1)[1].strip()
        for line in _text(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
