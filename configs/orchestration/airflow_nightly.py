"""An archive every night from Airflow 3: one task, which calls the command.

Copy it to the folder of DAGs. The worker needs corpus-asr on its PATH, the job's YAML, and the
credentials of the stores in its environment. What a night came to stands in `nights/` of the output
folder; nothing of it passes through Airflow.
"""

import datetime
from typing import Any

from airflow.exceptions import AirflowException, AirflowFailException
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

CONFIG = "/etc/corpus-asr/nightly.yaml"
SOME_FAILED, UNUSABLE = 1, 2  # docs/background/reliability.md lists the exit codes


class NightlyOperator(BashOperator):
    """Calls the command; does not try again where that would only hide what failed."""

    def execute(self, context: Any) -> Any:
        """Run the command, as Airflow asks for."""
        try:
            return super().execute(context)
        except AirflowException as error:
            if self.subprocess_hook.sub_process.returncode in (SOME_FAILED, UNUSABLE):
                raise AirflowFailException(f"{error} Its log says why.") from error
            raise


with DAG(
    dag_id="corpus_asr_nightly",
    schedule="0 1 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,  # a night does whatever is left, however many were missed
    max_active_runs=1,
    tags=["corpus-asr"],
) as dag:
    NightlyOperator(
        task_id="transcribe",
        # Airflow ends a task by SIGTERM, upon which the command commits and ends within a minute.
        bash_command=f"exec corpus-asr nightly {CONFIG}",
        append_env=True,
        skip_on_exit_code=75,  # another run holds the lock of the output folder
        # The same command resumes: of a store that was down, the next try begins where it stopped.
        retries=2,
        retry_delay=datetime.timedelta(minutes=10),
        execution_timeout=datetime.timedelta(hours=8),  # above nightly.stop_after_h
    )
