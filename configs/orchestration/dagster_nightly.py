"""An archive every night from Dagster: an asset that calls the command and shows its numbers.

    dagster dev -f configs/orchestration/dagster_nightly.py

The code location needs corpus-asr on its PATH, the job's YAML, and the credentials of the stores in
its environment.
"""

import json
import subprocess

import dagster as dg

CONFIG = "/etc/corpus-asr/nightly.yaml"
LOCKED, STOPPED_BY_FAILURE = 75, 3  # docs/background/reliability.md lists the exit codes


@dg.asset(
    # The same command resumes: of a store that was down, the next try begins where it stopped.
    retry_policy=dg.RetryPolicy(max_retries=2, delay=600),
)
def transcripts(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Tables of segments of the archive."""
    command = ["corpus-asr", "nightly", CONFIG, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == LOCKED:
        context.log.info("another run is at work on the output folder; nothing was done")
        return dg.MaterializeResult(metadata={"skipped": True})
    if done.returncode != 0:
        raise dg.Failure(
            f"corpus-asr nightly ended with {done.returncode}; its log says why",
            allow_retries=done.returncode == STOPPED_BY_FAILURE,
        )
    night = json.loads(done.stdout)
    return dg.MaterializeResult(
        metadata={
            "output": night["output"],
            "done": night["numbers"]["done"],
            "failed": night["numbers"]["failed"],
            "remaining": night["numbers"]["remaining"],
            "audio_hours": night["numbers"]["audio_s"] / 3600,
            "rtfx": night["numbers"]["rtfx"],
        }
    )


defs = dg.Definitions(
    assets=[transcripts],
    schedules=[
        dg.ScheduleDefinition(
            name="nightly",
            target=transcripts,
            cron_schedule="0 1 * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ],
)
