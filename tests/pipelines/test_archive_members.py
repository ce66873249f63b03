"""Members of archives, by the program and real speech: killed, erased, gone, played, exported."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.config.run import RunConfig
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.storage.test_members import tar_bytes
from tests.support.audio import decode, read_clip, wav_bytes
from tests.support.killing import OWN_ENGINE, KillableJob
from tests.support.pages import asked, fetch
from tests.support.spoken import spoken
from tests.support.tables import rows_of, stored_segments
from tests.view.conftest import serving

pytestmark = pytest.mark.slow

CLIP_S = 2.2
SECRET = "Quillfeather"


def clips() -> list[bytes]:
    samples = read_clip(spoken()["inaugural.flac"].path)
    step = round(CLIP_S * SAMPLE_RATE_HZ)
    return [
        wav_bytes(samples[None, start : start + step], rate_hz=SAMPLE_RATE_HZ)
        for start in range(0, 5 * step, step)
    ]


def in_shards(folder: Path) -> dict[str, Any]:
    """Write two shards and one that is cut short; a member has a name to erase, one is damaged."""
    one, two, three, four, five = clips()
    named = json.dumps({"speaker": SECRET}).encode()
    first = [("talks/a.wav", one), ("talks/a.json", named), ("b.wav", two), ("c.wav", b"no" * 99)]
    (folder / "0.tar").write_bytes(tar_bytes(first))
    (folder / "1.tar").write_bytes(tar_bytes([("talks/a.wav", three), ("b.wav", four)]))
    cut = tar_bytes([("talks/a.wav", five), ("b.wav", four)])
    (folder / "2.tar").write_bytes(cut[: len(five) + 5_000])
    return {"uri": str(folder / "*.tar")}


def in_table(folder: Path) -> dict[str, Any]:
    """Write a table of five rows with audio, one damaged, and one without."""
    sounds = [*clips(), b"no" * 99, None]
    audio = [{"bytes": each, "path": f"{at}.wav"} for at, each in enumerate(sounds)]
    names = [SECRET, *"bcdefg"]
    table = pa.table({"audio": audio, "speaker": names})
    pq.write_table(table, folder / "clips.parquet", row_group_size=2)
    return {"uri": str(folder / "clips.parquet"), "audio_column": "audio"}


def said(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def counted(store: OutputStore) -> Counter[str]:
    return Counter(row["uri"].rpartition("/in/")[2] for row in rows_of(store.outcomes()))


def test_texts_in_a_shard_are_aligned_without_a_manifest(tmp_path: Path) -> None:
    recording = spoken()["inaugural.flac"]
    sound = recording.path.read_bytes()
    text = "country, ask what you can do zebra"
    inner = json.dumps({"text": recording.text}).encode()
    files = [("a.flac", sound), ("a.txt", f"{text}\n".encode()), ("b.flac", sound),
             ("b.json", inner), ("c.flac", sound)]  # fmt: skip
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    job = {
        "source": {"uri": str(tmp_path / "*.tar"), "version": "size"},
        "decoding": {"align": True, "temperature": [0]},
        "output": {"uri": str(tmp_path / "out"), "max_failed_fraction": 0.5},
    }
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job))
    said("run", path, "--local")
    store = OutputStore(str(tmp_path / "out"))

    def found() -> dict[str, Any]:
        return {row["uri"][-6:]: row for row in rows_of(store.recordings())}

    assert found()["c.flac"]["error_kind"] == "no_text"
    assert "or in .txt or .json of its name there" in found()["c.flac"]["error_message"]
    before = found()["a.flac"]
    assert before["text_words"] == 7
    assert 1 <= before["missing_words"] <= 2
    assert found()["b.flac"]["missing_words"] < 3
    # A corrected text is aligned again, though its recording is the same; others stay.
    files[1] = ("a.txt", b"country, ask what you can do")
    files.insert(0, ("0.txt", b"of nothing"))
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    assert "1 other text to be aligned" in said("plan", path)
    said("run", path, "--local")
    after = found()["a.flac"]
    assert (after["text_words"], after["missing_words"]) < (7, before["missing_words"])
    assert len({row["run_id"] for row in rows_of(store.outcomes())}) == 2


@pytest.mark.parametrize(
    ("write", "name", "failed", "of_name"),
    [
        (in_shards, "0.tar#talks/a.wav", {"0.tar#c.wav": "not_audio", "2.tar#*": "bad_archive"},
         {"0.tar#b.wav", "1.tar#talks/a.wav", "1.tar#b.wav", "2.tar#talks/a.wav"}),
        (in_table, "clips.parquet#0",
         {"clips.parquet#5": "not_audio", "clips.parquet#6": "bad_archive"},
         {f"clips.parquet#{row}" for row in range(1, 5)}),
    ],
)  # fmt: skip
def test_members_live_as_files_do(
    tmp_path: Path, write: Any, name: str, failed: dict[str, str], of_name: set[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    settings = {
        "source": write(folder), "extract": {"pack_mb": 0.001, "workers": 1},
        "output": {"uri": str(output), "max_failed_fraction": 1.0},
        "report": {"embed_audio": True},
    }  # fmt: skip
    config = RunConfig.model_validate({"pipeline": "transcribe_corpus"} | settings)
    job = KillableJob(config, tmp_path / "job", environment={OWN_ENGINE: "1"})
    with job.left_behind() as process:
        job.wait_for_commits(process, 2)
        process.kill()
    job.wait_until_gone()
    code, log = job.finish()
    assert code == 0, log
    assert len({row["run_id"] for row in rows_of(job.store.outcomes())}) == 2
    expected = {*of_name, name, *failed}
    assert counted(job.store) == dict.fromkeys(expected, 1)
    found = {row["uri"].rpartition("/in/")[2]: row for row in rows_of(job.store.recordings())}
    assert {each: row["error_kind"] for each, row in found.items() if each in failed} == failed
    texts = {each: found[each]["status"] for each in {*of_name, name}}
    assert set(texts.values()) == {"ok"}

    # Played, with and without a decoder, shown and exported.
    with serving(job.store) as server:
        sound = {"id": recording_id(str(folder / name))}
        for more in ({}, {"decode": 1}):
            response = fetch(asked(server.url, "audio", **sound, **more))
            assert response.status == 200, response
            assert decode(response.body).shape[1] == pytest.approx(CLIP_S * SAMPLE_RATE_HZ, abs=99)
    assert "data:audio" in (output / "report.html").read_text()
    said("export", output, "--to", tmp_path / "files", "--format", "srt", "--format", "json")
    files = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert len(files) == 2 * len(texts)
    labels = tmp_path / "label.yaml"
    chosen = {
        "dataset": {"uri": str(tmp_path / "set"), "format": "webdataset"},
        "selection": {"min_confidence": 0.0},
        "model": {"checkpoint": "whisper-tiny.en"},
    }
    labels.write_text(json.dumps({"pipeline": "pseudo_label"} | settings | chosen))
    assert "examples" in said("label", labels)

    # Done again, erased, and kept away, also from a listing of other content.
    path = str(job.folder / "job.yaml")
    said("run", path, "--local", "--redo", f"uri like '%{name}'")
    assert counted(job.store) == dict.fromkeys(expected, 1)
    assert "erased 1 recording" in said("remove", output, "--uri", folder / name, "--yes")
    for each in filter(Path.is_file, output.rglob("*")):
        assert SECRET.encode() not in each.read_bytes(), each
        assert name.encode() not in each.read_bytes(), each
    for rows in (job.store.outcomes(), job.store.recordings(), stored_segments(job.store)):
        assert not [row for row in rows_of(rows) if SECRET in repr(row) or name in repr(row)]
    assert "nothing to do" in said("run", path, "--local")

    # What is gone from an archive is removed.
    if write is in_shards:
        shard = tar_bytes([("talks/a.wav", clips()[2])])
        (folder / "1.tar").write_bytes(shard)
        said("run", path, "--local")
        assert "1.tar#b.wav" in said("remove", output, "--gone", "--yes")
        assert set(counted(job.store)) == expected - {name, "1.tar#b.wav"}
        assert counted(job.store)["1.tar#talks/a.wav"] == 1
