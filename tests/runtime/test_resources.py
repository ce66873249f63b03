from typing import Any

import pytest
from pydantic import ValidationError

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.resources import (
    NodeShape,
    ray_address,
    resolve_resources,
    store_bytes_for,
)
from corpus_asr.units import MEBIBYTE
from tests.support.tables import run_config

GIBIBYTE = 1024 * MEBIBYTE
LAPTOP = NodeShape(cpus=4, cores=2, gpus=0, memory_bytes=16 * GIBIBYTE)
TWO_CORES = NodeShape(cpus=2, cores=2, gpus=0, memory_bytes=8 * GIBIBYTE)
GPU_BOX = NodeShape(cpus=16, cores=16, gpus=1, memory_bytes=128 * GIBIBYTE)
PACKS = (1, 767, 768, 100_000)
HEAD = NodeShape(cpus=0, cores=1, gpus=0, memory_bytes=4 * GIBIBYTE)


def config(**sections: Any) -> RunConfig:
    return run_config("/audio", "/output", **sections)


def test_a_laptop_shares_its_cores_and_leaves_a_cpu_for_reading_and_writing():
    found = resolve_resources(config(), (LAPTOP,), num_packs=100)
    assert (found.extract_workers, found.transcribe_workers, found.transcribe_threads) == (1, 1, 2)
    assert (found.device, found.transcribe_gpus) == ("cpu", 0)
    assert found.extract_workers * found.extract_cpus + found.transcribe_cpus <= LAPTOP.cpus - 1
    assert found.parts_in_flight == 16  # of ten minutes: 256 MiB, two for each slot


def test_a_gpu_box_gives_its_cpus_to_extraction_and_says_so():
    found = resolve_resources(config(), (GPU_BOX,), num_packs=100)
    assert (found.transcribe_workers, found.transcribe_gpus, found.transcribe_cpus) == (1, 1, 0)
    assert (found.extract_workers, found.transcribe_threads, found.device) == (15, None, "cuda")
    assert found.parts_in_flight >= 64
    assert "extract: up to 15 workers of 1 CPU" in found.describe()
    assert "transcribe: 1 worker of 1 GPU" in found.describe()


def test_a_cluster_has_a_worker_per_gpu_and_none_on_the_head():
    nodes = (HEAD, GPU_BOX, GPU_BOX)
    assert resolve_resources(config(), nodes, num_packs=9999).transcribe_workers == 2
    halves = config(transcribe={"gpus_per_worker": 0.5})
    assert resolve_resources(halves, nodes, num_packs=9999).transcribe_workers == 4
    on_cpu = config(model={"checkpoint": "/model", "device": "cpu"})
    assert resolve_resources(on_cpu, nodes, num_packs=9999).transcribe_workers == 2


