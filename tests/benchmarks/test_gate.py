"""The gate names what does not hold, and growth what grows faster than its order."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import gate, growth
from benchmarks.growth import REQUESTS, STEPS, Archive, drawn, faults, work
from benchmarks.rows import ROWS, SETS
from corpus_asr.storage.stores.local import LocalStore

SPEED = {"set": "base, 2 threads", "row": "ours-chunked", "figure": "cpu_s"}
ERRORS = {
    "model": "whisper-base", "set": "timings", "engine": "corpus-asr", "beside": "faster-whisper"
}  # fmt: skip
ENTRIES: dict[str, Any] = {
    "speed": [SPEED | {"least": 1.2, "goal": 2.0}],
    "accuracy": [ERRORS | {"most": 0.5, "goal": 0.0}],
}


def results(ours_s: float = 50.0, *peers_s: float) -> dict[str, Any]:
    rows = [{"key": "ours-chunked", "name": "corpus-asr best", "cpu_s": ours_s, "wall_s": 1.0}]
    rows += [
        {"key": key, "name": key, "cpu_s": cpu_s, "wall_s": 1.0}
        for key, cpu_s in zip(("faster-batched", "openvino"), peers_s, strict=False)
    ]
    versions = {"corpus-asr": "0.1.0"}
    hardware = {"cpu": "a CPU", "cpu_flags": [], "cores": 2}
    sets = [{"name": "base, 2 threads", "rows": rows}]
    return {"date": "2026-11-27", "hardware": hardware, "versions": versions, "sets": sets}


def rates(ours: float, theirs: float, *, mode: str = "default") -> dict[str, Any]:
    of = {"model": "whisper-base", "mode": mode, "set": "timings", "recordings": 46}
    rows = [of | {"engine": "corpus-asr", "wer": ours}]
    return {"rows": [*rows, of | {"engine": "faster-whisper", "wer": theirs}]}


def test_an_entry_is_compared_with_the_best_peer() -> None:
    speed, errors = gate.check(ENTRIES, results(50.0, 90.0, 70.0), rates(5.8, 6.1))
    assert (speed.found, speed.beside, speed.passed, speed.reached) == (
        1.4,
        "openvino",
        True,
        False,
    )
    assert (errors.found, errors.passed, errors.reached) == (-0.3, True, True)


def test_the_gate_fails_by_name_and_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = tmp_path / "gate.yaml"
    entries.write_text(yaml.safe_dump(ENTRIES))
    monkeypatch.setattr(gate, "ENTRIES", entries)
    (tmp_path / "results.json").write_text(json.dumps(results(50.0, 70.0)))
    (tmp_path / "accuracy.json").write_text(json.dumps(rates(7.0, 6.0)))
    assert gate.main([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "1 of 2 entries are missed" in said.err
    assert "whisper-base on timings" in said.err
    assert "1.4 times as fast" in said.out
    kept = json.loads((tmp_path / "gate.json").read_text())
    assert [one["passed"] for one in kept["entries"]] == [True, False]
    assert kept["hardware"]["cpu"] == "a CPU"
    (tmp_path / "accuracy.json").write_text(json.dumps(rates(6.0, 6.0)))
    pages = tmp_path / "docs" / "benchmarks"
    pages.mkdir(parents=True)
    (pages / "README.md").write_text("before\n<!-- measured: gate -->\n<!-- end -->\nafter\n")
    assert gate.main([str(tmp_path), "--publish"], repository=tmp_path) == 0
    page = (pages / "README.md").read_text()
    assert "2026-11-27, 2 cores of a CPU" in page
    assert "| yes |" in page
    assert (pages / "2026-11-27-gate.json").is_file()


def test_entries_name_rows_and_sets_that_are_measured() -> None:
    entries = yaml.safe_load(gate.ENTRIES.read_text(encoding="utf-8"))
    sets = {each.name: each for each in SETS}
    for entry in entries["speed"]:
        assert entry["row"] in sets[entry["set"]].rows
        assert entry["goal"] >= entry["least"]
    assert any(key.startswith(gate.PEERS) for key in ROWS)
    assert all(entry["goal"] <= entry["most"] for entry in entries["accuracy"])


DOCS = Path(__file__).resolve().parents[2] / "docs"


def figures(count: int, **changes: Any) -> dict[str, Any]:
    """Figures as they should be: in proportion."""
    night = {"cpu_s": 2 + count / 1e5, "requests": 250}
    usual: dict[str, Any] = {
        "cpu_s": 1 + count / 1e4,
        "peak_mib": 400 + count / 2000,
        "requests": count / 100,
    }
    constant = {"requests": 40, "cpu_s": 1.0}
    found = {step: usual | (constant if "constant" in orders else {})
             for step, orders in STEPS.items()}  # fmt: skip
    found["nights"] = usual | night | {"nights": [night] * 10}
    return {step: each | changes.get(step, {}) for step, each in found.items()}


def test_what_grows_faster_than_its_order_is_named() -> None:
    small, large = figures(100_000), figures(1_000_000)
    assert faults({100_000: small, 1_000_000: large}) == []
    for step, change, words in (
        ("resume", {"cpu_s": 100 * small["resume"]["cpu_s"]}, "resume: cpu_s .*more than linear"),
        ("nights", {"requests": 400}, "nights: requests .*more than constant"),
        ("view", {"peak_mib": 3000}, "view: [0-9,]+ MiB at 10,000,000, at most 8,000"),
        ("nights", {"nights": [{"cpu_s": 1 + at, "requests": 9} for at in range(10)]},
         "nights of 1,000,000: cpu_s 2.0, at last 10.0"),
    ):  # fmt: skip
        (found,) = faults({100_000: small, 1_000_000: figures(1_000_000, **{step: change})})
        assert re.match(words, found)
    # Below, tables are not as large as they may become.
    assert (
        faults({20_000: figures(20_000), 100_000: figures(100_000, view={"peak_mib": 900})}) == []
    )


@pytest.mark.long
def test_steps_are_measured_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*REQUESTS, "pages"):  # they are as before afterwards
        monkeypatch.setattr(LocalStore, name, getattr(LocalStore, name))
    monkeypatch.setattr(growth, "ROWS_PER_COMMIT", 8)
    monkeypatch.setattr(growth, "NIGHTS", 3)
    Archive(tmp_path, 80).make()
    found = {}
    for step in ("commit", "finish", "nights", "view", "list_cloud"):
        growth.COUNTED.clear()
        found[step] = work(step, tmp_path, 80)
    assert found["commit"]["by_kind"]["write"] > 2 * 3
    assert found["finish"]["objects"] < found["commit"]["objects"]
    assert len(found["nights"]["nights"]) == growth.NIGHTS
    assert all(each["peak_mib"] > 0 for each in found.values())


def test_the_table_of_the_docs_is_that_of_the_figures() -> None:
    *_, latest = sorted((DOCS / "benchmarks").glob("*-growth.json"))
    assert drawn(json.loads(latest.read_text())) in (DOCS / "background" / "scaling.md").read_text()
