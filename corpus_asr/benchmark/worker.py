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
from typing import Any, TextIO

from corpus_asr.benchmark.orders import Order


def serve(orders: TextIO, replies: TextIO) -> None:
    """Answer until `orders` ends or something fails.

    What the runner has started ends with this process.
    """
    try:
        order = Order.from_json(orders.readline())
        module, _, name = order.runner.partition(":")
        runner = getattr(importlib.import_module(module), name)(order)
        _reply(replies, {"ready": True})
        from corpus_asr.benchmark.clock import peak_memory

        for _ in orders:
            run: dict[str, Any] = runner.run()
            _reply(replies, {"run": run | peak_memory()})
    except Exception as error:
        # Whatever an engine fails with becomes its row; the others go on.
        traceback.print_exc()
        words = " ".join(str(error).split()) or "no message"
        _reply(replies, {"failed": f"{type(error).__name__}: {words}"})


def _reply(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def main() -> None:
    """Keep stdout for replies, and let everybody else's prints go to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
