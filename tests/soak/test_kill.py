"""Runs killed (-9) at random moments and resumed end as if nothing had happened."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import extractors
from tests.support.killing import (
    PAUSE,
    KillableJob,
    kill_and_resume,
    killable_job,
    tables_in_peace,
    tables_of,
)
from tests.support.stores import S3Server, environment, s3_server

FILES, A_FEW = 240, 16


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server, environment(server.environment):
        yield server


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path: Path) -> KillableJob:
    """A job on Ray or not, into a folder or into S3."""
    ray, to_s3, files = request.param
    # Commits on Ray take a second or more: the work has to outlast twenty times a few of them, and
    # extraction has to be at work for most of that time.
    slowly = {PAUSE: "1", extractors.PAUSE: "0.4"}
    options: dict[str, Any] = {"environment": slowly} if ray else {}
    if to_s3:
        server = request.getfixturevalue("s3")
        options["output"] = server.make_bucket(f"kill-{'ray' if ray else 'local'}")
        options["endpoint_url"] = server.endpoint_url
    return killable_job(tmp_path / "killed", files=files, ray=ray, **options)


def check(
    job: KillableJob, folder: Path, *, kills: int, most: int, victims: tuple[str, ...]
) -> None:
    """Kill the job again and again and compare it with one that was left in peace."""
    expected = tables_in_peace(job, folder)
    killed = kill_and_resume(
        job, kills=kills, seed=1, most=most, total=len(expected["outcomes"]), victims=victims
    )
    print(killed)  # noqa: T201 - what a soak test is read for
    assert sum(killed.values()) == kills
    assert tables_of(job.config) == expected


@pytest.mark.slow
@pytest.mark.parametrize("job", [(False, False, A_FEW)], ids=["folder"], indirect=True)
def test_a_driver_killed_three_times(job: KillableJob, tmp_path: Path):
    check(job, tmp_path, kills=3, most=5, victims=("driver",))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "job", [(False, False, FILES), (False, True, FILES)], ids=["folder", "s3"], indirect=True
)
def test_a_driver_killed_twenty_times(job: KillableJob, tmp_path: Path):
    check(job, tmp_path, kills=20, most=15, victims=("driver",))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "job", [(True, False, FILES), (True, True, FILES)], ids=["folder", "s3"], indirect=True
)
def test_drivers_and_workers_on_ray_killed_twenty_times(job: KillableJob, tmp_path: Path):
    check(job, tmp_path, kills=20, most=2, victims=("driver", "extract", "transcribe"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("ray", "victims", "pauses"),
    [
        (False, ("decoder", "driver"), {extractors.PAUSE: "0.1"}),
        pytest.param(
            True, ("decoder", "extract", "board"), {extractors.PAUSE: "0.5"}, marks=pytest.mark.ray
        ),
    ],
    ids=["local", "ray"],
)
def test_recordings_whose_decoder_was_killed_are_done_by_a_later_run(
    ray: bool, victims: tuple[str, ...], pauses: dict[str, str], tmp_path: Path
):
    job = killable_job(tmp_path / "killed", files=FILES, ray=ray, environment=pauses)
    expected = tables_in_peace(job, tmp_path)
    total = len(expected["outcomes"])
    killed = kill_and_resume(job, kills=20, seed=2, most=15, total=total, victims=victims)
    found = tables_of(job.config)
    kinds = Counter(row["error_kind"] for row in found["outcomes"] if row["status"] == "failed")
    print(killed, kinds)  # noqa: T201 - what a soak test is read for
    # Each file ended once, and none is blamed for what happened to another.
    listed = [row["uri"] for row in expected["recordings"]]
    assert [row["uri"] for row in found["recordings"]] == listed
    # What the machine did to them is tried again by every later run.
    assert kinds.pop("decoder_killed", 0) <= killed["decoder"]
    assert set(kinds) == {"scripted"}
    code, said = job.finish()
    assert code == 0, said
    assert tables_of(job.config) == expected
