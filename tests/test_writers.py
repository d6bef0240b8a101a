"""Every format, read back by a strict parser, and how words become subtitles."""

import json
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.transcript import Segment, Transcript, Word, make_transcript
from asr.writers import FORMATS, to_ctm, to_json, to_json_line, to_srt, to_text, to_text_line, to_textgrid, to_vtt


def make_words(*words: tuple[str, float, float]) -> list[Word]:
    return [Word(word=text, start_s=start, end_s=end, confidence=0.75) for text, start, end in words]


def make(words: list[Word], *, duration_s: float, audio: str = "talks/a b.flac") -> Transcript:
    """A transcript of one segment."""
    text = " ".join(word.word for word in words)
    segment = Segment(start_s=0.0, end_s=duration_s, text=text, confidence=1.0, words=words)
    return make_transcript(audio, duration_s=duration_s, segments=[segment])


def spoken(text: str, *, word_s: float = 0.3, pause_s: float = 0.1, start_s: float = 0.0) -> list[Word]:
    """Words that take the same time each, with the same pause between; a bar in the text is a pause of 0.4 s more."""
    words: list[Word] = []
    for word in text.split():
        if word == "|":
            start_s += 0.4
            continue
        words += make_words((word, round(start_s, 3), round(start_s + word_s, 3)))
        start_s += word_s + pause_s
    return words


SHORT = make(make_words(("hello", 0.2, 0.52), ("world", 0.6, 1.0)), duration_s=1.5)
NOTHING = make([], duration_s=2.0)


# Strict readers


@dataclass(frozen=True)
class Cue:
    start_s: float
    end_s: float
    lines: list[str]


def seconds(clock: str, *, point: str) -> float:
    match = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(point)}(\d{{3}})", clock)
    assert match, clock
    hours, minutes, whole, thousandths = map(int, match.groups())
    return hours * 3600 + minutes * 60 + whole + thousandths / 1000


def read_cues(blocks: list[str], *, point: str) -> list[Cue]:
    """Cues of two lines at most, in order, without overlap."""
    cues = []
    for block in blocks:
        times, *lines = block.split("\n")
        start, end = times.split(" --> ")
        cues.append(Cue(seconds(start, point=point), seconds(end, point=point), lines))
        assert lines and all(line.strip() == line != "" for line in lines)
    edges = [edge for cue in cues for edge in (cue.start_s, cue.end_s)]
    assert edges == sorted(edges)
    assert all(cue.start_s < cue.end_s for cue in cues)
    return cues


def read_srt(content: str) -> list[Cue]:
    if not content:
        return []
    assert content.endswith("\n") and not content.endswith("\n\n")
    numbers, blocks = zip(*(block.split("\n", 1) for block in content.removesuffix("\n").split("\n\n")), strict=True)
    assert numbers == tuple(map(str, range(1, len(numbers) + 1)))
    return read_cues(list(blocks), point=",")


def read_vtt(content: str) -> list[Cue]:
    header, *blocks = content.removesuffix("\n").split("\n\n")
    assert header == "WEBVTT" and content.endswith("\n")
    for block in blocks:
        assert re.fullmatch(r"(?:[^&<>]|&amp;|&lt;|&gt;)*", block.split("\n", 1)[1])
    return read_cues(blocks, point=".")


