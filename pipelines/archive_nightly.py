"""Transcribe what is new in an archive: python pipelines/archive_nightly.py configs/nightly.yaml.

Further arguments override keys, such as nightly.stop_after_h=6. `corpus-asr nightly` does the same
and has an exit code for what went over its budget.
"""

import sys

from corpus_asr.cli.failures import readable_errors
from corpus_asr.config.load import load_config
from corpus_asr.pipelines import nightly
from corpus_asr.report.nightly import markdown


def main(path: str, *overrides: str) -> None:
    """List, transcribe until the night is over, judge the results, and tell the webhook."""
    config = load_config(path, overrides)
    night = nightly.run(config, local=False, progress=sys.stderr)
    print(markdown(night))


if __name__ == "__main__":
    with readable_errors(on_interrupt="the next night continues"):
        main(*sys.argv[1:])
