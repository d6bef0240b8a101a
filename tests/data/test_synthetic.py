"""The embedded corpus: sentences, voices, and trees that are made once, whole, and from the seed alone."""

import hashlib
import itertools
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from asr.audio import load, probe
from asr.data import espeak, grammar, manifest, synthetic
from asr.data.corpora import Splits
from asr.data.synthetic import SUBSETS, SyntheticConfig
from asr.text import normalize

espeakng_loader = pytest.importorskip("espeakng_loader", reason="the extra `recipes` is not installed")


def tiny(root: Path, **changes: object) -> SyntheticConfig:
    config = SyntheticConfig(root=root, manifests=root / "manifests", hours_train=0.001, num_valid=5, num_test=7)
    return replace(config, **changes)  # type: ignore[arg-type]


def read_all(splits: Splits) -> dict[str, list[manifest.Utterance]]:
    return {path.stem: manifest.read(path) for path in splits.train + splits.valid + splits.test}


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file of a tree, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SyntheticConfig:
    config = tiny(tmp_path_factory.mktemp("corpus"))
    config.prepare(progress=False)
    return config


@pytest.fixture(scope="module")
def sets(corpus: SyntheticConfig) -> dict[str, list[manifest.Utterance]]:
    return read_all(corpus.prepare(progress=False))


class TestGrammar:
    def test_about_150_words(self) -> None:
        words = grammar.vocabulary()
        print(len(words), "words:", *words)
        assert 130 <= len(words) <= 170

    def test_sentences_are_normalised_and_in_the_vocabulary(self) -> None:
        generator = random.Random(0)
        words = set(grammar.vocabulary())
        for _ in range(2000):
            sentence = grammar.draw(generator)
            assert normalize(sentence) == sentence
            assert not any(character.isdigit() for character in sentence)
            assert words.issuperset(sentence.split())

    def test_every_rule_is_defined_and_used(self) -> None:
        used = {
            word[1:]
            for phrases in grammar.RULES.values()
            for phrase in phrases
            for word in phrase.split()
            if "$" in word
        }
        assert used == set(grammar.RULES) - {"sentence"}

    def test_many_distinct_sentences_in_disjoint_subsets(self) -> None:
        drawn = {
            subset: list(itertools.islice(grammar.draw_distinct(f"0 {subset}", subset), number))
            for subset, number in (("train", 8000), ("valid", 400), ("test", 400))
        }
        everything = [sentence for sentences in drawn.values() for sentence in sentences]
        assert len(set(everything)) == len(everything) == 8800

    def test_subsets_do_not_depend_on_the_seed(self) -> None:
        first, second = (set(itertools.islice(grammar.draw_distinct(seed, "test"), 300)) for seed in ("a", "b"))
        assert first != second
        assert {grammar.subset_of(sentence) for sentence in first | second} == {"test"}

    def test_cover_first_says_every_word_and_loses_no_sentence(self) -> None:
        sentences = ["a b", "a", "b", "c", "b a", "d", "a d", "c"]
        assert list(grammar.cover_first(sentences, "abcd")) == ["a b", "c", "d", "a", "b", "b a", "a d", "c"]


