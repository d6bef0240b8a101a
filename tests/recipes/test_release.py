"""The recipe that makes a folder to release of a trained run: its files, its card, and every misuse in one line."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import launching
import pytest
import release
import tiny
import torch
import tune_decoding
import yaml
from safetensors.torch import load_file

import asr
from asr import checkpoint
from asr.data import manifest
from asr.data.manifest import Utterance
from asr.decoding.arpa import read_ngram, write_arpa
from asr.lm_checkpoint import load_language_model, save_language_model
from asr.model_figures import read_figures
from asr.ngrams.training import NgramTrainingConfig, train
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.pronunciation import Lexicon, write_lexicon
from asr.search_choice import SearchOptions, choose_search
from asr.tokenizer import BpeTokenizer, CharTokenizer
from asr.variants import DefaultSearch, read_default, read_tuned

FILES = {
    *("README.md", "config.json", "decoding.json", "model.safetensors"),
    *("results.json", "tokenizer.json", "words.ngram"),
}


def write_sets(folder: Path) -> None:
    """Two sets of noise of three speakers with words to it, and a language model of these words."""
    texts = ["a cab", "abba", "cab a", "a a", "b cab", "abba a"]
    for name, seed in (("dev", 0), ("test", 20)):
        utterances = []
        for number, text in enumerate(texts):
            audio = tiny.write_noise(folder / f"{name}{number}.wav", seed=seed + number)
            utterances.append(
                Utterance(id=f"{name}{number}", audio=audio, duration_s=1.0, text=text, speaker=f"s{number % 3}")
            )
        manifest.write(folder / f"{name}.jsonl", utterances)
    (folder / "text.txt").write_text("\n".join(texts * 5))
    write_arpa(folder / "words.arpa", train([folder / "text.txt"], NgramTrainingConfig(order=2)).tables)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sets, a language model, and the run folder `run` with a model and tuned searches."""
    folder = tmp_path_factory.mktemp("work")
    write_sets(folder)
    tiny.save(folder / "run" / "model")
    return folder


@pytest.fixture(scope="module")
def searches(work: Path) -> list[str]:
    return [
        *("modes=[greedy,joint]", "lms=[none,ngram]", "decoding.beam_size=3"),
        f"decoding.lm.ngram={work / 'words.arpa'}",
    ]


@pytest.fixture(scope="module")
def tuned(work: Path, searches: list[str], compose: Any) -> Path:
    recipe = compose("tune_decoding", f"model={work / 'run'}", f"manifest={work / 'dev.jsonl'}", *searches)
    tune_decoding.run(recipe)
    return work / "run" / "model" / "decoding.json"


@pytest.fixture(scope="module")
def folder(work: Path, searches: list[str], tuned: Path, compose: Any) -> Path:
    """A released folder, made as conf/release.yaml says: released, evaluated, and released again over itself."""
    output = work / "released"
    arguments = [f"model={work / 'run'}", f"output={output}", "mode=joint", "beam_size=3", "card.name=someone/tiny-asr"]
    release.run(compose("release", *arguments, f"ngram={work / 'words.arpa'}"))
    evaluated = [f"model={output}", f"output={work / 'scores'}", "decoding=joint", f"manifests=[{work / 'test.jsonl'}]"]
    evaluate.run(compose("evaluate", *evaluated, f"tuned={output / 'decoding.json'}", *searches))
    again = [f"ngram={output / 'words.ngram'}", f"results=[{work / 'scores'}]"]
    release.run(compose("release", *arguments, *again))
    return output


def test_a_released_folder_holds_all_that_its_users_need(folder: Path, work: Path) -> None:
    assert {file.name for file in folder.iterdir()} == FILES
    weights = checkpoint.load_weights(folder)
    for name, tensor in checkpoint.load_weights(work / "run" / "model").items():
        assert torch.equal(weights[name], tensor.half())
    original, own = read_ngram(work / "words.arpa"), read_ngram(folder / "words.ngram")
    assert own.words == original.words
    assert read_default(folder / "decoding.json") == DefaultSearch(mode="joint", beam_size=3)
    assert set(read_tuned(folder / "decoding.json")) == {"greedy", "joint", "joint+ngram"}
    found = {(each.set, each.search, each.speakers, each.words) for each in read_figures(folder)}
    assert found == {("test", search, 3, 11) for search in ("greedy", "joint", "joint+ngram")}


def test_no_path_of_the_machine_is_released(folder: Path, work: Path) -> None:
    for file in folder.iterdir():
        assert str(work).encode() not in file.read_bytes()
    assert read_tuned(folder / "decoding.json")["joint"].development["manifest"] == "dev.jsonl"


