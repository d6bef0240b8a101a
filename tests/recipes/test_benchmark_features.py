"""Benchmark of features: all that can compute the same numbers do, and the recipe from end to end."""

import json
import sys
from collections.abc import Callable
from typing import Any

import benchmark
import pytest
import torch
from benchmarks.feature_peers import FEATURE_PEERS
from benchmarks.features import FeaturesBenchmark, make_audio, own_contenders
from benchmarks.harness import Skipped

from asr.features import FeatureConfig

CPU = torch.device("cpu")
PLAIN = FeatureConfig(normalize="none")


def small() -> FeaturesBenchmark:
    return FeaturesBenchmark(features=PLAIN, batch_size=3, min_duration_s=0.3, max_duration_s=0.5)


def test_utterances_are_as_long_as_asked_for_in_every_form():
    audio = make_audio(small(), CPU)
    assert audio.lengths.tolist() == [8000, 6400, 4800]
    assert audio.waveforms.shape == (3, 8000)
    assert (audio.waveforms[2, 4800:] == 0).all()
    for row, array, floats, waveform in zip(audio.rows, audio.arrays, audio.lists, audio.waveforms, strict=True):
        assert torch.equal(row, waveform[: len(row)])
        assert array.tolist() == floats == row.tolist()


def test_one_by_one_gives_the_features_of_the_batch():
    audio = make_audio(small(), CPU)
    batched, single = (build().run(audio) for build in own_contenders(FeatureConfig(), device=CPU))
    for row, alone in zip(batched, single, strict=True):
        assert torch.allclose(row[: len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize("peer", ["librosa", "torchaudio"])
def test_these_peers_compute_the_same_numbers(peer):
    audio = make_audio(small(), CPU)
    own = own_contenders(PLAIN, device=CPU)[1]().run(audio)
    for ours, theirs in zip(own, FEATURE_PEERS[peer](PLAIN, device=CPU)().run(audio), strict=True):
        inner = slice(2, len(ours) - 3)  # the batch's zeros reach into the last windows no otherwise than its end
        assert torch.allclose(ours[inner], torch.as_tensor(theirs)[: len(ours)][inner], atol=1e-3)


def test_kaldis_features_of_both_peers_agree():
    pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not on PYTHONPATH")
    audio = make_audio(small(), CPU)
    kinds = ("torchaudio_kaldi", "kaldi_native")
    for one, other in zip(*(FEATURE_PEERS[kind](PLAIN, device=CPU)().run(audio) for kind in kinds), strict=True):
        assert one.shape == other.shape
        # torchaudio's samples are not scaled anew either, so that only rounding differs.
        assert torch.allclose(one, torch.as_tensor(other), atol=1e-2)


def test_kaldi_native_fbank_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    with pytest.raises(
        Skipped, match=r"^kaldi-native-fbank: .*; pip install .* kaldi-native-fbank kaldi-native-fbank-c"
    ):
        FEATURE_PEERS["kaldi_native"](PLAIN, device=CPU)()


def test_the_recipe_tells_seconds_of_audio_per_second(compose: Callable[..., Any], tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    settings = ["benchmark.batch_size=2", "benchmark.min_duration_s=0.2", "benchmark.max_duration_s=0.4", "device=cpu"]
    benchmark.run(compose("benchmark", "benchmark=features", f"output={tmp_path}", "num_threads=0", *settings))
    found = json.loads((tmp_path / "features.json").read_text(encoding="utf-8"))
    assert found["shapes"] == {"waveforms": [2, 6400], "num_mels": 80}
    assert found["audio_s"] == pytest.approx(0.6)
    assert len(found["skipped"]) == 1
    names = [each["name"] for each in found["contenders"]]
    assert names[:3] == ["asr, in batches", "asr, one by one", "librosa"]
    for each in found["contenders"]:
        assert each["rtfx"] == pytest.approx(0.6 / each["median_s"])
    printed = capsys.readouterr().out
    assert printed.startswith("features: 2 utterances of 0.2 to 0.4 s, 3 repeats; ")
    assert "normalised (features.normalize=utterance), which no other is" in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=0", "benchmark.batch_size is 0; it must be at least 1"),
        ("min_duration_s=20", "benchmark.min_duration_s 20 and max_duration_s 16 must be 0.1 or more, the smaller"),
        ("peers=[sox]", r"benchmark.peers has \['sox'\]; choose from librosa, torchaudio"),
    ],
)
def test_settings_out_of_range_are_named(compose: Callable[..., Any], override, message):
    with pytest.raises(ValueError, match=message):
        compose("benchmark", "benchmark=features", f"benchmark.{override}")
