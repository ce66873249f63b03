"""Members of archives, by the program and real speech: killed, erased, gone, played, exported."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_members import tar_bytes
from tests.support.spoken import spoken
from tests.support.tables import rows_of

pytestmark = pytest.mark.slow


def said(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


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
