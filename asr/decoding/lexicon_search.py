"""Words of an n-gram model, searched over the phones that they are spoken with: CTC prefix beam search along a tree.

The prefixes and their two probabilities are those of `asr.decoding.prefix_beam`. Here a prefix is the words that have
ended, each with a pronunciation, and a beginning of the next. Few phones go on from a node of the tree, so only those
are written down that do. Prefixes that all models treat alike from here on, as they differ only in what lies behind the
n-gram model's context, take each other's places in the beam, so that few of them are kept (recombination; a lattice's
arcs are what a decoder with transducers keeps of them, Mohri et al. 2002).
"""

# B utterances, T' encoder frames, P phones, R rows (prefixes of all utterances), C numbers of an n-gram context,
# E prefixes with a phone behind, M prefixes with a word that ends behind

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asr.decoding.hashing import mix
from asr.decoding.hotwords import WordHotwords
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.lexicon_graph import NO_WORD, LexiconGraph
from asr.decoding.spelling import LOG_ZERO
from asr.tokenizer import BLANK_ID

NOTHING = Hypothesis((), LOG_ZERO, {"phones": LOG_ZERO, "ngram": LOG_ZERO})  # where no words fit

_ROOT = 0
_NO_LINK = -1

# The columns of `_Rows`.
_UTTERANCE, _NODE, _LAST, _WORD, _LINK, _HISTORY, _PHRASE, _CONTEXT = range(8)
_BLANK, _TOKEN, _OTHERS, _LANGUAGE, _GIVEN, _EXPECTED, _SHARE = range(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class LexiconSearchConfig:
    """How wide `lexicon_search` looks, and what it weighs; a phone's CTC log-probability has the weight 1.

    Attributes:
        beam_size: Most prefixes of an utterance that are kept in every frame.
        beam_margin: Prefixes that are more than this below the best of their utterance are dropped.
        token_margin: In each frame, phones are tried that are less than this below the best label.
        most_alike: Most prefixes that are kept of those that only differ in what no model looks at any more.
        ngram_weight: Of the words' log-probability.
        prior_weight: Share of the phones' prior (`LexiconGraph.log_prior`) that is taken off what CTC says of them, as
            hybrid systems do (Bourlard and Morgan 1994; Miao et al. 2015 for CTC).
        length_bonus: Added for every phone.
        hotword_weight: Of the hotwords' bonuses.
        num_best: Most hypotheses that are returned of each utterance.
    """

    beam_size: int
    num_best: int = 32
    beam_margin: float = math.inf
    token_margin: float = math.inf
    most_alike: int = 4
    ngram_weight: float = 1.0
    prior_weight: float = 0.0
    length_bonus: float = 0.0
    hotword_weight: float = 1.0


@dataclass(slots=True)
class _Rows:
    """The prefixes of all utterances, each once.

    Attributes:
        numbers: Utterance; node of the begun word; CTC label of the last phone, blank for none; a word that ended just
            now, or `NO_WORD`; link to the words before it; hash of all words that have ended; state of the hotwords;
            and the n-gram context, (R, 7 + C) int64.
        scores: CTC log-probability of all alignments that end in blank, and of those that end in the last phone;
            weighted scores of all else; the words' log-probability, with what the begun word has been given in
            advance; what that is; and the hotwords' bonuses, likewise; (R, 7) float64.
    """

    numbers: Tensor
    scores: Tensor

    def __getitem__(self, places: Tensor) -> "_Rows":
        return _Rows(self.numbers[places], self.scores[places])

    def __add__(self, others: "_Rows") -> "_Rows":
        return _Rows(torch.cat([self.numbers, others.numbers]), torch.cat([self.scores, others.scores]))

    def either(self) -> Tensor:
        """CTC log-probability, (R,)."""
        return torch.logaddexp(self.scores[:, _BLANK], self.scores[:, _TOKEN])

    def totals(self) -> Tensor:
        """What they are ranked by, (R,)."""
        return self.either() + self.scores[:, _OTHERS]

    def ended(self) -> Tensor:
        """Places of those whose word has ended just now."""
        return (self.numbers[:, _WORD] != NO_WORD).nonzero()[:, 0]

    def keys(self) -> Tensor:
        """A hash of each whole prefix, (R,)."""
        return mix(self.numbers[:, _HISTORY], self.numbers[:, _NODE])

    def futures(self) -> Tensor:
        """A hash of all that what may follow depends on, (R,)."""
        key = mix(self.numbers[:, _UTTERANCE], 0)
        for column in (_NODE, _LAST, _PHRASE, *range(_CONTEXT, self.numbers.shape[1])):
            key = mix(key, self.numbers[:, column])
        return key


class _Links:
    """The words that have ended, each with a link to the one before it."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []  # (2, L): link to the word before, word
        self._count = 0

    def add(self, before: Tensor, words: Tensor) -> Tensor:
        """Links to more words, (L,)."""
        first, self._count = self._count, self._count + len(words)
        self._parts.append(torch.stack([before, words]))
        return torch.arange(first, self._count, device=words.device)

    def reader(self) -> Callable[[int], tuple[int, ...]]:
        """Tells all words up to a link."""
        parts = self._parts or [torch.empty(2, 0, dtype=torch.int64)]
        # Millions of numbers, few of which are looked at: no list of them is made.
        before, words = (memoryview(row.numpy()) for row in torch.cat(parts, dim=1).cpu())

        def read(link: int) -> tuple[int, ...]:
            found = []
            while link != _NO_LINK:
                found.append(words[link])
                link = before[link]
            return tuple(reversed(found))

        return read


def lexicon_search(
    log_probs: Tensor,
    lengths: Tensor,
    graph: LexiconGraph,
    config: LexiconSearchConfig,
    *,
    hotwords: WordHotwords | None = None,
    max_tokens: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Searches the words with the best log p_ctc(phones) − prior + weight·log p(words) + bonus·phones + hotwords.

    While a word is not finished it has been given the summed unigram probability of all longer words that begin so.

    Args:
        log_probs: CTC log-probabilities of blank and phones, (B, T', 1 + P); anything may stand behind a length.
        lengths: Frames of each utterance, (B,) integers, at least 1.
        graph: On the device of `log_probs`.
        config: How.
        hotwords: Phrases that have a bonus; made of this graph.
        max_tokens: Most of the recogniser's tokens that a hypothesis of each utterance may have, B numbers; by default
            as many as it likes.

    Returns:
        Hypotheses of each utterance in the recogniser's tokens, best first, at least one; of several pronunciations of
        the same words the best counts. Their parts are `phones`, the CTC log-probability of the phones as the beam
        summed it, less the prior, `ngram`, and `hotwords`, where there are any. Where no words fit, `NOTHING` is found.

    Raises:
        ValueError: If a log-probability is not a number.
    """
    emissions, tried = _prepare(log_probs, lengths, graph, config)
    rows, links = _start(len(lengths), graph), _Links()
    for frame, is_tried in enumerate(tried.flatten(1).any(dim=1).tolist()):
        here = emissions[frame]
        stayed = _stay(rows, here)
        rows = _grow(rows, stayed, here, tried[frame], graph, hotwords, links, config) if is_tried else stayed
    return _finish(rows, links, max_tokens or [sys.maxsize] * len(lengths), graph, hotwords, config)


def _prepare(
    log_probs: Tensor, lengths: Tensor, graph: LexiconGraph, config: LexiconSearchConfig
) -> tuple[Tensor, Tensor]:
    """What each frame says, (T', B, 1 + P) float64, and which phones it tries, (T', B, P).

    Behind a length the blank is certain, so that nothing changes there.
    """
    log_probs = log_probs[:, : int(lengths.max())].double()
    log_probs = torch.cat([log_probs[..., :1], log_probs[..., 1:] - config.prior_weight * graph.log_prior], dim=2)
    valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]  # (B, T')
    padding = torch.full_like(log_probs[:1, :1], -math.inf)
    padding[..., BLANK_ID] = 0.0
    log_probs = torch.where(valid[:, :, None], log_probs, padding).transpose(0, 1).contiguous()
    best = log_probs.amax(dim=2, keepdim=True)
    if best.isnan().any():
        raise ValueError("the CTC log-probabilities have NaN in them; the model's weights or its input are damaged")
    return log_probs, log_probs[..., 1:] > best - config.token_margin


