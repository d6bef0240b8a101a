"""The `asr` command. Each subcommand is one `add_…` that declares it and one `run_…` that does it.

Modules that import torch take seconds to load, so every `run_…` imports what it needs itself.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.errors import one_line
from asr.writers import FORMATS

if TYPE_CHECKING:
    from asr.decoding.search import DecodingConfig

    # The annotation alone; at run time `argparse._SubParsersAction` is not subscriptable.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_WIDTH_WITHOUT_TERMINAL = 100
# asr.decoding.search has them too; a test sees to it that they agree.
DECODINGS = ("greedy", "prefix_beam", "attention", "joint", "rescore")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        The exit code: 0 for success, 1 for an error that was printed, 130 when interrupted from the keyboard.

    Raises:
        SystemExit: from argparse: code 2 for wrong usage, 0 after --help and --version.
    """
    args = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        # Whoever reads the output may have left; flushed here, that shows while it can still be caught.
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at exit and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        print("error: not enough GPU memory; use --device cpu", file=sys.stderr)
        return 1
    return code


def build_parser() -> argparse.ArgumentParser:
    """Declare the command, with all its subcommands."""
    parser = argparse.ArgumentParser(
        prog="asr", description="Speech recognition: transcribe audio and score transcripts."
    )
    parser.add_argument("--version", action=_VersionAction, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(subparsers)
    return parser


def add_score(subparsers: "Subparsers") -> None:
    """Declare `asr score`."""
    parser = subparsers.add_parser(
        "score",
        help="word and character error rates of a hypothesis",
        description="Score two files of `ID words…` lines, or two manifests (.jsonl), against each other. Case and "
        "punctuation do not count.",
    )
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="what was said")
    parser.add_argument("hypothesis", type=Path, metavar="HYPOTHESIS", help="what was recognised")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER_HYPOTHESIS",
        help="score this one too and test the difference (paired bootstrap)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the figures as JSON, rates as fractions")
    output.add_argument(
        "--errors",
        type=_count,
        default=5,
        metavar="N",
        help="print the N utterances with most errors, aligned word by word (default: %(default)s)",
    )
    parser.set_defaults(run=run_score)


def run_score(args: argparse.Namespace) -> int:
    """Do `asr score`."""
    from asr import evaluate, report

    references, speakers = _read_texts(args.reference)
    hypotheses, _ = _read_texts(args.hypothesis)
    score = evaluate.score(references, hypotheses, speakers=speakers)
    scores = {str(args.hypothesis): score}
    comparison = None
    if args.compare is not None:
        others, _ = _read_texts(args.compare)
        comparison = evaluate.compare(references, hypotheses, others, speakers=speakers)
        scores[str(args.compare)] = evaluate.score(references, others, speakers=speakers)

    if args.json:
        figures: dict[str, Any] = score.to_dict()
        if comparison is not None:
            figures["comparison"] = comparison.to_dict()
        print(json.dumps(figures, indent=2, ensure_ascii=False))
        return 0
    parts = [report.summary_table(scores)]
    if comparison is not None:
        parts.append(report.comparison_text(comparison, name_a=str(args.hypothesis), name_b=str(args.compare)))
        parts.append(f"errors of {args.hypothesis}:")
    parts.append(report.confusion_lists(score))
    if args.errors:
        parts.append(report.aligned_errors(score, width=_terminal_width(), limit=args.errors))
    print("\n\n".join(filter(None, parts)))
    return 0


def add_transcribe(subparsers: "Subparsers") -> None:
    """Declare `asr transcribe`."""
    parser = subparsers.add_parser(
        "transcribe",
        help="audio files to text",
        description="Transcribe audio files of any format, rate and length, and all audio in folders. Without "
        "--output-dir the transcripts go to standard output, and nothing else does.",
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE|DIR|-", help="what to transcribe; - is a stream")
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="a model folder or a run folder")
    parser.add_argument("--format", choices=tuple(FORMATS), default="txt", help="of the transcripts (default: txt)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write one file for each audio file there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument(
        "--decoding",
        choices=DECODINGS,
        help="search (default: greedy; prefix_beam with an n-gram or --hotwords, joint with a neural --lm)",
    )
    parser.add_argument("--beam-size", type=_count, metavar="N", help="of a beam search (default: 10)")
    parser.add_argument(
        "--lm",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="an ARPA file, or a folder with a neural model; twice for one of each",
    )
    parser.add_argument("--hotwords", type=Path, metavar="FILE", help="words and phrases to expect, one a line")
    parser.set_defaults(run=run_transcribe)


