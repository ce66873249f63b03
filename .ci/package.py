"""Builds wheel and sdist, and transcribes a file with the wheel in an environment of its own.

Run by `make package`. Both are built twice: equal bytes are what lets anybody check a release.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "tests/data/spoken/inaugural.flac"
EXPECTED = "ask not what your country can do for you"
MAX_WHEEL_MB = 60  # of which whisper-tiny.en is the most


def build(folder: Path) -> dict[str, bytes]:
    """Build wheel and sdist into a folder; return their bytes by file name."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def names_of(path: Path) -> list[str]:
    """Return the names of the files in a wheel or sdist."""
    if path.suffix == ".whl":
        return zipfile.ZipFile(path).namelist()
    with tarfile.open(path) as archive:
        return archive.getnames()


def transcribe(wheel: Path, folder: Path) -> str:
    """Install a wheel into an empty environment; return the text that it gives of a recording."""
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    scripts = folder / "environment" / "bin"
    install = [scripts / "python", ROOT / ".ci/install.py", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, cwd=ROOT)
    command = [scripts / "corpus-asr", "transcribe", RECORDING]
    return subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True).stdout


def main() -> str:
    """Return what is wrong with the package; an empty text if nothing is."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first, second = build(folder / "first"), build(folder / "second")
        if first != second:
            return f"building twice: found other bytes in the second {sorted(second)}"
        [wheel] = (folder / "first").glob("*.whl")
        tests = [name for name in names_of(wheel) if name.startswith(("tests/", "benchmarks/"))]
        if tests or wheel.stat().st_size > MAX_WHEEL_MB << 20:
            return f"{wheel.name}: found {wheel.stat().st_size} bytes and {tests[:3]}"
        text = transcribe(wheel, folder)
        if EXPECTED not in text.lower():
            return f"transcribing {RECORDING.name} by {wheel.name}: found {text!r}"
        sizes = ", ".join(f"{name} {len(data) / 2**20:.1f} MiB" for name, data in first.items())
    sys.stdout.write(f"{sizes}: equal when built again, transcribes in an empty environment\n")
    return ""


if __name__ == "__main__":
    sys.exit(main() or None)
