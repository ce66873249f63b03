"""A cluster made by hand: the commands of the guide, as they stand there, on one machine."""

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.corpora import CLIPS, job, tiny_model
from tests.support.tables import rows_of

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "clusters.md"
# Of a second node on one machine, and of a Ray that shares the machine with others.
ON_ONE_MACHINE = ("--object-store-memory", "100000000", "--disable-usage-stats")

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def commands() -> list[str]:
    """The commands of the guide, without comments."""
    block = re.search(r"```console\n(\$ pip install -c(?:.*\n)+?)```", GUIDE.read_text())
    assert block
    return [re.sub(r"\s+#.*", "", line[2:]) for line in block[1].splitlines()]


@contextmanager
def ended_afterwards(folder: str) -> Iterator[None]:
    """End what `ray start` left below a folder; `ray stop` would end every Ray of the machine."""
    try:
        yield
    finally:
        left = [each for each in psutil.process_iter() if folder in " ".join(arguments(each))]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def arguments(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_the_commands_of_the_guide_make_a_cluster_that_a_job_uses(tmp_path: Path) -> None:
    written = commands()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.flac").write_bytes((CLIPS / "silence.flac").read_bytes())
    config = job(tmp_path / "corpus", tiny_model(tmp_path), tmp_path / "output")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    programs = {
        "ray": [str(Path(sys.executable).with_name("ray"))],
        "corpus-asr": [sys.executable, "-m", "corpus_asr"],
    }
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ended_afterwards(folder):
        for command in written:
            if command.startswith(("pip ", "scp ")):  # one machine, on which all is installed
                continue
            if command.startswith("export "):
                name, _, value = command.removeprefix("export ").partition("=")
                # With a folder of its own, this Ray is none that `auto` finds.
                environment[name] = f"127.0.0.1:{port}" if value == "auto" else value
                continue
            command = command.replace("HEAD:6379", f"127.0.0.1:{port}")
            command = command.replace("configs/podcasts.yaml", str(tmp_path / "job.yaml"))
            words = shlex.split(command)
            if words[:2] == ["ray", "start"]:
                words += ON_ONE_MACHINE
            if "--head" in words:
                words += ["--port", str(port), "--temp-dir", folder, "--include-dashboard=false"]
                words += ["--node-ip-address", "127.0.0.1"]
            done = subprocess.run(
                [*programs[words[0]], *words[1:]],
                env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    (row,) = rows_of(OutputStore(str(tmp_path / "output")).recordings())
    assert row["status"] in ("ok", "no_speech")
