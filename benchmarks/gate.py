"""Compare what was measured with the least that is to hold, and with the goals.

    python -m benchmarks.gate RESULTS [--publish]

In: RESULTS/results.json of `benchmarks.compare` and RESULTS/accuracy.json of `benchmarks.accuracy
show --json`. Out: RESULTS/gate.json and a table; the exit code is 1 if an entry of gate.yaml is
missed or was not measured. With --publish the table is written to docs/benchmarks.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.compare import hardware
from benchmarks.tables import environment, fill, markdown

_REPOSITORY = Path(__file__).resolve().parents[1]
ENTRIES = Path(__file__).with_name("gate.yaml")
PEERS = ("faster", "openvino", "whisper.cpp", "transformers", "openai-whisper")
"""What the keys of peers' rows begin with."""
Results = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An entry of gate.yaml with what was found."""

    what: str
    found: float | None
    """None if it was not measured."""
    bound: float
    goal: float
    at_least: bool
    """Whether more is better."""
    unit: str
    beside: str
    """The peer that it is compared with: the best of those measured."""

    @property
    def passed(self) -> bool:
        """Whether it was measured and holds."""
        return self._reaches(self.bound)

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self._reaches(self.goal)

    def _reaches(self, limit: float) -> bool:
        if self.found is None:
            return False
        return self.found >= limit if self.at_least else self.found <= limit


def main(arguments: Sequence[str] | None = None, *, repository: Path = _REPOSITORY) -> int:
    """Check a folder of results; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--publish", action="store_true", help="write the table to docs/benchmarks")
    asked = parser.parse_args(arguments)
    speed, accuracy = (_read(asked.results / name) for name in ("results.json", "accuracy.json"))
    outcomes = check(yaml.safe_load(ENTRIES.read_text(encoding="utf-8")), speed, accuracy)
    lines = drawn(outcomes)
    print("\n".join(lines))
    kept = {
        "date": speed.get("date") or accuracy.get("date"),
        "hardware": speed.get("hardware") or hardware(),
        "versions": speed.get("versions"),
        "accuracy": accuracy,
        "entries": [asdict(one) | {"passed": one.passed} for one in outcomes],
    }
    (asked.results / "gate.json").write_text(f"{json.dumps(kept, indent=1)}\n", encoding="utf-8")
    if asked.publish:
        folder = repository / "docs" / "benchmarks"
        copy = folder / f"{kept['date']}-gate.json"
        copy.write_text(f"{json.dumps(kept, indent=1)}\n", encoding="utf-8")
        said = f"{environment(dict(speed))} [All figures]({copy.name})."
        fill(folder / "README.md", "gate", "\n".join([said, "", *lines]))
    missed = [one.what for one in outcomes if not one.passed]
    if missed:
        sys.stderr.write(
            f"comparing {asked.results} with {ENTRIES.name}: {len(missed)} of {len(outcomes)} "
            f"entries are missed or were not measured: {'; '.join(missed)}\n"
        )
    return 1 if missed else 0


def check(entries: Results, speed: Results, accuracy: Results) -> list[Outcome]:
    """Find the figure of each entry."""
    sets = {each["name"]: each for each in speed.get("sets", ())}
    found = [_of_speed(entry, sets.get(entry["set"])) for entry in entries["speed"]]
    rows = {
        (row["model"], row["set"], row["engine"]): row
        for row in accuracy.get("rows", ())
        if row["mode"] == "default"
    }
    return found + [_of_accuracy(entry, rows) for entry in entries["accuracy"]]


def _of_speed(entry: Results, table: Results | None) -> Outcome:
    figure, key = entry["figure"], entry["row"]
    rows = {row["key"]: row for row in (table or {}).get("rows", ()) if row.get(figure)}
    peers = [row for name, row in rows.items() if name.startswith(tuple(PEERS))]
    best = min(peers, key=lambda row: row[figure]) if peers else None
    ours = rows.get(key)
    return Outcome(
        what=f"{entry['set']}: {ours['name'] if ours else key}, {figure.removesuffix('_s')} time",
        found=round(best[figure] / ours[figure], 3) if ours and best else None,
        bound=entry["least"],
        goal=entry["goal"],
        at_least=True,
        unit="times as fast",
        beside=best["name"] if best else "",
    )


def _of_accuracy(entry: Results, rows: Mapping[tuple[str, str, str], Results]) -> Outcome:
    place = entry["model"], entry["set"]
    ours, peer = (rows.get((*place, entry[side])) for side in ("engine", "beside"))
    return Outcome(
        what=f"{entry['model']} on {entry['set']}: errors of {entry['engine']}, defaults",
        found=round(ours["wer"] - peer["wer"], 2) if ours and peer else None,
        bound=entry["most"],
        goal=entry["goal"],
        at_least=False,
        unit="points of WER more",
        beside=entry["beside"],
    )


def drawn(outcomes: Sequence[Outcome]) -> list[str]:
    """Draw the table of all entries."""
    rows = [
        (
            one.what,
            one.beside or "no peer",
            "not measured" if one.found is None else f"{one.found:g} {one.unit}",
            f"{'at least' if one.at_least else 'at most'} {one.bound:g}",
            "yes" if one.passed else "**no**",
            f"{one.goal:g}",
            "yes" if one.reached else "**no**",
        )
        for one in outcomes
    ]
    titles = ("", "Compared with", "Found", "Bound", "Holds", "Goal", "Reached")
    return markdown(titles, rows, left=(0, 1, 2))


def _read(path: Path) -> Results:
    if not path.is_file():
        return {}
    content: Results = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    sys.exit(main())
