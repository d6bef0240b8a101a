"""What the recipes can be told: the dataclasses behind conf/."""

from dataclasses import dataclass, field
from pathlib import Path

import sweeps
from hydra.core.config_store import ConfigStore
from language_schema import MakeLexiconRecipe, TrainLmRecipe, TrainNgramRecipe, TrainSpellerRecipe
from model_card import CardConfig
from omegaconf import MISSING

from asr.audio import SegmentationConfig
from asr.data.corpora import CorpusConfig
from asr.data.disturbed import DisturbanceConfig
from asr.data.folder import FolderConfig
from asr.data.librispeech import LibriSpeechConfig
from asr.data.synthetic import SyntheticConfig
from asr.decoding.search import LEXICON_NEEDS, DecodingConfig
from asr.pseudo_labels import SelectionConfig
from asr.tokenizer import TokenizerConfig
from asr.training.run import TrainingConfig
from asr.training.tracking import KINDS as TRACKERS
from asr.variants import DefaultSearch, TunedSearch, read_tuned, variant_name, variants, with_weights


@dataclass(slots=True, kw_only=True)
class PrepareRecipe:
    """`recipes/prepare.py`: a corpus to manifests."""

    data: CorpusConfig = MISSING


@dataclass(slots=True, kw_only=True)
class TrainRecipe(TrainingConfig):
    """`recipes/train.py`: a corpus to a model and its scores.

    Attributes:
        name: Names the run and its folder, runs/NAME.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.
        num_threads: Processor threads of the model; 0 takes all.
        tracking: `tensorboard`, `wandb` or `none`.
        data: The corpus.
        tokenizer: What to train on its transcripts.
        decoding: How to search when the chosen model is evaluated.
    """

    name: str = MISSING
    device: str = "auto"
    num_threads: int = 0
    tracking: str = "tensorboard"
    data: CorpusConfig = MISSING
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        if self.tracking not in TRACKERS:
            raise ValueError(f"tracking is {self.tracking!r}; choose one of {', '.join(TRACKERS)}")

    def check_together(self) -> None:
        """Finds settings that are fine alone but not together, before anything is computed.

        Raises:
            ValueError: Naming the settings and the way out.
        """
        TrainingConfig.check_together(self)  # slots=True makes the class anew, which a bare super() does not survive
        if self.decoder.num_layers == 0 and self.decoding.mode not in ("greedy", "prefix_beam", "lexicon"):
            raise ValueError(
                f"decoding.mode is {self.decoding.mode!r}, but there is no decoder; take decoding=greedy or prefix_beam"
            )
        if self.decoding.mode == "spell":
            raise ValueError(
                "decoding.mode is 'spell', but a speller is trained for a recogniser that there is; take another mode, "
                "then recipes/train_speller.py, and evaluate both with recipes/evaluate.py decoding=spell"
            )
        if self.decoding.mode == "lexicon" and not (self.decoding.lexicon and self.decoding.lm.ngram):
            raise ValueError(LEXICON_NEEDS)
        if self.decoding.mode == "lexicon" and self.lexicon is None:
            raise ValueError(
                "decoding.mode is 'lexicon', but the model would know no phones; set lexicon= and loss.phone_weight"
            )


