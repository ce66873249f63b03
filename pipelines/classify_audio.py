"""Classify a corpus, step by step: python pipelines/classify_audio.py configs/classify.yaml.

Further arguments override keys, such as output.uri=s3://labels/podcasts. A later call
continues where this one stopped. `corpus-asr run` does the same, with more options.
"""

import sys

from corpus_asr.cli.failures import readable_errors
from corpus_asr.config.load import load_config
from corpus_asr.pipelines.classify import prepare
from corpus_asr.pipelines.driver import CorpusRun


def main(path: str, *overrides: str) -> None:
    """Classify what the configuration names."""
    config = load_config(path, overrides)
    checkpoint = prepare(config)  # fetch the checkpoint, refuse what it cannot do
    with CorpusRun.open(config, checkpoint, progress=sys.stderr) as run:  # lock the output
        run.start()  # list the source, leave out what is committed
        run.process()  # decode and extract on CPUs, classify, commit tables as they come
        summary = run.finish()  # compact and count the tables, write report.json and the page
    print(f"{summary.output_uri}: {summary.done} recordings done, {summary.failed} failed")


if __name__ == "__main__":
    with readable_errors(on_interrupt="run the same command again to continue"):
        main(*sys.argv[1:])