def _start(num_utterances: int, graph: LexiconGraph) -> _Rows:
    """The empty prefix of each utterance, as if a blank came before the first frame."""
    contexts = graph.start(num_utterances)
    numbers = torch.zeros(num_utterances, _CONTEXT + contexts.shape[1], dtype=torch.int64, device=contexts.device)
    numbers[:, _UTTERANCE] = torch.arange(num_utterances, device=contexts.device)
    numbers[:, _HISTORY] = mix(numbers[:, _UTTERANCE], 0)  # so that no two utterances share a key
    numbers[:, _WORD], numbers[:, _LINK] = NO_WORD, _NO_LINK
    numbers[:, _CONTEXT:] = contexts
    scores = torch.zeros(num_utterances, 7, dtype=torch.float64, device=contexts.device)
    scores[:, _TOKEN] = -math.inf
    return _Rows(numbers, scores)


def _stay(rows: _Rows, emissions: Tensor) -> _Rows:
    """The same prefixes a frame later, (B, 1 + P): by a blank, or by the last phone once more."""
    utterances, last = rows.numbers[:, _UTTERANCE], rows.numbers[:, _LAST]
    scores = rows.scores.clone()
    scores[:, _BLANK] = rows.either() + emissions[utterances, BLANK_ID]
    scores[:, _TOKEN] += emissions[utterances, last]
    return _Rows(rows.numbers, scores)


