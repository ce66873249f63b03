"""Growth is measured on folders of every size, and what grows faster than its order is named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth
from benchmarks.growth import REQUESTS, STEPS, Archive, drawn, faults, work
from corpus_asr.storage.stores.local import LocalStore

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
