"""The recipe that trains n-gram models, from text to an ARPA file that can be read again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import launching
import pytest
import train_ngram

from asr.decoding.arpa import read_arpa

TEXT = "the cat sat on the mat\nThe dog sat on the cat.\nA dog and a cat\n" * 4


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, train_ngram.__file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_texts_become_an_arpa_file_and_a_table_of_figures(tmp_path, compose, capsys, monkeypatch):
    (tmp_path / "books.txt").write_text(TEXT)
    utterance = {"id": "1", "audio": "1.wav", "duration_s": 1.0, "text": "the cat sat on a bird", "speaker": ""}
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(utterance | {"text": f"the {name} sat"}) + "\n")
    arguments = ["texts=[books.txt,train.jsonl]", "output=out/lm.arpa.gz", "order=3", "prune=1e-7"]
    monkeypatch.chdir(tmp_path)
    train_ngram.run(compose("train_ngram", *arguments, "valid=[valid.jsonl]"))
    out = capsys.readouterr().out.splitlines()
    tables = read_arpa(tmp_path / "out" / "lm.arpa.gz")
    assert [line.split()[:2] for line in out[:4]] == [
        ["order", "n-grams"],
        *([str(order), str(len(ngrams))] for order, ngrams in enumerate(tables.tables, start=1)),
    ]
    assert out[4] == "13 sentences, 71 words, 0.00 % of them unknown"
    assert out[5].split() == ["valid", "perplexity", "unknown", "words"]
    assert out[6].split()[0] == "valid.jsonl"
    assert out[6].split()[2:] == ["33.33", "%", "3"]
    assert out[7].startswith("out/lm.arpa.gz: 0.0 MB")


def test_rare_words_and_n_grams_are_left_out(tmp_path, compose, monkeypatch):
    (tmp_path / "books.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    limits = ["vocab_size=3", "cutoffs=[4]", "order=2", "discount=0.5"]
    train_ngram.run(compose("train_ngram", "texts=[books.txt]", "output=lm.arpa", *limits))
    tables = read_arpa(tmp_path / "lm.arpa")
    assert sorted(tables.words) == ["</s>", "<s>", "<unk>", "a", "cat", "the"]
    assert not (tmp_path / ".hydra").exists()


def test_a_fault_of_the_user_is_one_line_and_exit_code_1(tmp_path):
    done = run(tmp_path, "texts=[none.txt]", "output=lm.arpa")
    assert done.returncode == 1
    assert done.stderr.startswith("error: none.txt: no such text")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("order=0", "order is 0; it must be at least 1"),
        ("vocab_size=0", "vocab_size is 0; it must be at least 1"),
        ("texts=[]", "texts is empty; name at least one text or manifest"),
        ("order=four", "Value 'four' of type 'str' could not be converted to Integer"),
    ],
)
def test_misuse_is_named_in_one_line(compose, override, message):
    with pytest.raises((launching.HydraException, launching.OmegaConfBaseException, ValueError)) as misuse:
        compose("train_ngram", "texts=[a.txt]", "output=lm.arpa", override)
    assert message in launching._message(misuse.value)
