"""What `make` installs by: what pip is told on a machine holds where uv installs."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BEST = ["--index-strategy", "unsafe-best-match"]


def loaded_script() -> Any:
    spec = importlib.util.spec_from_file_location("install", REPOSITORY / ".ci" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = loaded_script()


def translated(listing: str, get_value: Any = None) -> Any:
    return install.translate(install.parse_settings(listing, get_value))


def test_words_of_a_value_are_options_each_on_one_line_or_several() -> None:
    options, variables = translated(
        "global.constraint='/etc/pip/a.txt https://example.org/b.txt'\n"
        "global.extra-index-url='\\nhttps://one.example.org/simple\\n  https://two.example.org/simple'\n"
        "global.index-url='https://user:p=w@example.org/simple'\n"
        "global.trusted-host='example.org:8080'\n"
    )
    assert options == [
        *BEST,
        *("-c", "/etc/pip/a.txt", "-c", "https://example.org/b.txt"),
        *("--extra-index-url", "https://one.example.org/simple"),
        *("--extra-index-url", "https://two.example.org/simple"),
        *("--index-url", "https://user:p=w@example.org/simple"),
        *("--allow-insecure-host", "example.org:8080"),
    ]
    assert variables == {}


@pytest.mark.parametrize(("value", "expected"), [("1", ["--no-index"]), ("False", [])])
def test_indexes_can_be_left_out(value: str, expected: list[str]) -> None:
    assert translated(f":env:.no-index='{value}'")[0] == [*BEST, *expected]


def prepare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exit_code: int, listing: str
) -> list[tuple[str, ...]]:
    """Put a uv on the path that ends with `exit_code`; returns what pip is then called with."""
    calls = []

    def run_pip(*arguments: str, capture: bool = True) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, stdout=listing)

    uv = tmp_path / "uv"
    uv.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "$SSL_CERT_FILE $@" > {tmp_path}/found\n'
        f"echo 'error: no such wheel' >&2\nexit {exit_code}\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(install.sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setattr(install, "run_pip", run_pip)
    return calls


def test_uv_is_given_what_pip_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = prepare(
        tmp_path, monkeypatch, exit_code=0, listing="global.cert='/c.pem'\nglobal.no-index='1'\n"
    )
    assert install.main(["-e", "."]) == 0
    assert calls == [("config", "list")]
    assert (tmp_path / "found").read_text().split() == [
        "/c.pem", "pip", "install", "--python", str(tmp_path / "venv" / "python"),
        *BEST, "--no-index", "-e", ".",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("exit_code", "listing", "reason"),
    [(1, "", "error: no such wheel"), (0, "global.pre='1'", "uv has no setting for pip's pre")],
)
def test_pip_installs_where_uv_cannot(
    exit_code: int,
    listing: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = prepare(tmp_path, monkeypatch, exit_code=exit_code, listing=listing)
    assert install.main(["-e", "."]) == 0
    assert calls[-1] == ("install", "--quiet", "-e", ".")
    assert capsys.readouterr().err.endswith(f"because {reason}\n")


def test_uv_is_fetched_into_the_environment_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = prepare(tmp_path, monkeypatch, exit_code=0, listing="")
    (tmp_path / "venv").mkdir()
    (tmp_path / "uv").rename(tmp_path / "venv" / "fetched")
    original = install.run_pip

    def run_pip(*arguments: str, capture: bool = True) -> Any:
        if arguments[0] == "install":
            (tmp_path / "venv" / "fetched").rename(tmp_path / "venv" / "uv")
        return original(*arguments, capture=capture)

    monkeypatch.setattr(install, "run_pip", run_pip)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert install.main(["-e", "."]) == 0
    assert calls == [("config", "list"), ("install", "-c", "constraints.txt", "uv")]
    assert (tmp_path / "found").exists()


def test_the_demo_installs_only_what_it_runs() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.findall(r"^(\S+):.*\n\t\$\(call install,(.*)\)$", makefile, re.M) == [
        ("$(RUNNABLE)", "evaluate"),
        ("$(INSTALLED)", "dev"),
    ]
    targets = re.findall(r"^([a-z-]+): \$\(RUNNABLE\)", makefile, re.M)
    assert targets == ["demo"]
