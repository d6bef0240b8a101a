"""Transcripts as files: plain text and JSON."""

import json
from collections.abc import Callable

from asr.transcript import Transcript


def to_text(transcript: Transcript) -> str:
    """The words alone, one line."""
    return transcript.text + "\n"


def to_json(transcript: Transcript) -> str:
    """Everything, as one JSON object."""
    return json.dumps(transcript.to_dict(), ensure_ascii=False, indent=2) + "\n"


def to_text_line(transcript: Transcript) -> str:
    """The name of the audio and the words, one line."""
    return f"{transcript.audio}: {transcript.text}\n"


def to_json_line(transcript: Transcript) -> str:
    """Everything, as one JSON object on one line (JSON Lines)."""
    return json.dumps(transcript.to_dict(), ensure_ascii=False) + "\n"


# What a file holds, and what stands for one of several files on standard output.
WRITERS: dict[str, Callable[[Transcript], str]] = {"txt": to_text, "json": to_json}
LINE_WRITERS: dict[str, Callable[[Transcript], str]] = {"txt": to_text_line, "json": to_json_line}
