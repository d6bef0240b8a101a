"""The embedded corpus: speech that espeak-ng makes from the sentences of a small grammar, without any download.

    sentence (asr.data.grammar) -> speech at 22,050 Hz (asr.data.espeak) -> 16 kHz, gain, silence, noise -> FLAC

A voice is an accent together with a variant, which is the speaker. No variant is in two subsets, and no sentence.
Everything is drawn from the seed, so equal settings give the same bytes. The tree is LibriSpeech's:

    ROOT/NAME/corpus.json                      the settings that made it; where it is, the tree is whole
    ROOT/NAME/speakers.tsv                     speaker, subset, accent and variant
    ROOT/NAME/train/104/1/104-1-0000.flac      SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN
    ROOT/NAME/train/104/1/104-1.trans.txt
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from asr.audio import resample, save
from asr.data import espeak, grammar
from asr.data.corpora import Collected, CorpusConfig, Splits
from asr.data.trees import TRANSCRIPTS_SUFFIX, collect_tree, speaker_in_id

SAMPLE_RATE = 16000
SUBSETS = ("train", "valid", "test")
COMPLETE = "corpus.json"
# Raised whenever the same settings would give other audio, so that an old tree is made anew.
_FORMAT = 1

# "en" is espeak-ng's name for British English.
ACCENTS = (
    "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc",
)  # fmt: skip
# Of the hundred variants that espeak-ng carries, these sound like people and can be understood. Left out are whispers,
# robots, near copies of others, and those with a formant bent so far (or left out) that vowels change into each other.
VARIANTS = {
    "train": (
        "f1", "f5", "aunty", "grandma", "belinda", "linda", "anika", "steph",
        "m1", "m2", "m4", "m6", "m8", "adam", "Alex", "benjamin", "david", "Denis", "Diogo", "edward", "edward2",
        "Gene", "grandpa", "Hugo", "john", "klatt3", "klatt4", "Mario", "max", "Michael", "miguel", "Mike", "mike2",
        "Nguyen", "pablo", "Reed", "RicishayMax2", "rob", "robert", "victor",
    ),
    "valid": ("f4", "m5", "Henrique", "quincy"),
    "test": ("f2", "f3", "m3", "m7", "michel", "sandro"),
}  # fmt: skip

# The ranges that each utterance draws from, uniformly.
RATE_WPM = (140, 200)
PITCH = (35, 65)
PITCH_RANGE = (35, 65)
LEVEL_DB = (-32.0, -20.0)  # root mean square of the speech, relative to full scale
SNR_DB = (30.0, 50.0)  # white noise below the speech, so that nothing is digital silence
SILENCE_S = (0.1, 0.4)  # before and after the speech
# No sample above this, whatever the level drawn.
_MAX_PEAK = 0.9
# A spoken word begins and ends where it first and last exceeds this part of its peak.
_SOUND_THRESHOLD = 0.01
# Utterances that may wait for the disk; it bounds the memory of a corpus of any size.
_MAX_WAITING = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One speaker: `speaker` is the number that names the folder, as in LibriSpeech."""

    speaker: str
    accent: str
    variant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is drawn for one utterance before anything is spoken. Silences in seconds, level and ratio in dB."""

    text: str
    voice: Voice
    rate_wpm: int
    pitch: int
    pitch_range: int
    level_db: float
    snr_db: float
    silence_before_s: float
    silence_after_s: float
    noise_seed: int


@dataclass(slots=True, kw_only=True)
class SyntheticConfig(CorpusConfig):
    """The embedded corpus. It needs the extra `recipes` (`espeakng-loader`), and no network.

    Sets are `train`, `valid` and `test`; their manifests are named `synthetic-train` and so on, after the corpus. The
    audio lies in `root`/`name` and is made anew there when the settings change.

    Attributes:
        hours_train: length of the training set, silences included. The first sentences say every word of the grammar
            once and are spoken in any case, so that a tiny corpus is a few minutes long.
        num_valid: utterances to choose models on.
        num_test: utterances to report.
        seed: draws sentences, voices, rates, pitches, levels, silences and noise.
        word_gap_ms: above 0, each word is spoken for itself and words are exactly so many milliseconds apart; 0 for
            running speech.
    """

    name: str = "synthetic"
    train: list[str] = field(default_factory=lambda: ["train"])
    valid: list[str] = field(default_factory=lambda: ["valid"])
    test: list[str] = field(default_factory=lambda: ["test"])
    hours_train: float = 1.0
    num_valid: int = 100
    num_test: int = 200
    seed: int = 0
    word_gap_ms: int = 0

    def __post_init__(self) -> None:
        CorpusConfig.__post_init__(self)  # slots=True makes the class twice, which a bare super() does not survive
        for setting, value, least in (
            ("num_valid", self.num_valid, 1),
            ("num_test", self.num_test, 1),
            ("word_gap_ms", self.word_gap_ms, 0),
        ):
            if value < least:
                raise ValueError(f"data.{setting} is {value}, expected {least} or more")
        if not 0 < self.hours_train < float("inf"):
            raise ValueError(f"data.hours_train is {self.hours_train}, expected hours above 0")
        if unknown := [name for name in self.train + self.valid + self.test if name not in SUBSETS]:
            raise ValueError(f"{self.name}: no set {unknown[0]!r}; synthetic speech has {', '.join(SUBSETS)}")
        if Path(self.name).name != self.name:
            raise ValueError(f"data.name is {self.name!r}, expected a plain folder name")

    @property
    def folder(self) -> Path:
        """The folder of the audio."""
        return self.root / self.name

    def stem(self, name: str) -> str:
        """Returns the set's name after the corpus's, such as `synthetic-test`."""
        return f"{self.name}-{name}"

    def settings(self) -> dict[str, object]:
        """Returns what decides the manifests: the settings, and the grammar and voices of this version."""
        return {**CorpusConfig.settings(self), "speech": self._speech_settings()}

    def prepare(self, *, progress: bool = True) -> Splits:
        """Makes audio and manifests, or finds those that the same settings made before.

        Args:
            progress: show progress bars on standard error.

        Raises:
            EspeakError: the wheel `espeakng-loader` is not installed, or espeak-ng fails.
            FileExistsError: the folder of the audio holds something else.
        """
        # Before the manifests are looked at: they are as good as the audio that they point to, and another experiment
        # with other settings may have made that anew since.
        self.fetch(list(SUBSETS), progress=progress)
        return CorpusConfig.prepare(self, progress=progress)

    def fetch(self, sets: list[str], *, progress: bool) -> None:
        """Makes the audio of all sets, unless the same settings made what is there."""
        if self._is_complete():
            return
        if self.folder.exists() and not (self.folder / COMPLETE).is_file():
            raise FileExistsError(
                f"{self.folder}: holds something that is not synthetic speech, and is left alone; "
                "move it away, or set data.root or data.name"
            )
        espeak.require_wheel()
        self.root.mkdir(parents=True, exist_ok=True)
        # Built beside the place where it goes, so that one rename puts it there, whole.
        building = Path(tempfile.mkdtemp(prefix=f"{self.name}.building-", dir=self.root))
        try:
            building.chmod(0o755)  # a temporary folder is its maker's alone, a corpus is not
            build(building, self, progress=progress)
            (building / COMPLETE).write_text(json.dumps(self._speech_settings(), indent=2) + "\n", encoding="utf-8")
            self._put_in_place(building)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def collect(self, name: str, *, progress: bool) -> Collected:
        """Reads one set's tree."""
        return collect_tree(self.folder / name, name=self.stem(name), speaker=speaker_in_id, progress=progress)

    def _speech_settings(self) -> dict[str, object]:
        """What decides the audio, as plain JSON values."""
        drawn_from = [grammar.RULES, ACCENTS, VARIANTS, RATE_WPM, PITCH, PITCH_RANGE, LEVEL_DB, SNR_DB, SILENCE_S]
        return {
            "format": _FORMAT,
            "grammar_and_voices": hashlib.sha256(json.dumps(drawn_from).encode()).hexdigest()[:16],
            "hours_train": float(self.hours_train),
            "num_valid": self.num_valid,
            "num_test": self.num_test,
            "seed": self.seed,
            "word_gap_ms": self.word_gap_ms,
        }

    def _is_complete(self) -> bool:
        try:
            made_by = json.loads((self.folder / COMPLETE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(made_by == self._speech_settings())

    def _put_in_place(self, building: Path) -> None:
        """Renames the finished tree to its place; a tree that is in the way goes first."""
        if self._is_complete():  # someone else has made the same in the meantime
            return
        if self.folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f"{self.name}.old-", dir=self.root))
            self.folder.replace(old / self.name)
            shutil.rmtree(old)
        building.replace(self.folder)


