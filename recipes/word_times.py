"""Measures the times of words on speech whose times are known: python recipes/word_times.py model=runs/synthetic"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, islice

import torch
from launching import launch
from schema import WordTimesRecipe
from torch import Tensor

from asr import checkpoint
from asr.alignment import align_waveform
from asr.audio import resample
from asr.data import espeak, synthetic

Utterance = tuple[Tensor, str, list[float]]


def spoken(recipe: WordTimesRecipe) -> Iterator[Utterance]:
    """Joins words, spoken one by one, to waveforms (S,) of 16 kHz; with their text and the starts of words in s."""
    gap = torch.zeros(round(recipe.word_gap_ms * espeak.SAMPLE_RATE / 1000))
    with espeak.Synthesizer() as voice:
        for plan in islice(synthetic.plans("test", seed=recipe.seed), recipe.num_utterances):
            plans = [replace(plan, text=text) for text in plan.text.split()]
            words = [synthetic.speak(voice, each, word_gap_ms=1) for each in plans]  # with gaps, words are cut to sound
            ends = accumulate(len(word) + len(gap) for word in words[:-1])
            starts_s = [plan.silence_before_s + end / espeak.SAMPLE_RATE for end in (0, *ends)]
            speech = torch.cat([part for word in words for part in (word, gap)])
            yield synthetic.finish(speech, plan).float(), plan.text, starts_s


def start_errors(loaded: checkpoint.LoadedModel, utterances: Iterable[Utterance]) -> Tensor:
    """How much too late the model says that each word starts, in seconds, (N,); the text is given to it."""
    errors = []
    for waveform, text, starts_s in utterances:
        waveform = resample(waveform, from_rate=synthetic.SAMPLE_RATE, to_rate=loaded.sample_rate)
        words = align_waveform(loaded, waveform, text).words
        errors += [word.start_s - start_s for word, start_s in zip(words, starts_s, strict=True)]
    return torch.tensor(errors, dtype=torch.float64)


def run(recipe: WordTimesRecipe) -> None:
    """Prints the median and the 90th percentile of the errors' sizes, and whether they tend to one side."""
    errors_ms = 1000 * start_errors(checkpoint.load(recipe.model), spoken(recipe))
    median, most = errors_ms.abs().quantile(torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
    print(f"{len(errors_ms)} words start {median:.0f} ms off in the median, {most:.0f} ms at the 90th percentile;")
    print(f"the median with its sign is {errors_ms.median():+.0f} ms, where + is late")


if __name__ == "__main__":
    launch("word_times", run)
