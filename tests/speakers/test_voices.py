"""Who is the same in several recordings, held to joining one pair after the other."""

from typing import Any

import numpy as np
import pytest

from corpus_asr.speakers import voices
from corpus_asr.speakers.voices import find_voices

ABOVE = 0.6


def people(
    seed: int, *, persons: int, recordings: int, noise: float, width: int = 24
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centroids, recordings and who it is, of one to four people in each recording."""
    draw = np.random.default_rng(seed)
    means = draw.standard_normal((persons, width))
    present = [draw.permutation(persons)[: draw.integers(1, 5)] for _ in range(recordings)]
    who = np.concatenate(present)
    centroids = means[who] + noise * draw.standard_normal((len(who), width))
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    sizes = [len(each) for each in present]
    return centroids.astype(np.float32), np.repeat(np.arange(recordings), sizes), who


def plainly(centroids: np.ndarray, recordings: np.ndarray, *, same_above: float) -> np.ndarray:
    """Join the two most alike, one pair after the other, by the mean over all their pairs."""
    likeness = centroids.astype(np.float64) @ centroids.T
    groups = [[at] for at in range(len(centroids))]
    while True:
        best = (same_above, -1, -1)
        for one in range(len(groups)):
            for other in range(one + 1, len(groups)):
                if {*recordings[groups[one]]} & {*recordings[groups[other]]}:
                    continue
                mean = likeness[np.ix_(groups[one], groups[other])].mean()
                best = max(best, (float(mean), one, other))
        if best[1] < 0:
            break
        groups[best[1]] += groups.pop(best[2])
    found = np.zeros(len(centroids), dtype=np.int64)
    for group in groups:
        found[group] = min(group)
    return np.unique(found, return_inverse=True)[1]


@pytest.mark.parametrize("block_values", [1, 100, 10**6])
def test_voices_are_those_of_joining_the_most_alike_one_pair_after_the_other(
    block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voices, "_BLOCK_VALUES", block_values)
    for seed, noise in enumerate((0.2, 0.5, 0.8, 1.2)):
        centroids, recordings, _ = people(seed, persons=8, recordings=12, noise=noise)
        found = find_voices(centroids, recordings, same_above=ABOVE)
        assert found.tolist() == plainly(centroids, recordings, same_above=ABOVE).tolist()


def test_clear_voices_are_found_in_any_order_and_two_of_a_recording_stay_two() -> None:
    centroids, recordings, who = people(0, persons=30, recordings=120, noise=0.3)
    found = find_voices(centroids, recordings, same_above=ABOVE)
    assert len({*zip(found.tolist(), who.tolist(), strict=True)}) == found.max() + 1 == 30
    order = np.random.default_rng(1).permutation(len(who))
    again = find_voices(centroids[order], recordings[order], same_above=ABOVE)
    assert len({*zip(found[order].tolist(), again.tolist(), strict=True)}) == 30
    same = np.repeat(centroids[:1], 4, axis=0)
    assert find_voices(same, np.array([0, 0, 1, 1]), same_above=ABOVE).tolist() == [0, 1, 0, 1]
    nobody = np.zeros((0, 8), dtype=np.float32)
    assert find_voices(nobody, np.zeros(0, dtype=np.int64), same_above=ABOVE).tolist() == []


def test_new_speakers_join_known_voices_without_comparing_these_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    centroids, recordings, who = people(0, persons=30, recordings=120, noise=0.3)
    earlier = recordings < 100
    known = np.full(len(who), -1)
    known[earlier] = 7 + find_voices(centroids[earlier], recordings[earlier], same_above=ABOVE)
    looked, look = [], voices._look

    def counted(*given: Any) -> None:
        looked.append(int(given[3].sum()))
        look(*given)

    monkeypatch.setattr(voices, "_look", counted)
    found = find_voices(centroids, recordings, same_above=ABOVE, known=known)
    assert looked[0] == np.sum(~earlier), "only new ones"
    whole = find_voices(centroids, recordings, same_above=ABOVE)
    assert found.tolist() == whole.tolist()
    again = find_voices(centroids, recordings, same_above=ABOVE, known=found)
    assert again.tolist() == whole.tolist()


def test_a_new_speaker_may_show_that_two_known_voices_are_one() -> None:
    angles = np.radians([0.0, 50.0, 25.0])
    centroids = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    recordings = np.arange(3)
    apart = find_voices(centroids[:2], recordings[:2], same_above=0.7)
    assert apart.tolist() == [0, 1]
    known = np.array([0, 1, -1])
    assert find_voices(centroids, recordings, same_above=0.7, known=known).tolist() == [0, 0, 0]
    within = np.array([0, 0, 1])
    assert find_voices(centroids, within, same_above=0.7, known=known).max() == 1
