"""Command lines as people of other programs type them, unknown options, and help."""

import re
import shlex
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from corpus_asr.cli.main import Command, Group
from corpus_asr.cli.main import app as program

app = typer.Typer(cls=Group)
seen: dict[str, Any] = {}


@app.callback()
def group() -> None:
    """A program."""


@app.command(cls=Command, epilog="Example: program work a --beam-size 5")
def work(
    files: list[str],
    beam_size: int = 1,
    word_times: Annotated[bool, typer.Option("--word-times/--no-word-times")] = False,
    filtered: Annotated[bool, typer.Option("--vad-filter/--no-vad-filter", " /--no-vad")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", "-w")] = False,
    prompt: str = "",
    output_dir: Annotated[str, typer.Option("--output-dir", "-o")] = "",
) -> None:
    """Do some work."""
    seen.clear()
    seen.update(locals())


def called(line: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["work", *shlex.split(line)])
    assert result.exit_code == 0, result.output
    return {name: seen[name] for name in seen if name in NAMES or name == "files"}


NAMES = ("beam_size", "word_times", "filtered", "overwrite", "prompt")
DEFAULTS = {
    "files": ["a"], "beam_size": 1, "word_times": False, "filtered": True, "overwrite": False,
    "prompt": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a --beam_size 5", {"beam_size": 5}),
        ("a --beam-size=5", {"beam_size": 5}),
        ("a --beam_size=5", {"beam_size": 5}),
        ("a --no-vad", {"filtered": False}),
        ("a --no_vad_filter", {"filtered": False}),
        ("a --overwrite", {"overwrite": True}),
        ("a --prompt a_b_c", {"prompt": "a_b_c"}),
        ("-- a --word_times", {"files": ["a", "--word_times"]}),
    ],
)
def test_options_are_understood_as_argparse_spells_them(
    line: str, expected: dict[str, Any]
) -> None:
    assert called(line) == DEFAULTS | expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("work a --beam_sise 5", "No such option: --beam_sise. Did you mean --beam-size?"),
        ("work a --num_beams 5", "No such option: --num_beams. Did you mean --beam-size?"),
        ("work a --wrd-times=5", "No such option: --wrd-times. Did you mean --word-times?"),
        ("work a --xyzzy", "No such option: --xyzzy. See --help for all of them."),
        ("work a --word-times=maybe", "does not take a value"),
        ("wrok a", "Did you mean 'work'?"),
    ],
)
def test_what_nobody_knows_is_answered_with_what_is_meant(line: str, message: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line), env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_help_shows_an_example_and_no_type_of_a_flag() -> None:
    text = CliRunner().invoke(app, ["work", "--help"], env={"COLUMNS": "120"}).stdout
    assert "Example: program work a --beam-size 5" in text
    assert "<bool>" not in text
    assert re.search(r"--beam-size +(<int>|INTEGER)", text)


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(program)
    return dict(group.commands)


@pytest.mark.parametrize("name", commands())
def test_the_help_of_every_command_has_a_panel_and_an_example_that_can_be_typed(name: str) -> None:
    command = commands()[name]
    assert command.rich_help_panel
    program_name, called, *arguments = shlex.split(command.epilog.removeprefix("Example: "))
    assert (program_name, called) == ("corpus-asr", name)
    command.make_context(name, arguments, token_normalize_func=lambda name: name)
    help_text = CliRunner().invoke(program, [name, "--help"], env={"COLUMNS": "120"}).stdout
    assert "<bool>" not in help_text
    assert not re.search(r"{[A-Z_]+}", re.sub(r"Usage:.*", "", help_text)), "a placeholder"


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(program, ["--version"])
    assert (result.exit_code, result.stdout) == (0, "corpus-asr 0.1.0\n")
