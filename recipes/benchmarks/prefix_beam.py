"""CTC prefix beam search: this project's beside pyctcdecode's and torchaudio's, on the same log-probabilities."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from asr.decoding.prefix_beam import prefix_beam_search
from benchmarks.ctc_peers import build_pyctcdecode, build_torchaudio
from benchmarks.exact import ctc_log_prob
from benchmarks.harness import Contender
from benchmarks.report import OWN_VERSION
from benchmarks.searching import Batch, SearchingBenchmark, Tokens, Work, one_by_one


@dataclass(slots=True, kw_only=True)
class PrefixBeamBenchmark(SearchingBenchmark):
    """Which transcript has the best CTC probability, without a language model, and how fast is it found?

    Attributes:
        token_margin: Where this project's search is pruned, it leaves out tokens that lie so much below the best of a
            frame; a natural logarithm, above 0. About what pyctcdecode leaves out by default.
    """

    name: str = "prefix_beam"
    token_margin: float = 5.0

    def __post_init__(self) -> None:
        SearchingBenchmark.__post_init__(self)  # slots=True makes the class anew; a bare super() would not find it
        if not self.token_margin > 0:
            raise ValueError(f"benchmark.token_margin is {self.token_margin}; it must be above 0")

    def builders(self, work: Work) -> list[Callable[[], Contender]]:
        """All in two ways: with every token in every frame, and pruned, the peers by their defaults."""
        own = Contender("asr, in batches", OWN_VERSION, _search_with(work, token_margin=math.inf))
        pruned = Contender("asr, in batches, pruned", OWN_VERSION, _search_with(work, token_margin=self.token_margin))
        return [
            lambda: own,
            lambda: pruned,
            lambda: one_by_one(own, "asr, one by one"),
            lambda: one_by_one(pruned, "asr, one by one, pruned"),
            lambda: build_pyctcdecode(work, pruned=False),
            lambda: build_pyctcdecode(work, pruned=True),
            lambda: build_torchaudio(work, pruned=False),
            lambda: build_torchaudio(work, pruned=True),
        ]

    def scorer(self, work: Work) -> Callable[[Batch, Tokens], float]:
        """The CTC forward probability."""
        return lambda one, tokens: ctc_log_prob(one.log_probs[0], tokens)


def _search_with(work: Work, *, token_margin: float) -> Callable[[Batch], list[list[Tokens]]]:
    def search(batch: Batch) -> list[list[Tokens]]:
        found = prefix_beam_search(batch.log_probs, batch.lengths, beam_size=work.beam_size, token_margin=token_margin)
        return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]

    return search
