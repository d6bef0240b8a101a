"""Random sentences that repeat themselves, in words and in ids."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asr.decoding.ngram import NgramModel
from asr.ngrams.texts import BEGIN_ID, END_ID, MARKS

Sentences = list[list[str]]


def random_sentences(*, num_sentences: int = 150, num_words: int = 8, seed: int = 0) -> Sentences:
    """Sentences of 1 to 7 words, where each word likes some words after it far more than others."""
    generator = np.random.default_rng(seed)
    likes = generator.dirichlet(np.full(num_words, 0.3), size=num_words)
    sentences = []
    for _ in range(num_sentences):
        words = [generator.integers(num_words)]
        for _ in range(generator.integers(7)):
            words.append(generator.choice(num_words, p=likes[words[-1]]))
        sentences.append([chr(ord("a") + word) for word in words])
    return sentences


def vocabulary_of(sentences: Sentences) -> list[str]:
    """The marks and all words."""
    return [*MARKS, *sorted({word for sentence in sentences for word in sentence})]


def ids_of(sentences: Sentences, vocabulary: Sequence[str]) -> np.ndarray:
    """The sentences as n-grams are counted in them, (S,)."""
    places = {word: index for index, word in enumerate(vocabulary)}
    ids = [[BEGIN_ID, *(places[word] for word in sentence), END_ID] for sentence in sentences]
    return np.array(list(itertools.chain(*ids)), dtype=np.int32)


def contexts_of(model: NgramModel, histories: Sequence[Sequence[str]]) -> Tensor:
    """Contexts of histories of one length, which may begin with `<s>`, (R, C)."""
    contexts = model.empty(len(histories))
    for words in zip(*histories, strict=True):
        contexts = model.extend(contexts, torch.tensor(model.ids(words)))
    return contexts


def all_histories(vocabulary: Sequence[str], *, length: int) -> list[tuple[str, ...]]:
    """Every history that a sentence can have, seen or not: `<s>` is only its first word."""
    inner = [word for word in vocabulary if word not in ("<s>", "</s>")]
    return [(first, *rest) for first in ["<s>", *inner] for rest in itertools.product(inner, repeat=length - 1)]
