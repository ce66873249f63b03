"""What shells offer at Tab: asked of bash itself, and of the scripts that other shells load."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from corpus_asr.config.load import load_config

pytestmark = pytest.mark.long

BINARIES = Path(sys.executable).parent
COMMAND = str(BINARIES / "corpus-asr")
# A shell waits for the answer; CPU time, since a busy machine makes wall time a matter of luck.
LIMIT_S = 1.0
HEAVY = {"torch", "ray", "pyarrow", "numpy", "av", "s3fs", "fsspec", "huggingface_hub"}

# Each word `|` ends a command line; its line of output is what is offered for its last word.
BASH = """
eval "$(_CORPUS_ASR_COMPLETE=source_bash corpus-asr)"
for word in "$@"; do
    if [ "$word" != "|" ]; then COMP_WORDS+=("$word"); continue; fi
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    _corpus_asr_completion corpus-asr
    echo "${COMPREPLY[*]}"
    COMP_WORDS=()
done
"""

WATCHED = """
import atexit, json, sys
from corpus_asr.cli import main as cli
atexit.register(lambda: print(json.dumps(sorted(sys.modules))))
cli.app(prog_name="corpus-asr")
"""


def bash(*lines: list[str]) -> list[list[str]]:
    """Return what bash offers for the last word of each command line."""
    path = f"{BINARIES}{os.pathsep}{os.environ['PATH']}"
    words = [word for line in lines for word in ("corpus-asr", *line, "|")]
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", *words],
        env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def asked(shell: str, typed: str, **more: str) -> str:
    """Return what a shell other than bash is told."""
    instruction = {"_CORPUS_ASR_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": typed}
    done = subprocess.run(
        [COMMAND], env=os.environ | instruction | more, capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_is_offered_commands_options_and_keys(tmp_path: Path) -> None:
    expected = {
        "transcr": ["transcribe"],
        "run x.yaml --set extract.p": ["extract.part_s=", "extract.pack_mb="],
        "transcribe a.wav --set diar": ["diarize="],
        "transcribe a.wav --vad": ["--vad-filter"],
        "finetune x.yaml --set data.held": ["data.held_out_speakers="],
        "run x.yaml --set no.such": [],
    }
    every = "label x.yaml --set "
    *offered, keys = bash(*(line.split(" ") for line in (*expected, every)))
    assert dict(zip(expected, offered, strict=True)) == expected
    assert len([key for key in keys if key.endswith("=")]) > 60
    file = tmp_path / "job.yaml"
    file.write_text("source: {uri: a}\nmodel: {checkpoint: b}\noutput: {uri: c}\n")
    values = {
        "transcribe.slots=": "4",
        "decoding.beam_size=": "2",
        "model.compute_type=": "float32",
    }
    assert {*values, "selection.max_copies="} <= set(keys)
    load_config(file, [key + value for key, value in values.items()])


def test_each_shell_has_a_script_that_calls_the_command() -> None:
    for shell in ("zsh", "fish"):  # that of bash runs above
        script = asked(shell, "", _CORPUS_ASR_COMPLETE=f"source_{shell}")
        assert f"_CORPUS_ASR_COMPLETE=complete_{shell}" in script
        assert "corpus-asr" in script


def test_completing_a_key_loads_nothing_heavy_and_is_quick() -> None:
    words = {"COMP_WORDS": "corpus-asr run x.yaml --set deco", "COMP_CWORD": "4"}
    environment = os.environ | words | {"_CORPUS_ASR_COMPLETE": "complete_bash"}
    spent_s = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        after = os.times()
        used = after.children_user + after.children_system
        spent_s.append(used - before.children_user - before.children_system)
    *offered, modules = done.stdout.splitlines()
    assert "decoding.language=" in offered
    assert not HEAVY & set(json.loads(modules))
    assert min(spent_s) < LIMIT_S
