"""Runs killed (-9) at random moments and resumed end as if nothing had happened."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.killing import PAUSE, KillableJob, into, kill_and_resume, killable_job, tables_of
from tests.support.stores import S3Server, environment, s3_server

FILES, A_FEW = 240, 32


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server, environment(server.environment):
        yield server


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path: Path) -> KillableJob:
    """A job on Ray or not, into a folder or into S3."""
    ray, to_s3, files = request.param
    # Commits on Ray take a second or more: the work has to outlast twenty times a few of them.
    options: dict[str, Any] = {"environment": {PAUSE: "2"}} if ray else {}
    if to_s3:
        server = request.getfixturevalue("s3")
        options["output"] = server.make_bucket(f"kill-{'ray' if ray else 'local'}")
        options["endpoint_url"] = server.endpoint_url
    return killable_job(tmp_path / "killed", files=files, ray=ray, **options)


def check(job: KillableJob, folder: Path, *, kills: int, most: int, seed: int = 1) -> None:
    """Kill the job again and again and compare it with one that was left in peace."""
    undisturbed = into(job, folder / "undisturbed")
    code, said = undisturbed.finish()
    assert code == 0, said
    expected = tables_of(undisturbed.config)
    assert len({row["uri"] for row in expected["recordings"]}) in (FILES, A_FEW)
    killed = kill_and_resume(
        job, kills=kills, seed=seed, most=most, total=len(expected["outcomes"])
    )
    assert sum(killed.values()) == kills
    assert tables_of(job.config) == expected


@pytest.mark.parametrize("job", [(False, False, A_FEW)], ids=["folder"], indirect=True)
def test_a_driver_killed_three_times(job: KillableJob, tmp_path: Path):
    check(job, tmp_path, kills=3, most=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", [(False, False, FILES), (False, True, FILES)], ids=["folder", "s3"], indirect=True
)
def test_a_driver_killed_twenty_times(job: KillableJob, tmp_path: Path):
    check(job, tmp_path, kills=20, most=15)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    "job", [(True, False, FILES), (True, True, FILES)], ids=["folder", "s3"], indirect=True
)
def test_drivers_and_workers_on_ray_killed_twenty_times(job: KillableJob, tmp_path: Path):
    check(job, tmp_path, kills=20, most=2)
