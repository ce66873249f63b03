"""Nights in a row over one archive: what each has to do, what it may cost, what it tells."""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.errors import (
    CheckpointError,
    ConfigError,
    CorpusAsrError,
    EngineError,
    FetchError,
)
from corpus_asr.pipelines import driver, nightly
from corpus_asr.pipelines.driver import prepare
from corpus_asr.report.nightly import Night, NightState
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.run_files import PAGE_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.http import post_json
from corpus_asr.storage.stores.store import RetryPolicy
from tests.support.nightly import QUICK, Archive
from tests.support.stores import SECRET, Webhook, webhook
from tests.support.tables import with_section

pytestmark = pytest.mark.long

VARIABLE = "CORPUS_ASR_TEST_WEBHOOK"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    return Archive(tmp_path, monkeypatch)


def work(night: Night) -> dict[str, int]:
    """Return the counts of a night that are not zero."""
    found = night.findings
    counts = {
        "new": night.new, "changed": night.changed, "retried": night.retried,
        "continued": night.continued, "done": found.done, "failed": found.failed,
        "remaining": night.remaining, "alone": night.skipped,
    }  # fmt: skip
    assert night.planned == found.done + found.failed + night.remaining
    return {name: count for name, count in counts.items() if count}


def test_each_night_does_what_is_new_or_changed_or_failed_in_passing(
    archive: Archive,
) -> None:
    archive.add("a", "b", "silent", "fail", "c")
    archive.down("c")
    assert work(archive.night()) == {"new": 5, "done": 3, "failed": 2}
    archive.add("d")
    archive.add("a", content=b"longer")
    found = archive.night()
    assert work(found) == {"new": 1, "changed": 1, "retried": 1, "done": 2, "failed": 1}
    assert found.findings.failures[0].examples[0].uri.endswith("/c.wav")
    archive.down()
    found = archive.night()
    assert work(found) == {"retried": 1, "done": 1}
    assert found.archive is not None
    assert (found.archive.done, found.archive.failed, found.listed) == (5, 1, 6)
    assert work(archive.night()) == {}
    kept = archive.summaries()
    assert [one["state"] for one in kept] == ["done"] * 4
    assert [one["planned"] for one in kept] == [5, 3, 1, 0]
    assert [len(one["past"]) for one in kept] == [0, 1, 2, 3]
    assert kept[1]["past"][0]["done"] == 3
    # Segments of the fake have confidence 0.5.
    assert [one["findings"]["confidence"] for one in kept] == [0.5, 0.5, 0.5, None]


@pytest.mark.slow
def test_what_fails_night_after_night_is_left_alone_until_it_changes(archive: Archive) -> None:
    archive.set(retry_nights=2)
    archive.add("a", "b")
    archive.down("b", kind="poison")
    archive.night()
    assert work(archive.night()) == {"retried": 1, "failed": 1}
    last = archive.night()
    assert work(last) == {"retried": 1, "failed": 1, "alone": 1}
    assert [Path(uri).name for uri in last.no_longer_retried] == ["b.wav"]
    assert "no longer retried" in (archive.output / "nights" / f"{last.date}-3.md").read_text()
    quiet = archive.night()
    assert work(quiet) == {"alone": 1}
    assert quiet.no_longer_retried == ()
    archive.down("c", kind="poison")
    archive.add("b", content=b"again")
    archive.add("c")
    archive.set(retry_nights=0)  # not even once
    assert work(archive.night()) == {"new": 1, "changed": 1, "done": 1, "failed": 1, "alone": 1}
    assert work(archive.night()) == {"alone": 1}


def test_a_few_that_keep_failing_in_an_archive_that_is_done_end_no_night(archive: Archive) -> None:
    archive.add(*"abcdef")
    archive.down("a", "b", kind="archived")
    archive.night()
    found = archive.night()
    assert (found.state, work(found)) == (NightState.done, {"retried": 2, "failed": 2})


