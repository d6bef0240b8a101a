"""Disturbed copies: the asked level of noise, other voices alone, the same for the same seed, clear refusals."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from asr import audio
from asr.data.disturbed import DisturbanceConfig, babble, disturb
from asr.data.manifest import Utterance

RATE = tiny.SAMPLE_RATE


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Three utterances of three speakers."""
    return make_speech(tmp_path / "speech", speakers=["a", "b", "c"])


def make_speech(folder: Path, *, speakers: list[str]) -> list[Utterance]:
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    made = []
    for number, speaker in enumerate(speakers):
        path = folder / f"u{number}.wav"
        audio.save(path, 0.1 * torch.randn(RATE + 100 * number, generator=generator), sample_rate=RATE)
        made.append(Utterance(id=f"u{number}", audio=path, duration_s=1 + 0.01 * number, text="abc", speaker=speaker))
    return made


def copies(utterances: list[Utterance], folder: Path, talkers: list[Utterance] | None = None, **settings):
    config = DisturbanceConfig(**settings)
    return list(disturb(utterances, config, talkers=talkers or utterances, folder=folder, sample_rate=RATE))


def load(utterance: Utterance) -> torch.Tensor:
    return audio.load(utterance.audio, sample_rate=RATE)


def snr_db(clean: torch.Tensor, noisy: torch.Tensor) -> float:
    return 10 * math.log10(float(clean.square().mean() / (noisy - clean).square().mean()))


@pytest.mark.parametrize("asked", [0.0, 10.0, 25.0])
def test_babble_has_the_asked_level_and_all_else_stays(utterances, tmp_path, asked):
    found = copies(utterances, tmp_path / "out", num_talkers=2, snr_db=asked)
    for before, after in zip(utterances, found, strict=True):
        assert (after.id, after.text, after.speaker, after.duration_s) == (
            before.id, before.text, before.speaker, before.duration_s,
        )  # fmt: skip
        assert after.audio == tmp_path / "out" / f"{before.id}.flac"
        assert snr_db(load(before), load(after)) == pytest.approx(asked, abs=0.05)


def test_noise_of_a_folder_has_the_asked_level(utterances, tmp_path):
    noise = make_speech(tmp_path / "noise", speakers=["x"])[0].audio.parent
    found = copies(utterances, tmp_path / "out", noise_dir=noise, snr_db=5.0)
    for before, after in zip(utterances, found, strict=True):
        assert snr_db(load(before), load(after)) == pytest.approx(5.0, abs=0.05)


def test_a_room_changes_the_sound_and_not_the_length(utterances, tmp_path):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    response = torch.zeros(RATE // 10)
    response[10], response[200] = 0.9, 0.4
    audio.save(rooms / "room.wav", response, sample_rate=RATE)
    for before, after in zip(utterances, copies(utterances, tmp_path / "out", reverb_dir=rooms), strict=True):
        assert len(load(after)) == len(load(before))
        assert not torch.allclose(load(after), load(before), atol=0.01)


def test_the_same_seed_draws_the_same_whatever_else_is_in_the_set(utterances, tmp_path):
    all_of_them = copies(utterances, tmp_path / "all", num_talkers=1)
    alone = copies(utterances[1:2], tmp_path / "alone", talkers=utterances, num_talkers=1)
    assert torch.equal(load(alone[0]), load(all_of_them[1]))
    for seed in range(1, 9):  # each draws one of two voices
        other = copies(utterances[1:2], tmp_path / f"other{seed}", talkers=utterances, num_talkers=1, seed=seed)
        if not torch.equal(load(alone[0]), load(other[0])):
            return
    raise AssertionError("eight other seeds draw the same voice")


def test_nobody_is_their_own_background(tmp_path):
    speech = make_speech(tmp_path / "speech", speakers=["a", "a", "b"])
    (found,) = copies(speech[:1], tmp_path / "out", talkers=speech, num_talkers=1, snr_db=0.0)
    added = load(found) - load(speech[0])
    other = babble([load(speech[2])], size=len(added))
    assert float(torch.corrcoef(torch.stack([added, other]))[0, 1]) > 0.99
    message = (
        r"num_talkers is 2, but beside the speaker of u0 there are only 1 utterances; name another manifest in "
        "talkers, or lower num_talkers"
    )
    with pytest.raises(ValueError, match=message):
        copies(speech[:1], tmp_path / "few", talkers=speech, num_talkers=2)


def test_a_folder_that_is_missing_is_named_and_nothing_is_left(utterances, tmp_path):
    message = "/nowhere: no such folder; set disturbance.noise_dir to a folder of audio files"
    with pytest.raises(audio.AudioError, match=message):
        copies(utterances, tmp_path / "out", noise_dir=Path("/nowhere"))
    assert not (tmp_path / "out").exists()


def test_an_id_that_is_no_name_of_a_file_is_refused(utterances, tmp_path):
    strange = replace(utterances[0], id="a/b")
    with pytest.raises(ValueError, match=r"the id 'a/b' is no name of a file; give the utterance one without slashes"):
        copies([strange], tmp_path / "out", talkers=utterances, num_talkers=1)


def test_what_would_be_too_loud_is_made_softer_as_a_whole(tmp_path):
    speech = make_speech(tmp_path / "speech", speakers=["a", "b"])
    audio.save(speech[0].audio, 0.9 * torch.ones(RATE).cos(), sample_rate=RATE)
    (found,) = copies(speech[:1], tmp_path / "out", talkers=speech, num_talkers=1, snr_db=-10.0)
    assert 0.9 < float(load(found).abs().max()) < 1.0


def test_voices_of_any_loudness_count_the_same():
    generator = torch.Generator().manual_seed(0)
    loud, soft = torch.randn(500, generator=generator), 0.01 * torch.randn(300, generator=generator)
    mixed = babble([loud, soft, torch.zeros(10)], size=1000)
    expected = loud.repeat(2) / loud.square().mean().sqrt() + soft.repeat(4)[:1000] / soft.square().mean().sqrt()
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_talkers": 1, "noise_dir": Path("n")}, "noise_dir and num_talkers are two kinds of noise; set one"),
        ({"num_talkers": -1}, "num_talkers -1 and seed 0 must not be negative"),
        ({"num_talkers": 1, "snr_db": math.inf}, "snr_db is inf; it must be a number of decibels"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DisturbanceConfig(**settings)
