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

from asr import evaluate
from asr.report import percent, table
from benchmarks.harness import Batch, Benchmark, Result, Tokens, Work, compare


def results(benchmark: Benchmark, work: Work, measured: Sequence[Result], skipped: Sequence[str]) -> dict[str, Any]:
    """All that is known, as plain JSON values: the machine, the settings, times and quality of every contender.

    Args:
        benchmark: What was compared.
        work: What all did.
        measured: What each took and found; the first one is what the others are compared with.
        skipped: Why others did not take part.
    """
    scores = _scores(benchmark, work, measured)
    first, contenders = measured[0], []
    for result in measured:
        comparison = compare(
            first, result, first_scores=scores[first.contender.name], scores=scores[result.contender.name]
        )
        contenders.append(
            _times(result, first, audio_s=work.audio_s)
            | {"wer": _word_error_rate(work, result), "mean_score": statistics.fmean(scores[result.contender.name])}
            | {"compared": asdict(comparison)}
        )
    return {
        "benchmark": asdict(benchmark) | {"beam_size": work.beam_size},
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "device": str(work.device),
        "dtype": str(work.batches[0].frames.dtype).removeprefix("torch."),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("asr-attention", "torch", "torchaudio", "numpy")},
        "audio_s": round(work.audio_s, 2),
        "batch_size": len(work.batches[0].lengths),
        "repeats": len(first.seconds),
        "contenders": contenders,
        "skipped": list(skipped),
        "utterances": _utterances(work, measured, scores),
    }


def tables(found: dict[str, Any]) -> str:
    """The same for people: speed, then quality, then who did not take part."""
    where = found["machine"]
    device = where["gpu"] if found["device"].startswith("cuda") else where["cpu"]
    title = (
        f"{found['benchmark']['name']}: {len(found['utterances'])} utterances, {found['audio_s']:.0f} s of audio, "
        f"{found['repeats']} repeats; {device}, {found['threads']} of {where['cores']} cores, load {where['load']}, "
        f"{found['dtype']}"
    )
    skipped = "\n".join(f"skipped: {reason}" for reason in found["skipped"])
    parts = [title, _speed_table(found["contenders"]), _quality_table(found["contenders"]), skipped]
    return "\n\n".join(filter(None, parts))


def _speed_table(contenders: Sequence[dict[str, Any]]) -> str:
    rows = [["", "version", "median s", "spread", "CPU s", "times real time", "time / first", "spread"]]
    for each in contenders:
        times = [f"{each['median_s']:.3f}", _range(each["seconds"]), f"{each['median_cpu_s']:.3f}"]
        ratios = [f"{each['rtfx']:.1f}", f"{each['ratio']:.2f}", _range(each["ratios"])]
        rows.append([each["name"], each["version"], *times, *ratios])
    return table(rows)


def _quality_table(contenders: Sequence[dict[str, Any]]) -> str:
    rows = [["best transcripts", "WER", "mean score", "same", "first better", "worse", "by at most", "N best shared"]]
    for each in contenders:
        compared = each["compared"]
        counts = [str(compared[name]) for name in ("same", "better", "worse")]
        rest = [f"{compared['shortfall']:.4f}", percent(compared["shared"])]
        rows.append([each["name"], percent(each["wer"]), f"{each['mean_score']:.4f}", *counts, *rest])
    return table(rows)


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


def _times(result: Result, first: Result, *, audio_s: float) -> dict[str, Any]:
    """Medians over the repeats, and all repeats. The ratio to the first is the median of that of each repeat."""
    median_s, ratios = statistics.median(result.seconds), result.ratios(first)
    return {
        "name": result.contender.name,
        "version": result.contender.version,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "median_s": median_s,
        "median_cpu_s": statistics.median(result.cpu_seconds),
        "rtf": median_s / audio_s,
        "rtfx": audio_s / median_s,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _scores(benchmark: Benchmark, work: Work, measured: Sequence[Result]) -> dict[str, list[float]]:
    """The exact score of each best transcript, by contender; one that several found is scored once."""
    score = benchmark.scorer(work)
    singles = [one for batch in work.batches for one in batch.alone()]
    known: dict[tuple[int, Tokens], float] = {}

    def look_up(number: int, one: Batch, tokens: Tokens) -> float:
        if (number, tokens) not in known:
            known[number, tokens] = score(one, tokens)
        return known[number, tokens]

    return {
        result.contender.name: [look_up(number, one, result.found[number][0]) for number, one in enumerate(singles)]
        for result in measured
    }


def _word_error_rate(work: Work, result: Result) -> float:
    texts = {
        utterance.id: work.tokenizer.decode(found[0])
        for utterance, found in zip(work.utterances, result.found, strict=True)
    }
    return evaluate.score({utterance.id: utterance.text for utterance in work.utterances}, texts).wer


def _utterances(work: Work, measured: Sequence[Result], scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Best transcript and exact score of every utterance by every contender."""
    return [
        {
            "id": utterance.id,
            "duration_s": utterance.duration_s,
            "best": {
                result.contender.name: {
                    "text": work.tokenizer.decode(result.found[number][0]),
                    "score": scores[result.contender.name][number],
                }
                for result in measured
            },
        }
        for number, utterance in enumerate(work.utterances)
    ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} – {max(values):.2f}"
