"""Lines for people and for machines, with their fields and without secrets."""

import json
import logging
import os
import pickle
import time

import pytest

from corpus_asr.logs import (
    FORMAT_VARIABLE,
    LEVEL_VARIABLE,
    LogFormat,
    LogLevel,
    LogSettings,
    configure,
    event,
    name_run,
    speaks_json,
)
from corpus_asr.storage.stores.uri import public, public_text, redact_uri, without_secrets

LOG = logging.getLogger("corpus_asr.tests")
SIGNED = "https://me:pass@host/a.mp3?X-Amz-Signature=abc"


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_has_one_object_per_line_with_ids_and_types(capfd: pytest.CaptureFixture[str]) -> None:
    settings = LogSettings(format=LogFormat.json, level=LogLevel.info, run_id="run-1")
    configure(settings, redact=without_secrets)
    event(LOG, logging.INFO, "part_done", recording_id="0123", part=3, audio_s=1.5, words=None)
    event(LOG, logging.DEBUG, "too_much", part=4)
    LOG.warning("two\nlines of %s", SIGNED)
    first, second = json_lines(capfd.readouterr().err)
    assert first.pop("time")
    assert first == {
        "level": "info", "logger": "corpus_asr.tests", "event": "part_done", "run_id": "run-1",
        "recording_id": "0123", "part": 3, "audio_s": 1.5, "words": None, "process": os.getpid(),
    }  # fmt: skip
    assert second["message"] == "two\nlines of https://host/a.mp3?[hidden]"
    assert second["event"] == "log"


def test_a_word_of_any_length_is_looked_through_in_no_time() -> None:
    started_s = time.process_time()
    for text in ("x" * 200_000, "a-" * 100_000, "s3://" + ":" * 200_000):
        for looks in (without_secrets, public_text, public, redact_uri):
            assert looks(text) == text
    assert time.process_time() - started_s < 5  # of 0.4; it was 40
    for looks in (without_secrets, public_text):
        assert "me:pass" not in looks(f"{'x' * 100}{SIGNED}")


def test_secrets_are_hidden_wherever_they_hide(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in LogFormat:
        configure(LogSettings(format=kind, level=LogLevel.info), redact=without_secrets)
        try:
            raise ValueError(SIGNED)
        except ValueError as error:
            event(
                LOG, logging.ERROR, "failed", uri=SIGNED, all=[SIGNED], more={"a": SIGNED},
                exc_info=error,
            )  # fmt: skip
    messages = capfd.readouterr().err
    assert "ValueError" in messages
    assert messages.count("host/a.mp3") >= 8
    assert "pass" not in messages
    assert "abc" not in messages


def test_text_is_one_line_with_fields_as_words(capfd: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(level=LogLevel.info), redact=without_secrets)
    event(LOG, logging.INFO, "begun", uri="a b.mp3", part=0, reason="", lines="one\ntwo")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(
        "INFO corpus_asr.tests: event=begun uri='a b.mp3' part=0 reason='' lines='one\\ntwo'"
    )


def test_usually_only_warnings_are_shown_and_of_libraries_never_more(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure(LogSettings(), redact=without_secrets)
    event(LOG, logging.INFO, "quiet")
    configure(LogSettings(level=LogLevel.debug), redact=without_secrets)
    logging.getLogger("some.library").info("quiet")
    LOG.debug("loud")
    messages = capfd.readouterr().err
    assert "quiet" not in messages
    assert messages.count("loud") == 1  # configured twice, told once


def test_workers_are_told_by_the_environment_or_by_value() -> None:
    settings = LogSettings(format=LogFormat.json, level=LogLevel.debug, run_id="run-1")
    assert not speaks_json()
    settings.export()
    assert LogSettings.from_environment() == settings
    assert speaks_json()
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_a_run_is_named_once_it_has_a_name(capfd: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format=LogFormat.json), redact=without_secrets)
    LOG.warning("before")
    name_run("run-1")
    LOG.warning("after")
    before, after = json_lines(capfd.readouterr().err)
    assert "run_id" not in before
    assert after["run_id"] == "run-1"
    assert LogSettings.from_environment().run_id == "run-1"


def test_an_environment_of_nonsense_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")
    monkeypatch.setenv(LEVEL_VARIABLE, "loud")
    assert LogSettings.from_environment() == LogSettings()


def test_values_that_json_does_not_know_become_words(capfd: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format=LogFormat.json), redact=without_secrets)
    event(LOG, logging.WARNING, "odd", what={1: {2}}, nothing=float("inf"))
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["what"] == {"1": "{2}"}
