"""Scores of a test set: error rates with bootstrap intervals by this project, and jiwer's bare word error rate."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

import jiwer

from asr import evaluate
from asr.report import percent, table
from benchmarks import report
from benchmarks.harness import Benchmark, Conditions, Contender, measure

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOCABULARY = 5000


@dataclass(frozen=True, slots=True)
class TestSet:
    """Texts by utterance id.

    Attributes:
        references: What was said.
        hypotheses: What was recognised.
        speakers: Who spoke.
    """

    references: dict[str, str]
    hypotheses: dict[str, str]
    speakers: dict[str, str]


@dataclass(slots=True, kw_only=True)
class ScoreBenchmark(Benchmark):
    """How long does a test set's score take?

    Attributes:
        num_utterances: Utterances, as many as in LibriSpeech's test-clean by default.
        num_words: Words of each.
        error_rate: Share of words that are recognised as another, left out or doubled, in [0, 1].
        num_speakers: Speakers of the set, who speak in turns.
        num_draws: Bootstrap draws of the intervals.
    """

    processor_only: ClassVar[bool] = True
    name: str = "score"
    num_utterances: int = 2600
    num_words: int = 20
    error_rate: float = 0.1
    num_speakers: int = 40
    num_draws: int = 10_000

    def __post_init__(self) -> None:
        for name in ("num_utterances", "num_words", "num_speakers", "num_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"benchmark.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.error_rate <= 1:
            raise ValueError(f"benchmark.error_rate is {self.error_rate}; it must be from 0 to 1")

    def run(self, conditions: Conditions) -> dict[str, Any]:
        """Scores the same texts by all."""
        texts = make_texts(self)
        measured = measure(self.contenders(), [texts], repeats=conditions.repeats, device=conditions.device)
        first = measured[0]
        return {
            "work": f"{self.num_utterances} utterances of {self.num_words} words, {self.num_draws} draws",
            "dtype": "text",
            "shapes": {"utterances": self.num_utterances, "words": self.num_utterances * self.num_words},
            "contenders": [report.times(each, first) | {"wer": each.found[0]} for each in measured],
            "skipped": [],
        }

    def tables(self, found: dict[str, Any]) -> list[str]:
        """Times of all, and that they find the same."""
        rates = [[each["name"], percent(each["wer"])] for each in found["contenders"]]
        return [report.speed_table(found["contenders"]), table([["", "WER"], *rates])]

    def contenders(self) -> list[Contender]:
        """All take a `TestSet` and return its word error rate."""

        def score(texts: TestSet) -> float:
            return evaluate.score(
                texts.references, texts.hypotheses, speakers=texts.speakers, num_draws=self.num_draws
            ).wer

        def jiwer_alone(texts: TestSet) -> float:
            return jiwer.wer(list(texts.references.values()), list(texts.hypotheses.values()))

        return [
            Contender("asr", report.OWN_VERSION, score, "WER, CER, intervals by utterance and by speaker, confusions"),
            Contender("jiwer", metadata.version("jiwer"), jiwer_alone, "the word error rate alone"),
        ]


def make_texts(benchmark: ScoreBenchmark) -> TestSet:
    """Sentences of invented words, and what a recogniser might make of them; always the same."""
    draw = random.Random(0)
    words = ["".join(draw.choices(_LETTERS, k=draw.randint(2, 10))) for _ in range(_VOCABULARY)]
    mistakes: list[Callable[[str], list[str]]] = [lambda _: [draw.choice(words)], lambda _: [], lambda word: [word] * 2]
    references, hypotheses, speakers = {}, {}, {}
    for number in range(benchmark.num_utterances):
        said = draw.choices(words, k=benchmark.num_words)
        heard = [draw.choice(mistakes)(word) if draw.random() < benchmark.error_rate else [word] for word in said]
        utterance = f"u{number:06}"
        references[utterance] = " ".join(said)
        hypotheses[utterance] = " ".join(word for part in heard for word in part)
        speakers[utterance] = f"s{number % benchmark.num_speakers}"
    return TestSet(references, hypotheses, speakers)