@dataclass(slots=True, kw_only=True)
class EvaluateRecipe:
    """`recipes/evaluate.py`: a model on test sets.

    Attributes:
        model: A model folder or a run folder.
        output: Each set's files go to a folder of its name under this.
        manifests: Manifests to evaluate on, in place of the test sets of `data`.
        device: As in training.
        num_threads: As in training.
        max_batch_s: Most seconds of audio of a batch.
        precision: What the encoder computes in, as in transcription; `float32` is the same on all machines.
        modes: Ways to search that are scored side by side from one encoder pass; by default the one of `decoding`.
        lms: Language models to try with each of them: `none`, `ngram`, `neural`, `ngram+neural`, whose files
            `decoding.lm` names; by default what `decoding.lm` names.
        tuned: What `recipes/tune_decoding.py` found, weights and calibrations of the ways that it tuned.
        listed_words: A file of words and phrases, one a line, whose recall is reported.
    """

    model: Path = MISSING
    output: Path = MISSING
    manifests: list[Path] = field(default_factory=list)
    device: str = "auto"
    num_threads: int = 0
    max_batch_s: float = 120.0
    precision: str = "float32"
    data: CorpusConfig | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    modes: list[str] = field(default_factory=list)
    lms: list[str] = field(default_factory=list)
    tuned: Path | None = None
    listed_words: Path | None = None

    def __post_init__(self) -> None:
        if self.data is None and not self.manifests:
            raise ValueError("name what to evaluate on: data=… for the test sets of a corpus, or manifests=[…]")

    def searches(self) -> dict[str, tuple[DecodingConfig, TunedSearch]]:
        """How to search, and what was tuned for it, by name.

        Raises:
            ValueError: If a mode or a language model is unknown or not named, or the file of what was tuned is broken.
        """
        tuned = read_tuned(self.tuned) if self.tuned else {}
        named = "+".join(name for name in ("ngram", "neural") if getattr(self.decoding.lm, name))
        found = variants(self.decoding, modes=self.modes or [self.decoding.mode], lms=self.lms or [named or "none"])
        untuned = [name for name, config in found.items() if name not in tuned and config.mode != "greedy"]
        if self.tuned and untuned:
            raise ValueError(f"{self.tuned} holds nothing of {untuned[0]}; tune it too, or leave tuned= out")
        own = {name: tuned.get(name, TunedSearch()) for name in found}
        return {name: (with_weights(config, own[name].weights), own[name]) for name, config in found.items()}


@dataclass(slots=True, kw_only=True)
class TuneRecipe:
    """`recipes/tune_decoding.py`: weights of a search from a development set.

    Attributes:
        model: A model folder or a run folder.
        manifest: The development set.
        output: The file that the weights go to; by default decoding.json beside the model's weights.
        modes: Ways to search.
        lms: Language models to try with each of them, as in evaluation.
        num_utterances: Take this many utterances, spread evenly over the set; 0 takes all.
        max_rounds: How often weights are fitted at most; with 0 they stay as `decoding` has them, and confidences alone
            are calibrated.
        seed: Of the trials.
        device: As in training.
        num_threads: As in training.
        max_batch_s: Most seconds of audio of a batch.
    """

    model: Path = MISSING
    manifest: Path = MISSING
    output: Path | None = None
    modes: list[str] = MISSING
    lms: list[str] = MISSING
    num_utterances: int = 0
    max_rounds: int = 3
    seed: int = 1
    device: str = "auto"
    num_threads: int = 0
    max_batch_s: float = 120.0
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        for name in ("num_utterances", "max_rounds", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


def tuned_for(decoding: DecodingConfig, path: Path | None) -> TunedSearch:
    """What a file holds for a way to search; the defaults without a file.

    Raises:
        ValueError: If the file is broken, or lacks this way to search.
    """
    found, name = read_tuned(path) if path else {}, variant_name(decoding)
    if path and name not in found:
        raise ValueError(f"{path} holds nothing of {name}; tune it too, or leave tuned= out")
    return found.get(name, TunedSearch())


@dataclass(slots=True, kw_only=True)
class TranscribeRecipe:
    """`recipes/transcribe.py`: audio files to transcripts.

    Attributes:
        model: A model folder or a run folder.
        inputs: Files and folders.
        output_dir: Where transcripts go; standard output where it is not given.
        format: One of `asr.writers.FORMATS`.
        device: As in training.
        num_threads: As in training.
        precision: What the encoder computes in: `float32`, `bfloat16` or `auto`, as for `asr transcribe`.
        tuned: What `recipes/tune_decoding.py` found; taken if it tuned this way to search.
    """

    model: Path = MISSING
    inputs: list[Path] = MISSING
    output_dir: Path | None = None
    format: str = "txt"
    device: str = "auto"
    num_threads: int = 0
    precision: str = "auto"
    tuned: Path | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)

    def tuned_search(self) -> TunedSearch:
        """What was tuned for this way to search.

        Raises:
            ValueError: If the file is broken.
        """
        return tuned_for(self.decoding, self.tuned)


