"""Benchmarks of searches: the same frames for all, exact scores, peers with the same weights, and the recipe."""

import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import pytest
import tiny
import torch
from alignments import transcript_probabilities
from benchmarks import ctc_peers, espnet_peer, exact, harness, searching
from benchmarks.harness import Contender, Result, Skipped
from benchmarks.prefix_beam import PrefixBeamBenchmark
from benchmarks.search import SearchBenchmark
from benchmarks.searching import Batch, Work

from asr.data import manifest
from asr.data.manifest import Utterance

TEXTS = ("A B", "C", "BA CA", "ABC", "B")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five utterances of noise, and a manifest of them."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = []
    for number, text in enumerate(TEXTS):
        duration_s = 0.4 + 0.1 * number
        audio = tiny.write_noise(folder / f"{number}.wav", duration_s=duration_s, seed=number)
        utterances.append(Utterance(id=f"u{number}", audio=audio, duration_s=duration_s, text=text.lower()))
    manifest.write(folder / "noise.jsonl", utterances)
    return folder / "noise.jsonl"


@pytest.fixture
def work(corpus: Path) -> Work:
    with torch.inference_mode():
        return searching.prepare(tiny.make_loaded(), manifest.read(corpus), batch_size=2, beam_size=3)


def contender(name: str, search: Callable[[Batch], Any] = lambda batch: [[()]] * len(batch.lengths)) -> Contender:
    return Contender(name, "1", search)


# The work


def test_utterances_are_taken_evenly_from_a_manifest(corpus):
    utterances = manifest.read(corpus)
    assert [each.id for each in manifest.spread_out(utterances, 2)] == ["u0", "u2"]
    assert manifest.spread_out(utterances, 100) == utterances


def test_work_is_encoded_once_the_longest_first_and_the_end_of_sentence_has_no_share(work):
    assert [each.id for each in work.utterances] == ["u4", "u3", "u2", "u1", "u0"]
    assert [len(batch.lengths) for batch in work.batches] == [2, 2, 1]
    assert work.audio_s == pytest.approx(3.0)
    for batch in work.batches:
        assert (batch.log_probs[:, :, 1] == -math.inf).all()
        assert batch.log_probs.logsumexp(dim=-1).abs().max() < 1e-5


def test_an_utterance_alone_has_no_padding(work):
    batch = work.batches[0]
    for row, one in enumerate(batch.alone()):
        length = int(batch.lengths[row])
        assert one.frames.shape[:2] == one.log_probs.shape[:2] == (1, length)
        assert one.lengths.tolist() == [length]
        assert torch.equal(one.frames[0], batch.frames[row, :length])


def test_one_by_one_is_the_same_search_of_single_utterances(work):
    seen = []

    def search(batch: Batch) -> list[list[tuple[int, ...]]]:
        seen.append(batch.frames.shape[0])
        return [[(int(batch.lengths[0]),)]]

    single = searching.one_by_one(contender("a", search), "a, one by one")
    batch = work.batches[0]
    assert single.run(batch) == [[(int(length),)] for length in batch.lengths]
    assert (single.name, seen) == ("a, one by one", [1, 1])


def test_transcripts_are_compared_by_their_exact_scores():
    first = Result(contender("first"), [], [], [[[(2,), (3,)], [(2,)]], [[(4,)], [(5,)]]])
    other = Result(contender("other"), [], [], [[[(3,), (4,)], [(2,)]], [[(2,)], [(4,)]]])
    found = searching.compare(
        first, other, first_scores=[-1.0, -math.inf, -2.0, -3.0], scores=[-1.5, -math.inf, -1.75, -3.00001]
    )
    assert (found.same, found.better, found.worse) == (2, 1, 1)
    assert found.shortfall == 0.25
    assert found.shared == statistics.fmean([0.5, 1.0, 0.0, 0.0])


# Exact scores


def test_the_ctc_score_is_the_sum_over_all_alignments():
    log_probs = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(dim=-1)
    log_probs[:, 1] = -math.inf
    for tokens, probability in transcript_probabilities(log_probs).items():
        if 1 not in tokens:
            assert exact.ctc_log_prob(log_probs, tokens) == pytest.approx(math.log(probability), abs=1e-9)
    assert exact.ctc_log_prob(log_probs, (2, 2, 2, 2)) == -math.inf