def _grow(
    rows: _Rows,
    stayed: _Rows,
    emissions: Tensor,
    tried: Tensor,
    graph: LexiconGraph,
    hotwords: WordHotwords | None,
    links: _Links,
    config: LexiconSearchConfig,
) -> _Rows:
    """The best prefixes among those that stayed and those that grew by a phone.

    Args:
        rows: Before the frame.
        stayed: The same after it; what grows into one of them joins it here.
        emissions: Log-probabilities of the frame, (B, 1 + P).
        tried: Which phones are tried, (B, P).
        graph: For the next nodes and words.
        hotwords: Phrases that have a bonus.
        links: Gets the words that end here.
        config: How.
    """
    bound = _best(stayed, len(emissions)) - config.beam_margin
    most = config.hotword_weight * hotwords.most if hotwords else 0.0
    longer = _join(_longer(rows, bound - most, emissions, tried, graph, config), stayed)
    _weigh(longer, graph, config)
    if hotwords:
        _expect(longer, hotwords, config)
    return _choose(stayed + longer, len(emissions), graph, links, config)


def _best(rows: _Rows, num_utterances: int) -> Tensor:
    """The best total of each utterance, (B,)."""
    totals = rows.totals()
    best = totals.new_full((num_utterances,), -math.inf)
    return best.scatter_reduce(0, rows.numbers[:, _UTTERANCE], totals, "amax")


