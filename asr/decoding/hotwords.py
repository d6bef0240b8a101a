"""Hotwords: words and phrases that a search prefers or avoids, whichever way the tokenizer cuts them.

Every occurrence of a phrase as whole words adds its bonus to a hypothesis, once, however long the phrase is; phrases
that overlap, or lie one in another, each add their own. A search prunes long before a phrase is complete, so the bonus
is given in advance, in equal parts for the characters of the phrase, and taken back where the words go on otherwise.

The automaton of Aho and Corasick (1975) finds all phrases in one pass over the characters of a text. Its states are the
beginnings of all phrases; a space before and behind each phrase makes it match whole words only. What a token does in a
state is worked out once, character by character, so that in the search a token is one look into a table.
"""

# S states of the automaton, C characters, B utterances, N hypotheses of an utterance, R = B·N rows, V vocabulary;
# of `WordHotwords`: R rows, W words of the phrases, N nodes of the graph

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asr.decoding.lexicon_graph import LexiconGraph
from asr.text import normalize
from asr.tokenizer import EOS_ID, Tokenizer

# Hypotheses differ by tens, so more would say nothing more, and float32 still has five digits behind the point.
LARGEST_BONUS = 1000.0

_ROOT = 0  # inside a word that begins no phrase
_START = 1  # behind a space, where a phrase may begin; also the beginning of the text
_SPACE = 0  # column of the space
_MOST_GIVEN = 8.0  # in advance, by `WordHotwords`
_OTHER = -1  # of all characters that no phrase has, the last


