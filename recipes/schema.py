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
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asr.augment import AugmentConfig
from asr.data.corpora import CorpusConfig
from asr.data.dataset import LoaderConfig
from asr.data.folder import FolderConfig
from asr.data.librispeech import LibriSpeechConfig
from asr.data.synthetic import SyntheticConfig
from asr.decoding.search import DecodingConfig
from asr.errors import one_line
from asr.features import FeatureConfig
from asr.losses import LossConfig
from asr.nn.conformer import EncoderConfig
from asr.nn.decoder import DecoderConfig
from asr.tokenizer import TokenizerConfig
from asr.training.interfaces import Interrupted, TrainingError
from asr.training.optim import OptimConfig
from asr.training.tracking import KINDS as TRACKERS
from asr.training.trainer import TrainerConfig
from asr.transcribe import SegmentationConfig

CONF = Path(__file__).parents[1] / "conf"


@dataclass(slots=True, kw_only=True)
class PrepareRecipe:
    """`recipes/prepare.py`: a corpus to manifests."""

    data: CorpusConfig = MISSING


@dataclass(slots=True, kw_only=True)
class TrainRecipe:
    """`recipes/train.py`: a corpus to a model and its scores.

    Attributes:
        name: Names the run and its folder, runs/NAME.
        seed: Decides all that is drawn.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.
        num_threads: Processor threads of the model; 0 takes all.
        tracking: `tensorboard`, `wandb` or `none`.
    """

    name: str = MISSING
    seed: int = 1
    device: str = "auto"
    num_threads: int = 0
    tracking: str = "tensorboard"
    data: CorpusConfig = MISSING
    features: FeatureConfig = field(default_factory=FeatureConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        if self.tracking not in TRACKERS:
            raise ValueError(f"tracking is {self.tracking!r}; choose one of {', '.join(TRACKERS)}")


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
    """

    model: Path = MISSING
    output: Path = MISSING
    manifests: list[Path] = field(default_factory=list)
    device: str = "auto"
    num_threads: int = 0
    max_batch_s: float = 120.0
    data: CorpusConfig = MISSING
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(slots=True, kw_only=True)
class TranscribeRecipe:
    """`recipes/transcribe.py`: audio files to transcripts.

    Attributes:
        model: A model folder or a run folder.
        inputs: Files and folders.
        output_dir: Where transcripts go; standard output where it is not given.
        format: `txt` or `json`.
        device: As in training.
    """

    model: Path = MISSING
    inputs: list[Path] = MISSING
    output_dir: Path | None = None
    format: str = "txt"
    device: str = "auto"
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)


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
    for recipe in (PrepareRecipe, TrainRecipe, EvaluateRecipe, TranscribeRecipe, PictureRecipe):
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


_FAULTS = (HydraException, OmegaConfBaseException, ValueError, OSError, ImportError, TrainingError, Interrupted)


def to_dataclasses(config: DictConfig) -> Any:
    """Makes plain dataclasses of a composed config; their checks run here.

    Raises:
        ValueError: If a key was added that the dataclass lacks, or a value is out of its range.
    """
    try:
        return OmegaConf.to_object(config)
    except AttributeError as error:
        raise ValueError(f"{str(error).split('. Did')[0]}; take the + from the override and check its name") from None


def write_config(recipe: TrainRecipe, path: Path) -> None:
    """Writes what a run was told, as YAML that any program reads: paths are texts."""
    plain = json.loads(json.dumps(asdict(recipe), default=str))
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)), encoding="utf-8")


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
