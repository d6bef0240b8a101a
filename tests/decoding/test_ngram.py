"""N-gram models: tensors against a dictionary with back-off, on random models of every order."""

import math
import random
from itertools import product

import pytest
import torch
from torch import Tensor

from asr.decoding.ngram import NgramModel, NgramTable, NgramTables, insert_prefixes, load_tables, save_tables

WORDS = ["</s>", "a", "b", "<unk>", "c", "<s>", "d", "e"]
Gram = tuple[str, ...]
Grams = dict[Gram, tuple[float, float]]  # log-probability and back-off weight, natural logarithms


def random_grams(order: int, *, seed: int, share: float = 0.4) -> Grams:
    """A model with random numbers; the beginning of every n-gram is there, its end need not be."""
    draw = random.Random(seed)
    grams: Grams = {(word,): (-5 * draw.random(), draw.uniform(-2, 0.5)) for word in WORDS}
    for length in range(2, order + 1):
        contexts = [gram for gram in grams if len(gram) == length - 1]
        for context, word in product(contexts, WORDS):
            if draw.random() < share:
                grams[*context, word] = (-5 * draw.random(), draw.uniform(-2, 0.5))
    return grams


def make_tables(grams: Grams) -> NgramTables:
    """Sorted tables of a dictionary in which every beginning of an n-gram is there."""
    rows: dict[Gram, int] = {}
    tables = []
    for length in range(1, max(map(len, grams)) + 1):
        own = {
            (rows[gram[:-1]] if length > 1 else 0, WORDS.index(gram[-1])): gram for gram in grams if len(gram) == length
        }
        keys = sorted(own)
        rows |= {own[key]: row for row, key in enumerate(keys)}
        numbers = torch.tensor([grams[own[key]] for key in keys]).view(-1, 2)
        parents, words = torch.tensor(keys, dtype=torch.long).view(-1, 2).unbind(1)
        tables.append(NgramTable(parents, words, numbers[:, 0], numbers[:, 1]))
    return NgramTables(WORDS, tables)


def slow_log_prob(grams: Grams, context: Gram, word: str) -> float:
    """Back-off as the ARPA format defines it."""
    if (*context, word) in grams:
        return grams[*context, word][0]
    return grams.get(context, (0.0, 0.0))[1] + slow_log_prob(grams, context[1:], word)


def known(word: str) -> str:
    return word if word in WORDS else "<unk>"


def slow_sentence(grams: Grams, order: int, sentence: list[str]) -> float:
    words = ["<s>", *map(known, sentence), "</s>"]
    return sum(slow_log_prob(grams, tuple(words[max(0, n - order + 1) : n]), words[n]) for n in range(1, len(words)))


def random_sentences(num_sentences: int, *, seed: int = 0) -> list[list[str]]:
    """Sentences of 0 to 9 words, some of them unknown."""
    draw = random.Random(seed)
    choices = ["a", "b", "c", "d", "e", "zebra", "</s>"]
    return [draw.choices(choices, k=draw.randrange(10)) for _ in range(num_sentences)]


def contexts_of(model: NgramModel, sentences: list[list[str]]) -> Tensor:
    """The contexts after sentences, one by one."""
    contexts = []
    for sentence in sentences:
        context = model.start(1)
        for word in model.ids(sentence):
            context = model.extend(context, torch.tensor([word]))
        contexts.append(context)
    return torch.cat(contexts)