def voices(subset: str) -> list[Voice]:
    """All speakers of a subset: each of its variants in each accent."""
    numbers = {variant: number for number, variant in enumerate(itertools.chain(*VARIANTS.values()), start=1)}
    return [
        Voice(speaker=str(100 * accent_number + numbers[variant]), accent=accent, variant=variant)
        for accent_number, accent in enumerate(ACCENTS, start=1)
        for variant in VARIANTS[subset]
    ]


def plans(subset: str, *, seed: int) -> Iterator[Plan]:
    """Plans distinct utterances of a subset ('train', 'valid' or 'test') without end.

    The voices take turns in a drawn order. The first sentences of the training set say every word of the grammar.
    """
    generator = random.Random(f"{seed} {subset} voices")  # a string seeds by its SHA-512, the same in every process
    sentences = grammar.draw_distinct(f"{seed} {subset} sentences", subset)
    if subset == "train":
        sentences = grammar.cover_first(sentences, grammar.vocabulary())
    order = voices(subset)
    generator.shuffle(order)
    for text, voice in zip(sentences, itertools.cycle(order), strict=False):
        yield Plan(
            text=text,
            voice=voice,
            rate_wpm=generator.randint(*RATE_WPM),
            pitch=generator.randint(*PITCH),
            pitch_range=generator.randint(*PITCH_RANGE),
            level_db=generator.uniform(*LEVEL_DB),
            snr_db=generator.uniform(*SNR_DB),
            silence_before_s=generator.uniform(*SILENCE_S),
            silence_after_s=generator.uniform(*SILENCE_S),
            noise_seed=generator.getrandbits(63),
        )


