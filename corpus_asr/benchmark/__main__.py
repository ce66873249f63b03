"""`python -m corpus_asr.benchmark`: the benchmark where the command line cannot be installed."""

import sys

from corpus_asr.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
