"""Recordings that never end, in their store or their decoder, cost a row and their time limit."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus_asr.pipelines import driver
from corpus_asr.storage.stores.filesystem import open_store, write_atomic
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes
from tests.support.corpora import job, tiny_model
from tests.support.engines import script, scripted_engine
from tests.support.extractors import STUCK
from tests.support.killing import killable_job, tables_of
from tests.support.stores import FaultyStore, environment, faulty_store, s3_server
from tests.support.tables import with_section

GOOD, DRIPPING = 12, 2


@pytest.mark.long
def test_native_code_that_never_returns_costs_its_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script(monkeypatch.setattr, engine=scripted_engine)
    config = killable_job(tmp_path, files=4).config
    (tmp_path / "corpus" / f"0001-parts=3+{STUCK}=1.wav").write_bytes(b"x")
    limited = with_section(config, "extract", item_timeout_s=0.5)
    driver.run(limited, local=True, progress=None)
    tables = tables_of(config)
    assert len(tables["recordings"]) == 5
    failed = {
        (row["error_kind"], row["part"], row["retryable"])
        for row in tables["outcomes"]
        if row["status"] == "failed"
    }
    # The part before the one that hangs is kept, and so is everything of the others.
    assert failed == {("decoder_timeout", 1, True), ("scripted", 1, False)}
    assert Counter(row["status"] for row in tables["outcomes"])["ok"] == 1 + 1 + 2 + 2 + 1


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    """An S3 store with buckets `corpus` and `out`, in which some objects drip."""
    with (
        s3_server() as server,
        environment(server.environment),
        faulty_store(server.endpoint_url, {}, seed=1) as faulty,
    ):
        for bucket in ("corpus", "out"):
            open_store(f"s3://{bucket}", server.options)[0].mkdir(bucket)
        for number in range(GOOD + DRIPPING):
            name = f"{number:02d}-{'drips' if number in (0, 5) else 'flows'}.wav"
            data = wav_bytes(tone(3.0 + number / 4), rate_hz=SAMPLE_RATE_HZ)
            write_atomic(f"s3://corpus/{name}", data, server.options)
        faulty.dripping = "drips"
        yield faulty


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("item_timeout_s", "kind"), [(30.0, "decoder_timeout"), (600.0, "timeout")]
)
def test_a_store_that_drips_costs_the_recordings_that_drip(
    store: FaultyStore,
    item_timeout_s: float,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Every byte that comes is a sign of life: only the limits of a whole end this."""
    monkeypatch.setattr(driver, "load_engine", scripted_engine)
    there = {"storage_options": {"endpoint_url": store.endpoint_url}}
    extract = {"vad_filter": False, "workers": 1, "item_timeout_s": item_timeout_s}
    config = job(
        Path(), tiny_model(tmp_path), Path(), source={"uri": "s3://corpus", **there},
        extract=extract, output={"uri": "s3://out/run", "max_failed_fraction": 1.0, **there},
    )  # fmt: skip
    started_s = time.monotonic()
    driver.run(config, local=True, progress=None)
    took_s = time.monotonic() - started_s
    print(f"{took_s:.0f} s, {dict(store.injected)}")  # noqa: T201 - what a soak test is read for
    found = {row["uri"].rpartition("/")[2]: row for row in tables_of(config)["recordings"]}
    assert len(found) == GOOD + DRIPPING
    assert {name: row["error_kind"] for name, row in found.items()} == {
        name: kind if "drips" in name else None for name in found
    }
    store.dripping = None
    driver.run(config, local=True, progress=None)
    assert {row["status"] for row in tables_of(config)["recordings"]} == {"ok"}