@dataclass(slots=True, kw_only=True)
class AverageModelsRecipe:
    """`recipes/average_models.py`: the mean of the weights of several models.

    Attributes:
        models: Model folders and run folders, all of recognisers or all of language models, of like sizes and the same
            tokens.
        shares: The weight of each, above 0, in any unit; by default all are equal.
        output: A run folder to be; the model goes under its `model/`.
    """

    models: list[Path] = MISSING
    shares: list[float] = field(default_factory=list)
    output: Path = MISSING

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ValueError(f"models has {len(self.models)} entries; name at least two")
        if self.shares and len(self.shares) != len(self.models):
            raise ValueError(f"shares has {len(self.shares)} entries, but there are {len(self.models)} models")


@dataclass(slots=True, kw_only=True)
class PseudoLabelRecipe:
    """`recipes/pseudo_label.py`: audio without transcripts to a manifest that a student can train on.

    Attributes:
        model: The teacher, a model folder or a run folder.
        inputs: Manifests (.jsonl), whose texts take no part, audio files, and folders of them.
        output: The manifest of what is kept, with the teacher's words.
        selection: What is kept.
        exclude: Manifests of utterances that must not be trained on.
        tuned: What `recipes/tune_decoding.py` found for this way to search; confidences mean little without it.
        device: As in training.
        num_threads: As in training.
        max_batch_s: Most seconds of audio of a batch.
    """

    model: Path = MISSING
    inputs: list[Path] = MISSING
    output: Path = MISSING
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    exclude: list[Path] = field(default_factory=list)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    tuned: Path | None = None
    device: str = "auto"
    num_threads: int = 0
    max_batch_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError("inputs is empty; name at least one manifest, audio file or folder")
        if self.output.resolve() in {path.resolve() for path in [*self.inputs, *self.exclude]}:
            raise ValueError(f"output is {self.output}, which is read too and would be lost; name another file")

    def tuned_search(self) -> TunedSearch:
        """What was tuned for this way to search.

        Raises:
            ValueError: If the file is broken, or lacks this way to search.
        """
        return tuned_for(self.decoding, self.tuned)


