"""Search with a speller: from runs of phones to the tokens that spell them."""

# B utterances, R runs of frames, P phones

from dataclasses import replace

import torch
from torch import Tensor

from asr.decoding.beam import beam_search
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.phone_runs import heard_runs
from asr.decoding.scorers import AttentionScorer, Weighted
from asr.nn.speller import Speller
from asr.tokenizer import Tokenizer

PART = "speller"  # the name of its score among the parts of a hypothesis
_TOKENS_A_RUN = 2  # at most, which only tokens smaller than phones come near


@torch.inference_mode()
def spell(
    speller: Speller,
    runs: Tensor,
    lengths: Tensor,
    *,
    beam_size: int,
    length_bonus: float = 0.0,
    end_margin: float = 20.0,
    num_best: int = 1,
) -> list[list[Hypothesis]]:
    """Beam search with the speller alone.

    Args:
        speller: In eval mode.
        runs: What was heard, (B, R, 1 + P + 2), zero beyond a length.
        lengths: (B,) integers; where one is 0, the only hypothesis is empty.
        beam_size: Hypotheses kept in every step; 1 takes the likeliest token each time.
        length_bonus: Added for every token.
        end_margin: As of `asr.decoding.search.DecodingConfig`.
        num_best: Most hypotheses of an utterance.

    Returns:
        Hypotheses in the speller's tokens, at most two a run, best first.
    """
    found = [[Hypothesis((), 0.0, {PART: 0.0})] for _ in range(len(lengths))]
    spoken = lengths.nonzero()[:, 0]
    if not len(spoken):
        return found
    frames, frame_lengths = speller.read(runs[spoken], lengths[spoken])
    scorer = AttentionScorer(speller.decoder, frames, frame_lengths)
    hypotheses = beam_search(
        [Weighted(PART, 1.0, scorer)],
        _TOKENS_A_RUN * lengths[spoken],
        beam_size=beam_size,
        length_bonus=length_bonus,
        end_margin=end_margin,
        num_best=num_best,
    )
    for place, own in zip(spoken.tolist(), hypotheses, strict=True):
        found[place] = own
    return found


class PhoneSpeller:
    """A speller in the place of a search over a recogniser's own tokens.

    Args:
        model: In eval mode.
        tokenizer: The speller's.
        spelling: The recogniser's.

    Raises:
        ValueError: If the recogniser has no token for a character that the speller writes.
    """

    def __init__(self, model: Speller, tokenizer: Tokenizer, spelling: Tokenizer) -> None:
        if missing := sorted(tokenizer.characters - spelling.characters):
            raise ValueError(
                f"the speller writes {missing[0]!r}, for which the recogniser has no token; train one on texts without"
            )
        self.model = model
        self._tokenizer, self._spelling = tokenizer, spelling

    def __call__(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        *,
        beam_size: int,
        length_bonus: float,
        end_margin: float,
        num_best: int,
    ) -> list[list[Hypothesis]]:
        """Spells a batch; arguments as of `spell`, but for what was heard.

        Args:
            log_probs: CTC log-probabilities of blank and phones, (B, T', 1 + P), float32.
            lengths: (B,) integers.

        Returns:
            Hypotheses in the recogniser's tokens, no more than there are frames, best first.
        """
        found = spell(
            self.model,
            *heard_runs(log_probs, lengths),
            beam_size=beam_size,
            length_bonus=length_bonus,
            end_margin=end_margin,
            num_best=num_best,
        )
        texts = []
        for own, length in zip(found, lengths.tolist(), strict=True):
            # Other tokens may spell the same text; the likeliest come first.
            distinct: dict[tuple[int, ...], Hypothesis] = {}
            for each in own:
                respelled = self._respelled(each, most=length)
                distinct.setdefault(respelled.tokens, respelled)
            texts.append(list(distinct.values()))
        return texts

    def _respelled(self, hypothesis: Hypothesis, *, most: int) -> Hypothesis:
        """Whole words in the recogniser's tokens, as many as there is room for."""
        words = self._tokenizer.decode(hypothesis.tokens).split()
        while len(tokens := self._spelling.encode(" ".join(words))) > most:
            words.pop()
        return replace(hypothesis, tokens=tuple(tokens))
