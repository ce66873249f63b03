"""Words of the settings become devices and types, or a clear refusal."""

import pytest
import torch

from corpus_asr.errors import ConfigError
from corpus_asr.models.device import device_name, resolve_device, resolve_dtype

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu() -> None:
    assert resolve_device("auto") == CPU
    assert resolve_device("cpu") == CPU


@pytest.mark.usefixtures("two_gpus")
def test_with_gpus_auto_is_the_first() -> None:
    assert resolve_device("auto") == CUDA
    assert resolve_device("cuda") == CUDA
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == CPU


@pytest.mark.usefixtures("no_gpu")
def test_asking_for_a_gpu_where_there_is_none_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'cuda'.* sees 0 CUDA devices"):
        resolve_device("cuda")


@pytest.mark.usefixtures("two_gpus")
def test_asking_for_a_gpu_too_many_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'cuda:2'.* sees 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "CPU", "cuda:0 ", "mps"])
def test_an_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_auto_is_float16_on_cuda_and_float32_on_cpus() -> None:
    assert resolve_dtype("auto", CUDA) == torch.float16
    assert resolve_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_named_types_are_taken_at_their_word(name: str) -> None:
    assert resolve_dtype(name, CPU) == getattr(torch, name)


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'int8', expected auto, float32, float16, bfloat16"):
        resolve_dtype("int8", CPU)


@pytest.mark.usefixtures("two_gpus")
def test_bfloat16_is_refused_by_gpus_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ConfigError, match="NVIDIA H200 has no bfloat16 arithmetic"):
        resolve_dtype("bfloat16", CUDA)


@pytest.mark.usefixtures("two_gpus")
def test_tables_name_the_device() -> None:
    assert device_name(CPU) == "cpu"
    assert device_name(CUDA) == "cuda:NVIDIA H200"
