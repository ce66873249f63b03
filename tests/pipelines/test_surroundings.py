"""What a run finds around it by the command line: a Ray to join, a catalog to register in."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from tests.support.corpora import tiny_model

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def command(folder: Path, model: Path, *words: str, output: str = "") -> Result:
    """Do something with a job over an empty folder, which is work enough here."""
    (folder / "in").mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(
        f"source: {{uri: {folder}/in}}\nmodel: {{checkpoint: {model}}}\n"
        f"output: {{uri: {folder}/out{output}}}\n"
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
        assert "RAY_ADDRESS is 'http://localhost:8265': a dashboard" in refused.stderr
    for others in (("run", "--local"), ("run", "--set", "cluster.address=local"), ("plan",)):
        assert command(tmp_path, model, *others).exit_code == 0


def catalog_in(folder: Path) -> str:
    return (
        ", catalog: {name: lake, namespace: podcasts, type: sql, "
        f"uri: 'sqlite:///{folder}/catalog.db', warehouse: 'file://{folder}/warehouse'}}"
    )


def test_finished_tables_are_registered_and_a_run_says_so(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("pyiceberg")
    output = catalog_in(tmp_path)
    ready = command(tmp_path, model, "plan", "--check", output=output)
    assert ready.exit_code == 0, ready.output
    assert "# catalog    podcasts of the Iceberg catalog lake (sql) answers" in ready.stdout
    done = command(tmp_path, model, "run", "--local", output=output)
    assert done.exit_code == 0, done.output
    where = "registered in podcasts of the Iceberg catalog lake (sql)"
    assert f"{where}: segments, outcomes, recordings" in done.stderr
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as catalog:
        rows = catalog.execute("select table_name from iceberg_tables order by 1").fetchall()
    assert rows == [("outcomes",), ("recordings",), ("segments",)]


def test_a_catalog_that_is_down_fails_a_run_whose_tables_are_finished(
    tmp_path: Path, model: Path
) -> None:
    pytest.importorskip("pyiceberg")
    output = catalog_in(tmp_path / "not" / "there")
    for words in (("plan", "--check"), ("run", "--local")):
        failed = command(tmp_path, model, *words, output=output)
        assert failed.exit_code == 3, failed.output
        assert "podcasts of the Iceberg catalog lake (sql): OperationalError" in failed.stderr
        assert "running again registers those that are finished" in failed.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert (tmp_path / "out" / "report.html").exists()
