"""Renew the pictures of the guides: `python docs/_site/pictures.py output/demo` after the demo.

Run the demo with speakers (`--set speakers=auto`), evaluate it, and name some in `speakers.csv`.
Needs Chromium and Pillow. The report and the last recording in the viewer are opened in a browser
without a window; the pictures are reduced to 128 colors, which keeps both below 300 kB.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from PIL import Image

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SIZE = (1200, 760)


def picture(browser: str, url: str, target: Path) -> None:
    """Save what a page looks like."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "page.png"
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=8000",
                f"--screenshot={raw}", url,
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        with Image.open(raw) as image:
            image.convert("RGB").quantize(128).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size:,} bytes")  # noqa: T201  (a script's output)


def main(output: str) -> None:
    """Renew both pictures from a finished run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("renewing pictures: found no Chromium, expected `chromium` on PATH")
    ASSETS.mkdir(exist_ok=True)
    picture(browser, (Path(output).resolve() / "report.html").as_uri(), ASSETS / "report.png")
    command = Path(sys.executable).with_name("corpus-asr")
    with subprocess.Popen(
        [command, "view", output, "--no-browser"], stdout=subprocess.PIPE, text=True
    ) as viewer:
        assert viewer.stdout is not None
        try:
            url = next(word for line in viewer.stdout for word in line.split() if "://" in word)
            with urlopen(f"{url}api/recordings") as answer:
                recording = json.load(answer)["recordings"][-1]
            query = urlencode({"id": recording["id"]})
            picture(browser, f"{url}recording?{query}", ASSETS / "view.png")
        finally:
            viewer.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
