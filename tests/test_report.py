from asr.evaluate import compare, score
from asr.report import aligned_errors, aligned_rows, comparison_text, confusion_lists, speaker_table, summary_table

REFERENCES = {
    "utt-1": "the cat sat on the mat",
    "utt-2": "good morning",
    "utt-3": "",
    "utt-4": "turn the lights off",
    "utt-5": "日本 語",
}
HYPOTHESES = {
    "utt-1": "cat sits on the big mat",
    "utt-2": "good morning",
    "utt-3": "uh",
    "utt-4": "turn lights off",
    "utt-5": "日 語",
}
SPEAKERS = {"utt-1": "ann", "utt-2": "ann", "utt-3": "bob", "utt-4": "bob", "utt-5": "eve"}
SCORE = score(REFERENCES, HYPOTHESES, speakers=SPEAKERS)
ALIGNMENTS = {alignment.id: alignment for alignment in SCORE.alignments}


def test_aligned_rows() -> None:
    assert aligned_rows(ALIGNMENTS["utt-1"]).splitlines() == [
        "utt-1 (speaker ann): 3 errors in 6 words: 1 substituted, 1 deleted, 1 inserted",
        "REF: the cat sat  on the *** mat",
        "HYP: *** cat sits on the big mat",
        "EVA: D       S           I",
    ]


def test_aligned_rows_of_an_empty_reference() -> None:
    assert aligned_rows(ALIGNMENTS["utt-3"]).splitlines() == [
        "utt-3 (speaker bob): 1 error in 0 words: 1 inserted",
        "REF: **",
        "HYP: uh",
        "EVA: I",
    ]


def test_aligned_rows_of_a_correct_utterance_without_speaker() -> None:
    correct = score({"x": "yes"}, {"x": "yes"}, num_draws=1).alignments[0]
    assert aligned_rows(correct) == "x: 0 errors in 1 word\nREF: yes\nHYP: yes\nEVA:"


def test_wide_characters_and_accents_take_the_columns_that_they_take_in_a_terminal() -> None:
    assert aligned_rows(ALIGNMENTS["utt-5"]).splitlines()[1:] == ["REF: 日本 語", "HYP: 日   語", "EVA: S"]
    accents = score({"x": "x\u0302y a"}, {"x": "xy b"}, num_draws=1).alignments[0]
    assert aligned_rows(accents).splitlines()[1:] == ["REF: x\u0302y a", "HYP: xy b", "EVA: S  S"]


def test_long_utterances_are_wrapped() -> None:
    words = " ".join(f"word{index}" for index in range(20))
    alignment = score({"x": words}, {"x": words.replace("word7", "other")}, num_draws=1).alignments[0]
    title, *lines = aligned_rows(alignment, width=30).splitlines()
    assert title == "x: 1 error in 20 words: 1 substituted"
    assert all(len(line) <= 30 for line in lines)
    for name, text in (("REF: ", words), ("HYP: ", words.replace("word7", "other"))):
        assert " ".join(line.removeprefix(name) for line in lines if line.startswith(name)) == text
    marked = next(index for index, line in enumerate(lines) if line.startswith("EVA: ") and "S" in line)
    position = lines[marked].index("S")
    assert lines[marked - 2][position:].startswith("word7")
    assert lines[marked - 1][position:].startswith("other")


def test_a_word_wider_than_the_terminal_stands_alone() -> None:
    alignment = score({"x": "a " + "b" * 50 + " c"}, {"x": ""}, num_draws=1).alignments[0]
    rows = [line for line in aligned_rows(alignment, width=20).splitlines() if line.startswith("REF")]
    assert rows == ["REF: a", "REF: " + "b" * 50, "REF: c"]


def test_aligned_errors_begin_with_the_worst() -> None:
    blocks = aligned_errors(SCORE).split("\n\n")
    assert blocks[0] == "utterances with errors: 4 of 5, the worst first:"
    # Three errors, then one each: the shorter the reference, the worse.
    assert [block.split()[0] for block in blocks[1:]] == ["utt-1", "utt-3", "utt-5", "utt-4"]
    assert blocks[1] == aligned_rows(ALIGNMENTS["utt-1"])