# Agreement with the dictionary


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_sentences_score_what_a_dictionary_with_backing_off_gives(order: int, seed: int) -> None:
    grams = random_grams(order, seed=seed)
    model = NgramModel(make_tables(grams))
    sentences = random_sentences(50, seed=seed)
    expected = [slow_sentence(grams, order, sentence) for sentence in sentences]
    assert model.order == order
    assert model.sentence_log_probs(sentences).tolist() == pytest.approx(expected, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_whole_vocabulary_and_single_words_score_exactly_the_same(order: int) -> None:
    grams = random_grams(order, seed=2)
    # Words that nobody uses make the vocabulary so large that few words are searched one by one.
    tables = make_tables(grams)
    unused = [f"unused{n}" for n in range(100)]
    tables.words = [*WORDS, *unused]
    tables.tables[0] = NgramTable(
        torch.zeros(108, dtype=torch.long),
        torch.arange(108),
        torch.cat([tables.tables[0].log_probs, torch.full((100,), -9.0)]),
        torch.cat([tables.tables[0].backoffs, torch.zeros(100)]),
    )
    model = NgramModel(tables)
    sentences = random_sentences(40)
    contexts = contexts_of(model, sentences)
    every = model.score_all(contexts)
    assert every.shape == (40, 108)
    assert every.dtype == torch.float32
    for word in range(len(WORDS)):
        single = model.score(contexts, torch.full((40, 1), word))
        assert torch.equal(single[:, 0], every[:, word])
    many = torch.randint(108, (40, 50))
    assert torch.equal(model.score(contexts, many), every.gather(1, many))
    for row, sentence in enumerate(sentences):
        history = ("<s>", *map(known, sentence))[-order + 1 :] if order > 1 else ()
        expected = [slow_log_prob(grams, history, word) for word in WORDS]
        assert every[row, : len(WORDS)].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_chain_of_backing_off_adds_the_weights_of_the_contexts_that_are_there() -> None:
    grams: Grams = {(word,): (-3.0, -0.1) for word in WORDS}
    grams |= {("a", "b"): (-1.0, -0.2), ("a", "b", "c"): (-0.5, -0.4), ("a", "b", "c", "d"): (-0.25, 0.0)}
    model = NgramModel(make_tables(grams))
    contexts = contexts_of(model, [["a", "b", "c"]])
    d, e = model.ids(["d", "e"])
    # "b c" is no n-gram, so backing off to it costs nothing.
    scores = model.score(contexts, torch.tensor([[d, e]]))
    assert scores[0].tolist() == pytest.approx([-0.25, -0.4 - 0.1 - 3.0])


def test_probabilities_of_a_proper_model_sum_to_one() -> None:
    draw = random.Random(3)
    predicted = [word for word in WORDS if word != "<s>"]

    def distribution() -> dict[str, float]:
        weights = [draw.random() + 0.05 for _ in predicted]
        return {word: weight / sum(weights) for word, weight in zip(predicted, weights, strict=True)}

    grams: Grams = {(word,): (math.log(p), 0.0) for word, p in distribution().items()}
    grams["<s>",] = (-99 * math.log(10), 0.0)
    for length in (2, 3):
        for context in [gram for gram in grams if len(gram) == length - 1 and gram[-1] != "</s>"]:
            higher = {word: p for word, p in distribution().items() if draw.random() < 0.5}
            lower = sum(math.exp(slow_log_prob(grams, context[1:], word)) for word in predicted if word not in higher)
            if lower == 0:
                continue
            grams[context] = (grams[context][0], math.log((1 - sum(higher.values())) / lower))
            grams |= {(*context, word): (math.log(p), 0.0) for word, p in higher.items()}
    model = NgramModel(make_tables(grams))
    contexts = contexts_of(model, [list(words) for n in range(4) for words in product("abcde", repeat=n)])
    sums = model.score_all(contexts).double().exp().sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


# Rows, states, devices


def test_many_rows_at_once_equal_one_at_a_time() -> None:
    model = NgramModel(make_tables(random_grams(4, seed=5)))
    sentences = [["a", "b", "c"], ["e", "e", "a"], ["b", "zebra", "d"]]
    contexts = model.start(3)
    for words in zip(*map(model.ids, sentences), strict=True):
        before = contexts.clone()
        extended = model.extend(contexts, torch.tensor(words))
        assert torch.equal(contexts, before), "contexts were changed in place"
        contexts = extended
    assert torch.equal(contexts, contexts_of(model, sentences))
    together = model.sentence_log_probs(sentences)
    assert together.tolist() == [float(model.sentence_log_probs([sentence])) for sentence in sentences]


def test_a_context_without_words_scores_unigrams() -> None:
    grams = random_grams(3, seed=6)
    model = NgramModel(make_tables(grams))
    scores = model.score_all(model.empty(2))
    assert scores[1].tolist() == pytest.approx([grams[word,][0] for word in WORDS])


def test_no_rows_no_words_and_no_sentences_are_no_error() -> None:
    model = NgramModel(make_tables(random_grams(3, seed=0)))
    nothing = model.start(0)
    assert model.extend(nothing, torch.zeros(0, dtype=torch.long)).shape == (0, 2)
    assert model.score(nothing, torch.zeros(0, 4, dtype=torch.long)).shape == (0, 4)
    assert model.score(model.start(2), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)
    assert model.score_all(nothing).shape == (0, len(WORDS))
    assert model.sentence_log_probs([]).shape == (0,)


def test_orders_that_pruning_has_emptied_are_backed_off_from() -> None:
    grams = random_grams(2, seed=0)
    tables = make_tables(grams)
    nothing = torch.zeros(0)
    tables.tables += [NgramTable(nothing.long(), nothing.long(), nothing, nothing) for _ in range(2)]
    model = NgramModel(tables)
    sentences = random_sentences(20)
    expected = [slow_sentence(grams, 4, sentence) for sentence in sentences]
    assert model.order == 4
    assert model.sentence_log_probs(sentences).tolist() == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_unknown_words_are_the_unknown_word() -> None:
    model = NgramModel(make_tables(random_grams(2, seed=0)))
    assert model.ids(["a", "zebra", "<s>"]) == [WORDS.index("a"), model.unk_id, model.bos_id]
    assert (WORDS[model.unk_id], WORDS[model.eos_id]) == ("<unk>", "</s>")


def test_half_precision_changes_little_and_scores_stay_float32() -> None:
    tables = make_tables(random_grams(3, seed=7))
    exact = NgramModel(tables).score_all(NgramModel(tables).start(1))
    scores = NgramModel(tables).half().score_all(NgramModel(tables).start(1))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, atol=1e-2, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_a_processor_gives() -> None:
    model = NgramModel(make_tables(random_grams(4, seed=8)))
    sentences = random_sentences(50)
    expected, contexts = model.sentence_log_probs(sentences), contexts_of(model, sentences)
    every = model.score_all(contexts)
    model = model.cuda()
    assert model.start(1).is_cuda
    torch.testing.assert_close(model.sentence_log_probs(sentences).cpu(), expected)
    assert torch.equal(model.score_all(contexts.cuda()).cpu(), every)


def test_nothing_is_stored_in_a_checkpoint() -> None:
    assert NgramModel(make_tables(random_grams(2, seed=0))).state_dict() == {}


def test_keys_that_do_not_fit_64_bits_are_an_error() -> None:
    tables = make_tables(random_grams(2, seed=0))
    tables.tables[1].parents[-1] = 2**61
    with pytest.raises(ValueError, match="over 8 words need keys of more than 64 bits; prune the language model"):
        NgramModel(tables)


# Tables


def test_inserted_prefixes_change_no_probability() -> None:
    grams = random_grams(3, seed=9)
    tables = make_tables(grams)
    missing = [gram for gram in product(WORDS, repeat=3) if gram not in grams][::3]
    prefixes = torch.tensor([[WORDS.index(word) for word in gram] for gram in [*missing, missing[0]]])
    grown, moved, rows = insert_prefixes(tables, prefixes)
    top, old = grown.tables[-1], tables.tables[-1]
    assert len(top) == len(old) + len(missing)
    assert torch.equal(top.log_probs[moved], old.log_probs)
    assert torch.equal(top.backoffs[moved], old.backoffs)
    assert torch.equal(top.words[rows], prefixes[:, 2])
    assert torch.equal(grown.tables[1].words[top.parents[rows]], prefixes[:, 1])
    sentences = random_sentences(50)
    torch.testing.assert_close(
        NgramModel(grown).sentence_log_probs(sentences), NgramModel(tables).sentence_log_probs(sentences)
    )


def test_saved_tables_are_loaded_only_for_their_source(tmp_path) -> None:
    tables = make_tables(random_grams(3, seed=1))
    path = tmp_path / "tables.safetensors"
    save_tables(path, tables, {"size": "3"})
    loaded = load_tables(path, {"size": "3"})
    assert loaded is not None
    assert loaded.words == tables.words
    for mine, original in zip(loaded.tables, tables.tables, strict=True):
        for name in ("parents", "words", "log_probs", "backoffs"):
            assert torch.equal(getattr(mine, name), getattr(original, name))
    assert load_tables(path, {"size": "4"}) is None
    assert load_tables(tmp_path / "none", {"size": "3"}) is None
    path.write_bytes(path.read_bytes()[:-20])
    assert load_tables(path, {"size": "3"}) is None
