"""N-gram language models as scorers: of words, whatever tokens spell them, and of the tokenizer's own tokens."""

# R rows, V tokens, C numbers of an n-gram context, P beginnings of words (nodes), E edges

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asr.decoding.ngram import NgramModel
from asr.decoding.spelling import LOG_ZERO, word_spellings, written_tokens
from asr.decoding.word_tree import ROOT, Integers, Tree, grow
from asr.tokenizer import BLANK_ID, EOS_ID, Tokenizer

_LETTER_BITS = 21  # of a code point


class TokenNgramScorer:
    """The log-probability of the next token in an n-gram model of the tokenizer's own tokens, as a `Scorer`.

    Args:
        model: Its words are the readable forms of the tokens, the space written as U+2581.
        tokenizer: The recogniser's.

    Raises:
        ValueError: If the model lacks a token.
    """

    can_stay = True
    headroom = 0.0

    def __init__(self, model: NgramModel, tokenizer: Tokenizer) -> None:
        written = written_tokens(tokenizer)
        ids = model.ids(written)
        missing = [token for token, index in zip(written, ids, strict=True) if index == model.unk_id]
        if missing:
            raise ValueError(
                f"the language model lacks {len(missing)} of the tokenizer's {len(written)} tokens: "
                f"{', '.join(missing[:10])}{', …' if len(missing) > 10 else ''}; "
                "train it on text that this tokenizer has cut into tokens"
            )
        self._model = model
        # The blank's column is never looked at.
        self._ids = torch.tensor([model.eos_id, model.eos_id, *ids], device=_device(model))  # (V,)

    def start(self, num_utterances: int, num_hypotheses: int) -> Tensor:
        """Contexts (R, C) of rows that hold no token yet."""
        return self._model.start(num_utterances * num_hypotheses)

    def score(self, state: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all tokens and of the end of sentence, (R, V) float32; see `Scorer.score`."""
        return self._model.score(state, self._ids.expand(len(state), -1)), state

    def advance(self, state: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """See `Scorer.advance`."""
        contexts = state[rows]
        stays = (tokens == BLANK_ID)[:, None]
        return torch.where(stays, contexts, self._model.extend(contexts, self._ids[tokens]))


@dataclass(slots=True)
class WordState:
    """What `WordNgramScorer` knows of R rows.

    Attributes:
        contexts: N-gram contexts of the words that have ended, (R, C).
        nodes: Which beginning of a word the row ends in, (R,); 0 where no word has begun.
        given: Log-probability that the begun word has had in advance, (R,) float64.
        ended: Contexts with the begun word behind them, (R, C), once scores were asked for.
        next_nodes: The node that each token leads to, (R, V), likewise.
        next_given: What the begun word has had in advance behind each token, (R, V), likewise.
    """

    contexts: Tensor
    nodes: Tensor
    given: Tensor
    ended: Tensor | None = None
    next_nodes: Tensor | None = None
    next_given: Tensor | None = None


class WordNgramScorer:
    """The log-probability of words in an n-gram model, over tokens that may spell any word, as a `Scorer`.

    A word is scored when it ends: at a token that begins another, at a bare space, or at the end of sentence, which
    adds p(</s>). Until then a beam would not hear of the model, so part of the score is given in advance (look-ahead,
    Ortmanns et al. 1996): every token brings the begun word to the summed unigram probability of all words that begin
    like it, and its end to exactly p(word | context). A word that the vocabulary lacks has p(<unk> | context) times a
    penalty, which it gets as soon as no word of the vocabulary begins like it.

    The beginnings of all words are nodes of a tree whose edges are tokens of any length, found once: all ways to cut a
    word into tokens end in the same node, and a step costs only as much as there are ways to go on.

    Args:
        model: Words are normalised with `asr.text.normalize` where the tokenizer cannot spell them as they are. Where
            words are the same then, the most probable counts. The scorer works on the model's device.
        tokenizer: The recogniser's.
        unknown_penalty: Natural logarithm, added for every unknown word; finite, at most 0.
        lookahead: Whether to score begun words in advance; totals of finished words are the same without.

    Raises:
        ValueError: If the model is one of tokens, or has too few words that the tokenizer can spell, if a token spans
            two words, or the penalty is out of range.
    """

    can_stay = True

    def __init__(
        self, model: NgramModel, tokenizer: Tokenizer, *, unknown_penalty: float, lookahead: bool = True
    ) -> None:
        if not -math.inf < unknown_penalty <= 0:
            raise ValueError(f"unknown_penalty is {unknown_penalty}; it must be a finite number that is at most 0")
        texts = tokenizer.texts
        _check_tokens(texts)
        device = _device(model)
        single = model.score_all(model.empty(1))[0].double().clamp_min(LOG_ZERO)  # words without context, (M,)
        log_probs = single.cpu().numpy()
        spellings = word_spellings(model, tokenizer, log_probs)
        tree = grow(spellings, np.exp(log_probs), model.unk_id)
        self._model, self._penalty, self._lookahead = model, unknown_penalty, lookahead
        self._steps = _make_steps(tree, texts, device)
        # Behind the nodes of the tree comes one for all words that are not in it.
        self._unknown_node = len(tree.words)
        # A begun word is charged its mass, and in the best of contexts costs nothing.
        self.headroom = float(-np.log(tree.masses.min())) if lookahead else 0.0
        self._words = torch.from_numpy(np.append(tree.words, model.unk_id)).to(device)  # (P + 1,)
        self._log_masses = torch.from_numpy(np.append(np.log(tree.masses), 0.0)).to(device)  # (P + 1,) float64
        self._ends_word = torch.tensor([text.startswith(" ") for text in texts], device=device)  # (V,)
        self._ends_word[EOS_ID] = True

    def start(self, num_utterances: int, num_hypotheses: int) -> WordState:
        """The state of B·N rows that hold no token yet."""
        contexts = self._model.start(num_utterances * num_hypotheses)
        nodes = torch.full((len(contexts),), ROOT, device=contexts.device)
        return WordState(contexts, nodes, torch.zeros_like(nodes, dtype=torch.float64))

    def score(self, state: WordState, tokens: Tensor | None = None) -> tuple[Tensor, WordState]:
        """What every next token adds, (R, V) float64; see `Scorer.score`."""
        words = self._words[state.nodes]
        begun = state.nodes != ROOT
        unknown = torch.full_like(words, self._model.unk_id)
        own = self._log_probs(state.contexts, torch.stack([words, unknown], dim=1))  # (R, 2)
        ended = torch.where(begun[:, None], self._model.extend(state.contexts, words), state.contexts)
        behind = self._log_probs(ended, torch.stack([torch.full_like(words, self._model.eos_id), unknown], dim=1))

        next_nodes = self._steps.from_nodes(state.nodes)  # (R, V)
        if self._lookahead:
            unknown_log_probs = torch.where(self._ends_word, behind[:, 1:], own[:, 1:])
            known = next_nodes != self._unknown_node
            next_given = torch.where(known, self._log_masses[next_nodes], unknown_log_probs)
        else:
            next_given = torch.zeros_like(next_nodes, dtype=torch.float64)
        # A token that ends the word settles it; another takes back the old look-ahead for its own.
        settled = torch.where(begun, own[:, 0] - state.given, 0.0)
        scores = next_given + torch.where(self._ends_word, settled[:, None], -state.given[:, None])
        scores[:, EOS_ID] += behind[:, 0]
        return scores, WordState(state.contexts, state.nodes, state.given, ended, next_nodes, next_given)

    def advance(self, state: WordState, rows: Tensor, tokens: Tensor) -> WordState:
        """See `Scorer.advance`."""
        assert state.ended is not None and state.next_nodes is not None and state.next_given is not None
        ends_word = self._ends_word[tokens][:, None]
        contexts = torch.where(ends_word, state.ended[rows], state.contexts[rows])
        return WordState(contexts, state.next_nodes[rows, tokens], state.next_given[rows, tokens])

    def _log_probs(self, contexts: Tensor, words: Tensor) -> Tensor:
        """The model's log-probabilities (R, M) of words (R, M), unknown ones with their penalty, float64."""
        scores = self._model.score(contexts, words).double().clamp_min(LOG_ZERO)
        return scores + self._penalty * (words == self._model.unk_id)


# Which words there are


def _device(model: NgramModel) -> torch.device:
    return next(model.buffers()).device


def _check_tokens(texts: Sequence[str]) -> None:
    for text in texts:
        if " " in text.lstrip(" "):
            raise ValueError(
                f"the tokenizer's token {text!r} spans more than one word, so a language model of words cannot score "
                "it; use one of the tokenizer's tokens, or a tokenizer whose tokens end with their words"
            )


# The tokens as its edges


@dataclass(slots=True)
class _Steps:
    """Which node each token leads to.

    Attributes:
        from_anywhere: Where tokens lead from all nodes, (V,): those that begin a word to what they begin, those that
            only end one to the root, and the others to the unknown word, but for the edges below.
        offsets: The edges of node n are those from the n-th number to the next, (P + 2,).
        tokens: Token of each edge, which goes on with a word, (E,).
        targets: Node that it leads to, (E,).
    """

    from_anywhere: Tensor
    offsets: Tensor
    tokens: Tensor
    targets: Tensor

    def from_nodes(self, nodes: Tensor) -> Tensor:
        """The node (R, V) that each token leads to from nodes (R,); the blank stays."""
        reached = self.from_anywhere.repeat(len(nodes), 1)
        reached[:, BLANK_ID] = nodes
        first = self.offsets[nodes]
        counts = self.offsets[nodes + 1] - first
        rows = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        before = counts.cumsum(0) - counts  # edges of the rows above
        edges = torch.arange(len(rows), device=nodes.device) + (first - before)[rows]
        reached[rows, self.tokens[edges]] = self.targets[edges]
        return reached


def _make_steps(tree: Tree, texts: Sequence[str], device: torch.device) -> _Steps:
    """Finds all edges of all tokens."""
    numbers: dict[str, int] = {}
    pieces = np.array([numbers.setdefault(text.lstrip(" "), len(numbers)) for text in texts])  # (V,)
    begins_word = np.array([text.startswith(" ") for text in texts])
    origins, edge_pieces, targets = _find_edges(tree, list(numbers))

    unknown_node = len(tree.words)
    beginnings = np.full(len(numbers), unknown_node)
    from_root = origins == ROOT
    beginnings[edge_pieces[from_root]] = targets[from_root]
    beginnings[numbers[""]] = ROOT  # bare spaces, and the end of sentence
    inside = ~begins_word & (pieces != numbers[""])
    from_anywhere = np.where(inside, unknown_node, beginnings[pieces])

    tokens_of_pieces = np.full(len(numbers), -1)
    tokens_of_pieces[pieces[inside]] = inside.nonzero()[0]
    tokens = tokens_of_pieces[edge_pieces]
    kept = (tokens >= 0).nonzero()[0]
    kept = kept[origins[kept].argsort(kind="stable")]
    counts = np.bincount(origins[kept], minlength=unknown_node + 1)
    columns = (from_anywhere, np.concatenate([[0], counts.cumsum()]), tokens[kept], targets[kept])
    return _Steps(*(torch.from_numpy(column).to(device) for column in columns))


def _find_edges(tree: Tree, pieces: Sequence[str]) -> tuple[Integers, Integers, Integers]:
    """Origins, pieces (numbers in the list) and targets of all edges, (E,) each.

    Every node is read backwards, towards the root, along a tree of the pieces spelled backwards: where a piece is
    complete, an edge leads from the node that is reached to the one that the reading began in.
    """
    keys, states, complete = _reverse(pieces)
    targets = np.arange(1, len(tree.parents))
    here, state = targets, np.zeros_like(targets)
    columns = [(targets[:0],) * 3]
    while len(here):
        wanted = state << _LETTER_BITS | tree.letters[here]
        places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        found = keys[places] == wanted
        here, targets, state = tree.parents[here[found]], targets[found], states[places[found]]
        whole = complete[state] >= 0
        columns.append((here[whole], complete[state[whole]], targets[whole]))
        inside = here != ROOT
        here, targets, state = here[inside], targets[inside], state[inside]
    origins, numbers, ends = (np.concatenate(column) for column in zip(*columns, strict=True))
    return origins, numbers, ends


def _reverse(pieces: Sequence[str]) -> tuple[Integers, Integers, Integers]:
    """A tree of pieces spelled backwards: its steps as sorted keys, the state behind each, the piece of each state.

    A key is a state and a letter as one number.
    """
    steps: dict[int, int] = {}
    complete = [-1]
    for number, piece in enumerate(pieces):
        state = 0
        for letter in reversed(piece):
            state = steps.setdefault(state << _LETTER_BITS | ord(letter), len(complete))
            if state == len(complete):
                complete.append(-1)
        if piece:
            complete[state] = number
    keys = np.array(sorted(steps), dtype=np.int64)
    return keys, np.array([steps[key] for key in keys.tolist()], dtype=np.int64), np.array(complete, dtype=np.int64)
