"""Installs into the environment of the Python that runs it: by uv, or by pip where uv cannot.

Arguments are those of `pip install`. uv does not read what pip is told on a machine, by files and
by PIP_ variables, such as mirrors, folders of wheels and certificates: it is handed on to uv.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Settings of pip with the options of uv that say the same, once for each word of a value.
OPTIONS = {
    "index-url": "--index-url",
    "extra-index-url": "--extra-index-url",
    "find-links": "--find-links",
    "constraint": "-c",
    "trusted-host": "--allow-insecure-host",
}
# Those of which uv reads a variable.
VARIABLES = {
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
}
# Those that change nothing of what is installed in an environment.
WITHOUT_EFFECT = {
    "break-system-packages", "cache-dir", "compile", "config-file", "disable-pip-version-check",
    "format", "keyring-provider", "log", "no-cache-dir", "no-color", "no-compile", "no-input",
    "no-python-version-warning", "no-warn-conflicts", "no-warn-script-location", "prefer-binary",
    "progress-bar", "quiet", "require-virtualenv", "resume-retries", "retries",
    "root-user-action", "verbose",
}  # fmt: skip
OFF = {"n", "no", "f", "false", "off", "0"}


def parse_settings(listing: str, get_value: Callable[[str], str]) -> dict[str, str]:
    """Return the settings of `pip install` by name, from the lines of `pip config list`.

    Newer versions of pip list a name once for each file that sets it; of such a name `get_value`
    is asked for the value that counts.
    """
    listed: dict[str, str] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        listed[name] = get_value(name) if name in listed else ast.literal_eval(value)
    return {
        name.removeprefix(section): value
        for section in ("global.", "install.", ":env:.")
        for name, value in listed.items()
        if name.startswith(section) and value.strip()
    }


def translate(settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return options and variables of uv that say what settings of pip say.

    Raises LookupError: a setting that uv has no word for.
    """
    # Indexes are equal to pip; uv would take a package from the first that has it.
    options = ["--index-strategy", "unsafe-best-match"]
    variables: dict[str, str] = {}
    for name, value in settings.items():
        if name in OPTIONS:
            for word in value.split():
                if name not in ("extra-index-url", "find-links") or is_reachable(word):
                    options += [OPTIONS[name], os.path.expanduser(word)]
        elif name in VARIABLES:
            variables |= dict.fromkeys(VARIABLES[name], value)
        elif name == "no-index":
            options += [] if value.lower() in OFF else ["--no-index"]
        elif name not in WITHOUT_EFFECT:
            raise LookupError(name)
    return options, variables


def is_reachable(place: str) -> bool:
    """Return whether a place is remote, or exists: pip passes over others, uv refuses them."""
    url = urlsplit(place)
    if "://" in place and url.scheme != "file":
        return True
    return Path(unquote(url.path) if url.scheme == "file" else place).expanduser().exists()


def install_by_uv(arguments: list[str]) -> str:
    """Install by uv; return why it could not, or an empty text."""
    listing = run_pip("config", "list").stdout
    try:
        settings = parse_settings(listing, lambda name: run_pip("config", "get", name).stdout)
        options, variables = translate(settings)
    except LookupError as error:
        return f"uv has no setting for pip's {error}"
    scripts = Path(sys.executable).parent
    uv = shutil.which("uv", path=f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None or subprocess.run([uv, "--version"], capture_output=True).returncode:
        if run_pip("install", "-c", "constraints.txt", "uv").returncode:
            return "pip found no uv"
        uv = str(scripts / "uv")
    command = [uv, "pip", "install", "--python", sys.executable, *options, *arguments]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    return done.stderr.strip() or "uv failed" if done.returncode else ""


def run_pip(*arguments: str, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """Run pip; return its exit code and, unless it is shown, its output."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    # Settings of these may hide what is asked for, or stand before it.
    environment = os.environ | {"PIP_QUIET": "0", "PIP_VERBOSE": "0"}
    return subprocess.run(command, env=environment, capture_output=capture, text=True)


def main(arguments: list[str]) -> int:
    """Install; return the exit code."""
    if not (reason := install_by_uv(arguments)):
        return 0
    sys.stderr.write(f"installing by pip, which takes minutes, because {reason}\n")
    return run_pip("install", "--quiet", *arguments, capture=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
