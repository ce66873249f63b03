"""How the command begins, before its own packages are there."""

import subprocess
import sys

INTERRUPTED_WHILE_READING = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from corpus_asr.__main__ import main

main()
"""


def test_an_interrupt_while_packages_are_read_is_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_READING],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "corpus-asr: interrupted\n"
    assert done.stdout == ""
    assert done.returncode == 130


def test_python_runs_it_as_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "corpus_asr", "--help"], capture_output=True, text=True, check=True
    )
    assert "transcribe" in done.stdout
