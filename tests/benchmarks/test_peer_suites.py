"""Runs a made suite as if it were transformers', and draws tables of results."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import peer_suites
from benchmarks.peer_suites import COPY, classified, drawn, main, run_suite

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reference" / "transformers.md"
SUITE = """
import unittest
from pathlib import Path

import transformers
from transformers.models.whisper.modeling_whisper import WhisperEncoder


class MadeTest(unittest.TestCase):
    def test_classes_are_replaced(self):
        assert transformers.WhisperForConditionalGeneration.__module__.startswith("corpus_asr")
        assert transformers.Speech2TextConfig.__module__.startswith("corpus_asr")
        assert WhisperEncoder.__module__.startswith("corpus_asr")

    def test_only_theirs_pass(self):
        assert transformers.WhisperConfig.__module__.startswith("transformers")

    def test_reaches_inside(self):
        assert transformers.WhisperConfig.__module__.startswith("transformers")

    def test_nobody_passes(self):
        assert transformers.WhisperConfig().d_model == 0

    def test_parts(self):
        for name in ("corpus_asr", "transformers"):
            with self.subTest(name):
                assert transformers.WhisperConfig.__module__.startswith(name)

    @unittest.skip("test requires CUDA")
    def test_on_a_card(self):
        pass

    def test_of_the_hub(self):
        raise OSError("We couldn't connect to 'https://huggingface.co'")
"""


@pytest.mark.slow
def test_each_test_is_run_with_both_classes_and_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "test_made.py").write_text(SUITE)
    reasons = {"inside": {"test_reaches_inside": "looks inside"}}
    found = run_suite("made", "test_made.py", tmp_path, reasons=reasons, timeout_s=60)
    failures = {name.rpartition("::")[2]: why for name, why in found["failures"].items()}
    assert found["passed"] == 1
    assert found["skips"] == {peer_suites.GPU: 1, peer_suites.HUB: 1}
    assert failures == {
        "test_only_theirs_pass": ["", True],
        "test_reaches_inside": ["looks inside", False],
        "test_nobody_passes": [peer_suites.BOTH, False],
        # One part fails with each: nobody passes the whole.
        "test_parts": [peer_suites.BOTH, False],
    }


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
