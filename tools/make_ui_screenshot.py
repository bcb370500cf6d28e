"""Draw ``docs/images/ui.png``: the page about the packaged cascade in a browser, after sampling.

Run it with ``python tools/make_ui_screenshot.py``; it needs the extra ``ui``, Playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]


def _browser() -> Any:
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests/ui/browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _picture(browser: Any, url: str, width: int) -> bytes:
    with browser.open_browser(browser.find_chromium(), viewport={"width": width, "height": 900}) as context:
        page = context.pages[0]
        page.goto(f"{url}?num=10&seed=3")
        page.wait_for_function("document.querySelector('#cdm-seed input')?.value === '3'")
        page.click("#cdm-sample")
        page.wait_for_selector("#cdm-sample-status .cdm-done", timeout=120_000)
        page.wait_for_selector("#cdm-sample-command .cm-content")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        picture: bytes = page.screenshot(full_page=True)
        return picture


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/ui.png")
    parser.add_argument("--width", type=int, default=1280)
    options = parser.parse_args()
    browser = _browser()
    if browser.find_chromium() is None:
        raise SystemExit("no Chromium here; CDM_CHROMIUM names one")
    command = [sys.executable, "-m", "cascaded_diffusion", "ui", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            picture = _picture(browser, server.stdout.readline().split()[0], options.width)
        finally:
            server.terminate()
    # 256 colours are enough for greys and one blue, and keep the file small.
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
