"""What holds for every test: checked shapes, bounded threads, a quiet local Ray, real data if any.

The environment and the import hook are set before anything of the package is imported.
"""

import faulthandler
import os
import sys
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_THREADS = max(1, _CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))

_ENVIRONMENT = {
    # Threads beyond the cores make torch and numpy many times slower, not faster.
    "OMP_NUM_THREADS": str(_THREADS),
    "OPENBLAS_NUM_THREADS": str(_THREADS),
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Workers write to their log files only; what fails reaches the driver as an exception.
    "RAY_LOG_TO_DRIVER": "0",
    # A dead S3 metadata address costs seconds per client when credentials are looked for.
    "AWS_EC2_METADATA_DISABLED": "true",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

from tests.support.shapes import begin_test, check_every_function  # noqa: E402  (the environment comes first)

check_every_function("corpus_asr")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# How long one example takes says more about the machine than about the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real speech and a small checkpoint beside the repository, where a machine has them."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real speech at {folder}: tests of it run only where it is provided")
    return folder


END_LIMIT_S = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Check shapes anew, before the test's fixtures are made."""
    begin_test()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process soon after the last test, and say what would have kept it."""
    status = getattr(config, "exit_status", 1)

    def end() -> None:
        sys.stderr.write(f"\nstill running {END_LIMIT_S:g} s after the last test:\n")
        faulthandler.dump_traceback(2)
        os._exit(status)

    timer = threading.Timer(END_LIMIT_S, end)
    timer.daemon = True
    timer.start()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the verdict for `pytest_unconfigure`."""
    session.config.exit_status = int(exitstatus)  # type: ignore[attr-defined]
