"""Reading ahead in a thread, batches of like lengths, precision of the encoder, and the utterances of a manifest."""

import gc
import itertools
import shutil
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import random_ngrams
import tiny
import torch
from utterances import make_utterances

from asr.audio import AudioError
from asr.data.espeak import EspeakError
from asr.decoding.arpa import write_arpa
from asr.decoding.neural_lm import sequence_log_probs
from asr.decoding.ngram import NgramTable, NgramTables
from asr.decoding.search import DecodingConfig, FusionConfig, encode
from asr.lm_checkpoint import save_language_model
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.pronunciation import Lexicon, write_lexicon
from asr.recognition import SearchBuilder, encode_batch, encode_utterances, pack, read_ahead
from asr.tokenizer import BpeTokenizer, CharTokenizer, Tokenizer

RATE = tiny.SAMPLE_RATE


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


def count(
    number: int, *, fault: BaseException | None = None, log: list[str] | None = None
) -> Generator[int, None, None]:
    """Counts, then fails; notes that it was closed."""
    try:
        yield from range(number)
        if fault is not None:
            raise fault
    finally:
        if log is not None:
            log.append(threading.current_thread().name)


@pytest.mark.parametrize("num_ahead", [1, 2, 50])
def test_reading_ahead_keeps_the_order_and_ends_its_thread(num_ahead: int) -> None:
    log: list[str] = []
    assert list(read_ahead(count(20, log=log), num_ahead=num_ahead)) == list(range(20))
    assert log == ["read_ahead"] and readers() == []


def test_reading_stays_at_most_so_far_ahead() -> None:
    started: list[int] = []

    def items() -> Generator[int, None, None]:
        for number in range(20):
            started.append(number)
            yield number

    for taken in read_ahead(items(), num_ahead=3):
        assert len(started) <= taken + 1 + 3


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
def test_what_the_reader_raises_is_raised_in_its_place(fault: BaseException) -> None:
    taken = []
    with pytest.raises(type(fault)) as caught:
        for number in read_ahead(count(3, fault=fault), num_ahead=2):
            taken.append(number)  # noqa: PERF402 (what came before the fault is of interest)
    assert caught.value is fault and taken == [0, 1, 2] and readers() == []


def test_broken_off_reading_closes_what_it_reads() -> None:
    log: list[str] = []
    with closing(read_ahead(count(1000, log=log), num_ahead=2)) as numbers:
        assert next(numbers) == 0
    assert log == ["read_ahead"] and readers() == []


# Batches and precision


