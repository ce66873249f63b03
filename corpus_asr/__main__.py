"""Where the command begins, also as `python -m corpus_asr`.

Reading the packages of the command line takes part of a second, in which people interrupt, too:
nothing but Python's own is imported before they can be answered.
"""

import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Run the command; an interrupt before it is loaded prints a line, no traceback."""
    try:
        from corpus_asr.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("corpus-asr: interrupted\n")
        sys.exit(_INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
