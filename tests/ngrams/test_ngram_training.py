import logging
import math
from pathlib import Path

import pytest
import tiny
from random_text import random_sentences

from asr.decoding.arpa import load_ngram, write_arpa
from asr.decoding.ngram import NgramModel
from asr.ngrams.training import NgramTrainingConfig, check_output, measure, train


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(sentence) + "\n" for sentence in random_sentences()))
    return path


def test_texts_become_a_model_that_an_arpa_file_keeps(tmp_path, text, caplog):
    with caplog.at_level(logging.INFO):
        trained = train([text], NgramTrainingConfig(order=3, prune=1e-4))
    assert (trained.num_sentences, trained.num_unknown) == (150, 0)
    assert trained.num_words == len(text.read_text().split())
    assert [record.message.split()[0] for record in caplog.records] == ["150", "counted", "kept"]
    model = NgramModel(trained.tables)
    assert (model.order, model.words) == (3, ["<unk>", "<s>", "</s>", *model.words[3:]])
    write_arpa(tmp_path / "lm.arpa.gz", trained.tables)
    sentences = random_sentences(num_sentences=20, seed=1)
    expected = model.sentence_log_probs(sentences).tolist()
    assert load_ngram(tmp_path / "lm.arpa.gz").sentence_log_probs(sentences).tolist() == pytest.approx(
        expected, abs=1e-4
    )


def test_perplexity_is_that_of_the_sentence_probabilities(tmp_path, text):
    config = NgramTrainingConfig(order=3)
    model = NgramModel(train([text], config).tables)
    held_out = random_sentences(num_sentences=20, seed=1)
    (tmp_path / "valid.txt").write_text("".join(" ".join(sentence) + "\n" for sentence in held_out))
    found = measure(model, [tmp_path / "valid.txt"], config)
    num_words = sum(map(len, held_out))
    log_prob = float(model.sentence_log_probs(held_out).sum())
    assert found.perplexity == pytest.approx(math.exp(-log_prob / (num_words + 20)), rel=1e-6)
    assert (found.num_words, found.num_unknown, found.unknown_rate) == (num_words, 0, 0.0)


def test_unknown_words_are_counted_and_not_predicted(tmp_path, text):
    config = NgramTrainingConfig(order=2)
    model = NgramModel(train([text], config).tables)
    (tmp_path / "valid.txt").write_text("a what b\n")
    found = measure(model, [tmp_path / "valid.txt"], config)
    unknown, begin, a, b, end = model.ids(["what", "<s>", "a", "b", "</s>"])
    assert unknown == 0
    score = model.score_all(model.empty(5).copy_(model.empty(5).new_tensor([[begin], [a], [unknown], [b], [end]])))
    log_prob = float(score[0, a] + score[2, b] + score[3, end])
    assert found.perplexity == pytest.approx(math.exp(-log_prob / 3), rel=1e-6)
    assert (found.num_words, found.num_unknown, found.unknown_rate) == (3, 1, 1 / 3)


def test_a_model_of_tokens_has_those_of_the_tokenizer(tmp_path):
    folder = tiny.save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("A B\nab ba\nbad b\n")
    config = NgramTrainingConfig(order=5, unit="tokens", model=folder)
    trained = train([tmp_path / "text.txt"], config)
    assert trained.tables.words == ["<unk>", "<s>", "</s>", "▁", "a", "b", "c"]
    assert (trained.num_words, trained.num_unknown) == (3 + 5 + 3, 1)
    found = measure(NgramModel(trained.tables), [tmp_path / "text.txt"], config)
    assert found.perplexity < 6


def test_limits_of_the_vocabulary_and_of_the_n_grams_are_kept(text):
    whole = train([text], NgramTrainingConfig(order=3))
    limited = train([text], NgramTrainingConfig(order=3, vocab_size=4, cutoffs=[0, 1], discount=0.5))
    assert limited.tables.words == whole.tables.words[:7]
    assert limited.num_unknown > 0
    assert [own.one for own in limited.discounts] == [0.5] * 3
    assert len(limited.tables.tables[2]) < len(whole.tables.tables[2])
    assert len(train([text], NgramTrainingConfig(order=1, min_count=60)).tables.words) < len(whole.tables.words)


def test_words_of_a_lexicon_share_what_smoothing_leaves_for_new_words(tmp_path, text):
    (tmp_path / "lexicon.txt").write_text("A ah\nZOO(2) z u\nYAK j ae k\nCO-OP k o o p\n")
    plain, wider = (
        train([text], NgramTrainingConfig(order=2, lexicon=lexicon)).tables
        for lexicon in (None, tmp_path / "lexicon.txt")
    )
    assert wider.words == [*plain.words, "yak", "zoo"]  # "a" is known from the text, and "co-op" two words
    narrow, wide = (tables.tables[0].log_probs.double().exp() for tables in (plain, wider))
    assert float(narrow.sum()) == pytest.approx(1) and float(wide.sum()) == pytest.approx(1)
    unknown = wide[0]
    assert wide[-2:].tolist() == pytest.approx([float(unknown)] * 2, rel=1e-6) and float(unknown) > 0
    # What was left for the unknown word and every other, all words but <s>, goes to two more.
    size = len(plain.words) - 1
    assert float(unknown) == pytest.approx(float(narrow[0]) * size / (size + 2), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": 0}, "order is 0; it must be at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        ({"min_count": 0}, "min_count is 0; it must be at least 1"),
        ({"unit": "phones"}, "unit is 'phones'; choose one of words, tokens"),
        ({"unit": "tokens"}, "unit is tokens and model is None; name a model for unit=tokens, and only then"),
        ({"model": Path("x")}, "unit is words and model is x; name a model for unit=tokens, and only then"),
        ({"unit": "tokens", "model": Path("x"), "vocab_size": 9}, "leave out vocab_size, min_count"),
        ({"unit": "tokens", "model": Path("x"), "min_count": 2}, "leave out vocab_size, min_count and lexicon"),
        ({"unit": "tokens", "model": Path("x"), "lexicon": Path("y")}, "leave out vocab_size, min_count and lexicon"),
        (
            {"lexicon": Path("y"), "vocab_size": 9},
            "lexicon is y, which adds words, while vocab_size and min_count leave",
        ),
        ({"lexicon": Path("y"), "min_count": 2}, "lexicon is y, which adds words, while"),
        ({"cutoffs": [2, 1]}, r"cutoffs are \[2, 1\]; they are for orders 2 to 4, not below 0, and must not fall"),
        ({"cutoffs": [-1]}, r"cutoffs are \[-1\]; they"),
        ({"cutoffs": [0, 0, 0, 1]}, r"cutoffs are \[0, 0, 0, 1\]; they are for orders 2 to 4"),
        ({"prune": -1e-9}, "prune is -1e-09; it must be a number from 0 up, such as 1e-8"),
        ({"prune": math.nan}, "prune is nan; it must be a number"),
        ({"discount": 0.0}, r"discount is 0.0; it must be in \(0, 1\], or null to estimate it"),
        ({"discount": 1.5}, "discount is 1.5; it"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NgramTrainingConfig(**settings)


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    check_output(tmp_path / "new" / "folder" / "lm.arpa")
    assert (tmp_path / "new" / "folder").is_dir()
    with pytest.raises(OSError, match=r"new is a folder; name the file to write, such as .*new/lm\.arpa\.gz"):
        check_output(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/deeper cannot be made: Not a directory"):
        check_output(tmp_path / "file" / "deeper" / "lm.arpa")


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(OSError, match="is not writable; choose another output"):
        check_output(tmp_path / "lm.arpa")
