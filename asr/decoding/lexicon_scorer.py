"""An n-gram model of words over the phones that they are spoken with, as a scorer for prefix beam search.

Phones do not say where a word ends, and several words may sound alike. So the tokens of this search are each phone in
several forms: within a word, and as the last one of the first, second, … word with that pronunciation, as the
disambiguation symbols of a transducer do it (Mohri et al. 2002, section 3.1). All forms are heard as the same CTC
label. A sequence of tokens then is a sequence of words.
"""

# R rows, P phones, H words of a pronunciation (homophones), V' = 2 + P·(1 + H) tokens, C numbers of an n-gram context,
# N beginnings of pronunciations (nodes), M words that may end now

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.decoding.ngram import NgramModel
from asr.decoding.spelling import LOG_ZERO, fits_tokens, word_spellings
from asr.decoding.word_tree import ROOT, grow
from asr.pronunciation import Lexicon
from asr.tokenizer import BLANK_ID, SPECIAL_TOKENS, Tokenizer

logger = logging.getLogger(__name__)

_NONE = -1  # no word, no pronunciation
_MAX_HOMOPHONES = 4  # more cost time, and are rare


@dataclass(slots=True)
class LexiconState:
    """What `LexiconScorer` knows of R rows.

    Attributes:
        contexts: N-gram contexts of the words that have ended, (R, C).
        nodes: Which beginning of a pronunciation the row ends in, (R,); 0 between words.
        given: Log-probability that the begun word has had in advance, (R,) float64.
    """

    contexts: Tensor
    nodes: Tensor
    given: Tensor


