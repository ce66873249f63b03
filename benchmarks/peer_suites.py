"""Run transformers' own tests on this package's classes, and say what became of each.

    python -m benchmarks.peer_suites OUT/results.json [--tests FOLDER] [--before OUT/earlier.json]

The folder (`CORPUS_ASR_PEER_TESTS`) holds `tests/` of a checkout of transformers; none of it is
part of this project. Each suite runs in a child process with `benchmarks.peer_classes`, and what
fails runs once more with transformers' own classes. `publish` copies the results to docs/benchmarks
and draws the tables in docs/reference/transformers.md of them.

Of the failures those do not count that transformers' own classes have, too, and those that
peer_reasons.json names as reaching `inside` transformers; all others count, with a reason or none.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tables import fill

_REPOSITORY = Path(__file__).resolve().parents[1]
COPY = "peer-suites.json"
Suite = dict[str, Any]
Reasons = dict[str, dict[str, str]]

SUITES = {
    "Whisper: models": "tests/models/whisper/test_modeling_whisper.py",
    "Whisper: tokenizer": "tests/models/whisper/test_tokenization_whisper.py",
    "Whisper: feature extractor": "tests/models/whisper/test_feature_extraction_whisper.py",
    "Whisper: real checkpoints": "tests/models/whisper/test_integration_whisper.py",
    "Whisper: processor": "tests/models/whisper/test_processing_whisper.py",
    "Speech2Text: models": "tests/models/speech_to_text/test_modeling_speech_to_text.py",
    "Speech2Text: tokenizer": "tests/models/speech_to_text/test_tokenization_speech_to_text.py",
    "Speech2Text: feature extractor": (
        "tests/models/speech_to_text/test_feature_extraction_speech_to_text.py"
    ),
    "Speech2Text: processor": "tests/models/speech_to_text/test_processing_speech_to_text.py",
    "transformers: streamers": "tests/generation/test_streamers.py",
    "openai-whisper: normalizer": "openai/tests/test_normalizer.py",
    "openai-whisper: tokenizer": "openai/tests/test_tokenizer.py",
    "openai-whisper: transcribe": "openai/tests/test_transcribe.py",
    "openai-whisper: timing": "openai/tests/test_timing.py",
    "openai-whisper: audio": "openai/tests/test_audio.py",
    "faster-whisper: transcribe": "faster_whisper/tests/test_transcribe.py",
    "faster-whisper: tokenizer": "faster_whisper/tests/test_tokenizer.py",
    "faster-whisper: download": "faster_whisper/tests/test_utils.py",
}
PASSED, FAILED = "passed", "failed"
HUB, DATA, GPU, SLOW, PACKAGE, OWN = (
    "needs a checkpoint or data set of the hub",
    "needs a recording that is not at hand",
    "needs a GPU",
    "marked slow",
    "needs a package that is not installed",
    "skips itself",
)
BOTH = "fails with the other package's own classes, too"
# What a failure or the reason of a skip says, and the kind of reason that is.
_SAID = (
    (HUB, r"couldn't connect|offline mode|LocalEntryNotFound|huggingface\.co|hub is out of reach"),
    (HUB, r"outgoing traffic has been disabled"),
    (HUB, r"urlopen error"),
    (DATA, r"tests/data/\S+: not found|No such file or directory: '\S+/tests/data/"),
    (GPU, r"requires? .*(accelerator|GPU|CUDA|XPU|HPU|MPS|NPU)"),
    (SLOW, r"test is slow"),
    (PACKAGE, r"test requires|require_|not installed"),
)


class Outcome(NamedTuple):
    """What became of a test."""

    how: str
    why: str
    counts: bool


def main(arguments: Sequence[str] | None = None, *, repository: Path = _REPOSITORY) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--tests", type=Path, default=os.environ.get("CORPUS_ASR_PEER_TESTS"))
    parser.add_argument("--before", type=Path, help="results of an earlier state, to compare with")
    parser.add_argument("--reasons", type=Path, default=repository / "benchmarks/peer_reasons.json")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one test")
    given = parser.parse_args(arguments)
    if given.tests is None or not Path(given.tests).is_dir():
        parser.error("found no folder of tests; give --tests or set CORPUS_ASR_PEER_TESTS")
    reasons = json.loads(given.reasons.read_text())
    suites = [
        run_suite(name, file, given.tests, reasons=reasons, timeout_s=given.timeout)
        for name, file in SUITES.items()
        if (given.tests / file).is_file()
    ]
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(repository),
        "versions": {name: version(name) for name in ("transformers", "torch", "corpus-asr")},
        "suites": suites,
    }
    if given.before is not None:
        results["before"] = counts_of(json.loads(given.before.read_text())["suites"])
    given.results.write_text(f"{json.dumps(results, indent=1)}\n")
    print(drawn(results))


def _commit(repository: Path) -> str:
    """Return the checkout's commit, marked where its files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"]
    return subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()


