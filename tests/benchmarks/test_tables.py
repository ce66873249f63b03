"""Tables and statements follow the figures, whoever is first."""

import json

import pytest

from benchmarks.tables import drawn, fill, main, verdict


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


@pytest.mark.parametrize(("ours", "ratio"), [(40.0, "0.80"), (60.0, "1.20")])
def test_the_statement_says_who_loses(ours, ratio):
    rows = sorted([row("corpus-asr x", ours, 0.08), row("p", 50.0, 0.07)], key=lambda r: r["cpu_s"])
    said = verdict(rows)
    assert f"`corpus-asr x` takes {ratio} times the CPU time of `p`" in said
    assert "`p` has the lowest error rate" in said


def test_only_what_stands_between_the_marks_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: a -->\nold\n<!-- end -->\nafter\n")
    fill(page, "a", "new")
    assert page.read_text() == "before\n<!-- measured: a -->\nnew\n<!-- end -->\nafter\n"
    with pytest.raises(ValueError, match="found 0 places named 'b'"):
        fill(page, "b", "new")


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
    main([str(tmp_path / "results.json")], repository=tmp_path)
    assert json.loads((folder / "2026-12-01-peers.json").read_text()) == results
    assert "(2026-12-01-peers.json)" in (folder / "README.md").read_text()
    assert "| peer | 50.0 |" in (tmp_path / "README.md").read_text()
    assert "2 cores of A (avx2)" in (tmp_path / "README.md").read_text()
