"""What the recipes can be told: the dataclasses behind conf/, and the start of every recipe."""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asr.data.corpora import CorpusConfig
from asr.data.folder import FolderConfig
from asr.data.librispeech import LibriSpeechConfig
from asr.data.synthetic import SyntheticConfig
from asr.decoding.search import DecodingConfig
from asr.errors import one_line
from asr.tokenizer import TokenizerConfig
from asr.training.interfaces import Interrupted, TrainingError
from asr.training.run import TrainingConfig
from asr.training.tracking import KINDS as TRACKERS
from asr.transcribe import SegmentationConfig
from asr.variants import TunedSearch, read_tuned, variant_name, variants, with_weights

CONF = Path(__file__).parents[1] / "conf"


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
        if self.decoder.num_layers == 0 and self.decoding.mode not in ("greedy", "prefix_beam"):
            raise ValueError(
                f"decoding.mode is {self.decoding.mode!r}, but there is no decoder; take decoding=greedy or prefix_beam"
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
        modes: Ways to search that are scored side by side from one encoder pass; by default the one of `decoding`.
        lms: Language models to try with each of them: `none`, `ngram`, `neural`, `ngram+neural`, whose files
            `decoding.lm` names; by default what `decoding.lm` names.
        tuned: What `recipes/tune_decoding.py` found, weights and calibrations of the ways that it tuned.
    """

    model: Path = MISSING
    output: Path = MISSING
    manifests: list[Path] = field(default_factory=list)
    device: str = "auto"
    num_threads: int = 0
    max_batch_s: float = 120.0
    data: CorpusConfig | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    modes: list[str] = field(default_factory=list)
    lms: list[str] = field(default_factory=list)
    tuned: Path | None = None

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
        own = {name: tuned.get(name, TunedSearch()) for name in found}
        return {name: (with_weights(config, own[name].weights), own[name]) for name, config in found.items()}


@dataclass(slots=True, kw_only=True)
class TuneRecipe:
    """`recipes/tune_decoding.py`: weights of a search from a development set.

    Attributes:
        model: A model folder or a run folder.
        manifest: The development set.
        output: The file that the weights go to.
        modes: Ways to search.
        lms: Language models to try with each of them, as in evaluation.
        num_utterances: Take this many utterances, spread evenly over the set; 0 takes all.
        seed: Of the trials.
        device: As in training.
        num_threads: As in training.
        max_batch_s: Most seconds of audio of a batch.
    """

    model: Path = MISSING
    manifest: Path = MISSING
    output: Path = MISSING
    modes: list[str] = MISSING
    lms: list[str] = MISSING
    num_utterances: int = 0
    seed: int = 1
    device: str = "auto"
    num_threads: int = 0
    max_batch_s: float = 120.0
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        if self.num_utterances < 0 or self.seed < 0:
            raise ValueError(f"num_utterances {self.num_utterances} and seed {self.seed} must not be negative")


@dataclass(slots=True, kw_only=True)
class TranscribeRecipe:
    """`recipes/transcribe.py`: audio files to transcripts.

    Attributes:
        model: A model folder or a run folder.
        inputs: Files and folders.
        output_dir: Where transcripts go; standard output where it is not given.
        format: One of `asr.writers.FORMATS`.
        device: As in training.
        tuned: What `recipes/tune_decoding.py` found; taken if it tuned this way to search.
    """

    model: Path = MISSING
    inputs: list[Path] = MISSING
    output_dir: Path | None = None
    format: str = "txt"
    device: str = "auto"
    tuned: Path | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)

    def tuned_search(self) -> TunedSearch:
        """What was tuned for this way to search.

        Raises:
            ValueError: If the file is broken.
        """
        found = read_tuned(self.tuned) if self.tuned else {}
        return found.get(variant_name(self.decoding), TunedSearch())


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


def register() -> None:
    """Makes the dataclasses known to Hydra, so that keys and types of the YAML are checked against them."""
    store = ConfigStore.instance()
    for recipe in (PrepareRecipe, TrainRecipe, EvaluateRecipe, TuneRecipe, TranscribeRecipe, PictureRecipe):
        store.store(name=recipe.__name__, node=recipe)
    for name, corpus in (("librispeech", LibriSpeechConfig), ("folder", FolderConfig), ("synthetic", SyntheticConfig)):
        store.store(group="data", name=f"{name}_schema", node=corpus)


def launch(config_name: str, run: Callable[[Any], None]) -> None:
    """Composes conf/CONFIG_NAME.yaml with the command line, makes plain dataclasses of it, and runs the recipe.

    Faults of the user come out as one line on standard error with exit code 1; a signal gives 128 plus its number.
    """
    register()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what it would print over several lines

    faults: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def main(config: DictConfig) -> None:
        try:
            run(to_dataclasses(config))
        except _FAULTS as fault:  # kept from Hydra, which would announce it in its own words first
            faults.append(fault)

    try:
        main()
        if faults:
            raise faults[0]
    except Interrupted as stopped:
        sys.exit(_fail(str(stopped), 128 + stopped.signal_number))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    except _FAULTS as fault:
        sys.exit(_fail(f"error: {_message(fault)}", 1))


_FAULTS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    OSError,
    ImportError,
    torch.OutOfMemoryError,
    TrainingError,
    Interrupted,
)


def to_dataclasses(config: DictConfig) -> Any:
    """Makes plain dataclasses of a composed config; their checks run here.

    Raises:
        ValueError: If a key was added that the dataclass lacks, or a value is out of its range.
    """
    try:
        return OmegaConf.to_object(config)
    except AttributeError as error:
        raise ValueError(f"{str(error).split('. Did')[0]}; take the + from the override and check its name") from None


# What may change when a run goes on: it decides neither what is drawn nor what is learned.
_MAY_CHANGE = (
    "device",
    "num_threads",
    "tracking",
    "decoding",
    "data.root",
    "data.manifests",
    "loader.num_workers",
    "loader.cache_gb",
    "trainer.max_steps",
    "trainer.patience",
    "trainer.save_every",
    "trainer.log_every",
)


def write_config(recipe: TrainRecipe, folder: Path) -> None:
    """Writes what a run was told to `config.yaml`, as YAML that any program reads: paths are texts.

    Raises:
        ValueError: If the folder holds checkpoints of a run that was told otherwise; the first difference is named.
    """
    plain = json.loads(json.dumps(asdict(recipe), default=str))
    path = folder / "config.yaml"
    if path.is_file() and any((folder / "checkpoints").glob("step-*")):
        before, now = _flat(OmegaConf.to_container(OmegaConf.load(path))), _flat(plain)
        for key in now:
            allowed = any(key == each or key.startswith(f"{each}.") for each in _MAY_CHANGE)
            if not allowed and before.get(key) != now[key]:
                raise ValueError(
                    f"{folder} holds a run with {key}={before.get(key)}, not {now[key]}; "
                    "give this run another name, or remove that folder"
                )
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)), encoding="utf-8")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as `a.b.c`."""
    if not isinstance(config, dict):
        return {prefix.removesuffix("."): config}
    return {key: value for name, part in config.items() for key, value in _flat(part, f"{prefix}{name}.").items()}


def run_folder() -> Path:
    """The folder of this run, where Hydra writes its log."""
    return Path(HydraConfig.get().runtime.output_dir)


def _fail(message: str, code: int) -> int:
    logging.shutdown()
    print(message, file=sys.stderr)
    return code


def _message(error: BaseException) -> str:
    """One line; of what Hydra and OmegaConf say over several lines, the first two say what matters."""
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        error = error.__cause__
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return one_line(error)
    lines = [line.strip() for line in str(error).splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("object_type=", "reference_type="))]
    if "Available options" in str(error):
        return " ".join(line for line in wanted if "path" not in line)
    return "; ".join(wanted[:2])
