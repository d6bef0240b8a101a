"""Benchmarks: fair turns, honest ratios, reports with all that figures depend on, and settings that fit together."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import benchmark
import pytest
import torch
from benchmarks import harness, report
from benchmarks.harness import Contender, Result, Skipped

CPU = torch.device("cpu")


def contender(name: str, run: Callable[[Any], Any] = lambda item: item) -> Contender:
    return Contender(name, "1", run)


# Turns and times


def test_contenders_take_turns_item_by_item_after_a_warm_up():
    calls = []

    def recorded(name: str) -> Contender:
        return contender(name, lambda item: calls.append((name, item)))

    contenders = [recorded("a"), recorded("b")]
    harness.measure(contenders, [0, 1, 2], repeats=2, device=CPU)
    first = [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    second = [("b", 0), ("a", 0), ("b", 1), ("a", 1), ("b", 2), ("a", 2)]
    assert calls == [("a", 2), ("b", 2), *first, *second]
    calls.clear()
    harness.measure(contenders, [0, 1, 2], repeats=1, device=CPU, warm_up=False)
    assert calls == first


def test_what_was_found_is_that_of_the_first_repeat_item_by_item():
    numbers = itertools.count()
    (result,) = harness.measure([contender("a", lambda item: (item, next(numbers)))], ["x", "y"], repeats=2, device=CPU)
    assert result.found == [("x", 1), ("y", 2)]


def test_seconds_are_those_of_all_items_for_each_repeat(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(ticks)) ** 2)
    (result,) = harness.measure([contender("a")], [0, 1, 2], repeats=2, device=CPU)
    # The clock is read before and after each of three items: 1 - 0, 9 - 4, 25 - 16, and so on.
    assert result.seconds == [1 + 5 + 9, 13 + 17 + 21]


def test_the_processors_time_is_that_of_programs_too_that_a_contender_starts():
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"]
    (result,) = harness.measure(
        [contender("a", lambda _: subprocess.run(busy, check=True))], [0], repeats=1, device=CPU, warm_up=False
    )
    assert 0.15 < result.cpu_seconds[0] < 2


def test_ratios_are_taken_repeat_by_repeat():
    slow, fast = (
        Result(contender("slow"), [2.0, 9.0], [2.0, 4.0], []),
        Result(contender("fast"), [1.0, 3.0], [2.0, 1.0], []),
    )
    assert slow.ratios(fast) == [2.0, 3.0]
    assert slow.cpu_ratio(fast) == 2.5
    figures = report.times(slow, fast, audio_s=11.0)
    assert (figures["median_s"], figures["ratio"], figures["rtf"], figures["rtfx"]) == (5.5, 2.5, 0.5, 2.0)
    assert "rtf" not in report.times(slow, fast)


def test_who_cannot_take_part_is_left_out_with_the_reason():
    def absent() -> Contender:
        raise Skipped("absent: not installed")

    contenders, reasons = harness.build([lambda: contender("a"), absent])
    assert [each.name for each in contenders] == ["a"]
    assert reasons == ["absent: not installed"]


def test_a_peer_that_is_not_installed_is_named_with_the_line_that_installs_it(capsys):
    message = r"^Peer: No module named 'no_such_peer'; pip install .* peer==1 its-need, and run with PYTHONPATH=PEERS$"
    with pytest.raises(Skipped, match=message), harness.imports_of("Peer", "peer==1", "its-need"):
        print("what a peer says")
        import no_such_peer  # noqa: F401
    assert capsys.readouterr() == ("", "what a peer says\n")


def test_a_column_that_says_nothing_is_left_out():
    result = Result(contender("a"), [1.0], [1.0], [])
    assert "times real time" in report.speed_table([report.times(result, result, audio_s=3.0)])
    assert "times real time" not in report.speed_table([report.times(result, result)])


# Settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark=search"], "benchmark=search needs a model and utterances for it; name model=…"),
        (["benchmark=transcribe", "model=x"], "benchmark=transcribe needs a model .*; name manifest=…"),
        (["benchmark=features", "model=x"], "model is x, but benchmark=features takes none; leave it out"),
        (["benchmark=train_step", "manifest=a.jsonl"], "manifest is a.jsonl, but benchmark=train_step takes none"),
        (["benchmark=score", "device=cuda"], "device is cuda, but benchmark=score computes on the processor alone"),
        (["repeats=0"], "repeats is 0; it must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_named(compose: Callable[..., Any], overrides, message):
    with pytest.raises(ValueError, match=message):
        benchmark.run(compose("benchmark", *overrides))
