"""What recognition gives to people: text with words, times and confidences."""

# T' encoder frames, V vocabulary

from dataclasses import asdict, dataclass, field
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
class Token:
    """One token in readable form; times in seconds, the confidence is its mean CTC probability, in [0, 1]."""

    token: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of audio that was recognised as one.

    Attributes:
        start_s: In seconds from the beginning of the audio.
        end_s: Likewise.
        text: Its words.
        confidence: Mean confidence of the words, in [0, 1].
        words: In order of time.
        tokens: What the words are made of.
        scores: What the search ranked it by, `total`, and the unweighted parts by name, natural logarithms; empty for
            a text that was given and not searched.
    """

    start_s: float
    end_s: float
    text: str
    confidence: float
    words: list[Word]
    tokens: list[Token] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)


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
    best = recognition.best
    spans = align(recognition.log_probs, best.tokens)
    confidences = calibration.confidences(word_evidence(recognition.hypotheses, spans, tokenizer))
    tokens = [
        Token(
            token=tokenizer.tokens[token],
            start_s=round(start_s + span.start * frame_s, 3),
            end_s=round(min(end_s, start_s + span.end * frame_s), 3),
            confidence=round(min(1.0, span.confidence), 4),
        )
        for token, span in zip(best.tokens, spans, strict=True)
    ]
    texts = tokenizer.decode(best.tokens).split()
    words = [
        Word(
            word=text,
            start_s=tokens[positions[0]].start_s,
            end_s=tokens[positions[-1]].end_s,
            confidence=round(confidence, 4),
        )
        for positions, text, confidence in zip(tokenizer.words(best.tokens), texts, confidences, strict=True)
    ]
    scores = {"total": best.score, **best.parts} if best.parts else {}
    return Segment(
        start_s=round(start_s, 3),
        end_s=round(end_s, 3),
        text=" ".join(word.word for word in words),
        confidence=mean_confidence(words),
        words=words,
        tokens=tokens,
        scores={name: round(score, 4) for name, score in scores.items()},
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