class TestEspeak:
    REQUEST = espeak.Request(text="turn on the kitchen lights", accent="en-us", variant="m1")

    def test_the_same_requests_in_a_fresh_process_give_the_same_bytes(self) -> None:
        requests = [self.REQUEST, replace(self.REQUEST, variant="f5"), replace(self.REQUEST, accent="en-029")]
        spoken = []
        for _ in range(2):
            with espeak.Synthesizer() as synthesizer:
                spoken.append([synthesizer.speak(request) for request in requests])
        assert spoken[0] == spoken[1]

    def test_parameters_have_an_effect(self) -> None:
        with espeak.Synthesizer() as synthesizer:
            plain = synthesizer.speak(self.REQUEST)
            slow = synthesizer.speak(replace(self.REQUEST, rate_wpm=100))
            soft = synthesizer.speak(replace(self.REQUEST, volume=10))
            high = synthesizer.speak(replace(self.REQUEST, pitch=90))
            flat = synthesizer.speak(replace(self.REQUEST, pitch_range=0))
        assert len(slow) > 1.4 * len(plain)
        assert _peak(soft) < 0.4 * _peak(plain)
        assert _pitch_hz(high) > 1.2 * _pitch_hz(plain)
        assert flat != plain

    def test_every_voice_of_the_corpus_speaks_and_is_no_other(self) -> None:
        with espeak.Synthesizer() as synthesizer:
            spectra, lengths = {}, {}
            for voice in (voice for subset in SUBSETS for voice in synthetic.voices(subset)):
                request = replace(self.REQUEST, accent=voice.accent, variant=voice.variant)
                samples = torch.frombuffer(bytearray(synthesizer.speak(request)), dtype=torch.int16).float()
                spectra[voice] = (
                    torch.stft(
                        samples / samples.square().mean().sqrt(),
                        512,
                        window=torch.hann_window(512),
                        return_complex=True,
                    )
                    .abs()
                    .square()
                    .mean(dim=1)
                )  # (257,)
                lengths[voice] = len(samples)
                assert 1.0 < len(samples) / espeak.SAMPLE_RATE < 3.0, voice
                assert 500 < samples.abs().max() < 32767, voice  # neither nearly silent nor clipped
        levels = torch.stack([(spectrum + 1e-6).log() for spectrum in spectra.values()])  # (voices, 257)
        # One voice spoken twice differs by its flutter and noise; a variant that is ignored would look like that.
        distances = torch.cdist(levels, levels) / levels.shape[1] ** 0.5
        distances += 10 * torch.eye(len(levels))
        same_length = torch.tensor(list(lengths.values()))[:, None] == torch.tensor(list(lengths.values()))
        assert distances[same_length].min() > 0.05

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"variant": "nobody"}, "espeak-ng has no variant 'nobody'"),
            ({"accent": "en-nowhere"}, "espeak-ng has no voice 'en-nowhere'"),
            ({"text": " "}, "espeak-ng made no sound of"),
        ],
    )
    def test_refusals_are_named_and_leave_the_worker_alive(self, change: dict[str, str], message: str) -> None:
        with espeak.Synthesizer() as synthesizer:
            with pytest.raises(espeak.EspeakError, match=message):
                synthesizer.speak(replace(self.REQUEST, **change))  # type: ignore[arg-type]
            assert len(synthesizer.speak(self.REQUEST)) > espeak.SAMPLE_RATE

    def test_a_dead_worker_is_an_error(self) -> None:
        with espeak.Synthesizer() as synthesizer:
            synthesizer._worker.kill()
            with pytest.raises(espeak.EspeakError, match=r"espeak-ng ended at Request.*with exit code -9"):
                synthesizer.speak(self.REQUEST)

    def test_missing_wheel(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "espeakng_loader", None)
        with pytest.raises(espeak.EspeakError, match=r"espeakng-loader is not installed.*pip install '\.\[recipes\]'"):
            tiny(tmp_path / "corpora").prepare(progress=False)
        assert not (tmp_path / "corpora").exists()

    @pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
    def test_data_in_a_deep_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The library itself cuts the path off after 160 bytes, and then speaks not at all."""
        deep = tmp_path.joinpath(*["a folder with a long name"] * 8)
        deep.mkdir(parents=True)
        data = deep / "espeak-ng-data"
        data.symlink_to(espeakng_loader.get_data_path())
        loader = f"def get_library_path(): return {str(espeakng_loader.get_library_path())!r}\n"
        (tmp_path / "espeakng_loader.py").write_text(f"{loader}def get_data_path(): return {str(data)!r}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with espeak.Synthesizer() as synthesizer:
            assert len(synthesizer.speak(self.REQUEST)) > espeak.SAMPLE_RATE

    def test_data_that_is_missing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        loader = f"def get_library_path(): return {str(espeakng_loader.get_library_path())!r}\n"
        (tmp_path / "espeakng_loader.py").write_text(f"{loader}def get_data_path(): return {str(tmp_path)!r}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with (
            espeak.Synthesizer() as synthesizer,
            pytest.raises(espeak.EspeakError, match=r"espeak-ng cannot start from .*expected 22050 Hz"),
        ):
            synthesizer.speak(self.REQUEST)

    def test_the_worker_needs_no_other_package(self) -> None:
        script = f"import runpy, sys; runpy.run_path({espeak.__file__!r}); print(*sys.modules, sep='\\n')"
        finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert {"asr", "numpy", "torch"}.isdisjoint(finished.stdout.split())


class TestCorpus:
    def test_sizes(self, sets: dict[str, list[manifest.Utterance]]) -> None:
        assert list(sets) == ["synthetic-train", "synthetic-valid", "synthetic-test"]
        assert len(sets["synthetic-valid"]) == 5
        assert len(sets["synthetic-test"]) == 7

    def test_hours_are_reached_and_hardly_exceeded(self, tmp_path: Path) -> None:
        sets = read_all(tiny(tmp_path, hours_train=0.08).prepare(progress=False))
        seconds = sum(utterance.duration_s for utterance in sets["synthetic-train"])
        assert 288 <= seconds < 294

    def test_training_says_every_word(self, sets: dict[str, list[manifest.Utterance]]) -> None:
        assert {word for each in sets["synthetic-train"] for word in each.text.split()} == set(grammar.vocabulary())

    def test_voices_and_sentences_are_disjoint(self, sets: dict[str, list[manifest.Utterance]]) -> None:
        for first, second in itertools.combinations(sets.values(), 2):
            assert {each.speaker for each in first}.isdisjoint(each.speaker for each in second)
            assert {each.text for each in first}.isdisjoint(each.text for each in second)
        for voices, others in itertools.combinations(map(synthetic.voices, SUBSETS), 2):
            assert {voice.variant for voice in voices}.isdisjoint(voice.variant for voice in others)
            assert {voice.accent for voice in voices} == {voice.accent for voice in others} == set(synthetic.ACCENTS)

    def test_speakers_have_numbers_of_their_own(self) -> None:
        everyone = [voice for subset in SUBSETS for voice in synthetic.voices(subset)]
        assert len({voice.speaker for voice in everyone}) == len(everyone)

    def test_librispeech_layout(self, corpus: SyntheticConfig, sets: dict[str, list[manifest.Utterance]]) -> None:
        for utterance in itertools.chain(*sets.values()):
            speaker, chapter, number = utterance.id.split("-")
            assert (utterance.speaker, utterance.audio.name, len(number)) == (speaker, f"{utterance.id}.flac", 4)
            assert utterance.audio.parent.parts[-2:] == (speaker, chapter)
        rows = (corpus.folder / "speakers.tsv").read_text().splitlines()
        voices = [voice for subset in SUBSETS for voice in synthetic.voices(subset)]
        assert rows[0].split("\t") == ["speaker", "subset", "accent", "variant"]
        assert [row.split("\t")[0] for row in rows[1:]] == [voice.speaker for voice in voices]

    def test_audio_is_sound(self, sets: dict[str, list[manifest.Utterance]]) -> None:
        for utterance in itertools.chain(*sets.values()):
            info = probe(utterance.audio)
            assert (info.sample_rate, info.num_channels) == (16000, 1)
            assert soundfile.info(utterance.audio).format == "FLAC"
            waveform = load(utterance.audio, sample_rate=16000)
            assert 0.005 < waveform.square().mean().sqrt() < 0.2, utterance.id
            assert 0.05 < waveform.abs().max() <= 0.92, utterance.id
            assert _longest_run_of_zeros(waveform) < 32, utterance.id
            words_per_s = len(utterance.text.split()) / utterance.duration_s
            assert 0.9 < words_per_s < 4.5, utterance

    def test_speech_stands_above_the_silence_around_it(self, sets: dict[str, list[manifest.Utterance]]) -> None:
        for utterance in sets["synthetic-test"]:
            waveform = load(utterance.audio, sample_rate=16000)
            silence = torch.cat([waveform[:1600], waveform[-1600:]]).square().mean()
            assert 1e-10 < silence < 0.01 * waveform.square().mean(), utterance.id


class TestReuse:
    def test_equal_settings_give_equal_bytes_and_another_seed_others(
        self, corpus: SyntheticConfig, tmp_path: Path
    ) -> None:
        again, other = tiny(tmp_path / "again"), tiny(tmp_path / "other", seed=1)
        again.prepare(progress=False)
        other.prepare(progress=False)
        assert digest(again.folder) == digest(corpus.folder)
        assert digest(other.folder)["speakers.tsv"] == digest(corpus.folder)["speakers.tsv"]
        first, second = (set(digest(config.folder).values()) for config in (corpus, other))
        assert len(first & second) == 1

    def test_the_number_of_threads_does_not_matter(self) -> None:
        plan = next(synthetic.plans("test", seed=0))
        with espeak.Synthesizer() as synthesizer:
            speech = synthetic.speak(synthesizer, plan).repeat(20)
        num_threads = torch.get_num_threads()
        try:
            recordings = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                recordings.append((synthetic.finish(speech, plan).float() * 32768).round())
        finally:
            torch.set_num_threads(num_threads)
        assert all(torch.equal(recording, recordings[0]) for recording in recordings)

    def test_a_larger_corpus_begins_with_the_smaller_one(self, corpus: SyntheticConfig, tmp_path: Path) -> None:
        larger = tiny(tmp_path, num_test=9)
        larger.prepare(progress=False)
        smaller_files, larger_files = (
            {path: value for path, value in digest(config.folder / "test").items() if path.endswith(".flac")}
            for config in (corpus, larger)
        )
        assert len(smaller_files) == 7
        assert len(larger_files) == 9
        assert smaller_files.items() <= larger_files.items()

    def test_made_once(self, corpus: SyntheticConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object, **settings: object) -> None:
            raise AssertionError("spoken again")

        monkeypatch.setattr(synthetic, "build", refuse)
        splits = replace(corpus).prepare(progress=False)
        assert [path.name for path in splits.test] == ["synthetic-test.jsonl"]

    def test_other_settings_replace_the_audio_and_the_first_come_back(self, tmp_path: Path) -> None:
        first = tiny(tmp_path, num_test=2, manifests=tmp_path / "first")
        second = tiny(tmp_path, num_test=3, seed=5, manifests=tmp_path / "second")
        first.prepare(progress=False)
        made = digest(first.folder)
        assert len(read_all(second.prepare(progress=False))["synthetic-test"]) == 3
        assert digest(first.folder) != made
        # The first manifests are still there and fit their settings; the audio that they name must be, too.
        for utterance in itertools.chain(*read_all(first.prepare(progress=False)).values()):
            assert probe(utterance.audio).duration_s == pytest.approx(utterance.duration_s)
        assert digest(first.folder) == made
        assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second", "synthetic"]

    def test_another_grammar_makes_it_anew(self, corpus: SyntheticConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        before = corpus.settings()
        monkeypatch.setitem(grammar.RULES, "switch", ["on", "off", "up"])
        assert corpus.settings() != before
        assert not corpus._is_complete()

    def test_a_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        precious = tmp_path / "synthetic" / "thesis.txt"
        precious.parent.mkdir()
        precious.write_text("three years of work")
        with pytest.raises(FileExistsError, match=r"synthetic: holds something that is not synthetic speech"):
            tiny(tmp_path).prepare(progress=False)
        assert precious.read_text() == "three years of work"

    def test_an_interruption_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(folder: Path, config: SyntheticConfig, *, progress: bool) -> None:
            (folder / "half").write_text("done")
            raise KeyboardInterrupt

        monkeypatch.setattr(synthetic, "build", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny(tmp_path).prepare(progress=False)
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_to_write_is_not_lost_in_its_thread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **settings: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(synthetic, "save", fail)
        with pytest.raises(OSError, match="no space left"):
            tiny(tmp_path).prepare(progress=False)
        assert list(tmp_path.iterdir()) == []

    def test_settings_are_readable_json(self, corpus: SyntheticConfig) -> None:
        record = json.loads((corpus.folder / synthetic.COMPLETE).read_text())
        assert (record["seed"], record["num_test"], record["hours_train"]) == (0, 7, 0.001)


class TestWordGap:
    def test_words_are_exactly_so_far_apart(self) -> None:
        plan = next(synthetic.plans("test", seed=0))
        with espeak.Synthesizer() as synthesizer:
            speech = synthetic.speak(synthesizer, plan, word_gap_ms=300)
        gap = round(0.3 * espeak.SAMPLE_RATE)
        silent = torch.nn.functional.pad((speech == 0).float(), (1, 1))
        borders = silent.diff().nonzero().squeeze(1).reshape(-1, 2)  # (runs of zeros, first and last + 1)
        runs = [int(end - start) for start, end in borders if end - start > gap // 2]
        # A word that begins or ends on a zero may not: it is cut to where it is heard.
        assert runs == [gap] * (len(plan.text.split()) - 1)

    def test_manifests_are_as_long_as_the_audio(self, tmp_path: Path) -> None:
        config = tiny(tmp_path, word_gap_ms=200, num_valid=1, num_test=2)
        sets = read_all(config.prepare(progress=False))
        for utterance in sets["synthetic-test"]:
            assert utterance.duration_s > 0.2 * (len(utterance.text.split()) - 1)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("hours_train", 0.0, r"data\.hours_train is 0\.0, expected hours above 0"),
        ("hours_train", float("nan"), r"data\.hours_train is nan, expected hours above 0"),
        ("num_valid", 0, r"data\.num_valid is 0, expected 1 or more"),
        ("num_test", -1, r"data\.num_test is -1, expected 1 or more"),
        ("word_gap_ms", -1, r"data\.word_gap_ms is -1, expected 0 or more"),
        ("train", ["dev"], r"no set 'dev'; synthetic speech has train, valid, test"),
        ("name", "a/b", r"data\.name is 'a/b', expected a plain folder name"),
    ],
)
def test_bad_settings(tmp_path: Path, setting: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, **{setting: value})


def _peak(audio: bytes) -> float:
    return float(torch.frombuffer(bytearray(audio), dtype=torch.int16).float().abs().max())


def _pitch_hz(audio: bytes) -> float:
    """The lag of the strongest autocorrelation between 60 and 300 Hz, over the whole utterance."""
    samples = torch.frombuffer(bytearray(audio), dtype=torch.int16).float()
    spectrum = torch.fft.rfft(samples, 2 * len(samples)).abs().square()
    correlation = torch.fft.irfft(spectrum)
    shortest, longest = espeak.SAMPLE_RATE // 300, espeak.SAMPLE_RATE // 60
    return espeak.SAMPLE_RATE / (shortest + int(correlation[shortest:longest].argmax()))


def _longest_run_of_zeros(waveform: torch.Tensor) -> int:
    return max((len(list(run)) for is_zero, run in itertools.groupby((waveform == 0).tolist()) if is_zero), default=0)
