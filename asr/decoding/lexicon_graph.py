"""The words of an n-gram model as a tree of the phones that they are spoken with."""

# P phones, N beginnings of pronunciations (nodes), H words of a pronunciation (homophones), R rows, C numbers of an
# n-gram context

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.decoding.ngram import NgramModel
from asr.decoding.spelling import LOG_ZERO, fits_tokens, word_spellings
from asr.decoding.word_tree import grow
from asr.pronunciation import Lexicon, Pronunciation
from asr.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NO_WORD = -1
_MAX_HOMOPHONES = 4  # more cost time, and are rare


class LexiconGraph:
    """What `lexicon_search` walks along: a tree of phones, with the words that end at its nodes.

    Node 0 is the root, where no word has begun.

    Args:
        model: Of words. The tensors here are on its device. Of more than four words that sound alike the most probable
            take part.
        lexicon: How they are spoken; words that it lacks, and pronunciations with a phone that the recogniser does not
            know, take no part.
        phones: The recogniser's, in the order of their CTC labels from 1 on.
        tokenizer: The recogniser's, for the spelling of words; those that it cannot spell take no part.
        expected: Words that take part also where the model or the lexicon lacks them, with their pronunciations, in
            letters that the tokenizer has. One that the model lacks is as probable as its rarest word behind words that
            the model has never seen that one behind.

    Attributes:
        ids: Of the words by their spelling: their places in the model's vocabulary, and behind it.
        parents: The node that is a phone shorter, (N,) int64.
        children: The node behind each phone, (N, P) int32; 0 where no word goes on so.
        words: Ids of the words that end at a node, (N, H); `NO_WORD` for none.
        ends: Whether a word does, (N,).
        goes_on: Whether a longer word has this beginning, (N,).
        log_longer: Summed unigram log-probability of these, (N,) float64.
        log_prior: How much more or less frequent than on average each phone is in what the model's words say, (P,)
            float64, a natural logarithm; its expectation is 0.

    Raises:
        ValueError: If the lexicon has less than half of the words that can be spelled, or the model is none of words.
    """

    def __init__(
        self,
        model: NgramModel,
        lexicon: Lexicon,
        phones: Sequence[str],
        tokenizer: Tokenizer,
        *,
        expected: Mapping[str, Sequence[Pronunciation]] | None = None,
    ) -> None:
        device = next(model.buffers()).device
        if fits_tokens(model, tokenizer):
            raise ValueError("it is a language model of tokens, but lexicon search needs one of words")
        log_probs = model.score_all(model.empty(1))[0].double().clamp_min(LOG_ZERO).cpu().numpy()
        spellings = word_spellings(model, tokenizer, log_probs)
        rarest = log_probs[list(spellings.values())].min()
        self._above_unknown = float(rarest - log_probs[model.unk_id])
        self._num_known = len(log_probs)
        if expected:
            unheard = [word for word in expected if word not in spellings]
            spellings |= {word: number for number, word in enumerate(unheard, start=self._num_known)}
            log_probs = np.append(log_probs, np.full(len(unheard), rarest))
            lexicon = Lexicon({**lexicon.pronunciations, **expected})
        wanted = frozenset(spellings[word] for word in expected or ())
        spoken = _spoken(spellings, lexicon, phones, log_probs, wanted)
        sizes = np.array([len(own) for own in spoken.values()])
        words = np.array([word for own in spoken.values() for word in own])  # those that sound alike side by side
        probabilities = np.add.reduceat(np.exp(log_probs[words]), sizes.cumsum() - sizes)
        tree = grow({text: number for number, text in enumerate(spoken)}, probabilities, NO_WORD)
        num_phones, num_nodes = len(phones), len(tree.parents)
        children = np.zeros((num_nodes, num_phones), dtype=np.int32)
        children[tree.parents[1:], tree.letters[1:] - 1] = np.arange(1, num_nodes)
        # What a word that goes on beyond a node may still be.
        longer = np.bincount(tree.parents[1:], weights=tree.masses[1:], minlength=num_nodes)
        with np.errstate(divide="ignore"):
            log_longer = np.maximum(np.log(longer), LOG_ZERO)
        homophones = np.full((len(spoken) + 1, sizes.max()), NO_WORD, dtype=np.int64)  # the last for no pronunciation
        homophones[:-1][np.arange(sizes.max()) < sizes[:, None]] = words
        # A node is passed by all words that begin so, its own included.
        heard = np.bincount(tree.letters[1:] - 1, weights=tree.masses[1:], minlength=num_phones).astype(np.float64)
        self.ids = spellings
        self.num_words = len(log_probs)
        self.parents = torch.from_numpy(tree.parents).to(device)
        self._model = model
        self.children = torch.from_numpy(children).to(device)
        self.words = torch.from_numpy(homophones[tree.words]).to(device)
        self.ends = self.words[:, 0] != NO_WORD
        self.goes_on = torch.from_numpy(longer > 0).to(device)
        self.log_longer = torch.from_numpy(log_longer).to(device)
        self.log_prior = torch.from_numpy(_log_prior(heard)).to(device)
        self._tokenizer = tokenizer
        self._spellings = {word: spelling for spelling, word in spellings.items()}

    def start(self, num_rows: int) -> Tensor:
        """Contexts at the beginning of a sentence, (R, C)."""
        return self._model.start(num_rows)

    def extend(self, contexts: Tensor, words: Tensor) -> Tensor:
        """The contexts (R, C) with one more word each, (R,)."""
        return self._model.extend(contexts, self._known(words))

    def score(self, contexts: Tensor, words: Tensor) -> Tensor:
        """Natural logarithms of what the model says of a word in each context, (R,) float64, at least `LOG_ZERO`."""
        scores = self._model.score(contexts, self._known(words)[:, None])[:, 0].double().clamp_min(LOG_ZERO)
        return torch.where(words >= self._num_known, (scores + self._above_unknown).clamp_min(LOG_ZERO), scores)

    def score_end(self, contexts: Tensor) -> Tensor:
        """Likewise of the end of the sentence."""
        return self.score(contexts, contexts.new_full((len(contexts),), self._model.eos_id))

    def _known(self, words: Tensor) -> Tensor:
        return words.masked_fill(words >= self._num_known, self._model.unk_id)

    def spell(self, words: Sequence[int]) -> tuple[int, ...]:
        """Words of the model, by their ids, in the recogniser's tokens."""
        return tuple(self._tokenizer.encode(" ".join([self._spellings[word] for word in words])))