def speak(synthesizer: espeak.Synthesizer, plan: Plan, *, word_gap_ms: int = 0) -> Tensor:
    """Speaks the text of a plan.

    Args:
        word_gap_ms: above 0, each word is spoken for itself and cut to its sound, and words are so far apart.

    Returns:
        (S,) float32 in [-1, 1) at `espeak.SAMPLE_RATE`.
    """
    parts: list[Tensor] = []
    gap = torch.zeros(round(word_gap_ms * espeak.SAMPLE_RATE / 1000))
    for text in plan.text.split() if word_gap_ms else [plan.text]:
        request = espeak.Request(
            text=text,
            accent=plan.voice.accent,
            variant=plan.voice.variant,
            rate_wpm=plan.rate_wpm,
            pitch=plan.pitch,
            pitch_range=plan.pitch_range,
        )
        samples = torch.frombuffer(bytearray(synthesizer.speak(request)), dtype=torch.int16).float() / 32768
        parts += [gap, _trim(samples)] if word_gap_ms else [gap, samples]
    return torch.cat(parts[1:])


def finish(speech: Tensor, plan: Plan) -> Tensor:
    """Turns bare speech into a recording: 16 kHz, at the plan's level, with silence around it and noise below it.

    Args:
        speech: (S,) at `espeak.SAMPLE_RATE`.

    Returns:
        (S',) float64 in [-1, 1] at `SAMPLE_RATE`.
    """
    # In float64: the order of sums depends on the number of threads, and must not reach the 16 bits that are written.
    speech = resample(speech.double(), from_rate=espeak.SAMPLE_RATE, to_rate=SAMPLE_RATE)
    rms = speech.square().mean().sqrt()
    gain = torch.minimum(10 ** (plan.level_db / 20) / rms, _MAX_PEAK / speech.abs().max())
    before, after = (round(seconds * SAMPLE_RATE) for seconds in (plan.silence_before_s, plan.silence_after_s))
    recording = torch.nn.functional.pad(speech * gain, (before, after))  # (S',)
    noise = torch.randn(len(recording), generator=torch.Generator().manual_seed(plan.noise_seed))
    return (recording + noise * gain * rms * 10 ** (-plan.snr_db / 20)).clamp(-1, 1)


