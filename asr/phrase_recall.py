"""How well a recogniser finds words and phrases that matter more than others, and what becomes of the rest."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asr.evaluate import Alignment
from asr.text import normalize


@dataclass(frozen=True, slots=True)
class PhraseRecall:
    """What became of listed words and phrases.

    Attributes:
        spoken: How often any of them was said.
        found: How many of these the recogniser found, in the right utterance.
        false: How often it found one that was not said there.
    """

    spoken: int
    found: int
    false: int

    @property
    def recall(self) -> float | None:
        """Share of the spoken ones that was found; None where none was spoken."""
        return self.found / self.spoken if self.spoken else None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**asdict(self), "recall": self.recall}


def phrase_recall(references: Mapping[str, str], hypotheses: Mapping[str, str], phrases: Iterable[str]) -> PhraseRecall:
    """Counts whole-word occurrences of phrases, utterance by utterance; where in it they stand does not matter.

    Args:
        references: What was said, by utterance.
        hypotheses: What was recognised, of the same utterances.
        phrases: Words and phrases; all texts are normalised by `asr.text.normalize`.

    Raises:
        ValueError: If an utterance has no hypothesis.
    """
    missing = references.keys() - hypotheses.keys()
    if missing:
        raise ValueError(f"utterance {min(missing)} has no hypothesis; recognise it, or leave it out of the references")
    wanted = {normalize(phrase) for phrase in phrases} - {""}
    spoken = found = false = 0
    for key, reference in references.items():
        texts = f" {normalize(reference)} ", f" {normalize(hypotheses[key])} "
        for phrase in wanted:
            said, heard = (_count(text, phrase) for text in texts)
            spoken += said
            found += min(said, heard)
            false += max(0, heard - said)
    return PhraseRecall(spoken, found, false)


def wer_of_rest(alignments: Iterable[Alignment], phrases: Iterable[str]) -> float | None:
    """Word error rate of all words that no phrase has, which biasing may harm (the "U-WER" of Le et al. 2021).

    A substitution or deletion belongs to the word that was said, an insertion to the word that was heard.

    Args:
        alignments: Of `asr.evaluate.score`.
        phrases: Words and phrases; normalised as in `phrase_recall`.

    Returns:
        Errors of the rest per word of the rest that was said; None where none was.
    """
    listed = {word for phrase in phrases for word in normalize(phrase).split()}
    words = errors = 0
    for alignment in alignments:
        for said, heard in alignment.pairs:
            if (said or heard) not in listed:
                words += bool(said)
                errors += said != heard
    return errors / words if words else None


def _count(text: str, phrase: str) -> int:
    """Occurrences of a phrase between spaces, overlapping ones too."""
    padded = f" {phrase} "
    return sum(text.startswith(padded, place) for place in range(len(text)) if text[place] == " ")
