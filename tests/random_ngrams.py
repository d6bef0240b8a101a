"""N-gram models with random numbers."""

from collections.abc import Sequence

import torch

from asr.decoding.ngram import NgramModel, NgramTable, NgramTables

TAGS = ["<unk>", "<s>", "</s>"]


def make_model(words: Sequence[str], *, order: int = 3, num_ngrams: int = 150, seed: int = 0) -> NgramModel:
    """A model with random n-grams, back-off weights and unigram probabilities."""
    generator = torch.Generator().manual_seed(seed)
    words = [*TAGS, *words]
    size = len(words)
    log_probs = torch.randn(size, generator=generator).mul(2).log_softmax(dim=0)
    backoffs = torch.randn(size, generator=generator)
    tables = [NgramTable(torch.zeros(size, dtype=torch.long), torch.arange(size), log_probs, backoffs)]
    for _ in range(2, order + 1):
        keys = torch.randint(len(tables[-1]) * size, (num_ngrams,), generator=generator).unique()
        values = -5 * torch.rand(2, len(keys), generator=generator)
        tables.append(NgramTable(keys // size, keys % size, values[0], values[1]))
    return NgramModel(NgramTables(words, tables))
