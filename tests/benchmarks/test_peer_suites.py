"""Runs a made suite as if it were transformers', and draws tables of results."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import peer_suites
from benchmarks.peer_suites import COPY, classified, drawn, main

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reference" / "transformers.md"


def test_a_failure_counts_unless_theirs_fails_or_it_reaches_inside() -> None:
    failed = {"outcome": "failed", "said": ["AssertionError"]}
    passed = {"outcome": "passed", "said": [""]}
    reasons = {"counts": {"test_b": "is refused"}}
    assert classified("test_a", failed, passed, reasons=reasons) == ("failed", "", True)
    assert classified("test_b", failed, passed, reasons=reasons) == ("failed", "is refused", True)
    assert classified("test_b", failed, failed, reasons=reasons)[2] is False


def test_what_is_not_at_hand_is_skipped_and_says_nothing_of_theirs() -> None:
    failed = {"outcome": "failed", "said": ["AssertionError"]}
    missing = {"outcome": "failed", "said": ["FetchError: reading /x/tests/data/a.wav: not found"]}
    hub = {"outcome": "failed", "said": ["LocalEntryNotFoundError: traffic has been disabled"]}
    assert classified("test_a", missing, failed, reasons={}) == ("skipped", peer_suites.DATA, False)
    assert classified("test_a", hub, failed, reasons={}) == ("skipped", peer_suites.HUB, False)
    # Their checkpoint is not at hand: whether they would pass is not known.
    assert classified("test_a", failed, hub, reasons={}) == ("failed", "", True)


def test_the_documents_show_the_results_that_are_kept() -> None:
    results = json.loads((REPOSITORY / "docs" / "benchmarks" / COPY).read_text())
    shown = f"<!-- measured: peer-suites -->\n{drawn(results)}\n<!-- end -->"
    assert shown in PAGE.read_text()


@pytest.mark.slow
def test_every_failure_of_transformers_tests_has_its_reason(tmp_path: Path) -> None:
    if "CORPUS_ASR_PEER_TESTS" not in os.environ:
        pytest.skip("CORPUS_ASR_PEER_TESTS names no folder with tests of transformers")
    main([str(tmp_path / "results.json")])
    suites = json.loads((tmp_path / "results.json").read_text())["suites"]
    assert sum(suite["passed"] for suite in suites)
    failures = [failure for suite in suites for failure in suite["failures"].items()]
    assert not [test for test, (why, _) in failures if not why]
