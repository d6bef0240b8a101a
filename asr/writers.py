"""Transcripts as files: plain text, JSON, subtitles (SubRip, WebVTT), NIST's CTM and Praat's TextGrid.

This file imports nothing heavy, so that the command line can name the formats without loading torch.
"""

import html
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asr.transcript import Transcript, Word

# Subtitles: what fits on a screen and can be read in time, as broadcasters ask for.
_MAX_LINES, _MAX_COLUMNS = 2, 42
_MAX_CUE_MS, _MIN_CUE_MS = 7000, 1000
# A pause this long always ends a cue: what comes next must not be read before it is said.
_LONG_PAUSE_MS = 1000


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a transcript.

    Attributes:
        suffix: Ending of its files.
        write: Makes what a file holds.
        write_entry: Makes what stands for one of several recordings that follow each other in one stream; None for
            formats in which a stream holds one recording.
    """

    suffix: str
    write: Callable[["Transcript"], str]
    write_entry: Callable[["Transcript"], str] | None


def to_text(transcript: "Transcript") -> str:
    """The words alone, one line."""
    return transcript.text + "\n"


def to_text_line(transcript: "Transcript") -> str:
    """The name of the audio and the words, one line."""
    return f"{transcript.audio}: {transcript.text}\n"


def to_json(transcript: "Transcript") -> str:
    """Everything, as one JSON object."""
    return json.dumps(transcript.to_dict(), ensure_ascii=False, indent=2) + "\n"


def to_json_line(transcript: "Transcript") -> str:
    """Everything, as one JSON object on one line (JSON Lines)."""
    return json.dumps(transcript.to_dict(), ensure_ascii=False) + "\n"


def to_srt(transcript: "Transcript") -> str:
    """SubRip subtitles: numbered cues of at most two lines."""
    cues = [
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{cue.text}\n"
        for number, cue in enumerate(_make_cues(transcript), start=1)
    ]
    return "\n".join(cues)


def to_vtt(transcript: "Transcript") -> str:
    """WebVTT subtitles (W3C): the cues of `to_srt`; what could be taken for markup is escaped."""
    cues = [
        f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in _make_cues(transcript)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def to_ctm(transcript: "Transcript") -> str:
    """NIST's time-marked conversation: `file channel start duration word confidence`, one line a word.

    The file is the audio's name without folder and ending, the channel is 1, times are seconds.
    """
    file = re.sub(r"\s", "_", Path(transcript.audio).stem)  # white space separates the fields
    return "".join(
        f"{file} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {word.word} {word.confidence:.4f}\n"
        for word in _words(transcript)
    )


def to_textgrid(transcript: "Transcript") -> str:
    """Praat's TextGrid, long format: a tier of words and one of segments, each covering all of the audio.

    https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html
    """
    words = (_Span(_ms(word.start_s), _ms(word.end_s), word.word) for word in _words(transcript))
    segments = (_Span(_ms(each.start_s), _ms(each.end_s), each.text) for each in transcript.segments)
    tiers = {"words": _in_order(words), "segments": _in_order(segments)}
    # An interval needs a length, which may reach a millisecond behind the end of the audio.
    end_ms = max(1, _ms(transcript.duration_s), *(spans[-1].end_ms for spans in tiers.values() if spans))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        f"xmin = {_seconds(0)}",
        f"xmax = {_seconds(end_ms)}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, spans) in enumerate(tiers.items(), start=1):
        lines.append(f"    item [{number}]:")
        lines += [f"        {line}" for line in _tier_lines(name, _with_pauses(spans, end_ms))]
    return "\n".join(lines) + "\n"


# In the order of `asr transcribe --help`; the first is the default.
FORMATS: dict[str, Format] = {
    "txt": Format(".txt", to_text, to_text_line),
    "json": Format(".json", to_json, to_json_line),
    "srt": Format(".srt", to_srt, None),
    "vtt": Format(".vtt", to_vtt, None),
    "ctm": Format(".ctm", to_ctm, to_ctm),
    "textgrid": Format(".TextGrid", to_textgrid, None),
}


@dataclass(frozen=True, slots=True)
class _Span:
    """A text from one time to another; whole milliseconds, so that no sum is rounded."""

    start_ms: int
    end_ms: int
    text: str


def _words(transcript: "Transcript") -> "list[Word]":
    return [word for segment in transcript.segments for word in segment.words]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _in_order(spans: Iterable[_Span]) -> list[_Span]:
    """Lets every span begin where the one before ends, or later, and last a millisecond at least."""
    ordered: list[_Span] = []
    free_from = 0
    for span in spans:
        start = max(span.start_ms, free_from)
        free_from = max(span.end_ms, start + 1)
        ordered.append(_Span(start, free_from, span.text))
    return ordered


# Subtitles


def _make_cues(transcript: "Transcript") -> list[_Span]:
    """Groups words into cues that fit a screen, do not overlap, and stay long enough to be read where there is time."""
    words = _words(transcript)
    cues: list[_Span] = []
    start = 0
    while start < len(words):
        stop = _end_of_cue(words, start)
        lines = _break_lines([word.word for word in words[start:stop]])
        cues.append(_Span(_ms(words[start].start_s), _ms(words[stop - 1].end_s), "\n".join(lines)))
        start = stop
    cues = _in_order(cues)
    ends = [*(cue.start_ms for cue in cues[1:]), _ms(transcript.duration_s)]
    return [_stretched(cue, end) for cue, end in zip(cues, ends, strict=False)]


def _end_of_cue(words: "Sequence[Word]", start: int) -> int:
    """Where the cue that begins with a word ends: behind the last word that fits, or at an earlier pause.

    Where more words would have to fit, the longest pause in the second half is the better place: cues then follow the
    phrases.
    """
    stop = start + 1
    while stop < len(words) and _pause_ms(words, stop) < _LONG_PAUSE_MS and _fit(words[start : stop + 1]):
        stop += 1
    if stop == len(words) or _pause_ms(words, stop) >= _LONG_PAUSE_MS:
        return stop
    middle = start + (stop - start + 1) // 2
    return max(range(middle, stop + 1), key=lambda place: (_pause_ms(words, place), place))


def _pause_ms(words: "Sequence[Word]", place: int) -> int:
    """The pause before a word that has one before it."""
    return _ms(words[place].start_s) - _ms(words[place - 1].end_s)


def _fit(words: "Sequence[Word]") -> bool:
    """Whether several words make one cue."""
    lines = _break_lines([word.word for word in words])
    fits_screen = len(lines) <= _MAX_LINES and all(len(line) <= _MAX_COLUMNS for line in lines)
    return fits_screen and _ms(words[-1].end_s) - _ms(words[0].start_s) <= _MAX_CUE_MS


def _break_lines(words: list[str]) -> list[str]:
    """One line if it is short enough, else two as even as can be; a word longer than a line is broken by itself."""
    text = " ".join(words)
    if len(text) <= _MAX_COLUMNS:
        return [text]
    if len(words) == 1:
        return textwrap.wrap(text, _MAX_COLUMNS)
    pairs = ([" ".join(words[:place]), " ".join(words[place:])] for place in range(1, len(words)))
    return min(pairs, key=lambda pair: max(map(len, pair)))


def _stretched(cue: _Span, latest_ms: int) -> _Span:
    """A cue of a short word stays for a second, if that is not later than the next one or the end of the audio."""
    wanted = min(cue.start_ms + _MIN_CUE_MS, latest_ms)
    return _Span(cue.start_ms, max(cue.end_ms, wanted), cue.text)


def _clock(time_ms: int, point: str) -> str:
    """`hh:mm:ss,mmm`, with the sign that the format has before the milliseconds."""
    seconds, milliseconds = divmod(time_ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{milliseconds:03d}"


# TextGrid


def _with_pauses(spans: Sequence[_Span], end_ms: int) -> Iterator[_Span]:
    """Fills what lies between spans, before the first and behind the last, with spans of no text."""
    time = 0
    for span in [*spans, _Span(end_ms, end_ms, "")]:
        if span.start_ms > time:
            yield _Span(time, span.start_ms, "")
        if span.end_ms > span.start_ms:
            yield span
        time = span.end_ms


def _tier_lines(name: str, intervals: Iterable[_Span]) -> list[str]:
    """A tier of intervals that follow each other without gaps; quotation marks in a text are doubled."""
    spans = list(intervals)
    lines = [
        'class = "IntervalTier"',
        f'name = "{name}"',
        f"xmin = {_seconds(0)}",
        f"xmax = {_seconds(spans[-1].end_ms)}",
        f"intervals: size = {len(spans)}",
    ]
    for number, span in enumerate(spans, start=1):
        text = span.text.replace('"', '""')
        lines += [
            f"intervals [{number}]:",
            f"    xmin = {_seconds(span.start_ms)}",
            f"    xmax = {_seconds(span.end_ms)}",
            f'    text = "{text}"',
        ]
    return lines


def _seconds(time_ms: int) -> str:
    return f"{time_ms / 1000:.3f}"
