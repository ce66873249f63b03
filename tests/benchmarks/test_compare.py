"""Rounds of all engines, their tables and statements, their audio; peers are a scripted process."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import compare, rows
from benchmarks.rows import ROWS, Set
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
