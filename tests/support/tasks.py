"""Tasks that do nothing but ask for jobs, one after another."""

from collections.abc import Generator, Sequence

from corpus_asr.decoding.protocols import Job, Result
from corpus_asr.decoding.slots import SlotScheduler

_MOST_ROUNDS = 10_000  # far more than any test needs; a scheduler that never ends must fail


def run_jobs(scheduler: SlotScheduler, tasks: Sequence[Sequence[Job]]) -> list[list[Result]]:
    """Run each list of jobs as a task of its own; returns their results."""
    found: dict[int, list[Result]] = {}

    def task(jobs: Sequence[Job]) -> Generator[Job, Result, list[Result]]:
        results: list[Result] = []
        for job in jobs:
            result = yield job
            results.append(result)
        return results

    for index, jobs in enumerate(tasks):

        def done(value: list[Result], error: Exception | None, index: int = index) -> None:
            if error is not None:
                raise error
            found[index] = value

        scheduler.add(task(jobs), done)
    rounds = 0
    while scheduler.pending:
        scheduler.advance()
        rounds += 1
        assert rounds < _MOST_ROUNDS
    return [found[index] for index in range(len(tasks))]