def test_a_night_whose_time_is_over_leaves_the_rest_to_the_next(archive: Archive) -> None:
    archive.add("a", "b")
    archive.set(stop_after_h=1e-9)
    found = archive.night()
    assert (found.state, work(found)) == (NightState.time_limit, {"new": 2, "remaining": 2})
    assert not (archive.output / "_SUCCESS").exists()
    archive.set(stop_after_h=1.0)
    found = archive.night()
    assert (found.state, work(found)) == (NightState.done, {"new": 2, "done": 2})
    assert (archive.output / "_SUCCESS").exists()


@pytest.mark.parametrize("is_there", [True, False], ids=["folder", "dangling"])
def test_no_link_leads_summaries_out_of_the_output_folder(
    archive: Archive, tmp_path: Path, is_there: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if is_there:
        elsewhere.mkdir()
    archive.output.mkdir()
    (archive.output / "nights").symlink_to(elsewhere)
    archive.add("a")
    with pytest.raises(CorpusAsrError, match="a symbolic link leads out of the folder"):
        archive.night()
    assert archive.worked == []
    assert not is_there or list(elsewhere.iterdir()) == []
    # A folder that the job names may be one, and so may one within the output folder.
    elsewhere.mkdir(exist_ok=True)
    archive.set(summaries=str(archive.output / "nights"))
    archive.night()
    (archive.output / "nights").unlink()
    (archive.output / "inside").mkdir()
    (archive.output / "nights").symlink_to("inside")
    archive.set(summaries=None)
    archive.night()
    assert len(list(elsewhere.glob("*.json"))) == 1
    assert len(list((archive.output / "inside").glob("*.json"))) == 1


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    quick = RetryPolicy(attempts=2, first_wait_s=0.01, longest_wait_s=0.01, request_timeout_s=0.5)
    post = functools.partial(post_json, policy=quick)
    monkeypatch.setattr("corpus_asr.report.nightly.post_json", post)
    with webhook() as found:
        monkeypatch.setenv(VARIABLE, found.secret_url)
        yield found


@pytest.fixture
def telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: Webhook) -> Archive:
    """Return an archive whose nights are told to the webhook."""
    source = {"allow_hosts": ["127.0.0.1"]}
    return Archive(tmp_path, monkeypatch, source=source, webhook_env=VARIABLE)