def publish(results: Path, *, repository: Path = _REPOSITORY) -> None:
    """Copy results to docs/benchmarks, and draw docs/reference/transformers.md's tables of them."""
    text = results.read_text()
    (repository / "docs" / "benchmarks" / COPY).write_text(text)
    fill(
        repository / "docs" / "reference" / "transformers.md",
        "peer-suites",
        drawn(json.loads(text)),
    )


def run_suite(name: str, file: str, tests: Path, *, reasons: Reasons, timeout_s: float) -> Suite:
    """Run one file of tests with the classes of here, and what fails with transformers' own."""
    print(f"running {file}", file=sys.stderr)
    ours = run_tests([file], tests, classes="ours", timeout_s=timeout_s)
    failed = [test for test, found in ours.items() if found["outcome"] == FAILED]
    theirs = run_tests(failed, tests, classes="theirs", timeout_s=timeout_s) if failed else {}
    outcomes = {
        test: classified(test, found, theirs.get(test), reasons=reasons)
        for test, found in ours.items()
    }
    return {"name": name, "file": file, **counted(outcomes)}


def run_tests(
    tests: Sequence[str], folder: Path, *, classes: str, timeout_s: float
) -> dict[str, dict[str, Any]]:
    """Run tests in a child process; returns by name what became of each."""
    with tempfile.TemporaryDirectory() as made:
        log = Path(made) / "log.jsonl"
        log.touch()
        environment = os.environ | {
            "CORPUS_ASR_PEER_CLASSES": classes,
            "CORPUS_ASR_PEER_LOG": str(log),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(_REPOSITORY),
        }
        options = ["-q", "-W", "ignore", "-c", os.devnull, "--rootdir", ".", "--tb=short"]
        plugins = ["-p", "benchmarks.peer_classes", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *plugins, f"--timeout={timeout_s}"]
        subprocess.run(
            [*command, *tests], cwd=folder, env=environment, capture_output=True, check=False
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        # One of a test's parts may fail where the whole passes, and the reverse.
        if line["test"] not in found or line["outcome"] == FAILED:
            found[line["test"]] = line
    return found


def classified(
    test: str, ours: dict[str, Any], theirs: dict[str, Any] | None, *, reasons: Reasons
) -> Outcome:
    """Return what became of a test, why, "" where nobody knows, and whether it counts."""
    if ours["outcome"] == PASSED:
        return Outcome(PASSED, "", True)
    kind = _kind(ours["said"][0])
    if ours["outcome"] == "skipped":
        return Outcome("skipped", kind or OWN, False)
    if kind in (HUB, DATA):
        return Outcome("skipped", kind, False)
    if theirs is not None and theirs["outcome"] == FAILED:
        if _kind(theirs["said"][0]) == HUB:
            theirs = None  # their checkpoint is missing: nothing is known
        else:
            return Outcome(FAILED, BOTH, False)
    if theirs is not None and theirs["outcome"] == "skipped":
        return Outcome("skipped", OWN, False)
    for group, counts in (("inside", False), ("counts", True)):
        for pattern, reason in reasons.get(group, {}).items():
            if re.search(pattern, test):
                return Outcome(FAILED, reason, counts)
    return Outcome(FAILED, "", True)


def _kind(said: str) -> str | None:
    return next((kind for kind, text in _SAID if re.search(text, said, re.IGNORECASE)), None)


def counted(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Count outcomes; `failures` has of each its reason and whether it counts."""
    how = Counter(one.how for one in outcomes.values())
    failures = {test: [one.why, one.counts] for test, one in outcomes.items() if one.how == FAILED}
    skips = Counter(one.why for one in outcomes.values() if one.how == "skipped")
    numbers = {"passed": how[PASSED], "failed": how[FAILED], "skipped": how["skipped"]}
    return {**numbers, "skips": dict(skips.most_common()), "failures": failures}


def counts_of(suites: Iterable[Suite]) -> dict[str, dict[str, int]]:
    """Return of each suite what the table compares: passed, failed, and those that count."""
    return {
        suite["name"]: {
            "passed": suite["passed"],
            "failed": suite["failed"],
            "counting": sum(counts for _, counts in suite["failures"].values()),
        }
        for suite in suites
    }


def drawn(results: dict[str, Any]) -> str:
    """Draw the table of suites, the reasons of what is skipped, and every failure with its own."""
    versions, before = results["versions"], results.get("before", {})
    now = counts_of(results["suites"])
    lines = [
        f"{results['date']}, commit {results['commit']}, transformers {versions['transformers']}, "
        f"torch {versions['torch']}, CPU.",
        "",
        "| Tests | passed | failed | of these that count | skipped | before: passed | failed |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for suite in results["suites"]:
        count, old = now[suite["name"]], before.get(suite["name"], {})
        cells = [count["passed"], count["failed"], count["counting"], suite["skipped"]]
        cells += [old.get("passed", ""), old.get("failed", "")]
        lines.append(f"| {suite['name']} | {' | '.join(map(str, cells))} |")
    passed, counting = (sum(one[key] for one in now.values()) for key in ("passed", "counting"))
    failed = sum(one["failed"] for one in now.values())
    share = passed / max(1, passed + counting)
    of_all = passed / max(1, passed + failed)
    lines += [
        "",
        f"{passed:,} of {passed + counting:,} tests that count pass, {share:.1%}; of all that were "
        f"run, {of_all:.1%} of {passed + failed:,}. {_before(before)}",
        "",
        "| Skipped, since it | tests |",
        "|---|--:|",
    ]
    skips: Counter[str] = Counter()
    for suite in results["suites"]:
        skips.update(suite["skips"])
    lines += [f"| {why} | {count} |" for why, count in skips.most_common()]
    lines += ["", "| Failed, since it | counts | tests | which |", "|---|---|--:|---|"]
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for suite in results["suites"]:
        for test, (why, counts) in suite["failures"].items():
            by_reason.setdefault((counts, why or "differs"), []).append(test)
    for (counts, why), tests in sorted(by_reason.items(), key=lambda p: (-p[0][0], -len(p[1]))):
        cells = [why, "yes" if counts else "no", len(tests), ", ".join(_names(tests))]
        lines.append(f"| {' | '.join(_cell(str(cell)) for cell in cells)} |")
    return "\n".join(lines)


def _before(before: dict[str, dict[str, int]]) -> str:
    if not before:
        return ""
    passed = sum(one["passed"] for one in before.values())
    counting = sum(one["counting"] for one in before.values())
    return f"Before: {passed:,} of {passed + counting:,}, {passed / (passed + counting):.1%}."


def _names(tests: Iterable[str]) -> list[str]:
    # Of parametrized tests the common part, once, and without the names of class and file.
    short = (test.rpartition("::")[2] for test in tests)
    return sorted({f"`{re.sub(r'_[0-9]+_.*', '', name)}`" for name in short})


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    main()
