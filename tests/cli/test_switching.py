"""Every command of docs/reference/other_tools.md runs, with a tiny multilingual checkpoint."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.runtime.transcriber import Transcriber
from tests.support.audio import tone, wav_bytes
from tests.support.corpora import tiny_model
from tests.support.loaded import lend

REPOSITORY = Path(__file__).parents[2]
SPEECH = REPOSITORY / "tests" / "data" / "speech"
GUIDE = (REPOSITORY / "docs" / "how-to" / "switching.md").read_text()
REFERENCE = (REPOSITORY / "docs" / "reference" / "other_tools.md").read_text()
ROW = re.compile(r"^\| `(.+?)` \| `(.+?)` \| (?:(.*) )?\|$", re.MULTILINE)
ROWS = [tuple(cell.replace("\\|", "|").strip() for cell in row) for row in ROW.findall(REFERENCE)]
TOOLS = ("whisper", "whisper-ctranslate2", "whisperx", "whisper-cli", "ffmpeg")


def test_the_table_has_rows_of_every_tool() -> None:
    assert REFERENCE.count("\n| `") == len(ROWS) > 30
    assert {used.split()[0] for used, *_ in ROWS} == set(TOOLS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with Transcriber(str(model), num_threads=1, temperature=0.0) as transcriber:
        yield transcriber


@pytest.fixture
def here(loaded: Transcriber, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with the recordings that the guide names."""
    lend(loaded, monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.copy(SPEECH / "english_short" / "cv6_common_voice_en_46854.mp3", "talk.mp3")
    shutil.copy(SPEECH / "awkward" / "video_h264_aac.mp4", "film.mp4")
    stereo = tone(2.0).repeat(2, axis=0)
    Path("call.wav").write_bytes(wav_bytes(stereo, rate_hz=16_000))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "command",
    [
        # A soak runs all of them.
        pytest.param(command, marks=[pytest.mark.slow] if number % 4 else [])
        for number, command in enumerate(sorted({here for _, here, _ in ROWS}))
    ],
)
def test_the_command_runs(command: str) -> None:
    before, _, after = command.rpartition("|")
    piped = Path(before.split()[1]).read_bytes() if before else None
    program, *arguments = shlex.split(after)
    assert program == "corpus-asr"
    result = CliRunner().invoke(cli.app, arguments, input=piped)
    assert result.exit_code == 0, result.output
    assert "corpus-asr:" not in result.stderr
    files = [path for path in Path().rglob("*.*") if path.suffix not in (".mp3", ".mp4", ".wav")]
    to_folder = bool({"-o", "--output_dir"} & {*arguments})
    assert bool(files) == to_folder
    assert result.stdout or to_folder or "no speech found" in result.stderr


def test_the_answer_shown_is_that_of_the_command() -> None:
    command, answer = re.search(r"^\$ corpus-asr (.*)\n(.*)$", GUIDE, re.MULTILINE).groups()  # type: ignore[union-attr]
    result = CliRunner().invoke(cli.app, shlex.split(command), env={"COLUMNS": "120"})
    assert answer in result.stderr