def everything(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_the_webhook_gets_a_text_and_all_the_numbers(telling: Archive, hook: Webhook) -> None:
    telling.add("a", "b", "<!channel> & co fail")
    night = telling.night()
    [message] = hook.posted
    assert message["night"] == telling.summaries()[0]
    first, *rest = message["text"].splitlines()
    assert first.startswith(
        f"Nightly run of {night.date}, done: 2 recordings done, 1 failed, 0 remaining;"
    )
    assert "• 1 not_audio, such as " in rest[0]
    assert "&lt;!channel&gt; &amp; co fail.wav" in rest[0]  # pings nobody
    assert rest[-1].endswith(f"/nights/{night.date}.md")
    assert night.webhook_error is None


# What else a server may do: tests/storage/test_http.py.
@pytest.mark.parametrize("answer", ["503", "http://169.254.169.254/latest"])
def test_a_webhook_that_takes_nothing_fails_no_night(
    telling: Archive, hook: Webhook, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    hook.faults += [answer] * 9
    telling.add("a")
    night = telling.night()
    assert night.state is NightState.done
    assert night.webhook_error is not None
    assert night.webhook_error.startswith("telling the webhook at 127.0.0.1: ")
    assert telling.summaries()[0]["webhook_error"] == night.webhook_error
    assert "event=webhook_error" in caplog.text
    assert SECRET not in caplog.text + everything(telling.output)


def test_a_night_that_breaks_off_is_told_and_gone_on_with(telling: Archive, hook: Webhook) -> None:
    telling.add("a", "b fail")
    telling.add("engine-error", content=b"")  # the smallest comes last
    shown: list[Night] = []
    with pytest.raises(EngineError, match="device is lost"):
        telling.night(show=shown.append)
    [night] = shown
    assert night.state is NightState.aborted
    assert work(night) == {"new": 3, "done": 1, "failed": 1, "remaining": 1}
    assert night.audio_s == 20.0
    assert "the device is lost (scripted)" in hook.posted[0]["text"]
    assert telling.summaries()[0]["archive"] is None
    telling.remove("engine-error")
    telling.add("c")
    assert work(telling.night()) == {"new": 1, "done": 1}


def test_a_night_that_is_stopped_by_a_signal_says_so(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "run_local", stopped)
    archive.add("a")
    with pytest.raises(KeyboardInterrupt):
        archive.night()
    [summary] = archive.summaries()
    assert (summary["state"], summary["remaining"]) == ("stopped", 1)


def test_summaries_that_cannot_be_written_are_told(
    telling: Archive, hook: Webhook, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    telling.set(summaries=str(tmp_path / "file"))
    telling.add("a")
    with pytest.raises(FetchError):
        telling.night()
    assert "no summary could be written" in hook.posted[0]["text"]
    assert (telling.output / "_SUCCESS").exists()


def test_a_checkpoint_that_is_gone_is_told(
    telling: Archive, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nightly, "prepare", prepare)
    with pytest.raises(CheckpointError):
        telling.night()
    assert "aborted; committed results are kept: 0 recordings done" in hook.posted[0]["text"]


def test_summaries_go_where_they_are_wanted_and_nights_stay_known(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "reports"
    archive.set(summaries=str(folder))
    archive.add("a")
    first = archive.night()
    assert first.past == ()
    assert archive.summaries()[-1]["numbers"]["new"] == 1
    shutil.rmtree(folder)
    archive.set(summaries=None)
    assert archive.night().past == (first.numbers,)
    [*_, path] = sorted((archive.output / "_run" / "history").iterdir())
    path.write_text("{")
    assert len(archive.night().past) == 1
    assert caplog.text.count("event=history_not_read") == 1


def test_other_pipelines_have_no_nights(archive: Archive) -> None:
    config = archive.config.model_copy(update={"pipeline": "pseudo_label"})
    with pytest.raises(ConfigError, match="running nightly pseudo_label"):
        nightly.run(config, local=True, progress=None)


# The command.


def command(archive: Archive, *options: str) -> Any:
    path = archive.output.parent / "job.yaml"
    path.write_text(archive.config.model_dump_json())
    return CliRunner().invoke(cli.app, ["nightly", str(path), "--local", *options])


def test_the_command_prints_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(tmp_path, monkeypatch, pages=True)
    archive.add("a", "b")
    done = command(archive)
    assert done.exit_code == 0, done.output
    assert (archive.output / PAGE_NAME).exists()
    [path] = (archive.output / "nights").glob("*.md")
    assert done.stdout == path.read_text()
    archive.add("c")
    done = command(archive, "--json")
    assert json.loads(done.stdout) == archive.summaries()[1]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0.01, ""),
        (0, "1 of 3 recordings failed (33.3%), more than output.max_failed_fraction allows (0.0%)"),
    ],
)
def test_too_many_failures_end_with_1(archive: Archive, limit: float, words: str) -> None:
    archive.config = with_section(archive.config, "output", max_failed_fraction=limit)
    archive.add("a", "b", "fail")
    done = command(archive)
    assert done.exit_code == bool(words), done.output
    assert words in done.stderr
    assert archive.summaries()[0]["over_limit"] == (words or None)


def test_an_overlap_has_an_exit_code_of_its_own(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nightly, "run", functools.partial(nightly.run, timing=QUICK))
    archive.add("a")
    with Lock(OutputStore(str(archive.output)), "first", timing=QUICK):
        done = command(archive)
    assert done.exit_code == 75
    assert "found it in use by run first" in done.stderr
    assert done.stdout == ""
