"""Benchmark of `asr transcribe`: its audio, commands that tell what they took, and the recipe from end to end."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import pytest
import soundfile
import tiny
import torch
from benchmarks import transcribe
from benchmarks.harness import Conditions, Contender, Result
from benchmarks.transcribe import Command, TranscribeBenchmark

from asr.data import manifest
from asr.data.manifest import Utterance


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two utterances of noise, of 0.3 and 0.5 seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = []
    for number, duration_s in enumerate((0.3, 0.5)):
        audio = tiny.write_noise(folder / f"{number}.wav", duration_s=duration_s, seed=number)
        utterances.append(Utterance(id=f"u{number}", audio=audio, duration_s=duration_s, text="a"))
    manifest.write(folder / "noise.jsonl", utterances)
    return folder / "noise.jsonl"


def test_speech_goes_round_and_round_in_blocks(corpus):
    speech = transcribe.blocks(manifest.read(corpus), 1000, sample_rate=tiny.SAMPLE_RATE)
    tape = torch.cat(list(itertools.islice(speech, 13)))
    assert tape.shape == (13_000,)
    assert torch.equal(tape[6400:12_800], tape[:6400])  # both utterances have 6,400 samples


def test_the_long_file_begins_as_the_short_ones_do(corpus, tmp_path):
    kind = TranscribeBenchmark(file_s=0.2, num_files=3, long_s=1.3)
    short, long = transcribe.write_audio(tmp_path, manifest.read(corpus), sample_rate=tiny.SAMPLE_RATE, benchmark=kind)
    pieces = torch.cat([torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in short])
    whole, sample_rate = soundfile.read(long, dtype="float32")
    assert (len(short), len(pieces), len(whole), sample_rate) == (3, 4800, 9600, tiny.SAMPLE_RATE)
    assert torch.allclose(pieces, torch.from_numpy(whole[:4800]), atol=1e-4)


def test_a_command_tells_its_own_peak_of_memory():
    held = torch.ones(50_000_000)  # 200 MB here are no memory of the command
    program = "import sys; held = bytearray({}); held[::4096] = b'x' * len(held[::4096]); print('not to be seen')"
    peaks = []
    for size in (1, 60_000_000):
        command = Command("a", [sys.executable, "-c", program.format(size)], audio_s=1.0)
        command.run(None)
        peaks += command.peak_bytes
    assert len(held) and 1e6 < peaks[0] < 100e6
    assert peaks[1] - peaks[0] == pytest.approx(60e6, rel=0.1)


def test_a_command_that_fails_is_named_with_what_it_said():
    command = Command("two files", [sys.executable, "-c", "import sys; sys.exit('error: no such model')"], audio_s=1.0)
    with pytest.raises(ValueError, match=r"^two files: asr transcribe failed: error: no such model$"):
        command.run(None)
    silent = Command("two files", [sys.executable, "-c", "import sys; sys.exit(3)"], audio_s=1.0)
    with pytest.raises(ValueError, match=r"^two files: asr transcribe failed: exit code 3$"):
        silent.run(None)


def test_an_hour_is_counted_from_the_start_on():
    measured = [
        Result(Contender(name, "1", print), seconds, cpu_seconds, [])
        for name, seconds, cpu_seconds in (
            ("many", [12.0, 22.0], [4.0, 4.0]),
            ("long", [23.0, 31.0], [7.0, 7.0]),
            ("one", [2.0, 2.0], [1.0, 1.0]),
        )
    ]
    commands = [Command(name, [], audio_s) for name, audio_s in (("many", 370.0), ("long", 730.0), ("one", 10.0))]
    many, long, one = transcribe._rows(measured, commands)
    assert (many["hours_s"], many["ratio"]) == ([100.0, 200.0], 1.0)
    assert (long["hours_s"], long["cpu_hours_s"]) == ([105.0, 145.0], [30.0, 30.0])
    assert (long["ratios"], long["cpu_ratio"]) == ([1.05, 0.725], 1.0)
    assert (one["median_s"], one["ratio"]) == (2.0, None)


def test_the_recipe_times_the_command_in_processes_of_its_own(compose: Callable[..., Any], corpus, tmp_path, capsys):
    model = tiny.save(tmp_path / "model")
    settings = ["benchmark.file_s=0.4", "benchmark.num_files=2", "benchmark.long_s=0.8", "repeats=1", "num_threads=0"]
    where = [f"model={model}", f"manifest={corpus}", f"output={tmp_path / 'out'}", "device=cpu"]
    benchmark.run(compose("benchmark", "benchmark=transcribe", *where, *settings))
    found = json.loads((tmp_path / "out" / "transcribe.json").read_text(encoding="utf-8"))
    many, long, one = found["contenders"]
    assert [each["audio_s"] for each in (many, long, one)] == [0.8, 0.8, 0.4]
    for each in (many, long, one):
        assert each["seconds"][0] > 0.1
        assert each["cpu_seconds"][0] > 0.1
        (peak,) = each["peak_bytes"]
        assert 50e6 < peak < 5e9
    printed = capsys.readouterr().out
    assert printed.startswith("transcribe: 2 files of 0.4 s, one of 0.8 s, greedy, 1 repeats; ")
    assert "one short file" in printed


def test_only_the_first_gpu_can_be_asked_for():
    conditions = Conditions(device=torch.device("cuda:1"), repeats=1, model=Path("x"), manifest=Path("y"))
    with pytest.raises(ValueError, match="device is cuda:1, but asr transcribe takes the first GPU; set device=cuda"):
        TranscribeBenchmark().run(conditions)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_files=1", "benchmark.num_files is 1; it must be at least 2"),
        ("long_s=15", "benchmark.file_s is 10 and long_s 15; file_s must be at least 0.1, and long_s at least twice"),
        ("decoding=beam", "benchmark.decoding is 'beam'; choose one of greedy, prefix_beam"),
    ],
)
def test_settings_out_of_range_are_named(compose: Callable[..., Any], override, message):
    with pytest.raises(ValueError, match=message):
        compose("benchmark", "benchmark=transcribe", f"benchmark.{override}")