class HotwordScorer:
    """Adds the bonus of every phrase that a hypothesis holds as whole words; a `Scorer`.

    Of several phrases that may still follow from the same place, the best share is given in advance; a negative bonus
    is not, so that words which only begin like an unwanted one are left alone. At the end of a hypothesis all advances
    are settled: its scores add up to the sum of bonus times occurrences over the phrases, in float32.

    The tables take 8 bytes a state and token: a thousand phrases of one or two words have about 9,000 states, which is
    35 MB for 500 tokens.

    Args:
        phrases: The bonus of each word or phrase, a natural logarithm in [-1000, 1000]; a bonus of 5 makes up for a
            phrase that the model thinks 148 times less probable than what it says instead. Phrases are normalised by
            `asr.text.normalize`, as all texts are.
        tokenizer: The recogniser's.
        device: Where the search runs.

    Raises:
        ValueError: If there is no phrase, or one is empty, comes twice, has a character that the tokenizer lacks, or a
            bonus out of range.
    """

    can_stay = True
    headroom = math.inf

    def __init__(self, phrases: Mapping[str, float], tokenizer: Tokenizer, *, device: torch.device) -> None:
        texts = tokenizer.texts
        automaton = _build_automaton(check_phrases(phrases, tokenizer))
        next_states, scores = _token_tables(automaton, texts)
        self.next_states = torch.from_numpy(next_states).to(device)  # (S, V) int32
        self.scores = torch.from_numpy(scores).to(device)  # (S, V) float32

    def start(self, num_utterances: int, num_hypotheses: int) -> Tensor:
        """The states of B·N rows that hold no token yet, (R,) integers."""
        return torch.full((num_utterances * num_hypotheses,), _START, device=self.scores.device)

    def score(self, state: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of all next tokens, (R, V), and the same states."""
        return self.scores[state], state

    def advance(self, state: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """The states after a choice; the blank spells nothing and so changes none. See `Scorer.advance`."""
        return self.next_states[state[rows], tokens].long()


class WordHotwords:
    """The same bonuses for `lexicon_search`, a word at a time.

    Between words a begun phrase's share is given. Within a word its beginnings are given a share of the most that any
    longer word which begins so can earn, in equal parts for its phones. Each is at most 8, as more would leave nothing
    else in the beam, should the phrase go on otherwise.

    The tables take 8 bytes for each beginning of a phrase and distinct word: 16 MB for a thousand phrases of two words.

    Args:
        phrases: As for `HotwordScorer`; those with words that the graph lacks can never come, and take no part.
        tokenizer: The recogniser's.
        graph: What is searched.

    Attributes:
        given: What is given in advance at a node of the graph, (N,) float64, at least 0.
        most: The most by which `given` rises from a node to the next.
        pending: What has been given for phrases that have begun, (S,) float64.

    Raises:
        ValueError: As by `HotwordScorer`.
    """

    def __init__(self, phrases: Mapping[str, float], tokenizer: Tokenizer, graph: LexiconGraph) -> None:
        possible = {
            phrase: bonus
            for phrase, bonus in check_phrases(phrases, tokenizer).items()
            if graph.ids.keys() >= set(phrase.split())
        }
        words = sorted({word for phrase in possible for word in phrase.split()})
        next_states, scores, pending = _word_tables(_build_automaton(possible, most_given=_MOST_GIVEN), words)
        device = graph.words.device
        columns = torch.full((graph.num_words,), len(words))
        columns[[graph.ids[word] for word in words]] = torch.arange(len(words))
        self._columns = columns.to(device)
        self._next_states = torch.from_numpy(next_states).to(device)  # (S, W + 1)
        self._scores = torch.from_numpy(scores).to(device)  # (S, W + 1)
        self.pending = torch.from_numpy(pending).to(device)
        given, self.most = _shares(graph, {graph.ids[word]: scores[:, i].max() for i, word in enumerate(words)})
        self.given = torch.from_numpy(given).to(device)

    def advance(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The states behind one more word each, by its id, and what it earns or costs, (R,) and (R,)."""
        columns = self._columns[words]
        return self._next_states[states, columns].long(), self._scores[states, columns].double()


def read_hotwords(path: Path, *, bonus: float = 5.0) -> dict[str, float]:
    """Reads a text file in UTF-8 of one phrase a line, each with its own bonus behind a tab where it needs one.

    Blank lines do not count.

    Args:
        path: The file.
        bonus: Of the phrases without a bonus of their own, a natural logarithm.

    Returns:
        The bonus of each phrase, normalised, in the order of the file; what `HotwordScorer` takes.

    Raises:
        ValueError: If a line is not of this form or not UTF-8, a phrase is empty or comes twice, or there is none; the
            message names file and line.
        OSError: If the file cannot be read.
    """
    phrases: dict[str, float] = {}
    first_lines: dict[str, int] = {}
    for number, raw_line in enumerate(path.read_bytes().splitlines(), start=1):
        place = f"{path}:{number}"
        try:
            # Editors on Windows begin a file with a byte order mark, which is no part of the first phrase.
            line = raw_line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{place}: byte {error.start + 1} of the line is not UTF-8 text; convert the file to UTF-8"
            ) from error
        if not line.strip():
            continue
        written, own_bonus = _parse_line(line, place=place, bonus=bonus)
        phrase = _checked_phrase(written, own_bonus, name=f"{place}: hotword {written!r}")
        if phrase in phrases:
            raise ValueError(f"{place}: hotword {phrase!r} was given on line {first_lines[phrase]} already; keep one")
        phrases[phrase] = own_bonus
        first_lines[phrase] = number
    if not phrases:
        raise ValueError(f"{path}: no hotwords; write one word or phrase a line")
    return phrases


def _parse_line(line: str, *, place: str, bonus: float) -> tuple[str, float]:
    """The phrase and its bonus as they are written."""
    written, *columns = line.split("\t")
    if len(columns) > 1:
        raise ValueError(f"{place}: {len(columns)} tabs; expected a phrase, and at most one tab with its bonus behind")
    if not columns:
        return written.strip(), bonus
    try:
        return written.strip(), float(columns[0])
    except ValueError:
        raise ValueError(
            f"{place}: the bonus {columns[0].strip()!r} is not a number; write one behind the tab, such as 5.0"
        ) from None


