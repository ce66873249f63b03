"""What a run finds around it by the command line: a Ray to join."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from tests.support.corpora import tiny_model

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def command(folder: Path, model: Path, *words: str) -> Result:
    """Do something with a job over an empty folder, which is work enough here."""
    (folder / "in").mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(
        f"source: {{uri: {folder}/in}}\nmodel: {{checkpoint: {model}}}\n"
        f"output: {{uri: {folder}/out}}\n"
    )
    name, *options = words
    return CliRunner().invoke(cli.app, [name, str(folder / "job.yaml"), *options])


def test_a_ray_address_of_a_dashboard_stops_what_would_join_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
    for words in (("run",), ("plan", "--check")):
        refused = command(tmp_path, model, *words)
        assert refused.exit_code == 2, refused.output
        assert "RAY_ADDRESS is 'http://localhost:8265', a dashboard" in refused.stderr
    for others in (("run", "--local"), ("plan",)):
        assert command(tmp_path, model, *others).exit_code == 0
