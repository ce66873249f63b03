"""Make training data from a corpus: python pipelines/pseudo_label.py configs/pseudo_label.yaml.

Further arguments override keys, such as selection.min_confidence=0.8.
"""

import sys

from corpus_asr.cli.failures import script
from corpus_asr.cli.jobs import print_summary
from corpus_asr.cli.options import progress_lines
from corpus_asr.config.load import load_config
from corpus_asr.config.run import PseudoLabelConfig
from corpus_asr.labelling.summary import render
from corpus_asr.pipelines import driver
from corpus_asr.pipelines.pseudo_label import label
from corpus_asr.report.page import write_page_at_the_end


def main(path: str, *overrides: str) -> None:
    """Transcribe the corpus, then select segments and write them as a data set."""
    config = load_config(path, overrides)
    assert isinstance(config, PseudoLabelConfig), f"{path} is not a job of pseudo_label"
    summary = driver.run(config, progress=progress_lines(), after_finish=write_page_at_the_end)
    print(render(label(config, progress=progress_lines())))
    print_summary(config, summary)  # exits with 1 where too many recordings failed


if __name__ == "__main__":
    with script(on_interrupt="run the same command again to continue"):
        main(*sys.argv[1:])
