"""Threads of torch and numpy, unless somebody has said otherwise."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from corpus_asr import Transcriber, threads
from corpus_asr.decoding.device import set_threads
from corpus_asr.models.generation.slots import slot_model
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.runtime.resources import memory_limit_bytes, resolve_resources, this_machine
from corpus_asr.threads import (
    BRIEFLY,
    SPIN_COUNT,
    one_thread_for_arrays,
    run_apart,
    spin_briefly,
)
from tests.support.corpora import tiny_model
from tests.support.tables import run_config


@pytest.fixture(autouse=True)
def nobody_has_set_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what a test sets is taken back as well.
    for name in (SPIN_COUNT, "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_threads_spin_briefly() -> None:
    spin_briefly()
    assert os.environ[SPIN_COUNT] == BRIEFLY


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    spin_briefly()
    assert SPIN_COUNT not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv(SPIN_COUNT, "7")
    spin_briefly()
    assert os.environ[SPIN_COUNT] == "7"


def test_numpy_has_one_thread_whatever_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    one_thread_for_arrays()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"


def test_what_runs_apart_leaves_no_thread_behind() -> None:
    assert run_apart(threading.current_thread) not in threading.enumerate()
    with pytest.raises(ZeroDivisionError):
        run_apart(lambda: 1 // 0)


def test_the_command_says_so_before_torch_is_there() -> None:
    code = (
        "import os, sys; from corpus_asr.cli import main as cli\n"
        "sys.argv = ['corpus-asr', '--version']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print('torch' in sys.modules, os.environ['{SPIN_COUNT}'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == f"False {BRIEFLY}"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of control groups, version 2, on a machine of 16 cores."""
    monkeypatch.setattr(threads, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "_ROOT", tmp_path / "sys")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    group = tmp_path / "sys" / "outer" / "inner"
    group.mkdir(parents=True)
    return group


def test_a_container_has_what_it_was_given(groups: Path) -> None:
    assert (memory_limit_bytes(), threads.cpu_limit()) == (None, None)
    assert threads.usable_cpus() == 16
    (groups / "memory.max").write_text("max\n")
    (groups.parent / "memory.max").write_text("4294967296\n")
    (groups / "cpu.max").write_text("150000 100000\n")
    assert (memory_limit_bytes(), threads.cpu_limit()) == (4 << 30, 2)
    (groups.parent / "cpu.max").write_text("max 100000\n")
    assert threads.usable_cpus() == 2
    root = groups.parents[1]
    (root.parent / "cgroup").write_text("4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n")
    for name, text in (
        ("memory/memory.limit_in_bytes", "1073741824"), ("cpu/cpu.cfs_quota_us", "-1"),
        ("cpu/cpu.cfs_period_us", "100000"),
    ):  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    assert (memory_limit_bytes(), threads.cpu_limit()) == (1 << 30, None)
    (root / "cpu" / "cpu.cfs_quota_us").write_text("700000")
    assert threads.usable_cpus() == 7


@pytest.mark.parametrize(
    ("quota", "variable", "expected"),
    [
        ("max 100000", None, 16),
        ("max 100000", "4", 4),
        ("max 100000", " 3 , 2", 3),
        ("max 100000", "64", 16),
        ("250000 100000", "8", 3),
        ("250000 100000", "1", 1),
        ("max 100000", "0", 16),
        ("max 100000", "many", 16),
        ("max 100000", "", 16),
    ],
)
def test_quotas_and_the_variable_bound_threads_and_workers(
    groups: Path, monkeypatch: pytest.MonkeyPatch, quota: str, variable: str | None, expected: int
) -> None:
    (groups / "cpu.max").write_text(quota)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads.usable_threads() == expected
    monkeypatch.setattr("corpus_asr.runtime.resources._visible_gpus", lambda: 0)
    job = run_config("/audio", "/output")
    found = resolve_resources(job, (this_machine(),), num_packs=99)
    assert found.transcribe_threads == expected
    assert found.extract_workers == max(1, expected // 4)
    # What is set in the job counts more.
    job = run_config("/audio", "/output", transcribe={"cpus_per_worker": 5})
    assert resolve_resources(job, (this_machine(),), num_packs=99).transcribe_threads == 5


def test_torch_has_no_more_threads_than_there_are_cpus(groups: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        set_threads()
        assert torch.get_num_threads() == 5
        (groups / "cpu.max").write_text("300000 100000")
        set_threads()
        assert torch.get_num_threads() == 3
        set_threads(4)
        assert torch.get_num_threads() == 4
        model = tiny_model(groups)
        with Transcriber(str(model), slots=1):
            assert torch.get_num_threads() == 3
        torch.set_num_threads(5)
        slot_model(WhisperForConditionalGeneration.from_pretrained(model))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