@dataclass(slots=True, kw_only=True)
class PictureRecipe:
    """`recipes/picture.py`: one utterance through a model, drawn.

    Attributes:
        model: A model folder or a run folder.
        audio: A short audio file.
        output: The picture, .png, .svg or .pdf.
        dpi: Dots an inch.
    """

    model: Path = MISSING
    audio: Path = MISSING
    output: Path = MISSING
    dpi: int = 100
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(slots=True, kw_only=True)
class WordTimesRecipe:
    """`recipes/word_times.py`: how well a model tells when words start.

    Attributes:
        model: A model folder or a run folder.
        num_utterances: Sentences of the embedded corpus, by its test voices.
        word_gap_ms: Pause between two words.
        seed: Draws sentences and voices.
    """

    model: Path = MISSING
    num_utterances: int = 100
    word_gap_ms: int = 200
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("num_utterances", "word_gap_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(slots=True, kw_only=True)
class CompareRunsRecipe:
    """`recipes/compare_runs.py`: what differs between training runs, what it brings, and how they learned.

    Attributes:
        runs: Run folders, and patterns of them such as `runs/abl-*`.
        baseline: The run that the others are compared with; by default the first.
        set: The folder below each run's that holds the scores to compare, such as `an4-test`; by default none are.
        manifest: The references of that set; by default the manifest of its name in the baseline's `data.manifests`.
        output: The table and the pictures go to this folder.
        curves: Curves to draw, a panel each; the table has the smallest value of the first.
        axis: `steps`, `audio` (hours of it) or `minutes` of training.
        log_x: Whether that axis is logarithmic.
        log_y: Whether the values' axis is.
        join: Whether a run that started from the weights of another is drawn behind that one.
        labels: Names for settings, by the name of the folder of one of their runs: `labels=[an4-wide: wider, …]`.
        format: `png` or `svg`.
        dpi: Dots an inch of a png; the pictures are 9 inches wide.
    """

    runs: list[str] = MISSING
    baseline: Path | None = None
    set: str | None = None
    manifest: Path | None = None
    output: Path = MISSING
    curves: list[str] = MISSING
    axis: str = "steps"
    log_x: bool = False
    log_y: bool = False
    join: bool = False
    labels: list[str] = field(default_factory=list)
    format: str = "png"
    dpi: int = 100

    def __post_init__(self) -> None:
        for name, choices in (("axis", ("steps", "audio", "minutes")), ("format", ("png", "svg"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("runs", "curves"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        if self.dpi < 1:
            raise ValueError(f"dpi is {self.dpi}; it must be at least 1")
        wrong = next((each for each in self.labels if ": " not in each), None)
        if wrong is not None:
            raise ValueError(f"labels has {wrong!r}; write each as FOLDER: LABEL")


@dataclass(slots=True, kw_only=True)
class ReleaseRecipe:
    """`recipes/release.py`: a trained run to a folder that others can use.

    Attributes:
        model: A model folder or a run folder.
        output: The folder to make; an older model in it is replaced.
        ngram: A language model to release with it, ARPA or compact; it takes part in every beam search.
        lexicon: Pronunciations to release with it, for lexicon search.
        neural: A neural language model to release with it; it takes part in `rescore` and `lexicon`.
        tuned: What `recipes/tune_decoding.py` found; by default decoding.json beside the model's weights.
        mode: How the model searches where its user says nothing.
        beam_size: Likewise.
        results: Evaluations whose figures the card shows: results.json files, or folders with such below them.
        precision: What the weights are stored in: `float16`, `bfloat16`, `float32`, or `int8`, the smallest.
        card: What the card says beside the figures.
    """

    model: Path = MISSING
    output: Path = MISSING
    ngram: Path | None = None
    lexicon: Path | None = None
    neural: Path | None = None
    tuned: Path | None = None
    mode: str = "greedy"
    beam_size: int = 10
    results: list[Path] = field(default_factory=list)
    precision: str = "float16"
    card: CardConfig = MISSING

    def __post_init__(self) -> None:
        DefaultSearch(mode=self.mode, beam_size=self.beam_size)  # checks both
        if self.mode == "lexicon" and not (self.lexicon and self.ngram):
            raise ValueError(
                "mode is 'lexicon', which needs pronunciations and a model of words; set lexicon= and ngram="
            )
        choices = ("float16", "bfloat16", "float32", "int8")
        if self.precision not in choices:
            raise ValueError(f"precision is {self.precision!r}; choose one of {', '.join(choices)}")


@dataclass(slots=True, kw_only=True)
class DisturbRecipe:
    """`recipes/disturb.py`: a copy of a test set in noise, among other voices, in rooms.

    Attributes:
        manifest: The set.
        output: The folder for the copy: a manifest of the same name, and its audio.
        talkers: Manifest of who speaks in the background, not the utterance's own speaker; by default the set itself.
        sample_rate: Of the copy, in Hz.
        disturbance: What is done to every utterance.
    """

    manifest: Path = MISSING
    output: Path = MISSING
    talkers: Path | None = None
    sample_rate: int = 16000
    disturbance: DisturbanceConfig = field(default_factory=DisturbanceConfig)

    def __post_init__(self) -> None:
        if self.sample_rate <= 0:
            raise ValueError(f"sample_rate is {self.sample_rate}; it must be positive")
        if self.output.resolve() == self.manifest.resolve().parent:
            raise ValueError(f"output is {self.output}, which holds the set itself; name another folder")
        does = self.disturbance
        if not (does.noise_dir or does.num_talkers or does.reverb_dir):
            raise ValueError("nothing would change; set disturbance.noise_dir, num_talkers or reverb_dir")
        if self.talkers and not does.num_talkers:
            raise ValueError(
                f"talkers is {self.talkers}, but disturbance.num_talkers is 0; set it, or leave talkers out"
            )


RECIPES = (
    DisturbRecipe,
    PrepareRecipe,
    TrainRecipe,
    EvaluateRecipe,
    TuneRecipe,
    TranscribeRecipe,
    PictureRecipe,
    TrainNgramRecipe,
    TrainLmRecipe,
    TrainSpellerRecipe,
    MakeLexiconRecipe,
    WordTimesRecipe,
    CompareRunsRecipe,
    AverageModelsRecipe,
    PseudoLabelRecipe,
    ReleaseRecipe,
)


def register() -> None:
    """Makes the dataclasses known to Hydra, so that keys and types of the YAML are checked, and names of sweeps."""
    sweeps.register()
    store = ConfigStore.instance()
    for recipe in RECIPES:
        store.store(name=recipe.__name__, node=recipe)
    for name, corpus in (("librispeech", LibriSpeechConfig), ("folder", FolderConfig), ("synthetic", SyntheticConfig)):
        store.store(group="data", name=f"{name}_schema", node=corpus)
