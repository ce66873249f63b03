"""A run leaves its page, also where it could not end; a page that cannot be had costs nothing."""

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import FetchError
from corpus_asr.pipelines import driver
from corpus_asr.report.html import page
from corpus_asr.report.html.page import write_page_at_the_end
from corpus_asr.report.run import load_report, render
from corpus_asr.storage.run_state.run_files import PAGE_NAME, SUCCESS_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import script, scripted_engine
from tests.support.killing import killable_job
from tests.support.pages import parsed
from tests.support.tables import with_section

run = partial(driver.run, after_finish=write_page_at_the_end)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A job over four files with nothing real in it."""
    script(monkeypatch.setattr, engine=scripted_engine)
    return killable_job(tmp_path, files=4).config


def state_on(page: Path) -> str:
    return parsed(page.read_text()).all("span", class_="badge")[0].text


def test_a_run_leaves_its_page_and_a_new_one_moves_it_aside(config: RunConfig) -> None:
    output = Path(config.output.uri)
    run(config, local=True, progress=io.StringIO())
    page = parsed((output / PAGE_NAME).read_text())
    assert page.all("span", class_="badge")[0].text == "Finished"
    assert "All 4 listed files have exactly one outcome." in page.text
    assert page.all("dl", class_="facts")
    other = with_section(config, "decoding", language="de")
    run(other, local=True, progress=None, options=RunOptions(new_run=True))
    [earlier] = (output / "_earlier").iterdir()
    assert state_on(earlier / PAGE_NAME) == "Finished"
    assert state_on(output / PAGE_NAME) == "Finished"


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