def _checked_phrase(phrase: str, bonus: float, *, name: str) -> str:
    """The normalised phrase; `name` begins the messages."""
    spelled = normalize(phrase)
    if not spelled:
        raise ValueError(f"{name} has no letter or digit; leave it out or write the words to listen for")
    if not math.isfinite(bonus) or abs(bonus) > LARGEST_BONUS:
        raise ValueError(
            f"{name} has a bonus of {bonus}; expected a number from {-LARGEST_BONUS:.0f} to {LARGEST_BONUS:.0f}"
        )
    return spelled


def check_phrases(phrases: Mapping[str, float], tokenizer: Tokenizer) -> dict[str, float]:
    """The bonus of each normalised phrase.

    Raises:
        ValueError: As by `HotwordScorer`.
    """
    characters = frozenset("".join(tokenizer.texts))
    if not phrases:
        raise ValueError("there are no hotwords; give at least one word or phrase")
    checked: dict[str, float] = {}
    for phrase, bonus in phrases.items():
        name = f"hotword {phrase!r}"
        spelled = _checked_phrase(phrase, bonus, name=name)
        if spelled in checked:
            raise ValueError(f"{name} comes twice: normalised, {spelled!r} is there already; keep one of them")
        for character in spelled:
            if character not in characters:
                raise ValueError(
                    f"{name} has {character!r} (U+{ord(character):04X}), which the model's tokenizer lacks; "
                    "spell the phrase with characters that the model was trained on"
                )
        checked[spelled] = bonus
    return checked


@dataclass(slots=True)
class _Trie:
    """All beginnings of all phrases; state 0 is the empty one.

    Attributes:
        children: What each state becomes by the character of a column.
        complete: Bonus of the phrase that ends in each state.
        advance: Bonus given in advance for the part of a phrase that each state stands for, at least 0.
    """

    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    complete: list[float] = field(default_factory=lambda: [0.0])
    advance: list[float] = field(default_factory=lambda: [0.0])

    def child(self, state: int, column: int) -> int:
        """The state that follows, added where it is new."""
        if column not in self.children[state]:
            self.children[state][column] = len(self.children)
            self.children.append({})
            self.complete.append(0.0)
            self.advance.append(0.0)
        return self.children[state][column]


@dataclass(frozen=True, slots=True)
class _Automaton:
    """What every character does in every state.

    Attributes:
        columns: Column of each character that phrases have; the one behind them stands for all other characters.
        next_states: (C, S) integers.
        earned: Bonuses of the phrases that a character completes, (C, S) float64.
        pending: Bonuses given in advance by the time a state is reached, (S,) float64.
    """

    columns: dict[str, int]
    next_states: np.ndarray
    earned: np.ndarray
    pending: np.ndarray


def _build_automaton(bonuses: Mapping[str, float], *, most_given: float = math.inf) -> _Automaton:
    """The automaton of some phrases; no more than `most_given` of a bonus is given in advance."""
    characters = sorted(set("".join(bonuses)) - {" "})
    columns = {character: column for column, character in enumerate([" ", *characters])}
    trie = _Trie()
    trie.child(_ROOT, _SPACE)  # `_START`, also where there is no phrase
    for phrase, bonus in bonuses.items():
        state = _ROOT
        for position, character in enumerate(f" {phrase} "):
            state = trie.child(state, columns[character])
            # Nothing for the space before, since every word has one, and all of it by the last letter: the space
            # behind only confirms it, so that no other token has to compete with a bonus that is still to come.
            if position <= len(phrase):
                share = min(most_given, bonus * position / len(phrase))
                trie.advance[state] = max(trie.advance[state], share)
        trie.complete[state] = bonus
    return _link_failures(trie, columns)


