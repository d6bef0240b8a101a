"""The recipe that labels audio for a student."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pseudo_label
import pytest
import tiny

from asr.data import manifest
from asr.data.manifest import Utterance

ALL = ["selection.min_confidence=0", "selection.min_letters_per_s=0", "selection.max_letters_per_s=1000"]


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """A model, a manifest of three utterances with texts, and one of them as a test set."""
    tiny.save(tmp_path / "run" / "model", seed=3)
    utterances = [
        Utterance(id=f"u{n}", audio=tiny.write_noise(tmp_path / f"u{n}.wav", seed=n), duration_s=1.0, text="a cab")
        for n in range(3)
    ]
    manifest.write(tmp_path / "said.jsonl", utterances)
    manifest.write(tmp_path / "test.jsonl", utterances[2:])
    return [
        *(f"model={tmp_path}/run", f"inputs=[{tmp_path}/said.jsonl]", f"exclude=[{tmp_path}/test.jsonl]"),
        *(f"output={tmp_path}/pseudo.jsonl", "decoding=prefix_beam", "decoding.beam_size=4", "device=cpu"),
    ]


def test_what_is_kept_becomes_a_manifest_and_the_rest_is_told(compose: Callable[..., Any], settings, tmp_path, capsys):
    pseudo_label.run(compose("pseudo_label", *settings, *ALL))
    kept = manifest.read(tmp_path / "pseudo.jsonl")
    assert [each.id for each in kept] == ["u0", "u1"]
    assert all(each.text and each.text != "a cab" for each in kept)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["labels", "utterances", "hours", "share"]
    assert [line.split()[:2] for line in printed.splitlines()[1:3]] == [["kept", "2"], ["excluded", "1"]]
    assert "confidence by tenths: 0." in printed
    assert "WER" in printed


def test_without_any_label_to_trust_there_is_no_manifest(compose: Callable[..., Any], settings, tmp_path):
    with pytest.raises(ValueError, match=r"no label can be trusted; lower selection.min_confidence"):
        pseudo_label.run(compose("pseudo_label", *settings, "selection.min_confidence=1.0"))
    assert not (tmp_path / "pseudo.jsonl").exists()


def test_excluded_audio_is_left_out_under_whatever_id(compose: Callable[..., Any], settings, tmp_path, capsys):
    folder = tmp_path / "linked"
    folder.mkdir()
    for number in range(3):
        (folder / f"other-{number}.wav").symlink_to(tmp_path / f"u{number}.wav")
    pseudo_label.run(compose("pseudo_label", *settings, *ALL, f"inputs=[{folder}]"))
    assert [each.id for each in manifest.read(tmp_path / "pseudo.jsonl")] == ["other-0", "other-1"]
    assert "excluded" in capsys.readouterr().out


@pytest.mark.parametrize("taken", ["said", "test"])
def test_a_manifest_that_is_read_is_not_overwritten(compose: Callable[..., Any], settings, tmp_path, taken):
    with pytest.raises(ValueError, match=rf"output is .*{taken}\.jsonl, which is read too and would be lost; name ano"):
        compose("pseudo_label", *settings, f"output={tmp_path}/test/../{taken}.jsonl")


def test_without_inputs_there_is_nothing_to_do(compose: Callable[..., Any], settings):
    with pytest.raises(ValueError, match="inputs is empty; name at least one manifest, audio file or folder"):
        compose("pseudo_label", *settings, "inputs=[]")
