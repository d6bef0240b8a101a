"""From a batch of waveforms to hypotheses: one encoder pass, then any of the ways to search."""

# B utterances, S samples, T' encoder frames, D width, V vocabulary

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asr.decoding.beam import beam_search
from asr.decoding.ctc import CtcScorer, greedy_search
from asr.decoding.hotwords import WordHotwords
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.lexicon_graph import LexiconGraph
from asr.decoding.lexicon_search import LexiconSearchConfig, lexicon_search
from asr.decoding.neural_lm import SentenceScorer
from asr.decoding.prefix_beam import prefix_beam_search
from asr.decoding.rescore import add_ctc, rescore
from asr.decoding.scorers import AttentionScorer, Scorer, Weighted
from asr.decoding.spell import PhoneSpeller
from asr.nn.decoder import TransformerDecoder
from asr.nn.model import Recognizer

_WITH_WORDS = ("prefix_beam", "attention", "joint", "rescore", "lexicon")  # that language models and hotwords share in
MODES = ("greedy", *_WITH_WORDS, "spell")
LEXICON_NEEDS = (
    "decoding.mode is 'lexicon', which needs decoding.lexicon, the words' pronunciations, and decoding.lm.ngram, a "
    "model of the words; set both"
)
SPELL_NEEDS = (
    "decoding.mode is 'spell', which needs decoding.speller, a folder that recipes/train_speller.py made; set it"
)
TOKEN_LM_MODES = ("attention", "joint")  # where a neural language model scores token by token
_STAND_IN = 0.5  # share of the neural model's weight that the n-gram model has besides its own in lexicon's first pass
# The n-gram model's weight in lexicon's first pass, to one of the phones, that the margins are for.
_WEIGHT_OF_MARGINS = 1.4
_SCALES_OF_MARGINS = (0.5, 1.5)  # the least and the most
_RANKED_ANEW = 32  # hypotheses of an utterance, in the second pass of lexicon
_NEED_DECODER = (*TOKEN_LM_MODES, "rescore")


@dataclass(slots=True, kw_only=True)
class FusionConfig:
    """Language models that take part in a search (shallow fusion); all weights multiply natural logarithms.

    Attributes:
        ngram: An ARPA file, over words or over the recogniser's tokens; None for none.
        ngram_weight: Its weight, at least 0.
        unknown_penalty: Added for every word that a model over words does not know, at most 0.
        neural: Folder of a Transformer language model; None for none. Over tokens of its own it has a place in the
            modes with a second pass alone, over the recogniser's in `attention` and `joint` too.
        neural_weight: Its weight, at least 0.
        internal_weight: Share of what the attention decoder has learnt of the training transcripts' language that is
            taken away again (Meng et al. 2021), at least 0.
    """

    ngram: Path | None = None
    ngram_weight: float = 0.5
    unknown_penalty: float = -10.0
    neural: Path | None = None
    neural_weight: float = 0.3
    internal_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ngram_weight", "neural_weight", "internal_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"decoding.lm.{name} is {getattr(self, name)}; it must be a number of 0 or more")
        if not -math.inf < self.unknown_penalty <= 0:
            raise ValueError(f"decoding.lm.unknown_penalty is {self.unknown_penalty}; it must be a number of 0 or less")