def _link_failures(trie: _Trie, columns: dict[str, int]) -> _Automaton:
    """Adds the ways out of each state by characters that continue no phrase of it (Aho and Corasick, algorithms 3, 4).

    A state's failure link leads to its longest proper ending that begins another phrase. Bonuses add up along the
    links, as phrases that began at different words of a text may all come true.
    """
    num_states = len(trie.children)
    next_states = np.full((num_states, len(columns) + 1), _ROOT)
    complete, pending = np.array(trie.complete), np.array(trie.advance)
    failures = np.full(num_states, _ROOT)
    queue = deque([_ROOT])
    while queue:  # shorter beginnings first, so that every link leads to a state that is done
        state = queue.popleft()
        next_states[state] = next_states[failures[state]]
        if state != _ROOT:
            complete[state] += complete[failures[state]]
            pending[state] += pending[failures[state]]
        for column, child in trie.children[state].items():
            failures[child] = next_states[state, column]
            next_states[state, column] = child
            queue.append(child)
    earned = complete[next_states]
    behind_space = np.unique(next_states[:, _SPACE])
    next_states[behind_space, _SPACE] = behind_space  # several spaces count as one
    earned[behind_space, _SPACE] = 0
    return _Automaton(columns, np.ascontiguousarray(next_states.T), np.ascontiguousarray(earned.T), pending)


def _token_tables(automaton: _Automaton, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What every token does in every state: the state that follows, (S, V) int32, and the score, (S, V) float32."""
    pending, other = automaton.pending, len(automaton.columns)
    next_states = np.empty((len(texts), len(pending)), dtype=np.int32)
    scores = np.empty(next_states.shape, dtype=np.float32)
    for token, text in enumerate(texts):
        states = np.arange(len(pending))
        score = -pending
        # A text ends as a word does, by a space.
        for character in " " if token == EOS_ID else text:
            column = automaton.columns.get(character, other)
            score = score + automaton.earned[column][states]
            states = automaton.next_states[column][states]
        next_states[token] = states
        # Behind the end nothing follows that could still bring what is pending.
        scores[token] = score if token == EOS_ID else score + pending[states]
    return np.ascontiguousarray(next_states.T), np.ascontiguousarray(scores.T)


def _word_tables(automaton: _Automaton, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What every word, and in a last column any other word, does between words, with a space behind it.

    Returns:
        The state that follows, (S, W + 1) int32, of those between words, the first of which is the beginning; the
        score, (S, W + 1) float32; and what is pending, (S,) float64.
    """
    between = np.unique(np.append(automaton.next_states[_SPACE], _START))
    between = np.append(_START, between[between != _START])
    # Behind a phrase that nothing can go on from, all is as before it: such states are one.
    futures = np.column_stack([automaton.next_states[_SPACE + 1 :, between].T, automaton.pending[between]])
    _, firsts, same = np.unique(futures, axis=0, return_index=True, return_inverse=True)
    order = firsts.argsort()  # that of the beginning first
    places = np.zeros(len(automaton.pending), dtype=np.int64)
    places[between] = order.argsort()[same.reshape(-1)]
    between = between[firsts[order]]
    next_states, scores = [], []
    for columns in (*([automaton.columns[character] for character in word] for word in words), [_OTHER]):
        states, score = between, -automaton.pending[between]
        for column in (*columns, _SPACE):
            score = score + automaton.earned[column][states]
            states = automaton.next_states[column][states]
        next_states.append(places[states].astype(np.int32))
        scores.append((score + automaton.pending[states]).astype(np.float32))
    return np.stack(next_states, axis=1), np.stack(scores, axis=1), automaton.pending[between]


def _shares(graph: LexiconGraph, gains: Mapping[int, float]) -> tuple[np.ndarray, float]:
    """What is given in advance at each node, by the most that each word can earn, and the most by which it rises."""
    parents, ends = graph.parents.cpu().numpy(), graph.words.cpu().numpy()
    given = np.zeros(len(parents))
    wanted = np.isin(ends, np.array(list(gains)))
    for end in np.flatnonzero(wanted.any(axis=1)).tolist():
        path = [end]
        while parents[path[-1]]:
            path.append(parents[path[-1]])
        gain = min(_MOST_GIVEN, max(gains[word] for word in ends[end][wanted[end]].tolist()))
        shares = gain * np.arange(len(path), 0, -1) / len(path)
        # Not at the end itself, where the word has ended or is another, longer one.
        given[path[1:]] = np.maximum(given[path[1:]], shares[1:])
    return given, float(np.max(given - given[parents]))