class LexiconScorer:
    """The log-probability of words in an n-gram model, over phones, as a `Scorer`; other words cannot be said.

    While a word is not finished it has been given the summed unigram probability of all words that begin so, as by
    `WordNgramScorer`.

    Args:
        model: Of words. The scorer works on its device. Of more than four words that sound alike the most probable
            take part.
        lexicon: How they are spoken; words that it lacks, and pronunciations with a phone that the recogniser does not
            know, take no part.
        phones: The recogniser's, in the order of their CTC labels from 1 on.
        tokenizer: The recogniser's, for the spelling of words; those that it cannot spell take no part.

    Attributes:
        labels: The CTC label that each token is heard as, (V',).

    Raises:
        ValueError: If the lexicon has less than half of the words that can be spelled, or the model is none of words.
    """

    can_stay = True

    def __init__(self, model: NgramModel, lexicon: Lexicon, phones: Sequence[str], tokenizer: Tokenizer) -> None:
        device = next(model.buffers()).device
        log_probs = model.score_all(model.empty(1))[0].double().clamp_min(LOG_ZERO).cpu().numpy()
        if fits_tokens(model, tokenizer):
            raise ValueError("it is a language model of tokens, but lexicon search needs one of words")
        spellings = word_spellings(model, tokenizer, log_probs)
        spoken = _spoken(spellings, lexicon, phones, log_probs)
        sizes = np.array([len(own) for own in spoken.values()])
        words = np.array([word for own in spoken.values() for word in own])  # those that sound alike side by side
        probabilities = np.add.reduceat(np.exp(log_probs[words]), sizes.cumsum() - sizes)
        tree = grow({text: number for number, text in enumerate(spoken)}, probabilities, _NONE)
        self._model, self._tokenizer = model, tokenizer
        self._spellings = {word: spelling for spelling, word in spellings.items()}
        num_phones, num_nodes = len(phones), len(tree.parents)
        children = np.zeros((num_nodes, num_phones), dtype=np.int32)  # 0, the root, is no child
        children[tree.parents[1:], tree.letters[1:] - 1] = np.arange(1, num_nodes)
        # What a word that goes on beyond a node may still be.
        longer = np.bincount(tree.parents[1:], weights=tree.masses[1:], minlength=num_nodes)
        with np.errstate(divide="ignore"):
            log_longer = np.maximum(np.log(longer), LOG_ZERO)
        homophones = np.full((len(spoken), sizes.max()), _NONE, dtype=np.int64)
        homophones[np.arange(sizes.max()) < sizes[:, None]] = words
        homophones = np.concatenate([homophones, np.full_like(homophones[:1], _NONE)])  # the last for no pronunciation
        # For `spell`, which would wait for a GPU at every token.
        self._host_children, self._host_words = children, homophones[tree.words]
        self._children = torch.from_numpy(self._host_children).to(device)  # (N, P)
        self._words = torch.from_numpy(self._host_words).to(device)  # (N, H)
        self._log_longer = torch.from_numpy(log_longer).to(device)  # (N,) float64
        self._goes_on = torch.from_numpy(longer > 0).to(device)  # (N,)
        self._num_forms = 1 + homophones.shape[1]
        forms = torch.arange(num_phones * self._num_forms, device=device)
        special = torch.zeros(len(SPECIAL_TOKENS), dtype=torch.int64, device=device)
        # No log-probability is looked up for the end of sentence; a blank is as good as any.
        self.labels = torch.cat([special + BLANK_ID, 1 + forms // self._num_forms])
        self._phones = torch.cat([special, forms // self._num_forms])  # (V',) from 0 on
        self._endings = torch.cat([special + _NONE, forms % self._num_forms - 1])  # (V',)
        self.headroom = float(-log_probs[list(spellings.values())].min())

    def start(self, num_utterances: int, num_hypotheses: int) -> LexiconState:
        """The state of B·N rows that hold no token yet."""
        contexts = self._model.start(num_utterances * num_hypotheses)
        nodes = torch.full((len(contexts),), ROOT, device=contexts.device)
        return LexiconState(contexts, nodes, torch.zeros_like(nodes, dtype=torch.float64))

    def score(self, state: LexiconState, tokens: Tensor | None = None) -> tuple[Tensor, LexiconState]:
        """What every next token adds, (R, V') float64; see `Scorer.score`."""
        children = self._children[state.nodes].long()  # (R, P)
        exists = children != ROOT
        if tokens is not None:
            looked_at = exists.new_zeros((len(tokens), exists.shape[1])).scatter_(1, self._phones[tokens], True)
            exists = (exists.unflatten(0, (len(tokens), -1)) & looked_at[:, None]).flatten(0, 1)
        within = torch.where(
            exists & self._goes_on[children], self._log_longer[children] - state.given[:, None], -math.inf
        )
        rows, columns = exists.nonzero(as_tuple=True)
        words = self._words[children[rows, columns]]
        places, numbers = (words != _NONE).nonzero(as_tuple=True)  # (M,)
        rows, columns = rows[places], columns[places]
        own = self._model.score(state.contexts[rows], words[places, numbers][:, None])[:, 0].double()
        endings = within.new_full((*within.shape, words.shape[1]), -math.inf)  # (R, P, H)
        endings[rows, columns, numbers] = own.clamp_min(LOG_ZERO) - state.given[rows]
        end = self._model.score(state.contexts, torch.full_like(state.nodes, self._model.eos_id)[:, None]).double()
        # Where no row of an utterance ends with its words, one within a word is better than none.
        end = torch.where(state.nodes[:, None] == ROOT, end.clamp_min(LOG_ZERO), LOG_ZERO)
        forms = torch.cat([within[:, :, None], endings], dim=2).flatten(1)  # (R, P·(1 + H))
        return torch.cat([end, end, forms], dim=1), state

    def advance(self, state: LexiconState, rows: Tensor, tokens: Tensor) -> LexiconState:
        """See `Scorer.advance`."""
        contexts, nodes, given = state.contexts[rows], state.nodes[rows], state.given[rows]
        stays, endings = tokens == BLANK_ID, self._endings[tokens]
        reached = self._children[nodes, self._phones[tokens]].long()
        ends = (endings != _NONE) & ~stays
        words = self._words[reached, endings.clamp_min(0)]
        # A row that holds nothing may be extended by anything, which is no word then.
        extended = self._model.extend(contexts, words.clamp_min(0))
        between = torch.where(ends, ROOT, reached)
        return LexiconState(
            torch.where(ends[:, None], extended, contexts),
            torch.where(stays, nodes, between),
            torch.where(stays, given, torch.where(between == ROOT, 0.0, self._log_longer[between])),
        )

    def spell(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The words that this scorer's tokens say, in the recogniser's tokens; what is no whole word is dropped."""
        words = []
        node = ROOT
        for token in tokens:
            phone, form = divmod(token - len(SPECIAL_TOKENS), self._num_forms)
            node = self._host_children[node, phone]
            if form:
                word = int(self._host_words[node, form - 1])
                words += [self._spellings[word]] if word != _NONE else []
                node = ROOT
        return tuple(self._tokenizer.encode(" ".join(words)))


def _spoken(
    spellings: Mapping[str, int], lexicon: Lexicon, phones: Sequence[str], log_probs: NDArray[np.float64]
) -> dict[str, list[int]]:
    """The ids of the words with each pronunciation, the most probable first; of phones as characters by their number.

    Raises:
        ValueError: As `LexiconScorer` says.
    """
    letters = {phone: chr(number) for number, phone in enumerate(phones, start=1)}
    found: dict[str, list[int]] = {}
    num_words = 0
    for spelling, word in spellings.items():
        known = False
        for pronunciation in lexicon.pronunciations.get(spelling, ()):
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
            found[text] = sorted(own, key=lambda word: -log_probs[word])[:_MAX_HOMOPHONES]
    return found