@dataclass(slots=True, kw_only=True)
class DecodingConfig:
    """How to search.

    Attributes:
        mode: `greedy`, the best label of every CTC frame; `prefix_beam`, CTC prefix beam search; `attention`, beam
            search with the attention decoder alone; `joint`, with CTC and attention together in one pass; `rescore`,
            the best of prefix beam search ranked anew with the attention decoder and the neural language model;
            `lexicon`, search along a tree of phones for words of an n-gram model and a lexicon, the best of it ranked
            anew by CTC, decoder and the neural language model as well; `spell`, beam search with a speller, which reads
            the phones that were heard.
        beam_size: Hypotheses kept in every step of a beam search, at most.
        ctc_weight: Weight of the CTC score in joint search and in rescoring, in (0, 1]; the decoder has the rest.
        phone_weight: In `lexicon`, weight of the phones' CTC score, in (0, 1]; the tokens' CTC score and the decoder
            share the rest, and with 1 are left out.
        prior_weight: In `lexicon`, share of how frequent phones are in the language that is taken off their CTC score,
            at least 0, as hybrid systems do (Bourlard and Morgan 1994): the words' model says it as well.
        lexicon: In `lexicon`, the file with the words' pronunciations (see `asr.pronunciation`).
        speller: In `spell`, the folder of a speller that was trained for this recogniser.
        length_bonus: Added to a hypothesis' score for every token, in `spell` one of the speller's, and in the first
            pass of `lexicon` for every phone.
        end_margin: In `joint`, `attention` and `spell`, the most that a running hypothesis is trusted to gain on the
            best finished one; it matters where a bonus, hotwords or `lm.internal_weight` let scores rise. Infinity
            ends a search exactly, but with these only after the last frame.
        token_margin: Prefix beam search tries tokens, and `lexicon` phones, that are at most this much less probable
            than the best of their frame, a natural logarithm; infinity tries all.
        beam_margin: `lexicon` drops hypotheses that are this far below the best in a frame, where the phones' CTC score
            has the weight 1 and the n-gram model 1.4 (half the weight of a neural model included); infinity leaves it
            to `beam_size`. With another weight of the n-gram model both margins change in proportion, between half and
            one and a half of what they are: it tells the scale of the phones' scores, which is another for each model.
        num_best: Most hypotheses that are kept of an utterance in the end; `lexicon` ranks 32 anew, if that is more,
            and keeps them.
        lm: Language models.
        hotwords: A file of words and phrases that are expected, one a line; None for none.
        hotword_bonus: What a phrase without a weight of its own in that file adds to a hypothesis that has it.
        hotword_language: In `lexicon`, the voice of espeak-ng that says hotwords which the lexicon lacks; by default
            "en-us".
    """

    mode: str = "greedy"
    beam_size: int = 10
    ctc_weight: float = 0.3
    phone_weight: float = 0.5
    prior_weight: float = 0.0
    lexicon: Path | None = None
    speller: Path | None = None
    length_bonus: float = 0.0
    end_margin: float = 20.0
    token_margin: float = 8.0
    beam_margin: float = 16.0
    num_best: int = 10
    lm: FusionConfig = field(default_factory=FusionConfig)
    hotwords: Path | None = None
    hotword_bonus: float = 3.0
    hotword_language: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"decoding.mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        for name in ("beam_size", "num_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoding.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("length_bonus", "hotword_bonus"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"decoding.{name} is {getattr(self, name)}; it must be a finite number")
        if not self.end_margin >= 0:
            raise ValueError(f"decoding.end_margin is {self.end_margin}; it must be 0 or more")
        for name in ("token_margin", "beam_margin"):
            if not getattr(self, name) > 0:
                raise ValueError(f"decoding.{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.prior_weight < math.inf:
            raise ValueError(f"decoding.prior_weight is {self.prior_weight}; it must be a number of 0 or more")
        for name in ("ctc_weight", "phone_weight"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"decoding.{name} is {getattr(self, name)}; it must be in (0, 1]")
        if self.mode == "lexicon" and not self.lm.ngram_weight:
            raise ValueError(
                "decoding.lm.ngram_weight is 0, but mode 'lexicon' finds words by that model; set it above 0"
            )
        self._refuse_what_has_no_place()

    def _refuse_what_has_no_place(self) -> None:
        """An option without effect is an error, not silence."""
        places = {
            "lm.ngram": (self.lm.ngram, _WITH_WORDS),
            "lm.neural": (self.lm.neural, (*_NEED_DECODER, "lexicon")),
            "lm.internal_weight": (self.lm.internal_weight, TOKEN_LM_MODES),
            "hotwords": (self.hotwords, _WITH_WORDS),
            "hotword_language": (self.hotword_language, ("lexicon",)),
            "lexicon": (self.lexicon, ("lexicon",)),
            "speller": (self.speller, ("spell",)),
            "prior_weight": (self.prior_weight, ("lexicon",)),
        }
        for name, (value, modes) in places.items():
            if value and self.mode not in modes:
                raise ValueError(
                    f"decoding.{name} is {value}, which has no place in mode {self.mode!r}; "
                    f"leave it out, or take mode {' or '.join(modes)}"
                )


class NotFiniteError(ValueError):
    """The model answers with NaN: its weights are damaged, or samples are so large that their power is infinite."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was found in one utterance.

    Attributes:
        hypotheses: Best first, at least one.
        log_probs: CTC log-probabilities without padding, (T', V), float32, for times and confidences.
    """

    hypotheses: list[Hypothesis]
    log_probs: Tensor

    @property
    def best(self) -> Hypothesis:
        """The first hypothesis."""
        return self.hypotheses[0]


@dataclass(frozen=True, slots=True)
class Encoding:
    """A batch after the encoder, which every mode of search starts from.

    Attributes:
        frames: (B, T', D).
        lengths: Frames of each utterance, (B,).
        log_probs: CTC log-probabilities (B, T', V), float32.
    """

    frames: Tensor
    lengths: Tensor
    log_probs: Tensor


@torch.inference_mode()
def encode(model: Recognizer, waveforms: Tensor, lengths: Tensor) -> Encoding:
    """Runs features, encoder and CTC head.

    Args:
        model: In eval mode.
        waveforms: (B, S) of the model's sample rate, on the model's device.
        lengths: (B,) integers, in samples.

    Raises:
        ValueError: If the model is in training mode.
        NotFiniteError: If the model's output is not a number.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before recognition")
    encoded = model.encode(waveforms, lengths)
    log_probs = model.ctc_log_probs(encoded.frames)  # (B, T', V)
    if log_probs.isnan().any():
        raise NotFiniteError("the model's output is not a number (NaN); its weights or its input are damaged")
    return Encoding(encoded.frames, encoded.lengths, log_probs)


class Search:
    """One way to search, with all that it needs: made once, used for every batch.

    Args:
        model: The recogniser, in eval mode, on its device.
        config: How to search.
        ngram: Scores by the model that `config.lm.ngram` names.
        neural: Scores of tokens by the model that `config.lm.neural` names, for `attention` and `joint`.
        sentences: Scores of whole sentences by that model, for the modes with a second pass.
        hotwords: Scores by the phrases that `config.hotwords` names, but for `lexicon`.
        lexicon: The words of the model that `config.lm.ngram` names, over the phones in `config.lexicon`.
        word_hotwords: Scores by the phrases that `config.hotwords` names, for `lexicon`.
        speller: What `config.speller` names, for `spell`.

    Raises:
        ValueError: If the mode needs a decoder and the model has none, or a lexicon or a speller and there is none.
    """

    def __init__(
        self,
        model: Recognizer,
        config: DecodingConfig,
        *,
        ngram: Scorer[Any] | None = None,
        neural: Scorer[Any] | None = None,
        sentences: SentenceScorer | None = None,
        hotwords: Scorer[Any] | None = None,
        lexicon: LexiconGraph | None = None,
        word_hotwords: WordHotwords | None = None,
        speller: PhoneSpeller | None = None,
    ) -> None:
        if config.mode in _NEED_DECODER and model.decoder is None:
            raise ValueError(
                f"decoding.mode is {config.mode!r}, but this model has no attention decoder; "
                "use mode greedy, prefix_beam or lexicon"
            )
        if config.mode == "lexicon" and lexicon is None:
            raise ValueError(LEXICON_NEEDS)
        if config.mode == "spell" and speller is None:
            raise ValueError(SPELL_NEEDS)
        self.model, self.config = model, config
        self._ngram, self._neural, self._sentences = ngram, neural, sentences
        self._hotwords, self._lexicon, self._word_hotwords = hotwords, lexicon, word_hotwords
        self._speller = speller

    @torch.inference_mode()
    def __call__(self, encoding: Encoding) -> list[Recognition]:
        """Searches a batch; one result an utterance, in order.

        Raises:
            NotFiniteError: If the decoder or a language model answers with NaN.
        """
        mode = self.config.mode
        if mode == "greedy":
            found = [[each] for each in greedy_search(encoding.log_probs, encoding.lengths)]
        elif mode in ("prefix_beam", "rescore"):
            found = self._prefix_beam(encoding)
        elif mode == "lexicon":
            found = self._words_by_phones(encoding)
        elif mode == "spell":
            found = self._spell(encoding)
        else:
            found = self._beam(encoding)
        if any(math.isnan(hypotheses[0].score) for hypotheses in found):
            raise NotFiniteError(
                "the scores of the search are not numbers (NaN); the weights of the decoder or of a language model are "
                "damaged"
            )
        return [
            Recognition(hypotheses, encoding.log_probs[row, :length])
            for row, (hypotheses, length) in enumerate(zip(found, encoding.lengths.tolist(), strict=True))
        ]

    @property
    def has_decoder(self) -> bool:
        """Whether the model has an attention decoder, which shares in the scores where the mode lets it."""
        return self.model.decoder is not None

    def _shared(self) -> list[Weighted[Any]]:
        """Scorers that need nothing of an utterance."""
        found = []
        if self._ngram is not None and self.config.lm.ngram_weight:
            found.append(Weighted("ngram", self.config.lm.ngram_weight, self._ngram))
        if self._hotwords is not None:
            found.append(Weighted("hotwords", 1.0, self._hotwords))
        return found

    def _prefix_beam(self, encoding: Encoding) -> list[list[Hypothesis]]:
        config = self.config
        found = prefix_beam_search(
            encoding.log_probs,
            encoding.lengths,
            beam_size=config.beam_size,
            scorers=self._shared(),
            length_bonus=config.length_bonus,
            token_margin=config.token_margin,
            num_best=config.num_best,
        )
        if config.mode == "prefix_beam":
            return found
        weights = {each.name: each.weight for each in self._shared()}
        return self._rescore(encoding, found, weights, share=1.0)

    def _words_by_phones(self, encoding: Encoding) -> list[list[Hypothesis]]:
        config, lexicon = self.config, self._lexicon
        assert lexicon is not None
        weight = config.phone_weight
        # What the neural model says of words comes in the second pass; until then the n-gram model stands in for it.
        ngram_weight = config.lm.ngram_weight
        if self._sentences is not None:
            ngram_weight += _STAND_IN * config.lm.neural_weight
        # Without what comes in the second pass, so that the weights of the others are larger.
        ngram_weight /= weight
        least, most = _SCALES_OF_MARGINS
        scale = min(most, max(least, ngram_weight / _WEIGHT_OF_MARGINS))
        settings = LexiconSearchConfig(
            beam_size=config.beam_size,
            beam_margin=config.beam_margin * scale,
            token_margin=config.token_margin * scale,
            ngram_weight=ngram_weight,
            prior_weight=config.prior_weight,
            length_bonus=config.length_bonus / weight,
            hotword_weight=1 / weight,
            num_best=max(config.num_best, _RANKED_ANEW),
        )
        log_probs = self.model.phone_log_probs(encoding.frames)
        # Normalised as an utterance, silence is loud, and the bonus a phone would make words of it. Where no frame has
        # a letter, nobody speaks.
        silent = [not each.tokens for each in greedy_search(encoding.log_probs, encoding.lengths)]
        lengths = encoding.lengths.masked_fill(torch.tensor(silent, device=encoding.lengths.device), 0)
        heard = lexicon_search(
            log_probs, lengths, lexicon, settings, hotwords=self._word_hotwords, max_tokens=lengths.tolist()
        )
        found = add_ctc(heard, encoding.log_probs, encoding.lengths)
        weights = {"phones": weight, "ngram": config.lm.ngram_weight, "hotwords": 1.0}
        return self._rescore(encoding, found, weights, share=1 - weight)

    def _spell(self, encoding: Encoding) -> list[list[Hypothesis]]:
        config = self.config
        assert self._speller is not None
        return self._speller(
            self.model.phone_log_probs(encoding.frames),
            encoding.lengths,
            beam_size=config.beam_size,
            length_bonus=config.length_bonus,
            end_margin=config.end_margin,
            num_best=config.num_best,
        )

    def _rescore(
        self, encoding: Encoding, found: list[list[Hypothesis]], weights: dict[str, float], *, share: float
    ) -> list[list[Hypothesis]]:
        """Second pass: ranks by the weights of what is known, with a share for CTC and decoder together."""
        config = self.config
        ctc_weight = config.ctc_weight if self.has_decoder else 1.0
        weights = weights | {"ctc": share * ctc_weight, "attention": share * (1 - ctc_weight)}
        if self._sentences is not None:
            weights["neural"] = config.lm.neural_weight
        return rescore(
            found,
            self.model.decoder if weights["attention"] else None,
            encoding.frames,
            encoding.lengths,
            neural=self._sentences,
            weights=weights,
            length_bonus=config.length_bonus,
        )

    def _beam(self, encoding: Encoding) -> list[list[Hypothesis]]:
        config, lm = self.config, self.config.lm
        decoder = self._decoder()
        ctc_weight = config.ctc_weight if config.mode == "joint" else 0.0
        scorers: list[Weighted[Any]] = []
        if ctc_weight:
            scorers.append(Weighted("ctc", ctc_weight, CtcScorer(encoding.log_probs, encoding.lengths)))
        if ctc_weight < 1:
            attention = AttentionScorer(decoder, encoding.frames, encoding.lengths)
            scorers.append(Weighted("attention", 1 - ctc_weight, attention))
        if self._neural is not None and lm.neural_weight:
            scorers.append(Weighted("neural", lm.neural_weight, self._neural))
        if lm.internal_weight:
            scorers.append(Weighted("internal", -lm.internal_weight, internal_scorer(decoder, encoding.frames)))
        scorers += self._shared()
        return beam_search(
            scorers,
            encoding.lengths,
            beam_size=config.beam_size,
            length_bonus=config.length_bonus,
            end_margin=config.end_margin,
            num_best=config.num_best,
        )

    def _decoder(self) -> TransformerDecoder:
        assert self.model.decoder is not None
        return self.model.decoder


def internal_scorer(decoder: TransformerDecoder, frames: Tensor) -> AttentionScorer:
    """The decoder's language model of its training transcripts: what it says when it hears nothing.

    The encoder's frames are replaced by a single one of zeros (internal language model estimation, Meng et al. 2021).

    Args:
        decoder: In eval mode.
        frames: Of a batch, (B, T', D), for their number, width and device.
    """
    nothing = torch.zeros_like(frames[:, :1])
    return AttentionScorer(decoder, nothing, torch.ones(len(frames), dtype=torch.int64, device=frames.device))
