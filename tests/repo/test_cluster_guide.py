"""The guide to clusters: its figures are what the code reckons, and what it links to exists."""

import math
import re

import pytest

from corpus_asr.benchmark.measuring import SHAPES
from corpus_asr.config.stages import ExtractSettings
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.runtime import resources as sizes
from corpus_asr.transcription.slot_budget import fitting_slots, predicted_bytes
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ
from tests.support.manifests import REPOSITORY, groups, limit, nodes, store_bytes

GIBIBYTE = 1024 * MEBIBYTE
FOLDER = REPOSITORY / "docs"
GUIDE = " ".join((FOLDER / "clusters.md").read_text().split())
ENCODE_BATCH = encode_batch_on("cuda")
PART_S = ExtractSettings().part_s
# Of one core; the slowest mp3 of the benchmark's table.
MP3_SPEED = 241


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table that begins with this heading."""
    _, _, rest = (FOLDER / "clusters.md").read_text().partition(f"\n| {heading} |")
    assert rest, heading
    body = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def size_of(name: str) -> ModelSize:
    config = SHAPES[name].config()
    width = config.d_model
    # Squares: attention 4, feed-forward 8. Biases (keys have none) and norms grow with the width.
    encoder = config.encoder_layers * (12 * width**2 + 12 * width)
    decoder = config.decoder_layers * (16 * width**2 + 17 * width)
    convolutions = 3 * config.num_mel_bins * width + 3 * width**2 + 2 * width
    tables = config.vocab_size + config.max_target_positions + config.max_source_positions
    return ModelSize(
        layers=config.decoder_layers,
        width=width,
        inner_width=config.encoder_ffn_dim,
        vocab_size=config.vocab_size,
        tokens=config.max_target_positions,
        positions=config.max_source_positions,
        window_values=config.num_mel_bins * 2 * config.max_source_positions,
        element_bytes=2,
        weight_bytes=2 * (encoder + decoder + convolutions + (tables + 4) * width),
    )


def test_weights_are_counted_as_published():
    assert size_of("tiny").weight_bytes == 2 * 37_760_640
    assert size_of("large-v3").weight_bytes == 3_086_981_120


@pytest.mark.parametrize("row", rows("model"), ids=lambda row: row[0])
def test_the_memory_of_slots_is_what_the_engine_reckons(row):
    name, *redact_uri = row
    size = size_of(name)
    none, one, all_slots = (
        predicted_bytes(size, slots=slots, encode_batch=ENCODE_BATCH).total for slots in (0, 1, 64)
    )
    # Weights, and the copies made of them, are there before memory is asked for slots.
    taken = size.weight_bytes + predicted_bytes(size, slots=0, encode_batch=0).fused_copies
    fitting = [
        fitting_slots(size, free_bytes=gib * GIBIBYTE - taken, encode_batch=ENCODE_BATCH)
        for gib in (8, 16, 24)
    ]
    assert [float(cell) for cell in redact_uri[:3]] == [
        round(none / MEBIBYTE),
        round((one - none) / MEBIBYTE, 1),
        round(all_slots / GIBIBYTE, 1),
    ]
    assert [int(cell) for cell in redact_uri[3:]] == fitting


def test_every_size_is_there():
    assert [name for name, *_ in rows("model")] == list(SHAPES)


@pytest.mark.parametrize("row", rows("one GPU, x real time (assumed)"), ids=lambda row: row[0])
def test_cores_are_speeds_divided(row):
    speed, *cells = row
    for gpus, cell in zip((1, 4, 8), cells, strict=True):
        cores = gpus * int(speed) / MP3_SPEED
        assert cell == f"{cores:.1f} + {sizes.SPARE_CPUS} = {math.ceil(cores + sizes.SPARE_CPUS)}"


def test_the_speed_of_extraction_is_the_measured_one():
    measured = (REPOSITORY / "corpus_asr" / "benchmark" / "README.md").read_text()
    speeds = re.findall(r"^\| (mp3|opus).*\| (\d+) \|$", measured, re.MULTILINE)
    slowest = {kind: min(int(x) for k, x in speeds if k == kind) for kind in ("mp3", "opus")}
    assert slowest["mp3"] == MP3_SPEED
    assert f"extracts mp3 at {slowest['mp3']} and opus at {slowest['opus']} times" in GUIDE


def test_what_extraction_holds_is_what_the_runtime_reserves():
    samples = PART_S * SAMPLE_RATE_HZ * 4
    worker = sizes.EXTRACT_BASE_BYTES + sizes.EXTRACT_COPIES_OF_PART * samples
    workers = int(limit(groups("rayjob.yaml")[1], "cpu")) - sizes.SPARE_CPUS
    assert (
        f"{workers} x {worker / MEBIBYTE:.0f} MiB = {workers * worker / GIBIBYTE:.1f} GiB" in GUIDE
    )
    assert f"{workers} x {MP3_SPEED} = {workers * MP3_SPEED} times real time" in GUIDE


def test_object_stores_hold_what_is_in_flight():
    part = PART_S * sizes.FEATURE_BYTES_PER_S
    parts = sizes.PARTS_PER_SLOT * sizes.ASSUMED_SLOTS_GPU
    gpus = int(sum(node.gpus for node in nodes("rayjob.yaml")))
    share = sizes.STORE_SHARE_AHEAD / sizes.AHEAD_SHARE_IN_FLIGHT
    needed = gpus * parts * part / share / GIBIBYTE
    assert f"{parts} x {part / MEBIBYTE:.1f} MiB = {parts * part / GIBIBYTE:.2f} GiB" in GUIDE
    assert f"= {needed:.1f} GiB for {gpus} GPUs" in GUIDE
    there = sum(
        store_bytes(group) * group.get("replicas", 1) / GIBIBYTE for group in groups("rayjob.yaml")
    )
    assert needed < there
    assert f"are {there:g} GiB, half of it {there / 2:g} GiB" in GUIDE
    slowest = parts * PART_S / sizes.SLOWEST_SPEED["gpu"]
    assert (
        f"for two hours it is given up ({parts} parts in flight x {PART_S:g} s / 10 times" in GUIDE
    )
    assert 2 <= slowest / 3600 < 2.5


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", GUIDE) if "://" not in link]
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []
