"""Train a checkpoint further: labelled audio in, a better checkpoint and a summary out.

Only the order of things is decided here; each is done elsewhere. Safe to repeat: the same call goes
on after the last checkpoint.
"""

from dataclasses import dataclass
from operator import itemgetter

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.terminal import Stream, line_writer
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.training.job import MODEL_FOLDER, Evaluation, Finetune, TrainingStore, train
from corpus_asr.training.trainer import Group, Record
from corpus_asr.units import MEBIBYTE, counted

# Every step is in log.jsonl; the terminal shows that it goes on.
_PRINTED_EVERY = 10
_FAILURES_PRINTED = 3
_STORE_BYTES = 128 * MEBIBYTE  # nothing of training goes through Ray's object store


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuned:
    """The outcome of a training."""

    model_uri: str
    steps: int
    kept_step: int
    """Step of the model that was written; 0 is the start."""
    error_rates: tuple[tuple[int, float], ...]
    """Step and WER of each evaluation; empty without validation data."""


def run(config: FinetuneConfig, *, progress: Stream | None) -> Finetuned:
    """Train what is left to train, and write the model."""
    store = TrainingStore(config.output.uri, endpoint_url=config.output.endpoint_url, keep=1)
    store.check()
    if config.cluster.workers == 1:
        _train_here(config, progress)
    else:
        _train_on_ray(config, progress)
    rates = [(row["step"], row["wer"]) for row in store.log() if row.get("wer") is not None]
    steps = config.training.max_steps
    best, _ = min(rates, key=itemgetter(1), default=(steps, None))
    return Finetuned(
        model_uri=redact_uri(f"{store.uri}/{MODEL_FOLDER}"),
        steps=steps,
        kept_step=best if config.evaluation.keep == "best" else steps,
        error_rates=tuple(rates),
    )


def _train_here(config: FinetuneConfig, progress: Stream | None) -> None:
    say, job = line_writer(progress), Finetune(config, group=Group())
    say(f"{job.cache.hours:.2f} h of training data")
    for reason, count in job.cache.summary["excluded"].items():
        say(f"excluded: {count} {reason}")
    for failure in job.cache.summary["failures"][:_FAILURES_PRINTED]:
        say(failure)
    step = 0
    for found in job.run():
        if isinstance(found, Evaluation):
            say(_evaluation_words(step, found))
            continue
        step = found.step
        if step % _PRINTED_EVERY == 0 or step == config.training.max_steps:
            say(_step_words(found, config.training.max_steps))


def _train_on_ray(config: FinetuneConfig, progress: Stream | None) -> None:
    # Ray takes seconds to import, and one process does without it.
    from corpus_asr.runtime.ray_cluster import connected, train_together

    cluster = config.cluster
    workers = counted(cluster.workers, "worker")
    line_writer(progress)(f"{workers} in training; log.jsonl grows with every checkpoint")
    with connected(cluster.ray_address(), store_bytes=_STORE_BYTES) as machines:
        if machines.joined is not None:
            line_writer(progress)(f"joined {machines.joined}")
        cpus = sum(node.cpus for node in machines.nodes)
        gpus = sum(node.gpus for node in machines.nodes)
        # Ray Train would wait without end for what never comes.
        for needed, available, name in (
            (cluster.workers * cluster.cpus_per_worker, cpus, "CPUs"),
            (cluster.workers * cluster.gpus_per_worker, gpus, "GPUs"),
        ):
            if needed > available:
                raise ConfigError(
                    f"training on Ray: found {available:g} {name}, expected {needed:g} for "
                    f"{cluster.workers} workers; lower cluster.workers or what each one gets"
                )
        train_together(
            train,
            config.model_dump(mode="json"),
            workers=cluster.workers,
            gpus_per_worker=cluster.gpus_per_worker,
            cpus_per_worker=cluster.cpus_per_worker,
        )


def _step_words(record: Record, steps: int) -> str:
    return (
        f"step {record.step}/{steps}: loss {record.loss:.3f}, grad_norm {record.grad_norm:.2f}, "
        f"lr {record.lr:.1e}, {record.wall_s:.1f} s"
    )


def _evaluation_words(step: int, found: Evaluation) -> str:
    wer = "no reference has words" if found.wer is None else f"wer {found.wer:.2%}"
    words = found.hallucinated_words
    hallucinated = f", {words} words in windows without speech" if words else ""
    return f"step {step}: {wer} ({found.windows} validation windows{hallucinated})"
