"""Torch's threads sleep while they wait, unless somebody has said otherwise."""

import os
import subprocess
import sys

import pytest

from corpus_asr.threads import WAIT_POLICY, sleep_while_waiting


def test_threads_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WAIT_POLICY, raising=False)
    sleep_while_waiting()
    assert os.environ[WAIT_POLICY] == "passive"
    monkeypatch.delenv(WAIT_POLICY)


def test_whoever_set_it_knows_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_POLICY, "active")
    sleep_while_waiting()
    assert os.environ[WAIT_POLICY] == "active"


def test_the_command_says_so_before_torch_is_there() -> None:
    code = (
        "import os, sys; from corpus_asr import cli; sys.argv = ['corpus-asr', '--version']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print('torch' in sys.modules, os.environ['{WAIT_POLICY}'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != WAIT_POLICY}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.splitlines()[-1] == "False passive"
