"""Fine-tune a checkpoint: python pipelines/finetune.py configs/finetune.yaml.

Further arguments override keys, such as training.max_steps=300. A later call continues after the
last checkpoint. On several GPUs: torchrun --nproc-per-node 8 pipelines/finetune.py FILE.
"""

import sys

from corpus_asr.cli.failures import script
from corpus_asr.cli.options import progress_lines
from corpus_asr.config.load import load_finetune
from corpus_asr.pipelines.finetune import run


def main(path: str, *overrides: str) -> None:
    """Train, evaluate at intervals, and write the best model."""
    trained = run(load_finetune(path, overrides), progress=progress_lines())
    print(f"{trained.model_path}: kept step {trained.kept_step} of {trained.steps}")


if __name__ == "__main__":
    with script(on_interrupt="run the same command again to resume"):
        main(*sys.argv[1:])