def test_the_more_gpus_there_are_the_less_the_driver_has_to_do_for_each():
    many = config(extract={"workers": 12})
    found = [
        resolve_resources(many, (GPU_BOX,) * count, num_packs=2000) for count in (1, 8, 64, 500)
    ]
    assert [each.block_bytes // MEBIBYTE for each in found] == [2, 16, 128, 128]
    assert [each.rows_per_call for each in found] == [4, 4, 9, 9]  # a block is one call
    assert all(each.parts_in_flight >= 128 for each in found)
    # Many tasks are left for each worker, and each has a few packs.
    packs = [resolve_resources(many, (GPU_BOX,), num_packs=n).packs_per_task for n in PACKS]
    assert packs == [1, 1, 2, 8]
    assert resolve_resources(config(), (LAPTOP,), num_packs=100).block_bytes == MEBIBYTE


def test_what_is_set_is_taken():
    asked = config(
        extract={"workers": 8},
        transcribe={"workers": 2, "cpus_per_worker": 1, "slots": 4},
    )
    found = resolve_resources(asked, (LAPTOP,), num_packs=100)
    assert (found.extract_workers, found.transcribe_workers) == (8, 2)
    assert found.transcribe_threads == 1
    # Eight workers share what two models and a spare CPU leave of four.
    assert found.extract_workers * found.extract_cpus == pytest.approx(1)
    assert found.parts_in_flight == 8


def test_gpus_that_are_not_there_are_refused_unless_workers_are_counted():
    asked = config(transcribe={"gpus_per_worker": 1})
    with pytest.raises(ConfigError, match="gpus_per_worker is 1, but no machine"):
        resolve_resources(asked, (LAPTOP,), num_packs=1)
    scaling = config(transcribe={"gpus_per_worker": 1, "workers": 4})
    assert resolve_resources(scaling, (LAPTOP,), num_packs=1).transcribe_gpus == 1


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_worker_that_has_a_gpu_never_chooses_another_device(device):
    asked = config(model={"checkpoint": "/model", "device": device})
    found = resolve_resources(asked, (GPU_BOX, GPU_BOX), num_packs=9)
    assert found.device == ("cuda" if device == "auto" else device)


def test_gpus_that_a_worker_could_not_use_are_refused():
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        config(transcribe={"gpus_per_worker": 2})
    second = config(model={"checkpoint": "/model", "device": "cuda:1"})
    with pytest.raises(ConfigError, match="sees its GPU as cuda:0; set it to cuda"):
        resolve_resources(second, (GPU_BOX,), num_packs=9)
    here = resolve_resources(second, (GPU_BOX,), num_packs=9, in_process=True)
    assert here.device == "cuda:1"


def test_what_could_never_start_is_refused_unless_machines_may_come():
    for transcribe in (
        {"cpus_per_worker": 4},
        {"cpus_per_worker": 3},
        {"workers": 2, "cpus_per_worker": 1.5},
        {"workers": 4, "gpus_per_worker": 1},
    ):
        asked = config(transcribe=transcribe)
        with pytest.raises(ConfigError, match=r"planning workers: .*; lower"):
            resolve_resources(asked, (LAPTOP,), num_packs=100, fixed=True)
        assert resolve_resources(asked, (LAPTOP,), num_packs=100).transcribe_workers, transcribe


@pytest.mark.parametrize("node", [TWO_CORES, LAPTOP, GPU_BOX])
@pytest.mark.parametrize("extract_workers", [1, 8, 99, "auto"])
@pytest.mark.parametrize("workers", [1, 2, 16, "auto"])
def test_what_is_automatic_always_fits(node: NodeShape, workers: Any, extract_workers: Any):
    sections = {"transcribe": {"workers": workers}, "extract": {"workers": extract_workers}}
    asked = config(model={"checkpoint": "/model", "device": "cpu"}, **sections)
    found = resolve_resources(asked, (node,), num_packs=100, fixed=True)
    transcribe = found.transcribe_workers * found.transcribe_cpus
    assert transcribe + found.extract_workers * found.extract_cpus <= node.cpus - 1


def test_there_are_no_more_workers_than_their_cpus_allow_and_packs_need():
    assert resolve_resources(config(), (GPU_BOX,), num_packs=3).extract_workers == 3
    eight = NodeShape(cpus=16, cores=16, gpus=8, memory_bytes=128 * GIBIBYTE)
    asked = config(transcribe={"cpus_per_worker": 4})
    found = resolve_resources(asked, (eight,), num_packs=100, fixed=True)
    assert (found.transcribe_workers, found.extract_workers) == (3, 3)


def test_memory_bounds_the_object_store():
    assert 512 * MEBIBYTE <= store_bytes_for(config(), LAPTOP) <= 2 * GIBIBYTE
    small = NodeShape(cpus=4, cores=4, gpus=1, memory_bytes=8 * GIBIBYTE)
    assert store_bytes_for(config(), small) <= 8 * GIBIBYTE * 0.3


def test_what_waits_is_bounded_by_half_of_the_object_store_or_as_asked():
    found = resolve_resources(config(), (GPU_BOX,), num_packs=9, store_bytes=8 * GIBIBYTE)
    assert found.ahead_bytes == 4 * GIBIBYTE
    assert found.parts_in_flight * 600 * 25_600 <= 2 * GIBIBYTE
    asked = config(extract={"max_buffered_features_mb": 300})
    for store_bytes in (None, 8 * GIBIBYTE):
        found = resolve_resources(asked, (GPU_BOX,), num_packs=9, store_bytes=store_bytes)
        assert found.ahead_bytes == 300 * MEBIBYTE
        assert found.parts_in_flight * 600 * 25_600 <= 150 * MEBIBYTE
    assert store_bytes_for(asked, GPU_BOX) == 600 * MEBIBYTE
    alone = resolve_resources(config(), (LAPTOP,), num_packs=9)
    assert alone.ahead_bytes == alone.parts_in_flight * 600 * 25_600 + 64 * MEBIBYTE


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, "local"),
        ("", "local"),
        ("local", "local"),
        (" auto ", "auto"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
    ],
)
def test_ray_is_found_by_its_variable(
    named: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    assert ray_address() == expected


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("http://head:8265", r"'http://head:8265', a dashboard.*submit this command by `ray job"),
        ("https://u:secret@head", "a dashboard"),
        ("ray://head:10001", "Ray Client, which cannot run Ray Data"),
        ("head", "expected host:port of a cluster, such as 10.0.0.1:6379, auto or local"),
    ],
)
def test_a_ray_address_that_no_run_can_join_is_refused(
    named: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ConfigError, match=words) as caught:
        ray_address()
    assert "RAY_ADDRESS" in str(caught.value)
    assert "unset it" in str(caught.value)
    assert "secret" not in str(caught.value)