def _longer(
    rows: _Rows, bound: Tensor, emissions: Tensor, tried: Tensor, graph: LexiconGraph, config: LexiconSearchConfig
) -> _Rows:
    """All prefixes with all phones behind them that are tried and go on, or end words; without the models' say yet.

    Args:
        rows: Before the frame.
        bound: What is not above it, and cannot come above it, is left out, (B,).
        emissions: Log-probabilities of the frame, (B, 1 + P).
        tried: Which phones are tried, (B, P).
        graph: For the next nodes and words.
        config: For the bonus.
    """
    children = graph.children[rows.numbers[:, _NODE]]  # (R, P)
    exists = (children != _ROOT) & tried[rows.numbers[:, _UTTERANCE]]
    sources, phones = exists.nonzero(as_tuple=True)  # (E,)
    nodes, labels = children[sources, phones].long(), phones + 1
    utterances = rows.numbers[sources, _UTTERANCE]
    # A repeat of the last phone needs a blank between.
    repeats = rows.numbers[sources, _LAST] == labels
    before = torch.where(repeats, rows.scores[sources, _BLANK], rows.either()[sources])
    ctc = before + emissions[utterances, labels]
    others = rows.scores[sources, _OTHERS] + config.length_bonus
    # A word that goes on is given no more than before; one that ends may be, where its context makes it likely.
    promising = (ctc + others > bound[utterances]) | (graph.ends[nodes] & (ctc > -math.inf))
    sources, nodes, labels = sources[promising], nodes[promising], labels[promising]

    grown = rows[sources]
    grown.numbers[:, _NODE], grown.numbers[:, _LAST] = nodes, labels
    grown.scores[:, _BLANK], grown.scores[:, _TOKEN] = -math.inf, ctc[promising]
    grown.scores[:, _OTHERS] = others[promising]
    within = grown[graph.goes_on[nodes]]
    ending = graph.ends[nodes].nonzero()[:, 0]
    words = graph.words[nodes[ending]]  # (·, H)
    places, forms = (words != NO_WORD).nonzero(as_tuple=True)  # (M,)
    ended = grown[ending[places]]
    words = words[places, forms]
    ended.numbers[:, _HISTORY] = mix(ended.keys(), words)  # a word counts with its pronunciation
    ended.numbers[:, _WORD], ended.numbers[:, _NODE] = words, _ROOT
    return within + ended


def _join(longer: _Rows, stayed: _Rows) -> _Rows:
    """Adds the probability of what has grown into a prefix that is there already; returns the others."""
    known, order = stayed.keys().sort()
    keys = longer.keys()
    places = torch.searchsorted(known, keys).clamp_max(len(known) - 1)
    is_known = known[places] == keys
    same = order[places[is_known]]  # each once: a prefix has one parent
    scores = stayed.scores[:, _TOKEN]
    scores[same] = torch.logaddexp(scores[same], longer.scores[is_known, _TOKEN])
    return longer[~is_known]


def _weigh(longer: _Rows, graph: LexiconGraph, config: LexiconSearchConfig) -> None:
    """Gives begun words the mass of all that begin so, and ended ones what the model says of them."""
    ended = longer.ended()
    said = graph.log_longer[longer.numbers[:, _NODE]]
    words = longer.numbers[ended, _WORD]
    own = graph.score(longer.numbers[ended, _CONTEXT:], words)
    gains = said.index_copy(0, ended, own) - longer.scores[:, _GIVEN]
    longer.scores[:, _OTHERS] += config.ngram_weight * gains
    longer.scores[:, _LANGUAGE] += gains
    longer.scores[:, _GIVEN] = said.index_fill(0, ended, 0.0)


def _expect(longer: _Rows, hotwords: WordHotwords, config: LexiconSearchConfig) -> None:
    """Gives begun words a share of the bonus that they may earn, and ended ones what they do."""
    ended = longer.ended()
    states, earned = hotwords.advance(longer.numbers[ended, _PHRASE], longer.numbers[ended, _WORD])
    longer.numbers[ended, _PHRASE] = states
    shares = hotwords.given[longer.numbers[:, _NODE]]  # of the root, 0
    gains = (shares - longer.scores[:, _SHARE]).index_add(0, ended, earned)
    longer.scores[:, _OTHERS] += config.hotword_weight * gains
    longer.scores[:, _EXPECTED] += gains
    longer.scores[:, _SHARE] = shares


