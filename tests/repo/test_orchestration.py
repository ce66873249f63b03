"""Examples for other tools name commands and exit codes that exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import typer.main
from ray.scripts.scripts import cli as ray_command

from corpus_asr.cli import failures
from corpus_asr.cli import main as cli
from corpus_asr.report.nightly import as_data
from tests.support.nightly import night

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "configs" / "orchestration"


def check_command(line: str) -> None:
    """Let the command's own parser read a command of an example."""
    program, name, *arguments = line.split()
    assert program == "corpus-asr"
    group: Any = typer.main.get_command(cli.app)
    group.commands[name].make_context(name, arguments)


def test_examples_of_schedulers_name_commands_codes_and_numbers_that_exist() -> None:
    airflow, dagster = (
        (EXAMPLES / f"{name}_nightly.py").read_text() for name in ("airflow", "dagster")
    )
    # Signals reach the command, not a shell.
    (line,) = re.findall(r'bash_command=f"exec (.*)"', airflow)
    (words,) = re.findall(r"command = \[(.*)\]", dagster)
    for command in (line, re.sub('[",]', "", words)):
        check_command(command)
    codes = f"{failures.EXIT_SOME_FAILED}, {failures.EXIT_UNUSABLE}"
    assert f"SOME_FAILED, UNUSABLE = {codes} " in airflow
    assert f"skip_on_exit_code={failures.EXIT_LOCKED}," in airflow
    codes = f"{failures.EXIT_LOCKED}, {failures.EXIT_STOPPED_BY_FAILURE}"
    assert f"LOCKED, STOPPED_BY_FAILURE = {codes} " in dagster
    numbers = re.findall(r'night\["numbers"\]\["(\w+)"\]', dagster)
    assert {"done", "rtfx"} <= {*numbers} <= as_data(night())["numbers"].keys()


def test_ray_knows_the_commands_of_the_guide_to_clusters() -> None:
    guide = (REPOSITORY / "docs" / "how-to" / "clusters.md").read_text()
    calls = re.findall(r"^\$ ray (\S+)(.*?)(?: +#.*)?$", guide, re.M)
    assert {name for name, _ in calls} >= {"get-auth-token", "start"}
    for name, options in calls:
        ray_command.commands[name].make_context(name, shlex.split(options))