def read_textgrid(content: str) -> dict[str, list[tuple[float, float, str]]]:
    """Tiers of Praat's long format; their intervals cover all the time without gaps or overlaps."""
    lines = iter(content.splitlines())

    def value(key: str) -> str:
        line = next(lines).strip()
        assert line.startswith(f"{key} = "), (key, line)
        return line.removeprefix(f"{key} = ")

    def text(key: str) -> str:
        match = re.fullmatch(r'"((?:[^"]|"")*)"', value(key))
        assert match
        return match[1].replace('""', '"')

    assert (text("File type"), text("Object class"), next(lines)) == ("ooTextFile", "TextGrid", "")
    assert float(value("xmin")) == 0
    end = float(value("xmax"))
    assert next(lines) == "tiers? <exists>"
    tiers = {}
    num_tiers = int(value("size"))
    assert next(lines) == "item []:"
    for number in range(1, num_tiers + 1):
        assert next(lines).strip() == f"item [{number}]:"
        assert text("class") == "IntervalTier"
        name = text("name")
        assert (float(value("xmin")), float(value("xmax"))) == (0, end)
        intervals = []
        for place in range(1, int(value("intervals: size")) + 1):
            assert next(lines).strip() == f"intervals [{place}]:"
            intervals.append((float(value("xmin")), float(value("xmax")), text("text")))
        starts, ends, _ = zip(*intervals, strict=True)
        assert (0.0, *ends) == (*starts, end)
        assert all(start < stop for start, stop in zip(starts, ends, strict=True))
        tiers[name] = intervals
    assert list(lines) == []
    return tiers


# Text, JSON, CTM


def test_text_is_the_words_and_json_is_everything_on_one_line_or_many() -> None:
    assert to_text(SHORT) == "hello world\n"
    assert to_text_line(SHORT) == "talks/a b.flac: hello world\n"
    assert json.loads(to_json(SHORT)) == json.loads(to_json_line(SHORT)) == SHORT.to_dict()
    assert to_json_line(SHORT).count("\n") == 1 < to_json(SHORT).count("\n")


def test_ctm_has_six_fields_a_word_whatever_the_file_is_called() -> None:
    assert to_ctm(SHORT) == "a_b 1 0.200 0.320 hello 0.7500\na_b 1 0.600 0.400 world 0.7500\n"
    assert to_ctm(make(spoken("yes"), duration_s=1.0, audio="a.b.flac")).startswith("a.b 1 0.000 0.300 yes ")
    assert to_ctm(NOTHING) == ""


# Subtitles


def test_srt_and_vtt_to_the_letter() -> None:
    assert to_srt(SHORT) == "1\n00:00:00,200 --> 00:00:01,200\nhello world\n"
    words = [*spoken("one"), *spoken("two", start_s=3723.5)]
    assert to_vtt(make(words, duration_s=4000.0)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\none\n\n01:02:03.500 --> 01:02:04.500\ntwo\n"
    )


def test_nothing_said_is_a_file_without_cues() -> None:
    assert to_srt(NOTHING) == ""
    assert to_vtt(NOTHING) == "WEBVTT\n"


def test_markup_is_escaped_where_the_format_has_it() -> None:
    transcript = make(spoken("r&b <i> -->"), duration_s=2.0)
    assert "\nr&amp;b &lt;i&gt; --&gt;\n" in to_vtt(transcript)
    assert "\nr&b <i> -->\n" in to_srt(transcript)


def test_a_long_pause_ends_a_cue_and_a_cue_stays_until_the_next_one_or_a_second() -> None:
    words = [*spoken("a b"), *spoken("c", start_s=1.7), *spoken("d", start_s=9.0)]
    cues = read_srt(to_srt(make(words, duration_s=9.5)))
    assert cues == [Cue(0.0, 1.0, ["a b"]), Cue(1.7, 2.7, ["c"]), Cue(9.0, 9.5, ["d"])]


def test_long_speech_is_broken_at_its_longest_pauses() -> None:
    phrases = ["it is a small rainbow that we see in the air today", "and it has the shape of a long round arch"]
    for text in (" | ".join(phrases), " ".join(phrases)):
        cues = read_srt(to_srt(make(spoken(text, word_s=0.2), duration_s=20.0)))
        found = [" ".join(cue.lines) for cue in cues]
        assert " ".join(found) == " ".join(phrases)
        # Without the pause the first cue takes what it can.
        assert (found == phrases) == ("|" in text)
        assert len(found) == 2


def test_two_lines_are_about_even() -> None:
    (cue,) = read_srt(to_srt(make(spoken("a rainbow is a division of white light into colors"), duration_s=9.0)))
    assert cue.lines == ["a rainbow is a division", "of white light into colors"]


