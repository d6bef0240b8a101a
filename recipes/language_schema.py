"""What the recipes of words can be told: n-gram models, pronunciations, neural language models, spellers."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from asr.ngrams.training import NgramTrainingConfig
from asr.training.language import LanguageTrainingConfig
from asr.training.spelling import SpellerTrainingConfig
from asr.training.tracking import KINDS as TRACKERS


@dataclass(slots=True, kw_only=True)
class TrainNgramRecipe(NgramTrainingConfig):
    """`recipes/train_ngram.py`: texts to an n-gram model.

    Attributes:
        texts: Text files, one sentence a line, plain, .gz or .xz, and manifests; all words count alike.
        output: The ARPA file, plain, .gz or .xz by its ending.
        valid: Texts or manifests to measure the perplexity on.
    """

    texts: list[Path] = MISSING
    output: Path = MISSING
    valid: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        NgramTrainingConfig.__post_init__(self)  # slots=True makes the class anew; a bare super() would not find it
        if not self.texts:
            raise ValueError("texts is empty; name at least one text or manifest")


@dataclass(slots=True, kw_only=True)
class MakeLexiconRecipe:
    """`recipes/make_lexicon.py`: words to their pronunciations, by espeak-ng.

    Attributes:
        texts: Texts and manifests whose words are looked up.
        ngram: An n-gram model of words whose words are looked up too.
        output: The lexicon, plain or .xz by its ending.
        language: A voice of espeak-ng by its language code.
    """

    texts: list[Path] = field(default_factory=list)
    ngram: Path | None = None
    output: Path = MISSING
    language: str = "en-us"

    def __post_init__(self) -> None:
        if not self.texts and self.ngram is None:
            raise ValueError("there are no words to look up; set texts=[…], ngram=…, or both")
        if self.output.suffix == ".gz":
            raise ValueError(f"output is {self.output}; a lexicon is written plain or as .xz")


@dataclass(slots=True, kw_only=True)
class TrainLmRecipe(LanguageTrainingConfig):
    """`recipes/train_lm.py`: text to a language model and its perplexity.

    Its tokens are those of `recognizer`, of the model that `init_from` names, or `pieces` of its own: one is set.

    Attributes:
        name: Names the run and its folder, runs/NAME.
        recognizer: The model folder or run folder of a recogniser, whose tokens it takes, so that it can share in any
            beam search of that.
        pieces: In place of `recognizer`: this many tokens of its own (byte-pair encoding, learned from `texts`), fewer
            a word, so that it learns more in a time; it ranks what a first search found, of any recogniser.
        texts: What to learn from: text files (.gz and .xz too), manifests (.jsonl).
        valid: What to choose the model on.
        holdout_sentences: Where `valid` names nothing, so many sentences of `texts` are kept back for it.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.
        num_threads: Processor threads of the model; 0 takes all.
        tracking: `tensorboard`, `wandb` or `none`.
    """

    name: str = MISSING
    recognizer: Path | None = None
    pieces: int = 0
    texts: list[Path] = MISSING
    valid: list[Path] = field(default_factory=list)
    holdout_sentences: int = 2000
    device: str = "auto"
    num_threads: int = 0
    tracking: str = "tensorboard"

    def __post_init__(self) -> None:
        LanguageTrainingConfig.__post_init__(self)  # slots=True makes the class anew; a bare super() would not find it
        if self.pieces < 0:
            raise ValueError(f"pieces is {self.pieces}; it must not be negative")
        if sum([self.recognizer is not None, self.pieces > 0, self.init_from is not None]) != 1:
            raise ValueError(
                f"recognizer is {self.recognizer}, pieces is {self.pieces}, init_from is {self.init_from}; set one: "
                "recognizer=… for a model over that recogniser's tokens, pieces=4000 for one over pieces of words, to "
                "rank what was found, or init_from=… to go on from a model with its tokens"
            )
        if self.tracking not in TRACKERS:
            raise ValueError(f"tracking is {self.tracking!r}; choose one of {', '.join(TRACKERS)}")


@dataclass(slots=True, kw_only=True)
class TrainSpellerRecipe(SpellerTrainingConfig):
    """`recipes/train_speller.py`: text, and what a recogniser hears, to a speller and its word error rate.

    Its tokens are those of the language model that `init_from` names, or `pieces` of its own: one is set.

    Attributes:
        name: Names the run and its folder, runs/NAME.
        recognizer: The model folder or run folder of a recogniser that knows phones.
        lexicon: How the words of `texts` and `train` are spoken, the one that the recogniser was trained with.
        train: Manifests of utterances that tell what is heard of phones: those that the recogniser was trained on.
        texts: What to learn words from: text files (.gz and .xz too), manifests (.jsonl).
        valid: Manifests to choose the speller on.
        holdout_utterances: Where `valid` names nothing, so many utterances of `train` are kept back for it. The
            recogniser knows them, so their error rate is lower than that of new ones.
        pieces: This many tokens of its own (byte-pair encoding, learned from `texts`), in place of `init_from`.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.
        num_threads: Processor threads of the model; 0 takes all.
        tracking: `tensorboard`, `wandb` or `none`.
    """

    name: str = MISSING
    recognizer: Path = MISSING
    lexicon: Path = MISSING
    train: list[Path] = MISSING
    texts: list[Path] = MISSING
    valid: list[Path] = field(default_factory=list)
    holdout_utterances: int = 100
    pieces: int = 0
    device: str = "auto"
    num_threads: int = 0
    tracking: str = "tensorboard"

    def __post_init__(self) -> None:
        SpellerTrainingConfig.__post_init__(self)  # slots=True makes the class anew; a bare super() would not find it
        if self.pieces < 0:
            raise ValueError(f"pieces is {self.pieces}; it must not be negative")
        if not self.valid and self.holdout_utterances < 1:
            raise ValueError(
                f"holdout_utterances is {self.holdout_utterances} and valid names nothing; keep utterances back, or "
                "name manifests"
            )
        if (self.pieces > 0) == (self.init_from is not None):
            raise ValueError(
                f"pieces is {self.pieces}, init_from is {self.init_from}; set one: init_from=… for a decoder that "
                "starts from a language model, pieces=2000 for one that starts from nothing"
            )
        if self.tracking not in TRACKERS:
            raise ValueError(f"tracking is {self.tracking!r}; choose one of {', '.join(TRACKERS)}")
