"""Short utterances of noise with texts of the tiny tokenizer, as files on disk."""

from collections.abc import Sequence
from pathlib import Path

import tiny

from asr import audio
from asr.data.manifest import Utterance

TEXTS = ("a", "b c", "a b", "c a b", "cab", "b", "c c", "a a b", "b a", "abc")


def make_utterances(
    folder: Path, durations_s: Sequence[float], *, sample_rate: int = tiny.SAMPLE_RATE, texts: Sequence[str] = TEXTS
) -> list[Utterance]:
    """Writes one FLAC file an utterance, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    utterances = []
    for number, duration_s in enumerate(durations_s):
        path = folder / f"u{number}.flac"
        audio.save(path, tiny.noise(round(duration_s * sample_rate), seed=number) / 2, sample_rate=sample_rate)
        utterances.append(
            Utterance(id=f"u{number}", audio=path, duration_s=duration_s, text=texts[number % len(texts)])
        )
    return utterances