def build(folder: Path, config: SyntheticConfig, *, progress: bool = True) -> None:
    """Writes the trees of all subsets and `speakers.tsv` into a folder.

    Raises:
        EspeakError: espeak-ng is missing or fails.
        AudioError: the audio cannot be written.
    """
    rows = ["speaker\tsubset\taccent\tvariant"]
    for subset in SUBSETS:
        _build_subset(folder / subset, subset, config, progress=progress)
        rows += ["\t".join((voice.speaker, subset, voice.accent, voice.variant)) for voice in voices(subset)]
    (folder / "speakers.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _build_subset(folder: Path, subset: str, config: SyntheticConfig, *, progress: bool) -> None:
    """Speaks until there is enough; a few threads finish and write the recordings meanwhile.

    espeak-ng, in its process, is a thousand times faster than speech; encoding the audio is what takes the time.
    """
    seconds_wanted = config.hours_train * 3600 if subset == "train" else 0.0
    num_wanted = {"train": 0, "valid": config.num_valid, "test": config.num_test}[subset]
    uncovered = set(grammar.vocabulary()) if subset == "train" else set()
    seconds, number = 0.0, 0
    transcripts: dict[Voice, list[str]] = {}
    waiting: deque[Future[None]] = deque()
    with (
        espeak.Synthesizer() as synthesizer,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(desc=f"{config.name} {subset}", unit="utt", disable=None if progress else True, mininterval=0.5) as bar,
    ):
        for plan in plans(subset, seed=config.seed):
            if seconds >= seconds_wanted and number >= num_wanted and not uncovered:
                break
            speech = speak(synthesizer, plan, word_gap_ms=config.word_gap_ms)
            lines = transcripts.setdefault(plan.voice, [])
            utterance_id = f"{plan.voice.speaker}-1-{len(lines):04d}"
            lines.append(f"{utterance_id} {plan.text}\n")
            chapter = folder / plan.voice.speaker / "1"
            chapter.mkdir(parents=True, exist_ok=True)
            waiting.append(pool.submit(_write, chapter / f"{utterance_id}.flac", speech, plan))
            if len(waiting) > _MAX_WAITING:
                waiting.popleft().result()  # raises what went wrong in the thread
            seconds += len(speech) / espeak.SAMPLE_RATE + plan.silence_before_s + plan.silence_after_s
            number += 1
            uncovered.difference_update(plan.text.split())
            bar.update()
        for each in waiting:
            each.result()
    for voice, lines in transcripts.items():
        path = folder / voice.speaker / "1" / f"{voice.speaker}-1{TRANSCRIPTS_SUFFIX}"
        path.write_text("".join(lines), encoding="utf-8")


def _write(path: Path, speech: Tensor, plan: Plan) -> None:
    save(path, finish(speech, plan), sample_rate=SAMPLE_RATE)


def _trim(samples: Tensor) -> Tensor:
    """Cuts silence off both ends of (S,)."""
    loud = (samples.abs() > _SOUND_THRESHOLD * samples.abs().max()).nonzero().squeeze(1)
    return samples[int(loud[0]) : int(loud[-1]) + 1]