def test_aligned_errors_can_be_limited() -> None:
    two = aligned_errors(SCORE, limit=2).split("\n\n")
    assert (two[0], len(two)) == ("utterances with errors: 4 of 5, the 2 worst:", 3)
    one = aligned_errors(SCORE, limit=1).split("\n\n")
    assert (one[0], len(one)) == ("utterances with errors: 4 of 5, the worst:", 2)
    assert aligned_errors(SCORE, limit=0) == "utterances with errors: 4 of 5"
    perfect = score(REFERENCES, REFERENCES, num_draws=1)
    assert aligned_errors(perfect) == "utterances with errors: 0 of 5"


def test_summary_table() -> None:
    perfect = score({"x": "a b", "y": "c"}, {"x": "a b", "y": "c"})
    lines = summary_table({"test": SCORE, "perfect": perfect}).splitlines()
    assert lines[0].split("  ")[-1].strip() == "words"
    assert "95 % interval" in lines[0]
    cells = [cell.strip() for cell in lines[1].split("  ") if cell.strip()]
    low, high = (f"{100 * bound:.2f}" for bound in SCORE.wer_ci95)
    assert SCORE.wer_ci95_by_speaker is not None
    speaker_low, speaker_high = (f"{100 * bound:.2f}" for bound in SCORE.wer_ci95_by_speaker)
    assert cells == [
        "test",
        "42.86 %",
        f"{low} – {high}",
        f"{speaker_low} – {speaker_high}",
        f"{100 * SCORE.cer:.2f} %",
        *("2", "2", "2"),
        "4 (80.00 %)",
        "5",
        "14",
    ]
    assert lines[2].split() == [
        "perfect",
        "0.00",
        "%",
        "0.00",
        "–",
        "0.00",
        "-",
        *["0.00", "%", "0", "0", "0", "0", "(0.00", "%)", "2", "3"],
    ]
    assert len({len(line) for line in lines}) == 1
    # Without any known speaker there is no such column.
    assert "by speaker" not in summary_table({"perfect": perfect})


def test_speaker_table() -> None:
    assert [line.split() for line in speaker_table(SCORE).splitlines()] == [
        ["speaker", "WER", "utterances", "words"],
        ["bob", "50.00", "%", "2", "4"],
        ["eve", "50.00", "%", "1", "2"],
        ["ann", "37.50", "%", "2", "8"],
    ]
    assert speaker_table(score({"x": "a"}, {"x": "a"}, num_draws=1)) == ""


def test_confusion_lists() -> None:
    assert confusion_lists(SCORE).splitlines() == [
        "substituted  sat → sits (1), 日本 → 日 (1)",
        "deleted      the (2)",
        "inserted     big (1), uh (1)",
    ]
    assert confusion_lists(SCORE, limit=1).splitlines()[0] == "substituted  sat → sits (1)"
    assert confusion_lists(score({"x": "a"}, {"x": "a"}, num_draws=1)) == ""


def test_comparison_text() -> None:
    by_utterance = comparison_text(compare(REFERENCES, HYPOTHESES, REFERENCES), name_a="old", name_b="new").splitlines()
    assert [line.split() for line in by_utterance[:4]] == [
        ["WER"],
        ["old", "42.86", "%"],
        ["new", "0.00", "%"],
        ["difference", "-42.86", "points"],
    ]
    assert by_utterance[4].startswith("drawing utterances: 95 % interval -")
    assert len(by_utterance) == 5
    comparison = compare(REFERENCES, HYPOTHESES, REFERENCES, speakers=SPEAKERS)
    by_speaker = comparison_text(comparison, name_a="old", name_b="new").splitlines()
    assert by_speaker[5].startswith("drawing speakers: 95 % interval -")
    assert by_speaker[5].endswith("p = 0.0002")
    same = comparison_text(compare(REFERENCES, HYPOTHESES, HYPOTHESES), name_a="old", name_b="new")
    assert same.endswith("interval +0.00 points to +0.00 points, p = 1.0000")
