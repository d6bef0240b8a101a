"""What recognition gives to people: text with words, times and confidences."""

# T' encoder frames, V vocabulary

from dataclasses import asdict, dataclass
from typing import Any

from asr.confidence import UNCALIBRATED, Calibration, word_evidence
from asr.decoding.hypothesis import align
from asr.decoding.search import Recognition
from asr.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word; times are seconds from the beginning of the audio, the confidence is in [0, 1]."""

    word: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of audio that was recognised as one; times in seconds, the confidence in [0, 1]."""

    start_s: float
    end_s: float
    text: str
    confidence: float
    words: list[Word]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """All that was said in one audio file.

    Attributes:
        audio: The file as it was named.
        duration_s: Its length in seconds.
        text: The words of all segments.
        confidence: Mean confidence of the words, in [0, 1]; 1 where there are none.
        segments: In order of time.
    """

    audio: str
    duration_s: float
    text: str
    confidence: float
    segments: list[Segment]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the transcript."""
        return asdict(self)


def make_segment(
    recognition: Recognition,
    tokenizer: Tokenizer,
    *,
    start_s: float,
    end_s: float,
    frame_s: float,
    calibration: Calibration = UNCALIBRATED,
) -> Segment:
    """Turns the best hypothesis of an utterance into words with times.

    Args:
        recognition: The result of the search.
        tokenizer: The model's.
        start_s: Where the utterance begins in its audio, in seconds.
        end_s: Where it ends.
        frame_s: Seconds from one encoder frame to the next.
        calibration: Turns what speaks for a word into its confidence; by default the geometric mean of the CTC
            probabilities of its tokens.
    """
    tokens = recognition.best.tokens
    spans = align(recognition.log_probs, tokens)
    confidences = calibration.confidences(word_evidence(recognition.hypotheses, spans, tokenizer))
    texts = tokenizer.decode(tokens).split()
    words = []
    for positions, text, confidence in zip(tokenizer.words(tokens), texts, confidences, strict=True):
        own = [spans[position] for position in positions]
        words.append(
            Word(
                word=text,
                start_s=round(start_s + own[0].start * frame_s, 3),
                end_s=round(min(end_s, start_s + own[-1].end * frame_s), 3),
                confidence=round(confidence, 4),
            )
        )
    return Segment(
        start_s=round(start_s, 3),
        end_s=round(end_s, 3),
        text=" ".join(word.word for word in words),
        confidence=mean_confidence(words),
        words=words,
    )


def make_transcript(audio: str, *, duration_s: float, segments: list[Segment]) -> Transcript:
    """Joins the segments of one file."""
    return Transcript(
        audio=audio,
        duration_s=round(duration_s, 3),
        text=" ".join(segment.text for segment in segments if segment.text),
        confidence=mean_confidence([word for segment in segments for word in segment.words]),
        segments=segments,
    )


def mean_confidence(words: list[Word]) -> float:
    """Mean confidence of the words; 1 where there are none, as no word can be wrong."""
    return round(sum(word.confidence for word in words) / len(words), 4) if words else 1.0
