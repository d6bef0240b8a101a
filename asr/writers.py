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


WRITERS: dict[str, Callable[[Transcript], str]] = {"txt": to_text, "json": to_json}
