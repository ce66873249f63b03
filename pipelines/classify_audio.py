"""Classify a corpus, step by step: python pipelines/classify_audio.py configs/classify.yaml.

Further arguments override keys, such as output.uri=s3://labels/podcasts; --steal-lock takes over
a lock without a sign of life. A later call continues where this one stopped. Exit codes are those
of `corpus-asr run`, which does the same with more options.
"""

import sys

from corpus_asr.cli.failures import script
from corpus_asr.cli.jobs import print_summary
from corpus_asr.cli.options import note_model_of, progress_lines
from corpus_asr.config.load import load_config
from corpus_asr.config.run import RunOptions
from corpus_asr.pipelines.driver import CorpusRun, prepare
from corpus_asr.report.page import write_page_at_the_end


def main(path: str, *overrides: str, steal_lock: bool = False) -> None:
    """Classify what the configuration names."""
    config = load_config(path, overrides)
    note_model_of(config)
    checkpoint = prepare(config)  # fetch the checkpoint, refuse what it cannot do
    options = RunOptions(steal_lock=steal_lock)
    with CorpusRun.open(config, checkpoint, progress=progress_lines(), options=options) as run:
        run.after_finish = write_page_at_the_end
        run.start()  # list the source, leave out what is committed
        run.process()  # decode and extract on CPUs, classify, commit tables as they come
        summary = run.finish()  # compact and count the tables, write run.json, then the page
    print_summary(config, summary)  # exits with 1 where too many recordings failed


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--steal-lock"]
    with script(on_interrupt="run the same command again to continue"):
        main(*arguments, steal_lock="--steal-lock" in sys.argv)
