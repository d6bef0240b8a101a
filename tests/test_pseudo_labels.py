"""Labels that a model makes: what is kept, why the rest is not, and that texts of the input play no part."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from asr.audio import AudioError
from asr.data import manifest
from asr.data.manifest import Utterance
from asr.decoding.search import DecodingConfig
from asr.pseudo_labels import KEPT, SelectionConfig, find_utterances, judge, label

ANY = SelectionConfig(min_confidence=0.0, min_letters_per_s=0.0, max_letters_per_s=1000.0)


def utterance(text: str, *, duration_s: float = 1.0) -> Utterance:
    return Utterance(id="u", audio=Path("u.wav"), duration_s=duration_s, text=text)


@pytest.mark.parametrize(
    ("text", "confidence", "verdict"),
    [
        ("five five", 0.9, KEPT),
        ("five five", 0.89, "low confidence"),
        ("", 1.0, "nothing heard"),
        ("one", 1.0, "too few letters a second"),
        ("a " * 26, 1.0, "too many letters a second"),
    ],
)
def test_a_label_is_judged_by_its_letters_and_its_confidence(text, confidence, verdict):
    assert judge(utterance(text.strip()), confidence, SelectionConfig()) == verdict


def test_letters_are_counted_by_the_second():
    assert judge(utterance("one", duration_s=0.5), 1.0, SelectionConfig()) == KEPT
    assert judge(utterance("five five", duration_s=3.0), 1.0, SelectionConfig()) == "too few letters a second"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_confidence": 1.1}, r"selection.min_confidence is 1.1; it must be in \[0, 1\]"),
        (
            {"min_letters_per_s": 30.0},
            r"min_letters_per_s 30 and max_letters_per_s 25: the first must .* below the sec",
        ),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Audio files, one in a folder of its own, and a manifest of one of them with a text."""
    (tmp_path / "audio" / "deep er").mkdir(parents=True)
    tiny.write_noise(tmp_path / "audio" / "one.wav", seed=1)
    tiny.write_noise(tmp_path / "audio" / "deep er" / "two.wav", seed=2)
    said = Utterance(id="said", audio=tmp_path / "audio" / "one.wav", duration_s=1.0, text="a cab", speaker="s1")
    manifest.write(tmp_path / "said.jsonl", [said])
    return tmp_path


def test_manifests_folders_and_files_are_found(folder):
    found = find_utterances([folder / "said.jsonl", folder / "audio"])
    assert [(each.id, each.speaker, each.duration_s) for each in found] == [
        ("said", "s1", 1.0),
        ("deep_er-two", "", 1.0),
        ("one", "", 1.0),
    ]


def test_two_utterances_of_one_id_are_refused(folder):
    with pytest.raises(ValueError, match=r"said.jsonl: another input has an utterance 'said' too; label them apart"):
        find_utterances([folder / "said.jsonl", folder / "said.jsonl"])


def test_what_is_no_audio_is_refused(folder):
    (folder / "audio" / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"broken\.wav"):
        find_utterances([folder / "audio"])


def test_labels_are_what_the_model_hears_whatever_the_text_says(folder):
    loaded = tiny.make_loaded(seed=3)
    utterances = find_utterances([folder / "said.jsonl", folder / "audio"])
    settings = {"decoding": DecodingConfig(mode="prefix_beam", beam_size=4), "selection": ANY, "progress": False}
    labels = {each.utterance.id: each for each in label(loaded, utterances, **settings)}
    assert labels.keys() == {"said", "one", "deep_er-two"}
    assert labels["said"].utterance.text == labels["one"].utterance.text != "a cab"
    assert labels["said"].utterance.speaker == "s1"
    assert all(0 <= each.confidence <= 1 for each in labels.values())

    others = [replace(each, text="something else") for each in utterances]
    assert {each.utterance.id: each for each in label(loaded, others, **settings)} == labels


def test_what_is_excluded_is_never_kept(folder):
    utterances = find_utterances([folder / "audio"])
    labels = label(
        *(tiny.make_loaded(seed=3), utterances),
        decoding=DecodingConfig(),
        selection=ANY,
        excluded={"one"},
        progress=False,
    )
    assert {each.utterance.id: each.verdict for each in labels}["one"] == "excluded"
