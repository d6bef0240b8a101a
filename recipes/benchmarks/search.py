"""Joint CTC and attention beam search: this project's beside ESPnet's, with the same weights on the same frames."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from asr.decoding.beam import beam_search
from asr.decoding.ctc import CtcScorer
from asr.decoding.scorers import AttentionScorer, Weighted
from benchmarks.espnet_peer import build_espnet
from benchmarks.exact import attention_log_prob, ctc_log_prob
from benchmarks.harness import Contender
from benchmarks.report import OWN_VERSION
from benchmarks.searching import Batch, SearchingBenchmark, Tokens, Work, one_by_one


@dataclass(slots=True, kw_only=True)
class SearchBenchmark(SearchingBenchmark):
    """Which transcript has the best w·log p_ctc + (1 - w)·log p_attention, and how fast is it found?

    Attributes:
        ctc_weight: w, in (0, 1).
    """

    name: str = "search"
    ctc_weight: float = 0.3

    def __post_init__(self) -> None:
        SearchingBenchmark.__post_init__(self)  # slots=True makes the class anew; a bare super() would not find it
        if not 0 < self.ctc_weight < 1:
            raise ValueError(f"benchmark.ctc_weight is {self.ctc_weight}; it must be above 0 and below 1")

    def builders(self, work: Work) -> list[Callable[[], Contender]]:
        """This project in batches and one by one, and ESPnet.

        Raises:
            ValueError: If the model has no attention decoder.
        """
        if work.model.decoder is None:
            raise ValueError("the model has no attention decoder for joint search; take benchmark=prefix_beam")
        own = Contender("asr, in batches", OWN_VERSION, self._search_with(work))
        return [
            lambda: own,
            lambda: one_by_one(own, "asr, one by one"),
            lambda: build_espnet(work, ctc_weight=self.ctc_weight),
        ]

    def scorer(self, work: Work) -> Callable[[Batch, Tokens], float]:
        """The joint score by the CTC forward probability and teacher forcing."""
        decoder = copy.deepcopy(work.model.decoder).double()

        def score(one: Batch, tokens: Tokens) -> float:
            ctc = ctc_log_prob(work.model.ctc_log_probs(one.frames)[0], tokens)
            return self.ctc_weight * ctc + (1 - self.ctc_weight) * attention_log_prob(decoder, one.frames, tokens)

        return score

    def _search_with(self, work: Work) -> Callable[[Batch], list[list[Tokens]]]:
        decoder = work.model.decoder
        assert decoder is not None

        def search(batch: Batch) -> list[list[Tokens]]:
            # As ESPnet does, the probabilities of CTC are computed of the frames within the time that is measured.
            ctc = CtcScorer(work.model.ctc_log_probs(batch.frames), batch.lengths)
            scorers = [
                Weighted("ctc", self.ctc_weight, ctc),
                Weighted("attention", 1 - self.ctc_weight, AttentionScorer(decoder, batch.frames, batch.lengths)),
            ]
            found = beam_search(scorers, batch.lengths, beam_size=work.beam_size)
            return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]

        return search
