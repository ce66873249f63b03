"""Devices and types by name, and checkpoints in the form that search runs."""

import platform
import warnings
from pathlib import Path

import pytest
import torch

from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.families import loading
from corpus_asr.families.layers import projection
from corpus_asr.families.layers.projection import has_fbgemm, has_vnni
from corpus_asr.families.loading import (
    check_cuda,
    device_name,
    load_slot_model,
    resolve_device,
    resolve_dtype,
    resolve_precision,
)
from corpus_asr.families.whisper.model import WhisperSlotModel
from corpus_asr.stages.transcribe import EngineSpec, load_engine
from tests.support.slots import begin, load, needs_int8, sequences, windows
from tests.support.tables import run_config

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")


def test_without_a_gpu_auto_is_the_cpu_and_asking_for_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"'cuda'.* sees 0 CUDA devices"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="built without CUDA"):
        resolve_device("cuda:0")


@pytest.mark.usefixtures("two_gpus")
def test_with_gpus_auto_is_the_first_and_asking_for_too_many_is_an_error() -> None:
    assert resolve_device("auto") == resolve_device("cuda") == CUDA
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"'cuda:2'.* sees 2 CUDA devices"):
        resolve_device("cuda:2")
    assert (device_name(CPU), device_name(CUDA)) == ("cpu", "cuda:NVIDIA H200")


def test_a_worker_that_was_given_a_gpu_says_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, two_gpus: None
) -> None:
    config = run_config("/audio", "/output", model="/no/such/model")
    check_cuda("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Before anything is fetched: there is no such checkpoint either.
    with pytest.raises(EngineError, match=rf"on {platform.node()}: found no CUDA device"):
        load_engine(EngineSpec(config=config, device="cuda"))


def test_an_unknown_device_is_an_error() -> None:
    for name in ("gpu", "cuda:", "cuda:-1", "cuda:x", "", "CPU", "cuda:0 ", "mps"):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
            resolve_device(name)


def test_auto_is_bfloat16_on_cpus_that_have_it_and_compute_right_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for bfloat16, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=bfloat16: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        expected = torch.bfloat16 if bfloat16 or amx else torch.float32
        assert resolve_dtype("auto", CPU) == expected, (bfloat16, amx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.relu())
    assert resolve_dtype("auto", CPU) == torch.float32


def test_int8_on_cpus_rounds_the_rest_to_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "can_use_int8", lambda: True)
    assert resolve_precision("int8", CPU) == (resolve_dtype("auto", CPU), True, False)
    assert resolve_precision("float32", CPU) == (torch.float32, False, False)


@pytest.mark.usefixtures("two_gpus")
def test_numbers_that_a_device_is_slow_in_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "can_use_int8", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ConfigError, match=r"no fast 8-bit products.*set the dtype to auto"):
        resolve_precision("int8", CPU)
    with pytest.raises(ConfigError, match=r"NVIDIA H200, expected a CPU.*auto or float16"):
        resolve_precision("int8", CUDA)
    with pytest.raises(ConfigError, match=r"cpu, expected a GPU.*auto or int8"):
        resolve_precision("float16_fp8", CPU)
    assert resolve_precision("float16_fp8", CUDA) == (torch.float16, False, True)
    with pytest.raises(ConfigError, match="NVIDIA H200 has no bfloat16 arithmetic"):
        resolve_dtype("bfloat16", CUDA)


@pytest.mark.parametrize("native", [True, False])
def test_auto_keeps_windows_in_8_bits_where_a_gpu_reads_them(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(loading, "reads_float8", lambda device: native)
    assert resolve_precision("auto", CUDA) == (torch.float16, False, native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve_precision("auto", CUDA, wide=True) == (torch.bfloat16, False, False)
    with pytest.raises(ConfigError, match=r"values beyond float16.*auto or bfloat16"):
        resolve_precision("float16_fp8", CUDA, wide=True)


def test_types_are_taken_at_their_word_and_others_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("auto", CUDA) == torch.float16
    for native, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert resolve_dtype("auto", CUDA, wide=True) == dtype
    for name in ("float32", "float16", "bfloat16"):
        assert resolve_dtype(name, CPU) == getattr(torch, name)
    with pytest.raises(ConfigError, match="'int4', expected auto, int8, float16_fp8, float32, "):
        resolve_precision("int4", CPU)
    for name, meant in (("fp16", "float16"), ("bf16", "bfloat16")):
        with pytest.raises(ConfigError, match=f"did you mean {meant}"):
            resolve_dtype(name, CPU)


def test_a_driver_that_is_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_old() -> bool:
        driver = "The NVIDIA driver on your system is too old (found version 11040)."
        warnings.warn(f"CUDA initialization: {driver}", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"0 CUDA devices here \(.*driver .* is too old.*nvidia"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"
    assert "runs on the CPU" in caplog.text
    assert "too old" in caplog.text


# How far logits may be from those of float32, relative to their own size.
TOLERANCES = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05, "auto": 0.05, "int8": 0.1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    load(folder)
    return folder


def logits(model: SlotModel) -> torch.Tensor:
    assert isinstance(model, WhisperSlotModel)
    tokens = sequences(2, 6)
    return begin(model, model.new_state(2), [0, 1], windows(2), tokens, [6, 6])


def test_it_says_what_the_network_says_in_any_numbers(checkpoint: Path) -> None:
    expected = logits(load_slot_model(checkpoint, device="cpu", dtype="float32"))
    for dtype in ("float32", "float16", "bfloat16", "auto"):
        model = load_slot_model(checkpoint, device="cpu", dtype=dtype)
        assert (model.device, model.dtype) == (CPU, resolve_dtype(dtype, CPU))
        scores = logits(model)
        assert scores.dtype == torch.float32
        assert (scores - expected).norm() < TOLERANCES[dtype] * expected.norm(), dtype


@needs_int8
@pytest.mark.parametrize("beside", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("vnni", [True, False], ids=["vnni", "pairs"])
def test_8_bits_stand_beside_what_the_processor_has(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, beside: torch.dtype, vnni: bool
) -> None:
    """Were `int8` passed over, the results would be those of the other type to the bit.

    Without bfloat16 `auto` is `int8`.
    """
    if not (has_vnni() if vnni else has_fbgemm()):
        pytest.skip("this processor or this torch has no such products")
    monkeypatch.setattr(projection, "has_vnni", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: beside == torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    names = ("auto", "int8", str(beside).removeprefix("torch."))
    models = [load_slot_model(checkpoint, device="cpu", dtype=name) for name in names]
    assert {model.dtype for model in models} == {beside}
    auto, eight, other = map(logits, models)
    assert not torch.equal(eight, other)
    assert torch.equal(auto, other if beside == torch.bfloat16 else eight)
    expected = logits(load_slot_model(checkpoint, device="cpu", dtype="float32"))
    assert (eight - expected).norm() < TOLERANCES["int8"] * expected.norm()


@needs_int8
@pytest.mark.parametrize("int8", [False, True])
def test_a_network_that_is_let_go_of_on_the_way_gives_the_same_model(
    int8: bool, tmp_path: Path
) -> None:
    network = load(tmp_path, torch.bfloat16)
    kept = network.slot_model(int8=int8)
    consumed = network.slot_model(int8=int8, consume=True)
    assert len(network.model.encoder.layers) == len(network.model.decoder.layers) == 0
    assert consumed.size == kept.size
    assert torch.equal(logits(consumed), logits(kept))
