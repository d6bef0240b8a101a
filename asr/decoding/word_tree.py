"""A tree of the beginnings of words: what a search walks along while a word is not finished."""

# P beginnings of words (nodes)

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROOT = 0  # the node of the empty beginning
Integers = NDArray[np.int64]


@dataclass(slots=True)
class Tree:
    """The distinct beginnings of all words; node 0 is the empty one, and a node comes behind its parent.

    Attributes:
        parents: The node of one letter less, (P,).
        letters: Code point of the last letter, (P,).
        masses: Summed probability of the words that begin so, (P,) float64; 1 for node 0.
        words: Id of the word that is spelled so, (P,); the one for no word if there is none.
    """

    parents: Integers
    letters: Integers
    masses: NDArray[np.float64]
    words: Integers


def grow(spellings: dict[str, int], probabilities: NDArray[np.float64], no_word: int) -> Tree:
    """All words one letter further at a time; in sorted order, words with the same beginning are neighbours.

    Args:
        spellings: Ids by spelling.
        probabilities: By id.
        no_word: Stands where no word is spelled, such as the id of `<unk>`.
    """
    texts = sorted(spellings)
    words = np.array([spellings[text] for text in texts])
    lengths = np.array([len(text) for text in texts])
    starts = lengths.cumsum() - lengths
    all_letters = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    columns = [(np.array([ROOT]), np.array([0]), np.array([1.0]), np.array([no_word]))]
    num_nodes = 1
    growing, nodes = np.arange(len(texts)), np.full(len(texts), ROOT)
    for depth in range(int(lengths.max())):
        longer = lengths[growing] > depth
        growing, parents = growing[longer], nodes[longer]
        letters = all_letters[starts[growing] + depth]
        differs = np.ones(len(growing), dtype=bool)
        differs[1:] = (parents[1:] != parents[:-1]) | (letters[1:] != letters[:-1])
        nodes = num_nodes - 1 + differs.cumsum()
        firsts = differs.nonzero()[0]
        num_nodes += len(firsts)
        # The shortest word with a beginning comes first; it may be no longer than that.
        shortest = growing[firsts]
        spelled = np.where(lengths[shortest] == depth + 1, words[shortest], no_word)
        masses = np.add.reduceat(probabilities[words[growing]], firsts)
        columns.append((parents[firsts], letters[firsts], masses, spelled))
    return Tree(*(np.concatenate(column) for column in zip(*columns, strict=True)))
