"""What `make` installs by: what pip is told on a machine holds where uv installs."""

import importlib.util
import os
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


def test_quotes_backslashes_and_letters_are_those_of_the_value() -> None:
    options, _ = translated(
        "global.constraint=\"/it's/a.txt\"\n:env:.trusted-host='a\\\\b'\n"
        "install.index-url='https://example.org/\\x7f/Größe'\n"
    )
    assert options == [
        *BEST, "-c", "/it's/a.txt", "--index-url", "https://example.org/\x7f/Größe",
        "--allow-insecure-host", "a\\b",
    ]  # fmt: skip


def test_variables_count_more_than_files_and_empty_values_not_at_all() -> None:
    options, variables = translated(
        ":env:.constraint='/env.txt'\n:env:.index-url=''\n:env:.cert=' '\n"
        "freeze.constraint='/freeze.txt'\nglobal.cert='/global.pem'\n"
        "global.constraint='/global.txt'\nglobal.index-url='https://global.example.org'\n"
        "install.constraint='/install.txt'\ninstall.timeout='30'\nlist.format='columns'\n"
    )
    assert options == [*BEST, "-c", "/env.txt", "--index-url", "https://global.example.org"]
    assert variables == {"SSL_CERT_FILE": "/global.pem", "UV_HTTP_TIMEOUT": "30"}


def test_pip_is_asked_for_a_name_that_two_files_set() -> None:
    listing = "global.constraint='/user.txt'\nglobal.constraint='/machine.txt'\n"
    options, _ = translated(listing, {"global.constraint": "/user.txt\n"}.__getitem__)
    assert options == [*BEST, "-c", "/user.txt"]


@pytest.mark.parametrize(("value", "expected"), [("1", ["--no-index"]), ("False", [])])
def test_indexes_can_be_left_out(value: str, expected: list[str]) -> None:
    assert translated(f":env:.no-index='{value}'")[0] == [*BEST, *expected]


def test_a_proxy_is_that_of_both_schemes() -> None:
    _, variables = translated("global.proxy='http://proxy:3128'\nglobal.client-cert='/me.pem'")
    assert variables.pop("SSL_CLIENT_CERT") == "/me.pem"
    assert {name.upper() for name in variables} == {"HTTP_PROXY", "HTTPS_PROXY"}
    assert set(variables.values()) == {"http://proxy:3128"}


def test_places_that_do_not_exist_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    (tmp_path / "a b").mkdir()
    wheels.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    spaced = f"{tmp_path.as_uri()}/a%20b"
    options, _ = translated(
        f"global.find-links='~/wheels {tmp_path}/missing {wheels} https://example.org/wheels'\n"
        f"global.extra-index-url='{spaced} {tmp_path.as_uri()}/missing'\n"
    )
    assert options == [
        *BEST,
        *("--find-links", str(wheels), "--find-links", str(wheels)),
        *("--find-links", "https://example.org/wheels", "--extra-index-url", spaced),
    ]


def test_what_changes_nothing_is_left_out_and_what_uv_cannot_say_is_named() -> None:
    assert translated(":env:.no-cache-dir='off'\n:env:.quiet='1'\n") == (BEST, {})
    with pytest.raises(LookupError, match="require-hashes"):
        translated("global.require-hashes='true'")


def test_pip_says_what_its_files_and_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[install]\nconstraint =\n    /one.txt\n    /two.txt\n"
        "trusted_host = example.org\nquiet = 2\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("PIP_TRUSTED_HOST", "example.com")
    monkeypatch.setenv("PIP_QUIET", "1")
    listing = install.run_pip("config", "list").stdout
    found = install.parse_settings(listing, None)
    assert found["constraint"].split() == ["/one.txt", "/two.txt"]
    assert found["trusted-host"] == "example.com"


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
