"""A few utterances, and all augmentation at once."""

import pytest
import tiny
from utterances import make_utterances

from asr import audio
from asr.augment import AugmentConfig, SpecAugmentConfig
from asr.data.manifest import Utterance


@pytest.fixture(scope="session")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return make_utterances(tmp_path_factory.mktemp("speech"), [0.6, 0.3, 0.45, 0.55, 0.4])


@pytest.fixture(scope="session")
def augment(tmp_path_factory: pytest.TempPathFactory) -> AugmentConfig:
    """All augmentation at once."""
    folder = tmp_path_factory.mktemp("noise")
    audio.save(folder / "noise.wav", tiny.noise(3000, seed=99), sample_rate=tiny.SAMPLE_RATE)
    return AugmentConfig(
        noise_dir=folder, noise_probability=0.8, spec=SpecAugmentConfig(time_mask_width=10, frequency_mask_width=5)
    )
