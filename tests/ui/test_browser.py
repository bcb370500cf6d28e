"""A person's path through the page, in a real browser: from opening it to images on disk."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cli.app import main

TIMEOUT_MS = 60_000


def _helpers() -> Any:
    spec = importlib.util.spec_from_file_location("cdm_test_browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


browser = _helpers()
pytestmark = [
    pytest.mark.ui,
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.find_chromium() is None, reason="no Chromium here (CDM_CHROMIUM names one; make test-ui installs one)"
    ),
]


@dataclass
class Visit:
    """A page open in a browser, and what was seen meanwhile."""

    page: Any
    url: str
    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def status(self, tab: str) -> str:
        """The status line of a tab."""
        text: str = self.page.inner_text(f"#cdm-{tab}-status")
        return text.strip()

    def wait(self, tab: str, kind: str) -> str:
        """Wait until a run is ``running``, ``done``, ``stopped`` or ``failed``; the status line."""
        self.page.wait_for_selector(f"#cdm-{tab}-status .cdm-{kind}", timeout=TIMEOUT_MS)
        return self.status(tab)

    def pictures(self, tab: str, stage: str) -> list[str]:
        """The pictures that a tab shows of a stage, as their addresses."""
        found: list[str] = self.page.eval_on_selector_all(
            f'#cdm-{tab}-panels [data-stage="{stage}"] img', "all => all.map(one => one.src)"
        )
        return found

    def fill(self, control: str, value: object) -> None:
        """Type a number beside a slider."""
        self.page.fill(f'#{control} input[type="number"]', str(value))
        self.page.press(f'#{control} input[type="number"]', "Tab")

    def tick(self, label: str) -> None:
        """Tick a box as a person does: again, if the page was not awake yet and let go of it."""
        box = self.page.get_by_label(label)
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        while not box.is_checked():
            assert time.monotonic() < deadline, f"{label} cannot be ticked"
            box.click(force=True)
            self.page.wait_for_timeout(300)

    def choose(self, control: str, words: str) -> None:
        """Choose from a list."""
        self.page.click(f"#{control} input")
        self.page.get_by_role("option", name=words, exact=True).click()

    def command(self, tab: str) -> list[str]:
        """The words of the command line that the page shows."""
        self.page.wait_for_selector(f"#cdm-{tab}-command .cm-content", timeout=TIMEOUT_MS)
        return shlex.split(self.page.inner_text(f"#cdm-{tab}-command .cm-content").replace("\\\n", " "))

    def download(self, button: str) -> Any:
        """Press a button that downloads; the download."""
        with self.page.expect_download(timeout=TIMEOUT_MS) as download:
            self.page.click(button)
        return download.value


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``cdm ui demo`` as a process of its own, and its address; it must end well."""
    source = Path(__file__).parents[2] / "src"
    path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    errors = tmp_path_factory.mktemp("ui") / "stderr"
    with errors.open("w") as stderr:
        running = subprocess.Popen(
            [sys.executable, "-m", "cascaded_diffusion", "ui", "demo", "--device", "cpu"],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert running.stdout is not None
        yield running, running.stdout.readline().split()[0]
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 143
        assert "Traceback" not in errors.read_text()
    finally:
        running.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()


@pytest.fixture(scope="module")
def visit(process: tuple[subprocess.Popen[str], str]) -> Iterator[Visit]:
    """The page in a browser; in the end it must have asked nobody but this machine."""
    url = process[1]
    with browser.open_browser(browser.find_chromium(), viewport={"width": 1280, "height": 1000}) as context:
        page = context.pages[0]
        page.set_default_timeout(TIMEOUT_MS)
        visit = Visit(page, url)
        page.on("request", lambda request: visit.hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#cdm-sample")
        yield visit
        assert {host for host in visit.hosts if host} == {urlsplit(url).netloc}
        assert visit.errors == []


def _sampling_is_seen_as_it_happens(visit: Visit) -> None:
    page = visit.page
    visit.tick("Bag")
    visit.tick("Sneaker")
    visit.fill("cdm-num", 4)
    visit.fill("cdm-seed", 5)
    visit.fill("cdm-base16-steps", 40)
    visit.fill("cdm-sr32-steps", 30)
    page.click("#cdm-sample")
    seen: dict[str, set[str]] = {"base16": set(), "sr32": set()}
    lines = []
    visit.wait("sample", "running")
    while page.query_selector("#cdm-sample-status .cdm-running"):
        for stage, pictures in seen.items():
            pictures.update(visit.pictures("sample", stage)[:1])
        lines.append(visit.status("sample"))
        page.wait_for_timeout(100)
    assert len(seen["base16"]) >= 3
    assert len(seen["sr32"]) >= 3
    told = [line for line in lines if re.fullmatch(r"(base16|sr32), step \d+ of \d+; about [\d.]+ s left.*", line)]
    assert any(line.startswith("base16") for line in told)
    assert any(line.startswith("sr32") for line in told)
    assert re.fullmatch(r"done in [\d.]+ s \(base16 [\d.]+ s, sr32 [\d.]+ s\)", visit.status("sample"))
    page.wait_for_selector("#cdm-sample-gallery .caption-label >> nth=3")
    captions = page.eval_on_selector_all("#cdm-sample-gallery .caption-label", "all => all.map(one => one.innerText)")
    assert captions == ["Sneaker", "Bag"] * 2 or captions == ["Bag", "Sneaker"] * 2


def _downloads_hold_the_images_that_the_command_line_makes(visit: Visit, tmp_path: Path) -> None:
    with np.load(visit.download("#cdm-sample-npz").path()) as array:
        images, labels = array["arr_0"], array["arr_1"]
    assert images.shape == (4, 32, 32, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    names = Cascade.from_pretrained("demo").class_names
    assert names is not None
    assert sorted({names[i] for i in labels}) == ["Bag", "Sneaker"]
    with zipfile.ZipFile(visit.download("#cdm-sample-zip").path()) as archive:
        files = archive.namelist()
        assert files == [f"{names[label]}/{i:06d}.png" for i, label in enumerate(labels)]
        for name, image in zip(files, images, strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(archive.read(name)))), image[..., 0])
    command = visit.command("sample")
    assert command[:3] == ["cdm", "sample", "demo"]
    out = command.index("--out") + 1
    command[out] = str(tmp_path / command[out])
    with pytest.raises(SystemExit) as end:
        main(command[1:])
    assert end.value.code == 0
    with np.load(command[out]) as array:
        assert np.array_equal(array["arr_0"], images)
        assert np.array_equal(array["arr_1"], labels)


def _one_image_is_downloaded_as_it_is(visit: Visit) -> None:
    page = visit.page
    page.click("#cdm-sample-gallery .thumbnail-item >> nth=0")
    download = visit.download('#cdm-sample-gallery [aria-label="Download"], #cdm-sample-gallery [title="Download"]')
    assert download.suggested_filename.endswith(".png")
    with Image.open(download.path()) as image:
        assert image.size == (32, 32)
    page.keyboard.press("Escape")


def _stop_stops(visit: Visit) -> None:
    visit.fill("cdm-num", 32)
    visit.fill("cdm-base16-steps", 100)
    visit.page.click("#cdm-sample")
    visit.page.wait_for_function("document.querySelector('#cdm-sample-status').innerText.includes(' left')")
    visit.page.click("#cdm-sample-stop")
    line = visit.wait("sample", "stopped")
    match = re.match(r"stopped in base16, after step (\d+) of 100", line)
    assert match is not None, line
    assert int(match[1]) < 60
    assert visit.page.is_enabled("#cdm-sample")
    assert not visit.page.is_enabled("#cdm-sample-stop")


def _a_link_opens_the_page_with_its_settings(visit: Visit) -> None:
    page = visit.page
    query = page.get_attribute("#cdm-sample-link a", "href")
    page.goto(visit.url + query)
    page.wait_for_selector("#cdm-sample")
    page.wait_for_function("document.querySelector('#cdm-seed input').value === '5'")
    assert page.input_value('#cdm-base16-steps input[type="number"]') == "40"
    assert page.get_by_label("Bag").is_checked()
    assert not page.get_by_label("Coat").is_checked()
    page.goto(visit.url + "?num=1000")
    assert "images: 1000 is not allowed" in visit.wait("sample", "failed")
    page.goto(visit.url)
    page.wait_for_selector("#cdm-sample")


def _two_values_of_s_are_compared(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("tab", name="Compare two s").click()
    visit.fill("cdm-num", 2)
    visit.fill("cdm-compare-left", 0)
    visit.fill("cdm-compare-right", 0.55)
    page.click("#cdm-compare")
    assert visit.wait("compare", "done").startswith("both runs done in ")
    page.wait_for_selector("#cdm-compare-slider img")
    halves = page.eval_on_selector_all("#cdm-compare-slider img", "all => [...new Set(all.map(one => one.src))]")
    assert len(halves) == 2
    pictures = [np.asarray(Image.open(io.BytesIO(page.request.get(half).body()))) for half in halves]
    assert pictures[0].shape == pictures[1].shape
    assert not np.array_equal(*pictures)
    page.wait_for_selector("#cdm-compare-command .cm-content")
    assert page.inner_text("#cdm-compare-command .cm-content").count("--s ") == 2


def _an_own_image_is_enlarged(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    ramp = np.tile(np.linspace(0, 255, 48), (40, 1)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    page.get_by_role("tab", name="Enlarge your image").click()
    page.set_input_files("#cdm-enlarge-image input[type=file]", tmp_path / "ramp.png")
    page.wait_for_selector("#cdm-enlarge-image img")
    visit.choose("cdm-enlarge-class", "Bag")
    visit.fill("cdm-enlarge-s", 0.05)
    page.click("#cdm-enlarge")
    assert "sr32" in visit.wait("enlarge", "done")
    with np.load(visit.download("#cdm-enlarge-npz").path()) as array:
        image, labels = array["arr_0"], array["arr_1"]
    assert image.shape == (1, 32, 32, 1)
    assert labels.tolist() == [8]
    assert image[0, :, 28:].mean() > image[0, :, :4].mean() + 60  # still a ramp
    command = visit.command("enlarge")
    assert command[command.index("--from-images") + 1] == "ramp.png"
    assert command[command.index("--classes") + 1] == "Bag"


def _wrong_files_are_said(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    (tmp_path / "words.png").write_text("these are words, not pixels")
    _replace_image(visit, tmp_path / "words.png")
    page.click("#cdm-enlarge")
    assert visit.wait("enlarge", "failed") == "words.png: in no image format that can be read"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "tiny.png")
    _replace_image(visit, tmp_path / "tiny.png")
    page.click("#cdm-enlarge")
    page.wait_for_function("document.querySelector('#cdm-enlarge-status').innerText.includes('tiny.png')")
    assert visit.status("enlarge") == "tiny.png: 5 pixels a side; at least 16 are needed to start from"
    (tmp_path / "large.png").write_bytes(b"\0" * (11 * 2**20))
    page.click('#cdm-enlarge-image [aria-label="Clear"], #cdm-enlarge-image [aria-label="Remove Image"]')
    page.set_input_files("#cdm-enlarge-image input[type=file]", tmp_path / "large.png")
    page.wait_for_selector("text=/exceed the maximum allowed size/")


def _replace_image(visit: Visit, path: Path) -> None:
    visit.page.click('#cdm-enlarge-image [aria-label="Clear"], #cdm-enlarge-image [aria-label="Remove Image"]')
    with visit.page.expect_response(lambda response: "/upload" in response.url):
        visit.page.set_input_files("#cdm-enlarge-image input[type=file]", path)
    visit.page.wait_for_timeout(500)


def _a_number_out_of_bounds_is_said(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("tab", name="Sample").click()
    page.fill('#cdm-seed input[type="number"]', "-3")
    page.click("#cdm-sample")
    page.wait_for_selector("#cdm-sample-status .cdm-failed, #cdm-sample-status .cdm-done")
    assert "seed: -3 is not allowed; give a number from 0 to" in visit.status("sample")
    page.fill('#cdm-seed input[type="number"]', "1")


def _a_closed_page_stops_its_run(visit: Visit) -> None:
    """Another page's run comes on at once, though the closed one had minutes to go."""
    other = visit.page.context.new_page()
    other.goto(f"{visit.url}?num=64&base16.steps=100&sr32.steps=100&sr32.sampler=heun")
    other.wait_for_selector("#cdm-sample")
    other.wait_for_function("document.querySelector('#cdm-num input[type=number]').value === '64'")
    other.click("#cdm-sample")
    other.wait_for_selector("#cdm-sample-status .cdm-running")
    other.close()
    visit.fill("cdm-num", 1)
    visit.page.click("#cdm-sample")
    visit.page.wait_for_selector("#cdm-sample-status .cdm-done", timeout=30_000)


def _more_settings_are_reached_with_the_keyboard(visit: Visit) -> None:
    page = visit.page
    page.focus("#cdm-sr32-more button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#cdm-sr32-start input")
    for control, text in (("start", "0.6"), ("interval-low", "0.3"), ("interval-high", "5")):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('[id^=cdm]').id") == f"cdm-sr32-{control}"
        page.keyboard.type(text)
    page.keyboard.press("Tab")
    page.click("#cdm-sample")
    page.wait_for_function("document.querySelector('#cdm-sample-command .cm-content').innerText.includes('--set')")
    command = visit.command("sample")
    assert [word for word in command if word.startswith("sr32.")] == [
        "sr32.start=0.6",
        "sr32.guidance_interval=[0.3,5]",
    ]
    page.get_by_label("truncated", exact=True).click()
    page.wait_for_function("document.querySelector('#cdm-sr32-start input').disabled")
    page.get_by_label("nontruncated", exact=True).click()
    page.wait_for_function("!document.querySelector('#cdm-sr32-start input').disabled")
    page.fill("#cdm-sr32-start input", "")
    page.press("#cdm-sr32-start input", "Tab")
    page.click("#cdm-sample")
    page.wait_for_function("!document.querySelector('#cdm-sample-command .cm-content').innerText.includes('start')")
    assert "sr32.guidance_interval=[0.3,5]" in visit.command("sample")


def _it_fits_a_phone(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 800})
    visit.page.reload()
    visit.page.wait_for_selector("#cdm-sample")
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390


def test_a_person_finds_their_way(visit: Visit, tmp_path: Path) -> None:
    """One path, step after step, for each step finds the page as the one before left it."""
    _sampling_is_seen_as_it_happens(visit)
    _downloads_hold_the_images_that_the_command_line_makes(visit, tmp_path)
    _one_image_is_downloaded_as_it_is(visit)
    _stop_stops(visit)
    _a_link_opens_the_page_with_its_settings(visit)
    _two_values_of_s_are_compared(visit)
    _an_own_image_is_enlarged(visit, tmp_path)
    _wrong_files_are_said(visit, tmp_path)
    _a_number_out_of_bounds_is_said(visit)
    _a_closed_page_stops_its_run(visit)
    _more_settings_are_reached_with_the_keyboard(visit)
    _it_fits_a_phone(visit)
