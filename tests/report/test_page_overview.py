"""The charts of a page say what the history of a run says, and no more."""

import pytest

from corpus_asr.report.page.overview import busy_steps, speed_steps
from corpus_asr.storage.run_state.run_files import Moment


def moment(elapsed_s: float, audio_s: float, **values: float) -> Moment:
    usual = {"extract_s": 0.0, "extract_alive_s": 0.0, "engine_s": 0.0, "transcribe_alive_s": 0.0}
    return Moment(elapsed_s=elapsed_s, audio_s=audio_s, files=0, failed=0, **(usual | values))


def speeds(*moments: tuple[float, float]) -> list[tuple[float, float, float | None]]:
    found = speed_steps([moment(*each) for each in moments])
    return [(step.start_s, step.stop_s, step.values[0]) for step in found]


def test_what_leads_up_to_a_commit_is_one_step() -> None:
    found = speeds((0, 0), (15, 0), (30, 300), (45, 300), (60, 450))
    assert found == [(0, 30, 10.0), (30, 60, 5.0)]


def test_an_end_without_commits_shows_if_it_is_long() -> None:
    assert speeds((0, 0), (30, 300), (60, 300))[-1] == (0, 30, 10.0)
    assert speeds((0, 0), (30, 300), (90, 300))[-1] == (30, 90, 0.0)


def test_what_the_end_flushes_belongs_to_the_time_before_it() -> None:
    assert speeds((0, 0), (30, 300), (60, 600), (62, 920)) == [(0, 30, 10.0), (30, 62, 19.375)]


@pytest.mark.parametrize("moments", [(), ((0, 0),), ((0, 0), (0, 5))])
def test_too_little_is_no_step(moments: tuple[tuple[float, float], ...]) -> None:
    assert speeds(*moments) == []
    assert busy_steps([moment(*each) for each in moments]) == []


def test_busy_shares_are_those_of_the_time_between() -> None:
    found = busy_steps(
        [
            moment(0, 0),
            moment(10, 0, extract_s=5.0, extract_alive_s=10.0),
            moment(
                20, 0, extract_s=5.0, extract_alive_s=20.0, engine_s=12.0, transcribe_alive_s=10.0
            ),
        ]
    )
    assert [step.values for step in found] == [(0.5, None), (0.0, 1.0)]
    assert "engines unknown" in found[0].title


def test_busy_shares_of_many_moments_are_averaged() -> None:
    moments = [moment(t, 0, extract_s=t / 2, extract_alive_s=t) for t in range(121)]
    found = busy_steps(moments)
    assert len(found) <= 31
    assert (found[0].start_s, found[-1].stop_s) == (0, 120)
    assert {step.values[0] for step in found} == {0.5}