def test_a_released_folder_transcribes_as_the_run_does(folder: Path, work: Path, tuned: Path) -> None:
    exact = asr.load_model(work / "run", device="cpu")
    found = asr.load_model(folder, device="cpu")
    for number in range(3):
        audio = work / f"test{number}.wav"
        expected = exact.transcribe(audio, decoding="joint", beam_size=3, lm=work / "words.arpa")
        assert found.transcribe(audio).text == expected.text


def test_pronunciations_are_released_for_lexicon_search(
    work: Path, searches: list[str], tmp_path: Path, compose: Any
) -> None:
    run, lexicon = tmp_path / "run", tmp_path / "spoken.txt"
    tiny.save(run / "model", phones=tiny.PHONES)
    write_lexicon(lexicon, Lexicon({"a": [("x",)], "b": [("y",)], "cab": [("z", "x")], "abba": [("x", "y")]}))
    ways = [*searches, "modes=[joint,lexicon]", f"decoding.lexicon={lexicon}", "decoding=lexicon"]
    tune_decoding.run(compose("tune_decoding", f"model={run}", f"manifest={work / 'dev.jsonl'}", *ways))
    arguments = [f"model={run}", f"output={tmp_path / 'out'}", f"ngram={work / 'words.arpa'}", "beam_size=7"]
    release.run(compose("release", *arguments, "mode=joint"))
    assert "lexicon+ngram" not in read_tuned(tmp_path / "out" / "decoding.json")
    release.run(compose("release", *arguments, "mode=lexicon", f"lexicon={lexicon}"))
    assert (tmp_path / "out" / "lexicon.txt.xz").is_file()
    found = asr.load_model(tmp_path / "out", device="cpu")
    said = {word for number in range(6) for word in found.transcribe(work / f"test{number}.wav").text.split()}
    assert said and said <= {"a", "b", "cab", "abba"}
    _, body = card(tmp_path / "out")
    assert "over 6 characters, another over 3 phones." in body
    assert (
        "`lexicon` search with beam 7 and the n-gram model `words.ngram` and the pronunciations `lexicon.txt.xz`"
        in body
    )


def test_a_neural_language_model_is_released_with_weights_in_eight_bits(
    work: Path, tmp_path: Path, compose: Any
) -> None:
    tiny.save(tmp_path / "run" / "model")
    pieces = BpeTokenizer.train(["a cab", "abba cab a"], vocab_size=9)
    config = LanguageModelConfig(num_layers=1, width=16, num_heads=2, feedforward_width=32)
    torch.manual_seed(0)
    weights = tiny.randomized(LanguageModel(config, vocab_size=9)).state_dict()
    save_language_model(tmp_path / "lm", weights, config=config, tokenizer=pieces, training={"steps": 3})
    ways = ["modes=[rescore]", "lms=[none,neural]", f"decoding.lm.neural={tmp_path / 'lm'}", "decoding=rescore"]
    recipe = compose("tune_decoding", f"model={tmp_path / 'run'}", f"manifest={work / 'dev.jsonl'}", *ways)
    tune_decoding.run(recipe)
    output = tmp_path / "out"
    arguments = [f"model={tmp_path / 'run'}", f"output={output}", "mode=rescore", "precision=int8"]
    release.run(compose("release", *arguments, f"neural={tmp_path / 'lm'}"))
    tuned = read_tuned(output / "decoding.json")
    release.run(compose("release", *arguments, f"neural={output / 'neural'}"))  # over itself
    assert read_tuned(output / "decoding.json") == tuned and set(tuned) == {"rescore", "rescore+neural"}
    assert load_file(output / "neural" / "model.safetensors")["embedding.weight"].dtype == torch.int8
    own = load_language_model(output / "neural")
    assert own.tokenizer.tokens == pieces.tokens and own.training == {"steps": 3}
    for name, tensor in own.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], atol=0.03, rtol=0)
    assert choose_search(output, SearchOptions())[0].lm.neural == output / "neural"
    assert asr.load_model(output, device="cpu").transcribe(work / "test0.wav").text
    assert "beam 10 and the Transformer language model `neural/`;" in card(output)[1]
    assert "`neural/model.safetensors` " in card(output)[1]


def test_a_neural_language_model_of_other_letters_is_not_released(work: Path, tmp_path: Path, compose: Any) -> None:
    letters = CharTokenizer(" ab")
    config = LanguageModelConfig(num_layers=1, width=16, num_heads=2, feedforward_width=32)
    weights = LanguageModel(config, vocab_size=letters.vocab_size).state_dict()
    save_language_model(tmp_path / "lm", weights, config=config, tokenizer=letters, training={})
    arguments = [f"model={work / 'run'}", f"output={tmp_path / 'out'}", f"neural={tmp_path / 'lm'}"]
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'lm'}: the language model has no token for 'c'"):
        release.run(compose("release", *arguments))
    assert not (tmp_path / "out").exists()


