"""What holds for every test: checked shapes, bounded threads, a quiet local Ray, real speech.

The environment and the import hook are set before anything of the package is imported. `-m gpu`
also runs where only pytest and what the engine needs are installed (tests/repo/test_bare.py).
"""

import atexit
import faulthandler
import gc
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

_ENVIRONMENT = {
    # The models of tests are so small that a second thread only spins until the first has ended:
    # tests/parity/test_generate.py takes 7 CPU seconds with one, 71 with two on busy cores.
    # Not the cores by the workers: these inherit what the process sets that starts them.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Seconds for a test. Not a key of pyproject.toml: pytest refuses it without pytest-timeout.
    "PYTEST_TIMEOUT": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Workers write to their log files only; what fails reaches the driver as an exception.
    "RAY_LOG_TO_DRIVER": "0",
    # Where runs keep what they sign with: not in the home of who runs the tests.
    "XDG_STATE_HOME": str(Path(tempfile.gettempdir()) / f"corpus-asr-tests-{os.getuid()}"),
    # A dead S3 metadata address costs seconds per client when credentials are looked for.
    "AWS_EC2_METADATA_DISABLED": "true",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
# Tests start a Ray of their own, wherever others of this shell run.
os.environ.pop("RAY_ADDRESS", None)

# What a power cut would lose no test can see, and each of thousands of writes waits for the disk.
os.fsync = lambda fd: None

# A shell's background jobs ignore it, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ABSENT = [name for name in ("beartype", "jaxtyping", "hypothesis") if find_spec(name) is None]

_SHAPES_CHECKED = not {"beartype", "jaxtyping"} & {*_ABSENT}
if _SHAPES_CHECKED:
    from tests.support.shapes import begin_test, check_shapes

    check_shapes("corpus_asr")

import pytest  # noqa: E402  (the environment and the hook come first)

from tests.support.logs import logging_put_back  # noqa: E402
from tests.support.system import hide_broken_soundfile  # noqa: E402

_WITHOUT = [
    *([f"{', '.join(_ABSENT)}; shapes of arguments are not checked"] if _ABSENT else ()),
    *(["libsndfile; soundfile is taken as absent, too"] if hide_broken_soundfile() else ()),
]

if "hypothesis" not in _ABSENT:
    from hypothesis import settings

    # How long one example takes says more about the machine than about the code.
    # Not the usual hundred: what breaks does so within a few examples, and another run has others.
    settings.register_profile("patient", deadline=None, max_examples=10)
    # By hand, over a night: thousands, with --hypothesis-profile many.
    settings.register_profile("many", deadline=None, max_examples=2500)
    settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what no UTF-8 can write out of what workers send, such as logs of hostile names."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage neither while all is imported nor, later on, in what was imported."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


_COLD = ("test_isolation.py", "test_extract.py")
"""What starting a decoder's process does is tested here."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Fork the processes that decode, fixtures' included, from one that has all loaded."""
    if find_spec("av") is None or item.path.name in _COLD:
        return (yield)
    from tests.support.warm_children import warm_children

    with warm_children():
        return (yield)


def pytest_report_header() -> list[str]:
    """Say what this run does without."""
    return [f"not installed: {what}" for what in _WITHOUT]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read only files with tests that are asked for: imports take long, and may be absent for GPUs.

    Of a folder without any, not even its conftest.
    """
    marks: str = config.option.markexpr
    if not marks or " or " in marks:
        return None
    wanted = re.match(r"(?:gpu|long|slow)\b", marks)
    if wanted is None and not collection_path.is_file():
        return None
    files = [collection_path] if collection_path.is_file() else collection_path.rglob("test_*.py")
    texts = (file.read_text(encoding="utf-8") for file in files if file.suffix == ".py")
    if wanted is not None:
        return None if any(f"mark.{wanted[0]}" in text for text in texts) else True
    whole = (_WHOLE.search(text) for text in texts)
    return True if any(each is not None and f"not {each[1]}" in marks for each in whole) else None


_WHOLE = re.compile(r"^pytestmark = \[?pytest\.mark\.(gpu|long|slow)\b", re.M)
"""Of a file whose tests all have the mark."""


def _folder_of(variable: str, holds: str) -> Path:
    """Return the folder that an environment variable names, or skip the test."""
    name = os.environ.get(variable)
    if not name:
        pytest.skip(f"needs {holds}: set {variable} to a folder of it (see CONTRIBUTING.md)")
    if not Path(name).is_dir():
        raise NotADirectoryError(f"{variable} names {name}: expected a folder; correct or unset it")
    return Path(name)


@pytest.fixture(scope="session")
def speech() -> Path:
    """Real speech: tests/data/speech, or the larger set that CORPUS_ASR_TEST_DATA names."""
    if os.environ.get("CORPUS_ASR_TEST_DATA"):
        return _folder_of("CORPUS_ASR_TEST_DATA", "speech")
    return REPOSITORY / "tests" / "data" / "speech"


@pytest.fixture(scope="session")
def large_speech() -> Path:
    """A set of speech with a folder `train`, too large for this repository."""
    return _folder_of("CORPUS_ASR_TEST_DATA", "more speech than tests/data holds")


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """OpenAI's whisper-base in Hugging Face layout."""
    return _folder_of("CORPUS_ASR_TEST_MODELS", "whisper-base") / "whisper-base"


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged whisper-tiny.en in float16, which other engines read."""
    from corpus_asr.models.convert import convert
    from corpus_asr.storage.model_files import PACKAGED_FOLDER

    folder = tmp_path_factory.mktemp("models") / "whisper-tiny.en"
    convert(PACKAGED_FOLDER / "whisper-tiny.en", folder, dtype="float16")
    return folder


@pytest.fixture(scope="session", params=["whisper-tiny.en", "whisper-base"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """A real checkpoint: the packaged one, and whisper-base where it is provided."""
    packaged = request.param == "whisper-tiny.en"
    found: Path = request.getfixturevalue("float_model" if packaged else "whisper_base")
    return found


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that sets up its log in this process must not change later tests' children."""
    with logging_put_back():
        yield


END_LIMIT_S = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Check shapes anew, before the test's fixtures are made."""
    if _SHAPES_CHECKED:
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
    """Keep the verdict for `pytest_unconfigure`, and let what was imported be freed at the end."""
    session.config.exit_status = int(exitstatus)  # type: ignore[attr-defined]
    # Or else duckdb writes a list of what was not freed. Not yet: pytest now looks for garbage ten
    # times, which takes 5 s where all is imported.
    atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the files that compare with a transformers older than the one ours follows."""
    found = metadata.version("transformers")
    if int(found.partition(".")[0]) >= 5:
        return
    compares = pytest.mark.skip(reason=f"compares with transformers 5, found {found}")
    for item in items:
        if _ORACLE.search(item.path.read_text(encoding="utf-8")):
            item.add_marker(compares)


_ORACLE = re.compile(r"^\s*(import|from) transformers|support\.references|TokenizerPair", re.M)
