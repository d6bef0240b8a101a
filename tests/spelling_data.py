"""A toy language of a few words over three phones, what is heard of it, and passages in it."""

from pathlib import Path

import numpy as np
import tiny
import torch

from asr.data.passage_batches import PassageBatches
from asr.data.passages import Lists, Passages, as_lists, read_passages
from asr.data.phone_bank import SILENCE, HeardUtterance, PhoneBank
from asr.data.text_batches import Dealing
from asr.pronunciation import Lexicon, PhoneEncoder
from asr.tokenizer import BpeTokenizer

SPOKEN = {"a": [("x",)], "b": [("y",)], "ab": [("x", "y")], "cab": [("z", "x", "y")], "c": [("z", "x")]}
LEXICON = Lexicon(SPOKEN)
UTTERANCES = ("a b", "cab", "b ab a", "c cab", "ab c b a")


def make_tokenizer() -> BpeTokenizer:
    """Some of the words are pieces of their own, others are not."""
    return BpeTokenizer.train(["a b ab cab c", "ab ab ab"], vocab_size=8)


def heard(text: str, *, index: int = 0, hearing: int = 0, seed: int = 0) -> HeardUtterance:
    """Two frames a phone, and one of silence behind a word; the likeliest phone is mostly the right one."""
    random = np.random.default_rng((seed, index, hearing))
    encoder = PhoneEncoder(LEXICON, tiny.PHONES)
    phones, starts, ends, labels = [SILENCE], [0], [False], [0]
    for word in text.split():
        own = encoder.encode(word)
        for place, phone in enumerate(own):
            phones.append(phone)
            starts.append(len(labels))
            ends.append(place == len(own) - 1)
            labels += [phone, phone]
        labels.append(0)
    probabilities = random.dirichlet(np.full(4, 0.5), size=len(labels)) * 0.1
    probabilities[np.arange(len(labels)), labels] += 0.9
    return HeardUtterance(
        probabilities=torch.from_numpy(probabilities).float(),
        phones=phones,
        starts=starts,
        ends_word=ends,
        index=index,
        hearing=hearing,
    )


def make_bank() -> PhoneBank:
    """Each utterance, heard twice."""
    return PhoneBank(
        [heard(text, index=index, hearing=hearing) for hearing in (0, 1) for index, text in enumerate(UTTERANCES)]
    )


def make_transcripts() -> list[Lists]:
    tokenizer = make_tokenizer()
    return [as_lists([tokenizer.encode(word) for word in text.split()]) for text in UTTERANCES]


def write_text(path: Path, *, num_sentences: int = 60, seed: int = 0) -> Path:
    """Sentences of one to four words."""
    random = np.random.default_rng(seed)
    lines = [" ".join(random.choice(list(SPOKEN), size=random.integers(1, 5))) for _ in range(num_sentences)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def make_passages(path: Path) -> Passages:
    return read_passages(
        [path],
        tokenizer=make_tokenizer(),
        lexicon=LEXICON,
        phones=tiny.PHONES,
        lengths=[1, 2, 5],
        max_words=8,
        seed=1,
    )


def make_batches(
    path: Path,
    *,
    max_batch_tokens: int = 60,
    real_share: float = 0.3,
    num_growing: int = 3,
    seed: int = 1,
    shard: int = 0,
    num_shards: int = 1,
    num_workers: int = 0,
) -> PassageBatches:
    """Batches of a text that `write_text` wrote."""
    return PassageBatches(
        make_passages(path),
        make_bank(),
        make_transcripts(),
        Dealing(
            max_batch_tokens=max_batch_tokens, seed=seed, shard=shard, num_shards=num_shards, num_workers=num_workers
        ),
        real_share=real_share,
        num_growing=num_growing,
    )
