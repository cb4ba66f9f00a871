"""The page in a real browser, as a person uses it. Skipped where there is no Chromium."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.play.serving import Running, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PICTURE = "() => document.querySelector('#tiles canvas').toDataURL()"


@pytest.fixture(scope="module")
def running():
    running = Running(max_sessions=2)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    os.environ.pop("DISPLAY", None)
    with playwright.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        context = driver.chromium.launch_persistent_context(str(profile), executable_path=CHROMIUM, args=FLAGS)
        yield context
        context.close()


@pytest.fixture
def page(context, running):
    """A page at its first frame, on which nothing has gone wrong at the end."""
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(f"http://127.0.0.1:{running.port}/")
    wait_until(lambda: at(page) == 0)
    yield page
    page.close()
    assert not [text for text in problems if "WebSocket" not in text]
    wait_until(lambda: not running.play.games)


def at(page) -> int | None:
    """Return the number of the frame that is shown."""
    text = page.locator("#place").text_content()
    return int(text.split()[1]) if text and page.locator("#veil").is_hidden() else None


def hold(page, key: str, until: int) -> None:
    page.keyboard.down(key)
    wait_until(lambda: at(page) >= until)
    page.keyboard.up(key)


def still(page) -> int:
    """Return the number of the frame once nothing is waited for."""
    page.wait_for_timeout(100)
    wait_until(lambda: page.locator("#stage").get_attribute("aria-busy") == "false")
    return at(page)


def test_driving_going_back_and_branching(page):
    """Keys move time while they are held; going back shows the same picture, and acting there branches off."""
    assert "to move the arm" in page.locator("#hint").text_content()
    first = page.evaluate(PICTURE)
    hold(page, "w", until=2)
    last = still(page)
    assert last >= 2
    assert page.evaluate(PICTURE) != first
    assert page.locator("#hint").is_hidden()
    page.keyboard.press(",")
    wait_until(lambda: at(page) == last - 1)
    page.locator("#slider").fill("1")
    wait_until(lambda: at(page) == 1)
    once = page.evaluate(PICTURE)
    assert f"of {last}" in page.locator("#place").text_content()
    assert "This is the past" in page.locator("#hint").text_content()
    page.keyboard.press(".")  # a still arm, not the way that was held
    wait_until(lambda: page.locator("#place").text_content() == "frame 2")
    page.locator("#first").click()
    wait_until(lambda: at(page) == 0)
    assert page.evaluate(PICTURE) == first
    hold(page, "w", until=1)
    page.locator("#slider").fill("1")
    wait_until(lambda: at(page) == 1)
    assert page.evaluate(PICTURE) == once
    page.keyboard.press("r")
    wait_until(lambda: page.locator("#place").text_content() == "frame 0")
    pad = page.locator("#pad0").bounding_box()
    page.mouse.move(pad["x"] + 5, pad["y"] + 5)
    page.mouse.down()
    wait_until(lambda: at(page) >= 1)
    assert page.locator("#axes output").all_text_contents()[:2] == ["1.00", "-1.00"]
    page.mouse.up()
    last = still(page)
    page.evaluate(
        "navigator.getGamepads = () => [null, {connected: true, axes: [0.1, 0.5, 0, 0], buttons: []}]; undefined"
    )
    wait_until(lambda: at(page) > last)
    assert page.locator("#axes output").all_text_contents() == ["-0.50", "0.00", "0.00", "0.00"]


def test_views_autopilot_futures_and_files(page, tmp_path):
    """Everything on the page does what it says, with the real frames beside the dream."""
    page.get_by_text("Side by side").click()
    page.get_by_text("Recorded actions").click()
    wait_until(lambda: page.locator("#toast").is_visible())  # the recording ends, and time with it
    assert "the recording has ended" in page.locator("#toast").text_content()
    assert still(page) == 5
    assert page.locator("#tiles figure").count() == 2
    for label in ("dream off by", "reward, dreamt", "success, dreamt"):
        assert label in page.locator("#numbers").text_content()
    for button, suffix in (("#gif", "gif"), ("#npz", "npz")):
        with page.expect_download() as download:
            page.locator(button).click()
        download.value.save_as(tmp_path / f"saved.{suffix}")
    assert Image.open(io.BytesIO((tmp_path / "saved.gif").read_bytes())).size == (128, 64)
    with np.load(tmp_path / "saved.npz") as saved:
        assert (saved["image"].shape, saved["action"].shape) == ((7, 64, 64, 3), (7, 4))
    page.get_by_text("Difference").click()
    assert page.locator("#tiles figure").count() == 1
    page.get_by_text("Dream", exact=True).first.click()
    page.locator("#samples").fill("4")
    page.locator("#samples").dispatch_event("change")
    page.get_by_text("You", exact=True).click()
    page.keyboard.press(".")
    wait_until(lambda: page.locator("#tiles figure").count() == 4)
    assert page.locator("#topkOut").text_content() != "1"
    page.locator("#tiles figure").nth(2).click()
    assert "selected" in page.locator("#tiles figure").nth(2).get_attribute("class")
    last = still(page)
    page.get_by_text("Planner", exact=True).click()
    wait_until(lambda: at(page) > last)
    assert "high predicted rewards" in page.locator("#goal p").text_content()
    page.get_by_text("Goal: this frame").click()
    wait_until(lambda: "how it looks here" in page.locator("#goal p").text_content())


def test_pages_come_and_go(page, context, running):
    """A second tab plays its own game, a third is told why it cannot, a reload starts again, a restart is survived."""
    hold(page, "d", until=1)
    other = context.new_page()
    other.goto(page.url)
    wait_until(lambda: at(other) == 0)
    third = context.new_page()
    third.goto(page.url)
    wait_until(lambda: "2 places are taken" in third.locator("#veil").text_content())
    third.close()
    other.close()
    wait_until(lambda: len(running.play.games) == 1)
    assert still(page) >= 1
    page.reload()
    wait_until(lambda: at(page) == 0)
    running.stop()
    wait_until(lambda: "Trying again" in page.locator("#veil").text_content())
    running.start(running.port)
    wait_until(lambda: at(page) == 0)
    hold(page, "a", until=1)
