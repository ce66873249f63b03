"""Transcribe what is new in an archive: python pipelines/archive_nightly.py configs/nightly.yaml.

Further arguments override keys, such as nightly.stop_after_h=6. Exit codes are those of
`corpus-asr nightly`, which does the same.
"""

import sys

from corpus_asr.cli.failures import EXIT_LOCKED, EXIT_SOME_FAILED, say, script
from corpus_asr.cli.options import note_model_of, progress_lines
from corpus_asr.config.load import load_config
from corpus_asr.errors import LockedError
from corpus_asr.pipelines import nightly
from corpus_asr.report.nightly import Night, markdown


def show(night: Night) -> None:
    """Print what came of a night, also of one that broke off."""
    print(markdown(night).rstrip("\n"))


def main(path: str, *overrides: str) -> None:
    """List, transcribe until the night is over, judge the results, and tell the webhook."""
    config = load_config(path, overrides)
    note_model_of(config)
    try:
        night = nightly.run(config, local=False, progress=progress_lines(), show=show)
    except LockedError as error:  # another run is at work: the next night does what it leaves
        say(str(error))
        sys.exit(EXIT_LOCKED)
    if night.over_limit is not None:
        say(f"{night.over_limit}; see corpus-asr report {night.output}")
        sys.exit(EXIT_SOME_FAILED)


if __name__ == "__main__":
    with script(on_interrupt="the next run continues"):
        main(*sys.argv[1:])