# The card


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", maxsplit=2)
    return yaml.safe_load(front), body


def test_the_hub_can_read_the_front_matter(folder: Path) -> None:
    front, _ = card(folder)
    assert front["license"] == "cc-by-4.0"
    assert front["language"] == "en"
    assert front["library_name"] == "asr-attention"
    assert front["pipeline_tag"] == "automatic-speech-recognition"
    assert front["metrics"] == ["wer"]
    (model,) = front["model-index"]
    assert model["name"] == "tiny-asr"
    (result,) = model["results"]
    best = min(read_figures(folder), key=lambda each: each.wer)
    assert result["task"]["type"] == "automatic-speech-recognition"
    assert result["dataset"] == {"type": "test", "name": "test"}
    assert result["metrics"][0] == {"type": "wer", "value": round(100 * best.wer, 2), "name": f"WER, {best.search}"}


def test_the_text_has_every_section_and_figure(folder: Path) -> None:
    _, body = card(folder)
    sections = [line.removeprefix("## ") for line in body.splitlines() if line.startswith("## ")]
    assert sections == [
        *("Use", "Figures", "Intended use", "Limits", "The model"),
        *("Training data", "How to reproduce", "Licence and attribution"),
    ]
    rows = [line for line in body.splitlines() if line.startswith("| test |")]
    assert len(rows) == 3 and any("| joint+ngram, beam 3 |" in row for row in rows)
    assert "6 utterances, 11 words, 3 speakers" in body
    assert "asr transcribe speech.flac --model someone/tiny-asr" in body
    assert "a CTC head and an attention decoder of 2 blocks, over 6 characters" in body
    assert "Without options it uses `joint` search with beam 3 and the n-gram model `words.ngram`" in body


def test_the_commands_of_the_card_are_ones_that_exist(compose: Any) -> None:
    for command in compose("release", "model=a", "output=b").card.reproduce:
        python, script, *arguments = shlex.split(command)
        assert python == "python" and (launching.CONF.parent / script).is_file()
        compose(Path(script).stem, *arguments)


def test_a_model_without_decoder_figures_and_language_model_has_a_shorter_card(
    tmp_path: Path, compose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tmp_path / "model", num_decoder_layers=0)
    release.run(compose("release", f"model={tmp_path / 'model'}", f"output={tmp_path / 'out'}", "precision=float32"))
    front, body = card(tmp_path / "out")
    assert "model-index" not in front
    assert "## Figures" not in body and "attention decoder of" not in body
    assert "a CTC head, over 6 characters" in body and "Without options it uses greedy search;" in body
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES - {"results.json", "words.ngram"}
    assert checkpoint.load_weights(tmp_path / "out")["ctc.weight"].dtype == torch.float32
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == sorted(FILES - {"results.json", "words.ngram"})
    assert lines[-1] == f"asr transcribe speech.flac --model {tmp_path / 'out'}"


# Misuse


def make_foreign(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "letter.txt").touch()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=run"], "output is run, which holds the model itself; name another folder"),
        (["output=run/model"], "output is run/model, which holds the model itself; name another folder"),
        (["output=out"], "out holds something that is no model; name another folder, or remove it"),
        (
            ["output=new", "mode=joint"],
            "run/model/decoding.json holds nothing of joint; tune it with recipes/tune_decoding.py, or set mode=",
        ),
        (
            ["output=new", "mode=joint", "ngram=lm.arpa"],
            "run/model/decoding.json holds nothing of joint+ngram; tune it with recipes/tune_decoding.py, or set mode=",
        ),
        (["output=new", "results=[run]"], "run: no results.json below it; recipes/evaluate.py writes it"),
        (["output=new", "ngram=lm.ngram"], "lm.ngram: no such language model; name an ARPA file or a compact one"),
    ],
)
def test_misuse_is_named_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compose: Any,
    tiny_folder: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "run/model")
    make_foreign(tmp_path)
    with pytest.raises((ValueError, OSError)) as caught:
        release.run(compose("release", "model=run", *arguments))
    assert str(caught.value).startswith(message)
    assert not Path("new").exists() and Path("out/letter.txt").exists() and Path("run/model/config.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mode=loud", "decoding.mode is 'loud'; choose one of greedy"),
        ("beam_size=0", "decoding.beam_size is 0; it must be at least 1"),
        ("precision=int4", "precision is 'int4'; choose one of float16, bfloat16, float32, int8"),
    ],
)
def test_settings_out_of_range_are_named(compose: Any, override: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        compose("release", "model=a", "output=b", override)


def test_the_script_tells_of_misuse_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, release.__file__, "model=none", "output=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: none: no such model; give a model folder or the folder of a finished run\n"
    assert list(tmp_path.iterdir()) == []