def test_packing_puts_like_lengths_together() -> None:
    assert pack([3, 9, 1, 4, 4, 30], length=float, most=12) == [[30], [9], [4, 4, 3], [1]]
    assert pack([], length=float, most=12) == []
    many = torch.randint(1, 50, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = pack(many, length=float, most=100)
    assert sorted(itertools.chain(*batches)) == sorted(many)
    assert all(max(batch) * len(batch) <= 100 for batch in batches)


def check_bfloat16(device: torch.device) -> None:
    """Close to float32, but not it; log-probabilities keep all their digits."""
    model = tiny.make_model().to(device)
    waveforms, lengths = tiny.noise(2 * RATE)[None].to(device), torch.tensor([2 * RATE], device=device)
    exact = encode(model, waveforms, lengths)
    assert torch.equal(encode_batch(model, waveforms, lengths, dtype=torch.float32).log_probs, exact.log_probs)
    half = encode_batch(model, waveforms, lengths, dtype=torch.bfloat16)
    assert half.frames.dtype == half.log_probs.dtype == torch.float32
    difference = float((half.log_probs.exp() - exact.log_probs.exp()).abs().max())
    assert 0 < difference < 0.1
    with torch.inference_mode():
        torch.testing.assert_close(half.log_probs, model.ctc_log_probs(half.frames))


def test_bfloat16_is_close_to_float32() -> None:
    check_bfloat16(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bfloat16_is_close_to_float32_on_a_gpu() -> None:
    check_bfloat16(torch.device("cuda"))


# A manifest


def test_utterances_come_longest_first_with_the_encoding_that_they_have_alone(tmp_path: Path) -> None:
    utterances = make_utterances(tmp_path, [0.5, 2.0, 1.0, 1.1])
    model = tiny.make_model()
    seen = []
    for batch, encoding in encode_utterances(model, utterances, sample_rate=RATE, max_batch_s=2.5):
        for place, utterance in enumerate(batch):
            seen.append(utterance.id)
            (_, alone), *none = encode_utterances(model, [utterance], sample_rate=RATE)
            length = int(encoding.lengths[place])
            assert none == [] and length == int(alone.lengths[0])
            torch.testing.assert_close(encoding.log_probs[place, :length], alone.log_probs[0], atol=1e-4, rtol=1e-4)
    assert seen == ["u1", "u3", "u2", "u0"] and readers() == []


def test_an_utterance_that_cannot_be_read_ends_the_run_and_the_reader(tmp_path: Path) -> None:
    utterances = make_utterances(tmp_path, [0.5, 1.0, 2.0])
    utterances[1] = replace(utterances[1], audio=tmp_path / "no.flac")
    taken = []
    with pytest.raises(AudioError, match=r"no\.flac: cannot be opened"):
        for batch, _ in encode_utterances(tiny.make_model(), utterances, sample_rate=RATE, max_batch_s=0.1):
            taken += [utterance.id for utterance in batch]
    assert taken == ["u2"] and readers() == []


def test_a_run_that_is_broken_off_ends_the_reader(tmp_path: Path) -> None:
    utterances = make_utterances(tmp_path, [0.5] * 8)
    runs = encode_utterances(tiny.make_model(), utterances, sample_rate=RATE, max_batch_s=0.1)
    with closing(runs):
        next(runs)
    assert readers() == []


def test_the_encoder_can_compute_the_utterances_of_a_manifest_in_bfloat16(tmp_path: Path) -> None:
    utterances = make_utterances(tmp_path, [1.0])
    model = tiny.make_model()
    (_, exact), *_ = encode_utterances(model, utterances, sample_rate=RATE)
    (_, half), *_ = encode_utterances(model, utterances, sample_rate=RATE, precision="bfloat16")
    assert not torch.equal(half.log_probs, exact.log_probs)
    torch.testing.assert_close(half.log_probs.exp(), exact.log_probs.exp(), atol=0.1, rtol=0)


# Lexicons


def make_spoken(folder: Path, *, phones: list[str]) -> tuple[SearchBuilder, DecodingConfig]:
    """A builder, and a lexicon search with files of its own."""
    write_lexicon(folder / "lexicon.txt", Lexicon(tiny.SPOKEN))
    write_arpa(folder / "words.arpa", NgramTables(random_ngrams.TAGS + list(tiny.SPOKEN), random_tables()))
    lm = FusionConfig(ngram=folder / "words.arpa")
    return SearchBuilder(tiny.make_loaded(phones=phones)), DecodingConfig(
        mode="lexicon", lexicon=folder / "lexicon.txt", lm=lm
    )


def random_tables() -> list[NgramTable]:
    size = len(random_ngrams.TAGS) + len(tiny.SPOKEN)
    return [
        NgramTable(
            torch.zeros(size, dtype=torch.long), torch.arange(size), torch.full((size,), -2.0), torch.zeros(size)
        )
    ]


def test_a_lexicon_is_read_once_for_all_searches(tmp_path: Path) -> None:
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    first = builder.build(config)
    (tmp_path / "lexicon.txt").unlink()
    second = builder.build(replace(config, beam_size=3))
    encoding = encode(builder.loaded.model, tiny.noise(3000)[None], torch.tensor([3000]))
    assert first(encoding)[0].best.tokens and second(encoding)[0].best.tokens


def test_a_lexicon_for_a_model_without_phones_is_an_error(tmp_path: Path) -> None:
    builder, config = make_spoken(tmp_path, phones=[])
    message = r"^tiny: this model knows no phones, so decoding\.mode 'lexicon' is not for it; use another, or train it"
    with pytest.raises(ValueError, match=message):
        builder.build(config)


def test_garbage_is_collected_after_a_lexicon_was_read_or_was_not(tmp_path: Path) -> None:
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    builder.build(config)
    assert gc.isenabled()
    with pytest.raises(FileNotFoundError):
        builder.build(replace(config, lexicon=tmp_path / "nothing.txt"))
    assert gc.isenabled()


def test_a_lexicon_that_does_not_fit_is_named(tmp_path: Path) -> None:
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    (tmp_path / "lexicon.txt").write_text("dog x\n")
    message = (
        rf"^{tmp_path}/lexicon\.txt with {tmp_path}/words\.arpa: the lexicon has pronunciations of 0 of the language"
    )
    with pytest.raises(ValueError, match=message):
        builder.build(config)


def speak_by_rule(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str]]:
    """Puts a rule in espeak-ng's place, by which a is x and b is y; returns the words that will be asked for."""
    asked = []

    def rules(words: list[str], *, language: str) -> Lexicon:
        asked.append((list(words), language))
        return Lexicon({word: [tuple(word.translate({ord("a"): "x", ord("b"): "y"}))] for word in words})

    monkeypatch.setattr("asr.data.lexicons.espeak_lexicon", rules)
    return asked


def test_hotwords_take_part_in_lexicon_search_and_those_that_are_not_in_it_are_spoken_by_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = speak_by_rule(monkeypatch)
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    (tmp_path / "names.txt").write_text("bab\t6\n")
    search = builder.build(replace(config, hotwords=tmp_path / "names.txt", hotword_language="de"))
    assert asked == [(["bab"], "de")]
    noise = tiny.noise(9000)[None]
    [found] = search(encode(builder.loaded.model, noise, torch.tensor([9000])))
    [plain] = builder.build(config)(encode(builder.loaded.model, noise, torch.tensor([9000])))
    assert "bab" in builder.loaded.tokenizer.decode(found.best.tokens)
    assert "bab" not in builder.loaded.tokenizer.decode(plain.best.tokens)
    assert found.best.parts["hotwords"] >= 6
    assert "hotwords" not in plain.best.parts


def test_one_list_of_hotwords_is_kept_for_as_long_as_nothing_else_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = speak_by_rule(monkeypatch)
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    (tmp_path / "names.txt").write_text("bab\t6\n")
    (tmp_path / "others.txt").write_text("bab\t6\ncab\t-1\nbaba\n")  # cab is unwanted, so nobody asks how it is said
    first = replace(config, hotwords=tmp_path / "names.txt", hotword_language="de")
    for each in (first, replace(first, hotword_bonus=1.0), replace(first, hotword_language="fr"), first):
        builder.build(each)
    builder.build(replace(config, hotwords=tmp_path / "others.txt"))
    assert asked == [(["bab"], "de"), (["bab"], "fr"), (["bab"], "de"), (["bab", "baba"], "en-us")]


def test_a_hotword_that_cannot_be_spelled_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    (tmp_path / "names.txt").write_text("bad\n")
    (tmp_path / "lexicon.txt").unlink()
    with pytest.raises(ValueError, match=r"^hotword 'bad' has 'd' \(U\+0064\), which the model's tokenizer lacks"):
        builder.build(replace(config, hotwords=tmp_path / "names.txt"))


def test_a_hotword_without_a_pronunciation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    config = replace(config, hotwords=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("bab\n")

    def missing(words: list[str], *, language: str) -> Lexicon:
        raise EspeakError("espeakng-loader is not installed")

    monkeypatch.setattr("asr.data.lexicons.espeak_lexicon", missing)
    message = (
        r"^hotwords that the lexicon lacks have no pronunciation by rule \(espeakng-loader is not installed\): 'bab'; "
        r"leave them out, or take decoding prefix_beam or joint$"
    )
    with pytest.raises(ValueError, match=message):
        builder.build(config)
    monkeypatch.setattr("asr.data.lexicons.espeak_lexicon", lambda words, language: Lexicon({"bab": [("b", "x")]}))
    message = r"^hotword 'bab' is spoken as 'b x', in phones that the model does not know; leave it out, or take"
    with pytest.raises(ValueError, match=message):
        builder.build(config)
    monkeypatch.setattr("asr.data.lexicons.espeak_lexicon", lambda words, language: Lexicon({"a": [("x",)]}))
    with pytest.raises(ValueError, match=r"^hotword 'bab' is not in the lexicon, and espeak-ng says nothing of"):
        builder.build(config)


# Neural language models


def make_neural(folder: Path, tokenizer: Tokenizer) -> LanguageModel:
    """A language model over these tokens, in a folder of its own."""
    torch.manual_seed(2)
    config = LanguageModelConfig(num_layers=2, width=tiny.WIDTH, num_heads=2, feedforward_width=32)
    model = tiny.randomized(LanguageModel(config, vocab_size=tokenizer.vocab_size))
    save_language_model(folder, model.state_dict(), config=config, tokenizer=tokenizer, training={})
    return model


@pytest.mark.parametrize("mode", ["rescore", "lexicon"])
def test_a_neural_model_of_other_tokens_scores_sentences_in_a_second_pass(tmp_path: Path, mode: str) -> None:
    pieces = BpeTokenizer.train(["aba aba ab", "c ab"], vocab_size=9)
    neural = make_neural(tmp_path / "lm", pieces)
    builder, config = make_spoken(tmp_path, phones=tiny.PHONES)
    fusion = replace(config.lm, neural=tmp_path / "lm", neural_weight=0.7)
    if mode == "rescore":
        config = DecodingConfig(mode="rescore", lm=replace(fusion, ngram=None))
    else:
        config = replace(config, lm=fusion, phone_weight=0.4)
    encoding = encode(builder.loaded.model, tiny.noise(3000)[None], torch.tensor([3000]))
    (found,) = builder.build(config)(encoding)
    letters = builder.loaded.tokenizer
    assert len({len(each.tokens) for each in found.hypotheses}) > 1
    for each in found.hypotheses:
        own = pieces.encode(letters.decode(each.tokens))
        assert each.parts["neural"] == pytest.approx(float(sequence_log_probs(neural, [own])), abs=1e-4)
        parts, share = each.parts, 0.6 if mode == "lexicon" else 1.0
        expected = share * (0.3 * parts["ctc"] + 0.7 * parts["attention"]) + 0.7 * parts["neural"]
        if mode == "lexicon":
            expected += 0.4 * parts["phones"] + 0.5 * parts["ngram"]
        assert each.score == pytest.approx(expected)


def test_a_neural_model_of_other_tokens_has_no_place_where_tokens_are_scored_one_by_one(tmp_path: Path) -> None:
    make_neural(tmp_path / "lm", BpeTokenizer.train(["aba aba ab", "c ab"], vocab_size=9))
    builder, _ = make_spoken(tmp_path, phones=[])
    message = rf"^{tmp_path}/lm: the language model has 9 tokens, but the recogniser 6; use it in a second pass \(mode "
    with pytest.raises(ValueError, match=message):
        builder.build(DecodingConfig(mode="joint", lm=FusionConfig(neural=tmp_path / "lm")))


def test_a_neural_model_of_the_same_tokens_is_loaded_once_and_scores_tokens_and_sentences_alike(tmp_path: Path) -> None:
    make_neural(tmp_path / "lm", tiny.make_tokenizer())
    builder, _ = make_spoken(tmp_path, phones=[])
    lm = FusionConfig(neural=tmp_path / "lm")
    joint = builder.build(DecodingConfig(mode="joint", beam_size=30, num_best=30, lm=lm))
    shutil.rmtree(tmp_path / "lm")
    rescored = builder.build(DecodingConfig(mode="rescore", beam_size=30, num_best=30, lm=lm))
    encoding = encode(builder.loaded.model, tiny.noise(600)[None], torch.tensor([600]))
    parts = {each.tokens: each.parts for each in joint(encoding)[0].hypotheses}
    shared = [each for each in rescored(encoding)[0].hypotheses if each.tokens in parts]
    assert len(shared) > 3
    for each in shared:
        assert each.parts["neural"] == pytest.approx(parts[each.tokens]["neural"], abs=1e-4)


def test_a_neural_model_that_lacks_a_letter_is_named(tmp_path: Path) -> None:
    make_neural(tmp_path / "lm", CharTokenizer(" ab"))
    builder, _ = make_spoken(tmp_path, phones=[])
    with pytest.raises(ValueError, match=rf"^{tmp_path}/lm: the language model has no token for 'c', which the recog"):
        builder.build(DecodingConfig(mode="rescore", lm=FusionConfig(neural=tmp_path / "lm")))
