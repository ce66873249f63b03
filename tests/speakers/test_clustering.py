"""How many speakers there are and who is who, from embeddings alone."""

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from corpus_asr.speakers import clustering
from corpus_asr.speakers.clustering import (
    GE2E_LIKENESS,
    MAX_NODES,
    SpeakerBounds,
    agglomerate,
    find_speakers,
    find_voices,
)

WIDTH = 256


def voices(number: int, seed: int = 0) -> np.ndarray:
    """Directions as far from one another as those of GE2E: cosines of about 0.45."""
    draw = np.random.default_rng(seed)
    common = np.abs(draw.standard_normal(WIDTH))
    own = draw.standard_normal((number, WIDTH))
    directions = common / np.linalg.norm(common) + 1.1 * own / np.linalg.norm(
        own, axis=1, keepdims=True
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions.astype(np.float32)


def talk(directions: np.ndarray, turns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of turns of 4 to 12 windows, as alike as GE2E's of one speaker: about 0.73."""
    draw = np.random.default_rng(seed)
    said: list[int] = []
    for turn in range(turns):
        number = turn if turn < len(directions) else int(draw.integers(len(directions)))
        said += [number] * int(draw.integers(4, 13))
    noise = draw.standard_normal((len(said), WIDTH)) / np.sqrt(WIDTH)
    vectors = directions[said] + 0.6 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), np.array(said)


def same_grouping(found: np.ndarray, truth: np.ndarray) -> bool:
    pairs = set(zip(found.tolist(), truth.tolist(), strict=True))
    return len(pairs) == len(set(truth.tolist())) == len(set(found.tolist()))


@pytest.mark.parametrize("number", [1, 2, 3, 6, 10])
def test_the_number_of_speakers_is_found(number):
    vectors, said = talk(voices(number), turns=5 * number)
    found = find_speakers(vectors, GE2E_LIKENESS)
    assert same_grouping(found.labels, said)
    # In order of appearance, which here is that of the truth.
    assert found.labels.tolist() == said.tolist()
    assert found.voices.shape == (number, WIDTH)
    assert found.confidences.min() > 0.5
    again = find_speakers(vectors, GE2E_LIKENESS)
    assert np.array_equal(again.labels, found.labels)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((2, None, None), 2),
        ((4, None, None), 4),
        ((6, None, None), 6),
        ((None, None, 3), 3),
        ((None, 5, None), 5),
        ((None, 2, 8), 4),
        ((1, None, None), 1),
    ],
)
def test_bounds_are_kept(bounds, expected):
    vectors, _ = talk(voices(4), turns=30)
    found = find_speakers(vectors, GE2E_LIKENESS, SpeakerBounds.of(*bounds))
    assert len(np.unique(found.labels)) == len(found.voices) == expected


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_little_speech_is_one_speaker(size):
    vectors, _ = talk(voices(1), turns=1)
    found = find_speakers(vectors[:size], GE2E_LIKENESS)
    assert found.labels.tolist() == [0] * size
    assert len(found.voices) == min(size, 1)
    two = find_speakers(vectors[:size], GE2E_LIKENESS, SpeakerBounds.of(2, None, None))
    assert len(two.voices) <= size


def test_a_mixture_of_two_voices_between_their_turns_is_no_third():
    directions = voices(2)
    vectors, said = talk(directions, turns=12)
    draw = np.random.default_rng(3)
    mixed = directions.sum(axis=0) + 0.6 * draw.standard_normal((11, WIDTH)) / np.sqrt(WIDTH)
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    borders = np.flatnonzero(np.diff(said)) + 1
    vectors = np.insert(vectors, borders, mixed[: len(borders)], axis=0).astype(np.float32)
    assert len(borders) >= 3
    assert len(find_speakers(vectors, GE2E_LIKENESS).voices) == 2


def test_one_window_of_another_voice_is_smoothed_away():
    vectors, said = talk(voices(2), turns=10)
    vectors[2] = 0.55 * vectors[2] + 0.45 * vectors[said == 1][0]
    vectors[2] /= np.linalg.norm(vectors[2])
    assert np.array_equal(find_speakers(vectors, GE2E_LIKENESS).labels, said)


def test_long_recordings_are_condensed_and_come_out_the_same():
    vectors, said = talk(voices(5), turns=600)
    assert len(vectors) > 7 * MAX_NODES
    assert np.array_equal(find_speakers(vectors, GE2E_LIKENESS).labels, said)


def test_agglomeration_is_average_linkage():
    vectors, _ = talk(voices(4), turns=12)
    order = linkage(vectors, method="average", metric="cosine")
    for most in (2, 5, 20):
        expected = fcluster(order, most, criterion="maxclust")
        found = agglomerate(vectors, np.ones(len(vectors), dtype=np.float32), most=most)
        assert same_grouping(found, expected)


@pytest.mark.slow
def test_ten_hours_are_clustered_in_seconds_and_bounded_memory():
    vectors, said = talk(voices(6), turns=6000)
    assert len(vectors) * 0.75 > 10 * 3600 * 0.95
    tracemalloc.start()
    began_s = time.process_time()
    found = find_speakers(vectors, GE2E_LIKENESS)
    spent_s = time.process_time() - began_s
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found.labels, said)
    # Beside the embeddings themselves: each is there twice for a moment.
    assert peak < 4 * vectors.nbytes
    assert spent_s < 60.0


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
    monkeypatch.setattr(clustering, "_BLOCK_VALUES", block_values)
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
    looked, look = [], clustering._look

    def counted(*given: Any) -> None:
        looked.append(int(given[3].sum()))
        look(*given)

    monkeypatch.setattr(clustering, "_look", counted)
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