@torch.no_grad()
def test_the_attention_score_is_the_sum_of_single_steps():
    decoder = tiny.make_model().decoder
    assert decoder is not None
    frames = torch.randn(1, 7, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    state, expected = decoder.start(frames, torch.tensor([7])), 0.0
    for given, wanted in itertools.pairwise([1, 3, 2, 5, 1]):
        log_probs, state = decoder.step(torch.tensor([given]), state)
        expected += float(log_probs[0, wanted])
    assert exact.attention_log_prob(decoder.double(), frames, (3, 2, 5)) == pytest.approx(expected, abs=1e-4)


# Peers


def hide_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no peer were installed."""
    peers = ("espnet", "espnet2", "pyctcdecode")
    for name in {*peers, *(name for name in sys.modules if name.split(".")[0] in peers)}:
        monkeypatch.setitem(sys.modules, name, None)


def test_peers_that_are_not_installed_say_how_to_get_them(work, monkeypatch):
    hide_peers(monkeypatch)
    with pytest.raises(Skipped, match=r"^ESPnet: .*espnet.*; pip install --no-deps --target PEERS espnet==\d+ typ"):
        espnet_peer.build_espnet(work, ctc_weight=0.3)
    with pytest.raises(Skipped, match=r"^pyctcdecode: .*pyctcdecode.*; pip install .*PYTHONPATH=PEERS"):
        ctc_peers.build_pyctcdecode(work, pruned=True)


def test_torchaudio_needs_a_gpu(work):
    with pytest.raises(Skipped, match=r"^torchaudio CUDA, no pruning: it needs a GPU, and this runs on cpu; run with"):
        ctc_peers.build_torchaudio(work, pruned=False)


@torch.inference_mode()
def test_espnets_copy_answers_as_the_model_does_and_a_damaged_one_is_refused(work):
    pytest.importorskip("espnet", reason="ESPnet is not on PYTHONPATH")
    decoder, ctc = espnet_peer.copy_to_espnet(work.model, max_tokens=50)
    frames = next(work.batches[0].alone()).frames
    espnet_peer.check_agreement(work.model, decoder, ctc, frames)
    decoder.decoders[0].feed_forward.activation = torch.nn.ReLU()
    with pytest.raises(ValueError, match=r"ESPnet's copy of the decoder differs by .* in a log-probability, more than"):
        espnet_peer.check_agreement(work.model, decoder, ctc, frames)


@torch.inference_mode()
def test_espnet_finds_transcripts_that_score_as_it_says(work):
    pytest.importorskip("espnet", reason="ESPnet is not on PYTHONPATH")
    kind = SearchBenchmark()
    peer, own = espnet_peer.build_espnet(work, ctc_weight=kind.ctc_weight), kind.builders(work)[0]()
    results = harness.measure([own, peer], work.batches, repeats=1, device=torch.device("cpu"))
    found = searching.results(kind, work, results, [])
    assert [each["name"] for each in found["contenders"]] == ["asr, in batches", "ESPnet"]
    assert all(math.isfinite(best["score"]) for each in found["utterances"] for best in each["best"].values())


@torch.inference_mode()
def test_pyctcdecode_without_pruning_and_with_room_for_all_agrees_with_this_project(corpus):
    pytest.importorskip("pyctcdecode", reason="pyctcdecode is not on PYTHONPATH")
    work = searching.prepare(tiny.make_loaded(), manifest.read(corpus)[:1], batch_size=1, beam_size=500)
    (whole,) = work.batches
    short = Batch(whole.frames[:, :4], whole.lengths.clamp_max(4), whole.log_probs[:, :4])
    peer, own = ctc_peers.build_pyctcdecode(work, pruned=False), PrefixBeamBenchmark().builders(work)[0]()
    assert own.run(short)[0][:10] == peer.run(short)[0][:10]


@pytest.mark.gpu
@torch.inference_mode()
def test_torchaudio_finds_transcripts_on_a_gpu(corpus):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    loaded = tiny.make_loaded()
    loaded.model.cuda()
    work = searching.prepare(loaded, manifest.read(corpus), batch_size=5, beam_size=3)
    found = ctc_peers.build_torchaudio(work, pruned=False).run(work.batches[0])
    assert [len(beams) for beams in found] == [3] * 5
    assert all(token in range(2, 6) for beams in found for tokens in beams for token in tokens)


# The recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("kind", ["search", "prefix_beam"])
def test_the_recipe_prints_tables_and_writes_all_that_figures_depend_on(
    compose: Callable[..., Any], model, corpus, tmp_path, monkeypatch, capsys, kind
):
    hide_peers(monkeypatch)
    settings = ["benchmark.num_utterances=3", "benchmark.batch_size=2", "benchmark.beam_size=3"]
    settings += ["repeats=2", "device=cpu", "num_threads=0"]
    benchmark.run(
        compose(
            "benchmark", f"benchmark={kind}", f"model={model}", f"manifest={corpus}", f"output={tmp_path}", *settings
        )
    )
    found = json.loads((tmp_path / f"{kind}.json").read_text(encoding="utf-8"))
    assert found["benchmark"]["name"] == kind
    assert found["benchmark"]["beam_size"] == 3
    assert {"cpu", "cores", "load", "gpu", "system"} == found["machine"].keys()
    assert (found["device"], found["dtype"], found["threads"]) == ("cpu", "float32", torch.get_num_threads())
    assert {"python", "torch", "torchaudio", "numpy", "asr-attention"} == found["versions"].keys()
    contenders = {each["name"]: each for each in found["contenders"]}
    batched, single = contenders["asr, in batches"], contenders["asr, one by one"]
    assert batched["compared"] == {"same": 3, "better": 0, "worse": 0, "shortfall": 0.0, "shared": 1.0}
    assert (single["compared"]["same"], len(single["seconds"]), len(found["utterances"])) == (3, 2, 3)
    assert single["rtf"] == pytest.approx(statistics.median(single["seconds"]) / found["audio_s"], rel=0.01)
    assert found["skipped"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"{kind}: 3 utterances, 2 s of audio, 2 repeats; ")
    assert all(f"skipped: {reason}" in printed for reason in found["skipped"])
    assert printed.rstrip().endswith(str(tmp_path / f"{kind}.json"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark.num_utterances=0"], "benchmark.num_utterances is 0; it must be at least 1"),
        (["benchmark=prefix_beam", "benchmark.token_margin=0"], "benchmark.token_margin is 0.0; it must be above 0"),
        (["benchmark.ctc_weight=1"], "benchmark.ctc_weight is 1.0; it must be above 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_named(compose: Callable[..., Any], overrides, message):
    with pytest.raises(ValueError, match=message):
        compose("benchmark", "model=x", "manifest=a.jsonl", *overrides)


def test_joint_search_needs_a_decoder(work):
    work.model.decoder = None
    with pytest.raises(ValueError, match="the model has no attention decoder for joint search; take benchmark=prefix"):
        SearchBenchmark().builders(work)
