"""Threads of torch and numpy, unless somebody has said otherwise."""

import os
import subprocess
import sys
import threading

import pytest

from corpus_asr.threads import (
    BRIEFLY,
    SPIN_COUNT,
    one_thread_for_arrays,
    run_apart,
    spin_briefly,
)


@pytest.fixture(autouse=True)
def nobody_has_set_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what a test sets is taken back as well.
    for name in (SPIN_COUNT, "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"):
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
