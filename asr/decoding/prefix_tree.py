"""Sequences that begin alike, written so that a Transformer reads what they have in common once.

The hypotheses of an utterance differ in few places. As a tree of their beginnings, where each node attends to those
that lead to it, they cost a model a quarter of the tokens or less (as drafts do in speculative decoding, Miao et al.
2024), and it says of each just what it would say of it alone.
"""

# S lists of sequences, U nodes of the largest tree, V vocabulary, L tokens and ends of all sequences

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from asr.tokenizer import EOS_ID


@dataclass(frozen=True, slots=True)
class PrefixTrees:
    """Trees of S lists of sequences; node 0 of each is the start, and a node comes behind its parent.

    Attributes:
        tokens: Of the nodes, (S, U); padding holds any.
        positions: How many tokens lie before each, (S, U).
        mask: Which nodes each node attends to, itself and all on its way from the start, (S, 1, U, U) booleans.
        nodes: The node before each token and end of each sequence, as an index into S·U, (L,).
        targets: These tokens and ends, (L,).
        sizes: How many of them each sequence has, list by list.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    nodes: Tensor
    targets: Tensor
    sizes: list[list[int]]

    def to(self, device: torch.device) -> "PrefixTrees":
        """The same on a device."""
        return PrefixTrees(
            self.tokens.to(device),
            self.positions.to(device),
            self.mask.to(device),
            self.nodes.to(device),
            self.targets.to(device),
            self.sizes,
        )

    def log_probs(self, logits: Tensor) -> list[list[float]]:
        """The log-probability of each sequence with its end, list by list, from logits (S, U, V) of the next tokens."""
        flat = logits.float().flatten(0, 1)  # (S·U, V)
        steps = flat[self.nodes, self.targets].double() - flat.logsumexp(dim=1).double()[self.nodes]  # (L,)
        sizes = torch.tensor([size for own in self.sizes for size in own], device=flat.device)
        owners = torch.repeat_interleave(sizes)
        sums = iter(steps.new_zeros(len(sizes)).index_add_(0, owners, steps).tolist())
        return [[next(sums) for _ in own] for own in self.sizes]


def grow_trees(lists: Sequence[Sequence[Sequence[int]]]) -> PrefixTrees:
    """The trees of lists of token sequences, at least one list."""
    grown = [_grow(own) for own in lists]
    longest = max(len(parents) for parents, _, _ in grown)
    tokens = torch.full((len(lists), longest), EOS_ID, dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(lists), 1, 1)  # padding sees itself, not nothing
    nodes = []
    for row, (parents, own_tokens, ways) in enumerate(grown):
        size = len(parents)
        tokens[row, :size] = torch.tensor(own_tokens)
        seen = np.eye(size, dtype=bool)
        for node in range(1, size):
            seen[node] |= seen[parents[node]]
        mask[row, :size, :size] = torch.from_numpy(seen)
        positions[row, :size] = torch.from_numpy(seen.sum(axis=1) - 1)
        nodes += [row * longest + node for way in ways for node in way]
    targets = [token for own in lists for sequence in own for token in (*sequence, EOS_ID)]
    sizes = [[len(sequence) + 1 for sequence in own] for own in lists]
    return PrefixTrees(
        tokens,
        positions,
        mask[:, None],
        torch.tensor(nodes, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        sizes,
    )


def list_log_probs(
    lists: Sequence[Sequence[Sequence[int]]],
    logits: Callable[[PrefixTrees, list[int]], Tensor],
    *,
    vocab_size: int,
    device: torch.device,
    max_nodes: int = 1024,
    max_numbers: int = 2**23,
) -> list[list[float]]:
    """What a model says of lists of sequences, ends included: natural logarithms, list by list.

    Args:
        lists: Of sequences of tokens.
        logits: The model: from trees and the number of the list that each is of, (S, U, V).
        vocab_size: V.
        device: Where the model is, and the trees are wanted.
        max_nodes: A list whose tree would have more is split into several; a longer sequence goes alone.
        max_numbers: Most logits, and most numbers of a mask, that are computed at once: of trees of like size.
    """
    found = [[0.0] * len(own) for own in lists]
    parts = [part for row, own in enumerate(lists) for part in _split(own, row, max_nodes)]
    parts.sort(key=lambda part: -part.num_nodes)
    while parts:
        most = parts[0].num_nodes
        count = max(1, max_numbers // (most * max(vocab_size, most)))
        batch, parts = parts[:count], parts[count:]
        trees = grow_trees([[lists[part.row][column] for column in part.columns] for part in batch]).to(device)
        scores = trees.log_probs(logits(trees, [part.row for part in batch]))
        for part, own in zip(batch, scores, strict=True):
            for column, score in zip(part.columns, own, strict=True):
                found[part.row][column] = score
    return found


@dataclass(slots=True)
class _Part:
    """Some sequences of a list, and how many nodes their tree has."""

    row: int
    columns: list[int]
    num_nodes: int


def _split(sequences: Sequence[Sequence[int]], row: int, max_nodes: int) -> Iterator[_Part]:
    """Sequences in parts whose trees are small enough; in sorted order, neighbours begin alike."""
    part = _Part(row, [], 1)
    last: tuple[int, ...] = ()
    for column in sorted(range(len(sequences)), key=lambda column: tuple(sequences[column])):
        sequence = tuple(sequences[column])
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, sequence, strict=False)))
        more = len(sequence) - shared
        if part.columns and part.num_nodes + more > max_nodes:
            yield part
            part, more = _Part(row, [], 1), len(sequence)
        part.columns.append(column)
        part.num_nodes += more
        last = sequence
    if part.columns:
        yield part


def _grow(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Parents and tokens of the nodes, and the nodes that each sequence goes through, the start among them."""
    parents, tokens, ways = [0], [EOS_ID], []
    known: dict[tuple[int, int], int] = {}
    for sequence in sequences:
        way = [0]
        for token in sequence:
            step = (way[-1], token)
            if step not in known:
                known[step] = len(parents)
                parents.append(way[-1])
                tokens.append(token)
            way.append(known[step])
        ways.append(way)
    return parents, tokens, ways
