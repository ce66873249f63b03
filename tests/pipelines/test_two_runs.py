"""Several runs on one output: at once, after a killed one, with a choice; each with a page."""

import io
import json
import re
import shlex
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from corpus_asr.config.load import load_config
from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import EngineError, FetchError
from corpus_asr.pipelines import driver
from corpus_asr.report import page
from corpus_asr.report.page import write_page_at_the_end
from corpus_asr.report.run import load_report, render
from corpus_asr.runtime.local import run_local
from corpus_asr.storage.run_state.lock import (
    LOCK_NAME,
    SUCCESS_NAME,
    Holder,
    ProcessName,
    read_holder,
)
from corpus_asr.storage.run_state.run_files import PAGE_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import EXTRACTOR, script, scripted_engine
from tests.support.killing import killable_job
from tests.support.pages import parsed
from tests.support.tables import with_section

pytestmark = pytest.mark.long

FILES = 12
GUIDE = (Path(__file__).parents[2] / "docs" / "background" / "scaling.md").read_text()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A job over four files, of which one has a part that fails, with nothing real in it."""
    script(monkeypatch.setattr, engine=scripted_engine)
    return killable_job(tmp_path, files=4).config


def test_a_robbed_run_stops_committing_and_keeps_what_it_has(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutputStore(config.output.uri)

    def robbed(*args: Any, **kwargs: Any) -> None:
        holder = read_holder(store)
        assert holder is not None
        thief = Holder(
            token="t", run_id="thief", started_at="", heartbeat_at="",
            process=ProcessName(host="other", user="someone", pid=7),
        )  # fmt: skip
        store.write_bytes(LOCK_NAME, thief.encoded())
        store.close_run(holder.run_id)
        run_local(*args, extractor=EXTRACTOR, **kwargs)

    monkeypatch.setattr(driver, "run_local", robbed)
    with pytest.raises(EngineError, match="run thief"):
        driver.run(config, local=True, progress=None)
    assert store.commit_names() == []
    assert not store.exists("_SUCCESS")
    assert store.exists(LOCK_NAME), "it is not ours to remove"


run = partial(driver.run, after_finish=write_page_at_the_end)


def state_on(page: Path) -> str:
    return parsed(page.read_text()).all("span", class_="badge")[0].text


def test_a_run_leaves_its_page(config: RunConfig) -> None:
    output = Path(config.output.uri)
    run(config, local=True, progress=io.StringIO())
    page = parsed((output / PAGE_NAME).read_text())
    assert page.all("span", class_="badge")[0].text == "Finished"
    assert "All 4 listed files have exactly one outcome." in page.text
    assert page.all("dl", class_="facts")


def test_a_run_with_nothing_to_do_keeps_the_figures_of_the_last_that_had(
    config: RunConfig,
) -> None:
    output = Path(config.output.uri)
    first = run(config, local=True, progress=io.StringIO())
    before = parsed((output / PAGE_NAME).read_text())
    report = load_report(OutputStore(str(output)))
    assert report.nothing_to_do_at is None
    for _ in range(2):
        run(config, local=True, progress=None)
        page = parsed((output / PAGE_NAME).read_text())
        assert state_on(output / PAGE_NAME) == "Finished"
        # Speed, time and charts are those of the run that worked.
        for name, how in (("dl", {"class_": "figures"}), ("dl", {"class_": "facts"})):
            assert [each.text for each in page.all(name, **how)] == [
                each.text for each in before.all(name, **how)
            ]
        assert f"Run {first.run_id}. Nothing to do at 20" in page.text
    idle = load_report(OutputStore(str(output)))
    assert idle.nothing_to_do_at is not None
    assert "since       nothing to do at 20" in render(idle)
    assert replace(idle, nothing_to_do_at=None) == report
    (Path(config.source.uri[0]) / "new.wav").write_bytes(b"x")
    last = run(config, local=True, progress=None)
    assert last.run_id == load_report(OutputStore(str(output))).run_id
    assert "Nothing to do" not in parsed((output / PAGE_NAME).read_text()).text


def test_a_run_whose_time_is_over_says_so_on_its_page(config: RunConfig) -> None:
    run(config, local=True, progress=None, options=RunOptions(stop_at=0.0))
    assert state_on(Path(config.output.uri) / PAGE_NAME) == "Not running"


def test_a_page_that_cannot_be_written_costs_the_run_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise FetchError("the store is full", uri="x")

    monkeypatch.setattr(page, "counted_run", refuse)
    assert run(config, local=True, progress=None).remaining == 0
    output = Path(config.output.uri)
    assert (output / SUCCESS_NAME).exists()
    assert not (output / PAGE_NAME).exists()
    assert "page_not_written" in caplog.text


def test_two_jobs_over_halves_of_a_manifest_are_read_with_one_glob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch.setattr, engine=scripted_engine)
    whole = killable_job(tmp_path, files=FILES).config
    paths = sorted(Path(whole.source.uri[0]).iterdir())
    (tmp_path / "talks.jsonl").write_text(
        "".join(json.dumps({"uri": str(path)}) + "\n" for path in paths)
    )
    job = tmp_path / "talks.yaml"
    job.write_text(
        with_section(whole, "source", uri=(), manifest=("talks.jsonl",)).model_dump_json()
    )
    monkeypatch.chdir(tmp_path)
    recipe = GUIDE.partition("## Several jobs\n")[2].partition("\n## ")[0]
    recipe = recipe.replace("s3://transcripts/talks", str(tmp_path / "halves"))
    split, *commands = re.findall(r"^\$ (.*)$", recipe, re.M)
    subprocess.run(shlex.split(split, comments=True), check=True)
    for command in commands:
        arguments = shlex.split(command)
        assert arguments[:3] == ["corpus-asr", "run", job.name]
        summary = driver.run(load_config(job, arguments[4::2]), local=True)
        assert summary.listed == FILES // 2
    driver.run(whole, local=True)
    [query] = re.findall(r"^```sql\n(.*?)^```$", recipe, re.M | re.S)
    halves = duckdb.execute(query).fetchall()
    assert halves
    assert halves == duckdb.execute(query.replace("halves/*", "output")).fetchall()