def _log_prior(heard: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-frequencies less their expectation; a phone that is never heard counts as the rarest that is."""
    shares = np.maximum(heard, heard[heard > 0].min())
    shares = shares / shares.sum()
    logs = np.log(shares)
    centred: NDArray[np.float64] = logs - (shares * logs).sum()
    return centred


def _spoken(
    spellings: Mapping[str, int],
    lexicon: Lexicon,
    phones: Sequence[str],
    log_probs: NDArray[np.float64],
    wanted: frozenset[int],
) -> dict[str, list[int]]:
    """The ids of the words with each pronunciation, those that are wanted and the most probable first; of phones
    as characters by their number.

    Raises:
        ValueError: As `LexiconGraph` says.
    """
    letters = {phone: chr(number) for number, phone in enumerate(phones, start=1)}
    found: dict[str, list[int]] = {}
    num_words = 0
    for spelling, word in spellings.items():
        known = False
        for pronunciation in dict.fromkeys(lexicon.pronunciations.get(spelling, ())):
            try:
                text = "".join([letters[phone] for phone in pronunciation])
            except KeyError:  # a phone that the recogniser does not know
                continue
            found.setdefault(text, []).append(word)
            known = True
        num_words += known
    if 2 * num_words < len(spellings):
        raise ValueError(
            f"the lexicon has pronunciations of {num_words} of the language model's {len(spellings)} words, in phones "
            "that the recogniser knows; make one of its words with recipes/make_lexicon.py ngram=…"
        )
    if num_words < len(spellings):
        logger.info(
            "%d of %d words have no pronunciation and cannot be found", len(spellings) - num_words, len(spellings)
        )
    for text, own in found.items():
        if len(own) > 1:
            found[text] = sorted(own, key=lambda word: (word not in wanted, -log_probs[word]))[
                : max(_MAX_HOMOPHONES, 1 + sum(word in wanted for word in own))
            ]
    return found