def test_slow_speech_has_cues_of_seven_seconds_at_most() -> None:
    cues = read_srt(to_srt(make(spoken("a b c d e f g h i j", word_s=1.5, pause_s=0.5), duration_s=20.0)))
    assert max(cue.end_s - cue.start_s for cue in cues) <= 7
    assert len(cues) <= 5


def test_a_word_longer_than_a_line_is_broken() -> None:
    cues = read_srt(to_srt(make(spoken(f"short {'字' * 100} short"), duration_s=3.0)))
    assert [list(map(len, cue.lines)) for cue in cues] == [[5], [42, 42, 16], [5]]


words_of_any_kind = st.lists(
    st.tuples(
        st.text(alphabet="ab&<>\"'é字", min_size=1, max_size=30), st.sampled_from([0, 40, 320, 3000]),
        st.sampled_from([0, 40, 999, 1000, 8000]),
    ),
    max_size=60,
)  # fmt: skip


def make_any(drawn: list[tuple[str, int, int]]) -> Transcript:
    """Words of drawn lengths with drawn pauses before, none of them tidy."""
    words, time_ms = [], 0
    for text, length_ms, pause_ms in drawn:
        start_ms = time_ms + pause_ms
        time_ms = start_ms + length_ms
        words += make_words((text, start_ms / 1000, time_ms / 1000))
    return make(words, duration_s=time_ms / 1000)


@given(words_of_any_kind)
def test_subtitles_of_any_words_keep_all_of_them_and_the_rules(drawn: list[tuple[str, int, int]]) -> None:
    transcript = make_any(drawn)
    cues = read_srt(to_srt(transcript))
    assert " ".join(line for cue in cues for line in cue.lines) == transcript.text
    for cue in cues:
        assert len(cue.lines) <= 2 and max(map(len, cue.lines)) <= 42
        assert cue.end_s - cue.start_s <= 7
    times = [(cue.start_s, cue.end_s) for cue in cues]
    assert [(cue.start_s, cue.end_s) for cue in read_vtt(to_vtt(transcript))] == times


# TextGrid


def test_textgrid_has_words_pauses_and_segments() -> None:
    tiers = read_textgrid(to_textgrid(SHORT))
    assert tiers == {
        "words": [(0, 0.2, ""), (0.2, 0.52, "hello"), (0.52, 0.6, ""), (0.6, 1.0, "world"), (1.0, 1.5, "")],
        "segments": [(0, 1.5, "hello world")],
    }
    assert read_textgrid(to_textgrid(NOTHING)) == {"words": [(0, 2, "")], "segments": [(0, 2, "")]}


def test_quotation_marks_are_doubled() -> None:
    transcript = make(make_words(('5"', 0.0, 1.0)), duration_s=1.0)
    assert 'text = "5"""\n' in to_textgrid(transcript)
    assert read_textgrid(to_textgrid(transcript))["words"] == [(0, 1, '5"')]


@pytest.mark.parametrize("duration_s", [0.0, 0.001, 1.0])
def test_a_word_without_length_still_has_an_interval(duration_s: float) -> None:
    transcript = make(make_words(("a", duration_s, duration_s), ("b", duration_s, duration_s)), duration_s=duration_s)
    tiers = read_textgrid(to_textgrid(transcript))
    assert [text for *_, text in tiers["words"] if text] == ["a", "b"]


@given(words_of_any_kind)
def test_textgrids_of_any_words_keep_all_of_them(drawn: list[tuple[str, int, int]]) -> None:
    transcript = make_any(drawn)
    tiers = read_textgrid(to_textgrid(transcript))
    assert [text for *_, text in tiers["words"] if text] == [text for text, *_ in drawn]
    assert list(tiers) == ["words", "segments"]


# The table


def test_every_format_has_an_ending_of_its_own_and_writes_whole_lines() -> None:
    endings = [each.suffix for each in FORMATS.values()]
    assert endings == [".txt", ".json", ".srt", ".vtt", ".ctm", ".TextGrid"]
    for each in FORMATS.values():
        assert each.write(SHORT).endswith("\n")
    assert [name for name, each in FORMATS.items() if each.write_entry] == ["txt", "json", "ctm"]
