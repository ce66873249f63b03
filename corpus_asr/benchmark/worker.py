"""A process of its own for one engine: loads it once, then runs whenever it is told to.

In, on stdin: an `Order` on the first line, then a line for each run. Out, on what was stdout: one
JSON object per line, `ready`, `run` or `failed`. Whatever the engine itself prints goes to stderr.
Between runs it waits for the next line and does nothing.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from corpus_asr.benchmark.clock import peak_memory
from corpus_asr.benchmark.orders import Order


def serve(lines: Iterator[str], reply: Callable[[dict[str, Any]], None]) -> None:
    """Answer until `lines` ends or something fails.

    What the runner has started ends with this process.
    """
    try:
        order = Order.from_json(next(lines))
        module, _, name = order.runner.partition(":")
        runner = getattr(importlib.import_module(module), name)(order)
        reply({"ready": True})
        for _ in lines:
            run: dict[str, Any] = runner.run()
            reply({"run": run | peak_memory()})
    except Exception as error:
        # Whatever an engine fails with becomes its row; the others go on.
        traceback.print_exc()
        words = " ".join(str(error).split()) or "no message"
        reply({"failed": f"{type(error).__name__}: {words}"})


def main() -> None:
    """Keep stdout for replies, and let everybody else's prints go to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)

        def reply(message: dict[str, Any]) -> None:
            replies.write(json.dumps(message) + "\n")
            replies.flush()

        serve(sys.stdin, reply)


if __name__ == "__main__":
    main()
