"""Where the command begins, also as `python -m corpus_asr`.

Reading the packages of the command line takes part of a second, in which people interrupt, too:
nothing but Python's own is imported before they can be answered.
"""

import atexit
import gc
import os
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_OBJECTS_PER_COLLECTION = 10_000  # in place of 700; a few MiB


def main() -> None:
    """Run the command; an interrupt before it is loaded prints a line, no traceback."""
    # Of 3.6 s for a clip of 11 s the collector took 0.1 looking through what is being imported.
    gc.set_threshold(_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])
    end = _End()
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
            atexit._run_exitfuncs()  # the last of them ends the process
        raise


class _End:
    """The end of the process once threads have ended and all that is registered was called."""

    code = 1  # of an error that nobody caught

    def now(self) -> None:
        """End without looking for garbage in a process that is over: 0.3 s of those."""
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except OSError:  # nobody reads any more
            self.code = self.code or 1
        os._exit(self.code)


if __name__ == "__main__":
    main()
