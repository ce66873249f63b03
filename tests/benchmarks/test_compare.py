"""Rounds of all engines, their tables and statements, their audio; peers are a scripted process."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import compare, rows, tables
from benchmarks.rows import ROWS, Set
from benchmarks.tables import drawn
from corpus_asr.families.registry import resolve

# It answers as a worker does: the wrong text for one row, and a failure for another.
PEER = """#!{python}
import json, sys
request = json.load(sys.stdin)
options = request["options"]
name = "split" if "workers" in options else "one"
if "beams" in options:
    sys.exit("RuntimeError: no such model")
with open({turns!r}, "a") as file:
    file.write(name + chr(10))
text = "four score and nine" if name == "one" else "Four score, and seven!"
print(json.dumps({{"wall_s": 2.0, "cpu_s": 0.2, "texts": [text] * len(request["work"]),
                  "versions": {{"openvino-genai": "9.9"}}}}))
"""
PEERS = ("openvino", "openvino-best", "whisper.cpp")


@pytest.fixture
def place(tmp_path, monkeypatch):
    small = Set(name="small", rows=PEERS, threads=2)
    slow = Set(name="slow", rows=PEERS, threads=1, minutes=600.0)
    monkeypatch.setattr(compare, "SETS", (small, slow))
    peer = tmp_path / "peer"
    peer.write_text(PEER.format(python=sys.executable, turns=str(tmp_path / "turns")))
    peer.chmod(0o755)
    folder = tmp_path / "long"
    folder.mkdir()
    known = [("a.wav", 1000), ("b.wav", 1000), ("c.wav", 30_000)]
    lines = [
        json.dumps({"path": name, "text": "Four score and seven", "duration_s": seconds})
        for name, seconds in known
    ]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(place: Path, *more: object) -> dict:
    paths = ("--audio", place, "--models", place, "--peers", place / "peer")
    compare.main([str(each) for each in (place / "out", *paths, *more)])
    found: dict = json.loads((place / "out" / "results.json").read_text())
    return found


def turns(place: Path) -> list[str]:
    return (place / "turns").read_text().split()


def test_rounds_alternate_and_medians_stand_with_error_rates_and_failures(place):
    pytest.importorskip("jiwer")
    found = run(place)
    assert turns(place) == ["one", "split"] * 2
    (table,) = found["sets"]
    assert table["num_recordings"] == 2  # of which half an hour is reached
    assert table["audio_s"] == 2000.0
    one, split, failed = table["rows"]
    assert one["name"] == ROWS["openvino"].name
    assert one["word_error_rate"] == 0.25
    assert split["word_error_rate"] == 0.0
    assert split["wall_s"] == 2.0
    assert one["cpu_s"] == 0.2
    assert failed["failed"] == "exit code 1: RuntimeError: no such model"
    assert failed["runs"] == []
    assert found["versions"]["openvino-genai"] == "9.9"
    assert found["hardware"]["cores"] >= 1


def test_every_set_names_rows_and_each_of_them_defaults_or_options():
    for each in rows.SETS:
        assert set(each.rows) <= set(ROWS)
        assert ROWS[each.rows[0]].name.startswith("corpus-asr ")
    assert all(callable(resolve(row.engine)) for row in ROWS.values())


def row(name: str, cpu_s: float, rate: float) -> dict:
    return {
        "name": name, "cpu_s": cpu_s, "wall_s": cpu_s / 2, "word_error_rate": rate,
        "failed": None, "runs": [{}],
    }  # fmt: skip


def table(*rows: dict) -> dict:
    return {
        "name": "base, 2 threads", "model": "whisper-base", "threads": 2, "rounds": 2,
        "num_recordings": 3, "audio_s": 600.0, "rows": list(rows),
    }  # fmt: skip


def test_who_takes_least_stands_first_and_failures_below():
    failed = row("c", 0.0, 0.0) | {"runs": [], "failed": "RuntimeError: none"}
    text = drawn(table(row("corpus-asr x", 60.0, 0.07), row("peer", 50.0, 0.0725), failed))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[2] == "| peer | 50.0 | 12.0 | 25.0 | 24.0 | 7.25 % |"
    assert lines[3].startswith("| corpus-asr x | 60.0 | 10.0 | 30.0 | 20.0 | 7.00 % |")
    assert "c: not measured (RuntimeError: none)." in text
    assert "medians of 2 rounds" in text


def test_both_pages_are_written_with_the_figures_next_to_them(tmp_path):
    folder = tmp_path / "docs" / "benchmarks"
    folder.mkdir(parents=True)
    for page, name in ((tmp_path, "headline"), (folder, "peers")):
        (page / "README.md").write_text(f"<!-- measured: {name} -->\n<!-- end -->\n")
    results = {
        "date": "2026-12-01",
        "hardware": {"cpu": "A", "cores": 2, "cpu_flags": ["avx2"]},
        "versions": {"corpus-asr": "0.1.0"},
        "sets": [table(row("corpus-asr x", 60.0, 0.07), row("peer", 50.0, 0.08))],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    tables.main([str(tmp_path / "results.json")], repository=tmp_path)
    assert json.loads((folder / "2026-12-01-peers.json").read_text()) == results
    assert "(2026-12-01-peers.json)" in (folder / "README.md").read_text()
    assert "| peer | 50.0 |" in (tmp_path / "README.md").read_text()
    assert "2 cores of A (avx2)" in (tmp_path / "README.md").read_text()
