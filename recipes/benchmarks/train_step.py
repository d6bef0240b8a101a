"""One training step of an encoder, forward and backward: this project's beside its peers', at the same sizes."""

# B utterances, T feature frames, T' encoder frames, F mel bins, D width

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from asr.errors import one_line
from asr.nn.conformer import ConformerEncoder, EncoderConfig
from asr.nn.linear import linear
from asr.nn.subsampling import SUBSAMPLING_KINDS
from asr.report import percent, table
from asr.training.acceleration import compile_block
from asr.training.graphs import CudaRecorder
from benchmarks import report
from benchmarks.encoder_peers import ENCODER_PEERS
from benchmarks.flops import encoder_flops
from benchmarks.harness import Benchmark, Conditions, Contender, Result, Skipped, build, measure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FRAME_S = 0.01

Features = tuple[Tensor, Tensor]


def _sizes() -> EncoderConfig:
    return EncoderConfig(
        num_layers=12,
        width=256,
        num_heads=4,
        feedforward_width=1024,
        kernel_size=31,
        subsampling_channels=256,
        attention_dropout=0.1,
    )


@dataclass(slots=True, kw_only=True)
class TrainStepBenchmark(Benchmark):
    """How long do forward and backward of an encoder take, and what share of the device's arithmetic do they use?

    Attributes:
        encoder: Sizes, of all. torchaudio and SpeechBrain take its `dropout` for the weights of attention too.
        subsampling_kinds: With what front ends this project's encoder takes part, each as
            `asr.nn.conformer.EncoderConfig` has it; all are compared with the first.
        num_mels: Mel bins F of the features.
        batch_size: Utterances B.
        duration_s: Of each utterance, 100 frames a second.
        num_steps: Steps that are timed in every repeat.
        dtypes: Precisions: `float32`, or `bfloat16` and `float16` by autocast.
        compiled: Whether this project's blocks also take part compiled by `torch.compile`.
        cuda_graphs: Whether this project's step also takes part recorded as a CUDA graph, compiled where `compiled` is
            set; on a GPU alone.
        peers: Who else takes part, of `ENCODER_PEERS`.
        matmul_size: Side of the square matrices whose product is the measure of the device's arithmetic; 0 takes
            2048 on a processor and 8192 on a GPU.
    """

    name: str = "train_step"
    encoder: EncoderConfig = field(default_factory=_sizes)
    subsampling_kinds: list[str] = field(default_factory=lambda: list(SUBSAMPLING_KINDS))
    num_mels: int = 80
    batch_size: int = 8
    duration_s: float = 10.0
    num_steps: int = 1
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    compiled: bool = True
    cuda_graphs: bool = True
    peers: list[str] = field(default_factory=lambda: list(ENCODER_PEERS))
    matmul_size: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_mels", 1), ("batch_size", 1), ("num_steps", 1), ("matmul_size", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"benchmark.{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.duration_s >= 0.1:
            raise ValueError(f"benchmark.duration_s is {self.duration_s:g}; it must be at least 0.1")
        if self.encoder.subsampling != 4:
            raise ValueError(f"benchmark.encoder.subsampling is {self.encoder.subsampling}; the peers can only take 4")
        if self.encoder.subsampling_kind != EncoderConfig().subsampling_kind:
            raise ValueError(
                f"benchmark.encoder.subsampling_kind is {self.encoder.subsampling_kind}; "
                "name it in benchmark.subsampling_kinds"
            )
        for name, known in (
            ("dtypes", DTYPES),
            ("peers", ENCODER_PEERS),
            ("subsampling_kinds", SUBSAMPLING_KINDS),
        ):
            unknown = [each for each in getattr(self, name) if each not in known]
            if unknown or (name != "peers" and not getattr(self, name)):
                raise ValueError(f"benchmark.{name} has {unknown}; choose from {', '.join(known)}")

    def run(self, conditions: Conditions) -> dict[str, Any]:
        """Times all encoders in turns with plain matrix products, and counts this project's operations."""
        device = conditions.device
        features = _features(self, device)
        contenders, skipped = build([*self._own(features, device), *self._others(device)])
        size = self.matmul_size or (8192 if device.type == "cuda" else 2048)
        products = [_matrix_product(dtype, size=size, device=device) for dtype in self.dtypes]
        measured = measure(
            [*contenders, *products], [features] * self.num_steps, repeats=conditions.repeats, device=device
        )
        steps, ceilings = measured[: len(contenders)], dict(zip(self.dtypes, measured[len(contenders) :], strict=True))
        num_frames = features[0].shape[1]
        flops = {
            kind: self.batch_size * encoder_flops(self._encoder(kind), num_mels=self.num_mels, num_frames=num_frames)
            for kind in self.subsampling_kinds
        }
        audio_s = self.batch_size * self.duration_s * self.num_steps
        return {
            "work": f"{self.num_steps} x forward and backward of {self.batch_size} x {self.duration_s:g} s",
            "dtype": " and ".join(self.dtypes),
            "shapes": {"features": list(features[0].shape), "matrix": [size, size]},
            "step_flops": flops,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "contenders": [report.times(step, steps[0], audio_s=audio_s) for step in steps],
            "ceilings": [
                {"dtype": dtype, "flops_per_s": _rate(product, 2 * size**3 * self.num_steps)}
                for dtype, product in ceilings.items()
            ],
            "utilization": [
                _utilization(
                    *(step, ceilings[dtype]),
                    step_flops=flops[kind],
                    product_flops=2 * size**3,
                    on_processor=device.type == "cpu",
                )
                for step in steps
                for kind in self.subsampling_kinds
                for dtype in self.dtypes
                if step.contender.name.startswith(_own_name(kind, dtype))
            ],
            "skipped": skipped,
        }

    def tables(self, found: dict[str, Any]) -> list[str]:
        """Times of all, then what this project makes of the device."""
        rows = [["of matrix products", "step TFLOP", "TFLOP/s", "ceiling", "share", "spread", "share of CPU time"]]
        for each in found["utilization"]:
            rates = [f"{each[name] / 1e12:.3f}" for name in ("step_flops", "flops_per_s", "ceiling")]
            shares = [percent(each["share"]), f"{percent(min(each['shares']))} – {percent(max(each['shares']))}"]
            shares += ["" if each["cpu_share"] is None else percent(each["cpu_share"])]
            rows.append([each["name"], *rates, *shares])
        return [report.speed_table(found["contenders"]), table(rows)]

    def _encoder(self, kind: str) -> EncoderConfig:
        return replace(self.encoder, subsampling_kind=kind)

    def _own(self, features: Features, device: torch.device) -> list[Callable[[], Contender]]:
        """This project's encoder with every front end in every precision: as it is, compiled, and as a CUDA graph."""

        def build_own(kind: str, dtype: str, compiled: bool, recorded: bool) -> Contender:
            torch.manual_seed(0)
            encoder = ConformerEncoder(self._encoder(kind), num_mels=self.num_mels)
            name = _own_name(kind, dtype) + (", compiled" if compiled else "") + (", CUDA graph" if recorded else "")
            compute = _computation(encoder, dtype=dtype, device=device, width=self.encoder.width)
            note = _compile(encoder, partial(compute, features), name=name) if compiled else ""
            step = _recorded(encoder, partial(compute, features)) if recorded else _step(encoder, compute)
            return Contender(name, report.OWN_VERSION, step, note)

        ways = [(False, False), *([(True, False)] if self.compiled else [])]
        if self.cuda_graphs and device.type == "cuda":
            ways.append((self.compiled, True))
        every = itertools.product(self.subsampling_kinds, ways, self.dtypes)
        return [partial(build_own, kind, dtype, compiled, recorded) for kind, (compiled, recorded), dtype in every]

    def _others(self, device: torch.device) -> list[Callable[[], Contender]]:
        """Each peer in every precision."""

        def build_other(peer: str, dtype: str) -> Contender:
            torch.manual_seed(0)
            other = ENCODER_PEERS[peer](self.encoder, num_mels=self.num_mels)
            compute = _computation(other.encoder, dtype=dtype, device=device, width=self.encoder.width)
            return Contender(f"{other.name}, {dtype}", other.version, _step(other.encoder, compute), other.note)

        return [partial(build_other, peer, dtype) for peer in self.peers for dtype in self.dtypes]


def _own_name(kind: str, dtype: str) -> str:
    return f"asr, {kind} subsampling, {dtype}"


def _features(benchmark: TrainStepBenchmark, device: torch.device) -> Features:
    """Noise with the statistics of normalised features (B, T, F), and lengths (B,): all utterances are as long."""
    num_frames = round(benchmark.duration_s / FRAME_S)
    shape = benchmark.batch_size, num_frames, benchmark.num_mels
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return features.to(device), torch.full(shape[:1], num_frames, device=device)


def _computation(encoder: nn.Module, *, dtype: str, device: torch.device, width: int) -> Callable[[Features], Tensor]:
    """Forward and backward of an encoder in training mode. The loss is that of one random output unit, for all."""
    encoder.to(device).train()
    unit = torch.randn(width, generator=torch.Generator().manual_seed(0)).to(device)

    def compute(batch: Features) -> Tensor:
        with torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32"):
            found = encoder(*batch)
        frames = found if isinstance(found, Tensor) else found.frames  # (B, T', D)
        loss = (frames.float() @ unit).square().mean()
        loss.backward()
        return loss.detach()

    return compute


def _step(encoder: nn.Module, compute: Callable[[Features], Tensor]) -> Callable[[Features], float]:
    def step(batch: Features) -> float:
        encoder.zero_grad(set_to_none=True)
        return compute(batch).item()

    return step


def _recorded(encoder: nn.Module, compute: Callable[[], Tensor]) -> Callable[[Features], float]:
    """The same step as one CUDA graph, which writes gradients where it wrote them before."""
    compute()  # loads and plans the kernels, which cannot be done while recording
    encoder.zero_grad(set_to_none=True)
    replay, loss = CudaRecorder(next(encoder.parameters()).device)(compute)

    def step(_: Features) -> float:
        replay()
        return loss.item()

    return step


def _compile(encoder: ConformerEncoder, compute: Callable[[], Tensor], *, name: str) -> str:
    """Compiles every block and computes once, which makes the code; returns how long that took.

    Raises:
        Skipped: If there is no compiler, or it cannot.
    """
    for block in encoder.layers():
        compile_block(block)
    started = time.perf_counter()
    try:
        compute()
    except TorchDynamoException as error:
        raise Skipped(f"{name}: {one_line(error)}; install a C++ compiler, or set benchmark.compiled=false") from None
    return f"compiled in {time.perf_counter() - started:.0f} s"


def _matrix_product(dtype: str, *, size: int, device: torch.device) -> Contender:
    """A product of two large square matrices, the most arithmetic that a device does in a second; as layers do it."""
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))

    def multiply(_: Features) -> None:
        linear(left, right)

    return Contender(f"matrix product, {dtype}", torch.__version__, multiply)


def _rate(result: Result, flops: int) -> float:
    """Operations a second in the median of the repeats."""
    return flops / statistics.median(result.seconds)


def _utilization(
    step: Result, product: Result, *, step_flops: int, product_flops: int, on_processor: bool
) -> dict[str, Any]:
    """Operations a second of a step, beside those of plain products in the same repeats."""
    work = step_flops / product_flops
    shares = [work / ratio for ratio in step.ratios(product)]
    num_steps = len(step.found)
    return {
        "name": step.contender.name,
        "step_flops": step_flops,
        "flops_per_s": _rate(step, step_flops * num_steps),
        "ceiling": _rate(product, product_flops * num_steps),
        "share": statistics.median(shares),
        "shares": shares,
        # Of a processor that other programs use too, its own time says more.
        "cpu_share": work / step.cpu_ratio(product) if on_processor else None,
    }
