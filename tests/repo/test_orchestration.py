"""Examples for other tools name commands and exit codes that exist."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import typer.main

from corpus_asr.cli import failures
from corpus_asr.cli import main as cli
from corpus_asr.report.nightly import as_data
from tests.support.nightly import night

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "configs" / "orchestration"


# Airflow and Dagster, of which only what the examples use is imitated.

CODES = [
    (0, None),
    (failures.EXIT_LOCKED, False),
    (failures.EXIT_SOME_FAILED, True),
    (failures.EXIT_UNUSABLE, True),
    (failures.EXIT_STOPPED_BY_FAILURE, False),
]


def check_command(line: str) -> None:
    """Let the command's own parser read a command of an example."""
    program, name, *arguments = line.split()
    assert program == "corpus-asr"
    group: Any = typer.main.get_command(cli.app)
    group.commands[name].make_context(name, arguments)


class RefusalError(Exception):
    def __init__(self, text: str, *, allow_retries: bool = True) -> None:
        super().__init__(text)
        self.allow_retries = allow_retries


class FinalError(RefusalError): ...


class BashOperator:
    def __init__(self, **settings: Any) -> None:
        self.settings, self.subprocess_hook = settings, MagicMock()

    def execute(self, context: object) -> object:
        if code := self.subprocess_hook.sub_process.returncode:
            raise RefusalError(f"exit code {code}.")
        return context


@pytest.mark.parametrize(("code", "final"), CODES)
def test_airflow_calls_the_command_and_knows_its_codes(
    code: int, final: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = MagicMock(
        AirflowException=RefusalError, AirflowFailException=FinalError, BashOperator=BashOperator
    )
    for name in ("airflow", "airflow.exceptions", "airflow.sdk", "airflow.providers",
                 "airflow.providers.standard", "airflow.providers.standard.operators",
                 "airflow.providers.standard.operators.bash"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, library)
    example = EXAMPLES / "airflow_nightly.py"
    task = runpy.run_path(str(example))["NightlyOperator"]()
    assert f"skip_on_exit_code={failures.EXIT_LOCKED}," in example.read_text()
    # Signals reach the command, not a shell.
    (line,) = re.findall(r'bash_command=f"exec (.*)"', example.read_text())
    check_command(line)
    task.subprocess_hook.sub_process.returncode = code
    if final is None:
        assert task.execute("context") == "context"
    else:
        with pytest.raises(RefusalError, match=f"exit code {code}") as caught:
            task.execute("context")
        assert isinstance(caught.value, FinalError) is final


@pytest.mark.parametrize(("code", "final"), CODES)
def test_dagster_shows_a_nights_numbers_and_tries_again_what_may_pass(
    code: int, final: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = MagicMock(
        Failure=RefusalError,
        MaterializeResult=SimpleNamespace,
        asset=lambda **_: lambda function: function,
    )
    monkeypatch.setitem(sys.modules, "dagster", library)
    transcripts = runpy.run_path(str(EXAMPLES / "dagster_nightly.py"))["transcripts"]
    done = SimpleNamespace(returncode=code, stdout=json.dumps(as_data(night())))
    run = MagicMock(return_value=done)
    monkeypatch.setattr(subprocess, "run", run)
    if code == failures.EXIT_LOCKED:
        assert transcripts(MagicMock()).metadata == {"skipped": True}
    elif final is None:
        assert transcripts(MagicMock()).metadata == {
            "done": 10, "failed": 0, "remaining": 0, "audio_hours": 10.0, "rtfx": 10.0,
            "output": "s3://transcripts/podcasts",
        }  # fmt: skip
    else:
        with pytest.raises(RefusalError, match=f"ended with {code}") as caught:
            transcripts(MagicMock())
        assert caught.value.allow_retries is not final
    check_command(" ".join(run.call_args.args[0]))
