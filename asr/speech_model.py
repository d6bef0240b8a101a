"""The door for Python: a model by name or path, and its transcripts.

import asr
asr.load_model().transcribe("speech.flac").text
"""

from pathlib import Path
from typing import BinaryIO

from asr import checkpoint, hub
from asr.alignment import align_file
from asr.checkpoint import LoadedModel, ModelConfig
from asr.devices import pick_device
from asr.garbage import keep_few_kernels
from asr.recognition import SearchBuilder
from asr.search_choice import SearchOptions, choose_search
from asr.tokenizer import Tokenizer
from asr.transcriber import Transcriber
from asr.transcript import Transcript


def load_model(name: str | Path | None = None, *, device: str = "auto") -> "SpeechModel":
    """Loads a model that transcribes speech.

    Args:
        name: A model folder or run folder; or OWNER/NAME on the hub; None for the model that came with this package.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If a file of it is damaged or of a newer format, or there is no such device.
    """
    keep_few_kernels()
    return SpeechModel(checkpoint.load(hub.locate(name), device=pick_device(device)))


class SpeechModel:
    """A recogniser that is ready for use; what a search needs is loaded the first time, and kept.

    Args:
        loaded: From `asr.checkpoint.load`.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._builder = SearchBuilder(loaded)
        self._transcribers: dict[SearchOptions, Transcriber] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns token ids into text."""
        return self.loaded.tokenizer

    @property
    def config(self) -> ModelConfig:
        """What shaped the model."""
        return self.loaded.config

    def transcribe(
        self,
        source: str | Path | BinaryIO,
        *,
        decoding: str | None = None,
        beam_size: int | None = None,
        lm: str | Path | None = None,
        hotwords: str | Path | None = None,
        hotword_language: str | None = None,
        speller: str | Path | None = None,
    ) -> Transcript:
        """Transcribes one audio file, or an open stream of one.

        Args:
            source: Any audio that soundfile reads, of any rate, length and number of channels.
            decoding: `greedy`, `prefix_beam`, `attention`, `joint`, `rescore`, `lexicon` or `spell`; by default what
                the model proposes.
            beam_size: Of a beam search; by default what the model proposes, else 10.
            lm: A file of n-grams or the folder of a neural language model; `none` leaves out the model's own.
            hotwords: A file of words and phrases to expect, one a line.
            hotword_language: The voice of espeak-ng that says those which a lexicon lacks; by default "en-us".
            speller: The folder of a speller that was trained for this model; `decoding` is `spell` then.

        Raises:
            AudioError: If the audio cannot be read; file and reason are named.
            FileNotFoundError: If the language model, the speller or the file of hotwords is missing.
            ValueError: If the search does not fit the model.
        """
        options = SearchOptions(
            mode=decoding,
            beam_size=beam_size,
            lms=() if lm is None else (Path(lm),),
            hotwords=None if hotwords is None else Path(hotwords),
            hotword_language=hotword_language,
            speller=None if speller is None else Path(speller),
        )
        if options not in self._transcribers:
            if options.hotwords:  # one list at a time: each has tables of its own
                self._transcribers = {each: own for each, own in self._transcribers.items() if not each.hotwords}
            config, tuned = choose_search(self.loaded.path, options)
            self._transcribers[options] = Transcriber(self.loaded, decoding=config, tuned=tuned, builder=self._builder)
        return self._transcribers[options](Path(source) if isinstance(source, str) else source)

    def align(self, source: str | Path, text: str) -> Transcript:
        """Finds when each word of a known text is said.

        Args:
            source: The recording, of any length.
            text: All that is said in it.

        Raises:
            AudioError: If the audio cannot be read.
            ValueError: If the text does not fit the audio or the tokenizer.
        """
        return align_file(self.loaded, Path(source), text)
