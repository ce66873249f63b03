"""Entry point of the command, also as `python -m corpus_asr`.

Importing the command line takes a fraction of a second, in which users interrupt, too: only the
standard library is imported before interrupts are handled.
"""

import atexit
import gc
import os
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as in shells
_OBJECTS_PER_COLLECTION = 10_000  # default: 700; takes a few MiB


def main() -> None:
    """Run the command; an interrupt during imports prints a line instead of a traceback."""
    # Of 3.6 s for an 11 s clip, garbage collection took 0.1 s during imports.
    gc.set_threshold(_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])
    end = _ProcessExit()
    atexit.register(end.now)  # registered first, called last
    try:
        try:
            from corpus_asr.cli.main import main as run
        except KeyboardInterrupt:
            sys.stderr.write("corpus-asr: interrupted\n")
            sys.exit(_INTERRUPTED)
        run()
        end.code = 0
    except SystemExit as error:
        end.code = error.code if isinstance(error.code, int) else int(error.code is not None)
        failures = sys.modules.get("corpus_asr.cli.failures")
        if failures is not None and end.code in failures.ENDS_AT_ONCE:
            atexit._run_exitfuncs()  # the last of them exits the process
        raise


class _ProcessExit:
    """Exit of the process after threads have ended and all exit functions were called."""

    code = 1  # of an uncaught exception

    def now(self) -> None:
        """Exit without garbage collection, which takes 0.3 s."""
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except OSError:  # the reader has closed the pipe
            self.code = self.code or 1
        os._exit(self.code)


if __name__ == "__main__":
    main()
