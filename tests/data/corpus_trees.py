"""Small corpora for the tests of asr.data: real audio files, a tenth of a second and up, in LibriSpeech's layout."""

from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16_000


def write_audio(path: Path, *, duration_s: float = 0.1) -> None:
    """Writes noise in the format that the suffix names, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, round(duration_s * SAMPLE_RATE))
    formats = {".opus": ("OGG", "OPUS"), ".ogg": ("OGG", "VORBIS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
    container, subtype = formats.get(path.suffix.lower(), (path.suffix[1:].upper(), "PCM_16"))
    soundfile.write(path, noise, SAMPLE_RATE, format=container, subtype=subtype)


def write_tree(folder: Path, texts: dict[str, str], *, suffix: str = ".flac") -> None:
    """Writes utterances `SPEAKER-CHAPTER-NNNN` as `SPEAKER/CHAPTER/…`, with their transcripts."""
    for utterance_id, text in texts.items():
        speaker, chapter, _ = utterance_id.split("-")
        place = folder / speaker / chapter
        write_audio(place / f"{utterance_id}{suffix}")
        with (place / f"{speaker}-{chapter}.trans.txt").open("a", encoding="utf-8") as stream:
            stream.write(f"{utterance_id} {text}\n")


def texts(*speakers: int, chapters: range = range(1), utterances: int = 2) -> dict[str, str]:
    """Returns ids and texts for some speakers."""
    return {
        f"{speaker}-{chapter}-{number:04d}": f"SPEAKER {speaker} SAYS THE {number}"
        for speaker in speakers
        for chapter in chapters
        for number in range(utterances)
    }
