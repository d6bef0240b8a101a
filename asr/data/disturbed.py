"""Copies of test sets in noise, among other voices, and in rooms, to see how a recogniser bears them."""

# S samples

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from asr import audio
from asr.augment import AugmentConfig, WaveAugment, add_noise
from asr.data.dataset import load_utterance, stable_seed
from asr.data.manifest import Utterance

# What is louder than full scale would be clipped when it is written; the whole utterance is made softer instead.
_LOUDEST = 0.99


@dataclass(slots=True, kw_only=True)
class DisturbanceConfig:
    """What is done to every utterance: first the room, then the noise.

    Attributes:
        snr_db: Ratio of the utterance's power to that of the noise, in decibels.
        noise_dir: Folder of noise recordings, searched at any depth; one is drawn for every utterance.
        num_talkers: So many other utterances, equally loud and repeated as needed, are the noise (babble).
        reverb_dir: Folder of recorded room impulse responses; one is drawn for every utterance.
        seed: Decides all that is drawn for an utterance, along with its id.

    Raises:
        ValueError: A setting is out of its range, or there are two kinds of noise.
    """

    snr_db: float = 10.0
    noise_dir: Path | None = None
    num_talkers: int = 0
    reverb_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.snr_db):
            raise ValueError(f"snr_db is {self.snr_db}; it must be a number of decibels, such as 10")
        if self.num_talkers < 0 or self.seed < 0:
            raise ValueError(f"num_talkers {self.num_talkers} and seed {self.seed} must not be negative")
        if self.noise_dir and self.num_talkers:
            raise ValueError("noise_dir and num_talkers are two kinds of noise; set one of them")


def disturb(
    utterances: Sequence[Utterance],
    config: DisturbanceConfig,
    *,
    talkers: Sequence[Utterance],
    folder: Path,
    sample_rate: int,
) -> Iterator[Utterance]:
    """Writes each utterance, disturbed, to `folder/ID.flac`.

    Args:
        utterances: What to copy.
        config: What is done to it.
        talkers: Who speaks in the background, for `config.num_talkers`; never the speaker of the utterance, where both
            are known, nor the utterance itself.
        folder: Where the audio goes; made where it is missing.
        sample_rate: Of what is written, in Hz.

    Yields:
        The utterances with their new audio, in order.

    Raises:
        AudioError: If audio cannot be read or written.
        ValueError: If there are too few talkers beside an utterance's own speaker, or an id is no name of a file.
    """
    augment = AugmentConfig(
        noise_dir=config.noise_dir,
        noise_probability=float(config.noise_dir is not None),
        snr_db_min=config.snr_db,
        snr_db_max=config.snr_db,
        reverb_dir=config.reverb_dir,
        reverb_probability=float(config.reverb_dir is not None),
    )
    room_and_noise = WaveAugment(augment, sample_rate=sample_rate, group="disturbance")
    folder.mkdir(parents=True, exist_ok=True)
    for utterance in utterances:
        if Path(utterance.id).name != utterance.id:
            raise ValueError(f"the id {utterance.id!r} is no name of a file; give the utterance one without slashes")
        generator = torch.Generator().manual_seed(stable_seed(config.seed, "disturbed", utterance.id))
        waveform = room_and_noise(load_utterance(utterance, sample_rate=sample_rate), generator=generator)
        if config.num_talkers:
            others = [each for each in talkers if each.speaker != utterance.speaker or not each.speaker]
            others = [each for each in others if each.id != utterance.id]
            if len(others) < config.num_talkers:
                raise ValueError(
                    f"num_talkers is {config.num_talkers}, but beside the speaker of {utterance.id} there are only "
                    f"{len(others)} utterances; name another manifest in talkers, or lower num_talkers"
                )
            drawn = torch.randperm(len(others), generator=generator)[: config.num_talkers].tolist()
            voices = [load_utterance(others[index], sample_rate=sample_rate) for index in drawn]
            waveform = add_noise(waveform, babble(voices, size=len(waveform)), snr_db=config.snr_db)
        peak = float(waveform.abs().max())
        path = folder / f"{utterance.id}.flac"
        audio.save(path, waveform * min(1.0, _LOUDEST / peak) if peak else waveform, sample_rate=sample_rate)
        yield replace(utterance, audio=path, start_s=None, end_s=None)


def babble(voices: Sequence[Tensor], *, size: int) -> Tensor:
    """The sum of voices, (S,) each, brought to the same power and repeated to `size` samples; silent ones add none."""
    mixed = torch.zeros(size)
    for voice in voices:
        power = voice.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        mixed += voice.repeat(math.ceil(size / len(voice)))[:size] * power.rsqrt()
    return mixed
