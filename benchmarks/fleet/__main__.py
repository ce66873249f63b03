"""What a fleet loses by faults, and what they cost; what its coordinator costs by workers.

    python -m benchmarks.fleet --nodes 4 --gpus-per-node 2 --recordings 400 --output fleet.json
    python -m benchmarks.fleet --coordinator 100 1000 4500
    python -m benchmarks.fleet --print fleet.json

Each worker is a process: the machine bounds how many there can be. For more, `--coordinator`
simulates the reports of so many workers without Ray. Prints JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ray

from benchmarks.fleet.losses import SCENARIOS, Fleet, Measured, compared, run_fleet
from benchmarks.tables import fill, markdown
from corpus_asr.activity import Activity, FileSums
from corpus_asr.runtime.commit import Tally
from corpus_asr.runtime.coordinator import (
    REPORT_EVERY_S,
    Report,
    RunCoordinator,
    WorkerPlace,
    WorkerState,
)
from corpus_asr.runtime.passes import Device
from corpus_asr.storage.run_state.lock import ProcessName

ROOT: Final = Path(__file__).resolve().parents[2]
CALLS = 1000


def coordinator_cost(num_workers: int) -> dict[str, Any]:
    """Return CPU seconds of the coordinator, without those of Ray's calls."""
    coordinator = RunCoordinator()
    reports = [_report(number) for number in range(num_workers)]
    for report in reports:
        coordinator.report(report)
    committed = Activity(commits=1, commit_s=0.1)
    cpu_ms = {
        "report": _cpu_ms(lambda call: coordinator.report(reports[call % num_workers])),
        "add": _cpu_ms(lambda _: coordinator.add(Tally(parts=1, audio_s=1.0), committed)),
        "look": _cpu_ms(lambda _: coordinator.look("pass")),
    }
    cores = (num_workers / REPORT_EVERY_S * cpu_ms["report"] + cpu_ms["look"]) / 1e3
    return {"workers": num_workers, "cpu_ms": cpu_ms, "cores_at_5_s": round(cores, 4)}


def _report(number: int) -> Report:
    place = WorkerPlace("node", ProcessName.mine())
    gpu = Device(node_id="node", host="host", gpus=(str(number),))
    did = Activity(
        decoded_s=1.0, slots=8, steps=1, longest_left_s=number, transcribe_alive_s=5.0,
        durations={f"mp3:{number % 12}": FileSums.of(100_000, 60.0)},
    )  # fmt: skip
    state = WorkerState("pass", "transcribe", str(number), gpu)
    return Report(str(number), did, place, state)


def _cpu_ms(call: Callable[[int], object]) -> float:
    began_s = time.process_time()
    for number in range(CALLS):
        call(number)
    return round(1e3 * (time.process_time() - began_s) / CALLS, 4)


def main() -> None:
    """Measure, print and exit with 1 if anything was lost or doubled."""
    usual = Fleet()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=usual.nodes)
    parser.add_argument("--gpus-per-node", type=int, default=usual.gpus_per_node)
    parser.add_argument("--recordings", type=int, default=usual.recordings)
    parser.add_argument("--pause-s", type=float, default=usual.pause_s, help="a part takes")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--coordinator", type=int, nargs="+", metavar="WORKERS")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--print", type=Path, dest="printed", help="write the docs' table from it")
    arguments = parser.parse_args()
    if arguments.printed is not None:
        found = json.loads(arguments.printed.read_text())["found"]
        fill(ROOT / "docs" / "scaling.md", "fleet", drawn(found))
        return
    os.environ["PYTHONPATH"] = os.getcwd()
    found = (
        [coordinator_cost(number) for number in arguments.coordinator]
        if arguments.coordinator
        else _scenarios(arguments)
    )
    text = json.dumps({"ray": ray.__version__, "found": found}, indent=1)
    sys.stdout.write(f"{text}\n")
    if arguments.output is not None:
        arguments.output.write_text(f"{text}\n")
    sys.exit(any(each.get("lost") or each.get("doubled") for each in found))


def _scenarios(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    fleet = Fleet(
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        recordings=arguments.recordings,
        pause_s=arguments.pause_s,
    )
    calm: Measured | None = None
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(["calm", *arguments.scenarios]):
            measured = run_fleet(fleet, name, Path(folder) / name.replace(" ", "_"))
            calm = calm or measured
            found.append(compared(calm, measured))
            sys.stderr.write(f"{json.dumps(found[-1])}\n")
    return found


def drawn(found: list[dict[str, Any]]) -> str:
    """Draw the table of docs/scaling.md."""
    titles = ["GPUs", "recordings", "what strikes", "seconds", "more than in peace",
              "models loaded", "taken out", "rows lost", "doubled", "failed"]  # fmt: skip
    keys = ("gpus", "recordings", "scenario", "wall_s", "cost_s", "models_loaded")
    rows = [
        [f"{each[key]:,}" if isinstance(each[key], int) else str(each[key]) for key in keys]
        + [str(n) for n in (len(each["taken_out"]), each["lost"], each["doubled"], each["failed"])]
        for each in found
    ]
    return "\n".join(markdown(titles, rows))


if __name__ == "__main__":
    main()