def _choose(rows: _Rows, num_utterances: int, graph: LexiconGraph, links: _Links, config: LexiconSearchConfig) -> _Rows:
    """The best of all prefixes; links to the words that have ended."""
    bound = _best(rows, num_utterances) - config.beam_margin
    rows = rows[rows.totals() > bound[rows.numbers[:, _UTTERANCE]]]
    ended = rows.ended()
    words = rows.numbers[ended, _WORD]
    rows.numbers[ended, _CONTEXT:] = graph.extend(rows.numbers[ended, _CONTEXT:], words)
    rows = rows[rows.totals().argsort(descending=True, stable=True)]
    rows = rows[_ranks(rows.futures()) < config.most_alike]
    rows = rows[_ranks(rows.numbers[:, _UTTERANCE]) < config.beam_size]
    ended = rows.ended()
    rows.numbers[ended, _LINK] = links.add(rows.numbers[ended, _LINK], rows.numbers[ended, _WORD])
    rows.numbers[:, _WORD] = NO_WORD
    return rows


def _ranks(groups: Tensor) -> Tensor:
    """How many of its group stand before each, (R,)."""
    ordered, order = groups.sort(stable=True)
    ranks = torch.arange(len(groups), device=groups.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(ranks).index_copy(0, order, ranks)


def _finish(
    rows: _Rows,
    links: _Links,
    max_tokens: Sequence[int],
    graph: LexiconGraph,
    hotwords: WordHotwords | None,
    config: LexiconSearchConfig,
) -> list[list[Hypothesis]]:
    """Adds what it costs to end, and reads the words back.

    Where no row of an utterance ends with its words, those within a word count; where one does, they do not.
    """
    ends = rows.numbers[:, _NODE] == _ROOT
    any_ends = torch.zeros(len(max_tokens), dtype=torch.bool, device=ends.device)
    any_ends[rows.numbers[ends, _UTTERANCE]] = True
    rows = rows[ends | ~any_ends[rows.numbers[:, _UTTERANCE]]]
    endings = graph.score_end(rows.numbers[:, _CONTEXT:])
    endings = torch.where(rows.numbers[:, _NODE] == _ROOT, endings, LOG_ZERO)
    totals = rows.totals() + config.ngram_weight * endings
    expected = rows.scores[:, _EXPECTED]
    if hotwords:  # nothing follows that could still bring what is pending
        pending = rows.scores[:, _SHARE] + hotwords.pending[rows.numbers[:, _PHRASE]]
        totals, expected = totals - config.hotword_weight * pending, expected - pending
    totals, order = totals.sort(descending=True, stable=True)
    parts = {"phones": rows.either(), "ngram": rows.scores[:, _LANGUAGE] + endings}
    if hotwords:
        parts["hotwords"] = expected
    values = torch.stack(list(parts.values()), dim=1)[order].tolist()
    read, last_links = links.reader(), rows.numbers[order, _LINK].tolist()
    known: set[tuple[int, tuple[int, ...]]] = set()
    found: list[list[Hypothesis]] = [[] for _ in max_tokens]
    for utterance, link, total, own_parts in zip(
        rows.numbers[order, _UTTERANCE].tolist(), last_links, totals.tolist(), values, strict=True
    ):
        own = found[utterance]
        if len(own) == config.num_best or not math.isfinite(total):
            continue
        words = read(link)
        if (utterance, words) not in known:
            known.add((utterance, words))
            tokens = graph.spell(words)
            if len(tokens) <= max_tokens[utterance]:
                own.append(Hypothesis(tokens, total, dict(zip(parts, own_parts, strict=True))))
    nothing = replace(NOTHING, parts={**NOTHING.parts, "hotwords": 0.0}) if hotwords else NOTHING
    return [own or [nothing] for own in found]