def run_transcribe(args: argparse.Namespace) -> int:
    """Do `asr transcribe`."""
    from asr import checkpoint
    from asr.devices import pick_device
    from asr.transcribe import transcribe_files
    from asr.variants import find_tuned

    decoding = _decoding(args)
    loaded = checkpoint.load(args.model, device=pick_device(args.device))
    failures = transcribe_files(
        loaded,
        args.inputs,
        format=args.format,
        output_dir=args.output_dir,
        decoding=decoding,
        tuned=find_tuned(loaded.path, decoding),
    )
    return 1 if failures else 0


def _decoding(args: argparse.Namespace) -> "DecodingConfig":
    """What the options of `asr transcribe` say of the search."""
    from asr.decoding.search import DecodingConfig, FusionConfig

    lm = FusionConfig()
    for path in args.lm:
        kind = "neural" if path.is_dir() else "ngram"
        if getattr(lm, kind) is not None:
            raise ValueError(f"--lm names {getattr(lm, kind)} and {path}; give one {kind} language model")
        setattr(lm, kind, path)
    mode = args.decoding or ("joint" if lm.neural else "prefix_beam" if lm.ngram or args.hotwords else "greedy")
    if mode == "greedy" and args.beam_size is not None:
        raise ValueError(f"--beam-size is {args.beam_size}, but greedy search has no beam; choose another --decoding")
    return DecodingConfig(
        mode=mode, beam_size=10 if args.beam_size is None else args.beam_size, lm=lm, hotwords=args.hotwords
    )


def add_align(subparsers: "Subparsers") -> None:
    """Declare `asr align`."""
    parser = subparsers.add_parser(
        "align",
        help="times of the words of a known text",
        description="Find when each word of a text is said in its recording, and print the words with times and "
        "confidences.",
    )
    parser.add_argument("audio", type=Path, metavar="AUDIO", help="the recording, of any length")
    parser.add_argument("transcript", type=Path, metavar="TRANSCRIPT", help="a text file of all that is said in it")
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="a model folder or a run folder")
    parser.add_argument("--format", choices=("ctm", "json", "textgrid"), default="ctm", help="default: ctm")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.set_defaults(run=run_align)


def run_align(args: argparse.Namespace) -> int:
    """Do `asr align`."""
    from asr import checkpoint
    from asr.alignment import align_file
    from asr.devices import pick_device

    text = _read_text(args.transcript)
    loaded = checkpoint.load(args.model, device=pick_device(args.device))
    print(FORMATS[args.format].write(align_file(loaded, args.audio, text)), end="")
    return 0


def add_info(subparsers: "Subparsers") -> None:
    """Declare `asr info`."""
    parser = subparsers.add_parser(
        "info", help="what a model is made of", description="Print sizes, tokens and training of a model."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder or a run folder")
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> int:
    """Do `asr info`."""
    from dataclasses import asdict

    from asr import checkpoint

    loaded = checkpoint.load(args.model)
    tokenizer = type(loaded.tokenizer).__name__.removesuffix("Tokenizer").lower()
    rows = {
        "model": str(loaded.path),
        "parameters": f"{loaded.model.num_parameters():,}",
        "tokens": f"{loaded.tokenizer.vocab_size} ({tokenizer})",
        "frame": f"{1000 * loaded.frame_s:g} ms",
    }
    rows |= {name: json.dumps(part) for name, part in {**asdict(loaded.config), "training": loaded.training}.items()}
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
    return 0


# In the order of `asr --help`.
COMMANDS: tuple[Callable[["Subparsers"], None], ...] = (add_transcribe, add_align, add_score, add_info)


def _read_texts(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts and speakers by utterance id, from a manifest or a file of `ID words…` lines, which knows no speakers."""
    if path.suffix == ".jsonl":
        from asr.data import manifest

        utterances = manifest.read(path)
        texts = {utterance.id: utterance.text for utterance in utterances}
        return texts, {utterance.id: utterance.speaker for utterance in utterances}
    from asr.evaluate import read_texts

    return read_texts(path), {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start + 1} is not UTF-8 text; convert the file to UTF-8") from None


def _terminal_width() -> int:
    if not sys.stdout.isatty():
        return _WIDTH_WITHOUT_TERMINAL
    return shutil.get_terminal_size((_WIDTH_WITHOUT_TERMINAL, 0)).columns


def _count(text: str) -> int:
    """An argument that is a number of things."""
    number = int(text) if text.isdecimal() else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return number


class _VersionAction(argparse.Action):
    """Print the installed version; looking it up takes a while, so not before it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"asr {version('asr-attention')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
