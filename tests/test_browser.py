"""Panels and dashboards are used as a person would, in a real JupyterLab and under Voila, in a
browser without a window. Skipped where playwright, Voila or Chromium is missing.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from notebooks import NBS

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync").split()
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not all(map(importlib.util.find_spec, ("playwright", "voila", "jupyterlab"))),
    reason="needs playwright, chromium, voila and jupyterlab",
)


@pytest.fixture
def serve():
    "Start a server of a notebook, wait until it answers, end it."
    started = []

    def start(*words):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        env = os.environ | {
            "PYTHONPATH": str(NBS.parent),
            "JUPYTER_CONFIG_DIR": str(Path("jupyter").resolve()),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", *words, f"--port={port}", "--no-browser"],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        for _ in range(240):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.25)
        raise AssertionError("no server")

    yield start
    for p in started:
        p.terminate()
        p.wait(20)


def look(url, use, name):
    """Open a page, use it, and see that nothing went wrong and nothing ran as a script. SCREENSHOTS
    names a folder for pictures."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chrome.new_page(viewport={"width": 1200, "height": 1300})
        errors = []
        dialogs = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
        page.goto(url, timeout=240_000)  # Voila answers when all cells have run
        if "/lab/" in url:
            run_all(page)
        use(page)
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
        chrome.close()
    assert (errors, dialogs) == ([], [])


def run_all(page):
    "Run the notebook that is open in JupyterLab, as soon as its kernel listens."
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.get_by_text("| Idle").first.wait_for(timeout=120_000)
    for _ in range(5):
        page.wait_for_timeout(1500)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_timeout(1500)
        if page.locator(".jp-CodeCell .jp-InputPrompt").first.inner_text().strip() not in (
            "",
            "[ ]:",
        ):
            return


def lab(serve):
    return (
        serve(
            "jupyterlab",
            "--ServerApp.token=",
            "--allow-root",
            f"--ServerApp.root_dir={Path().resolve()}",
        )
        + "/lab/tree/page.ipynb?reset"
    )


# The monitor's dashboard


def use_dashboard(page):
    "Choose another series, then a shorter time, then the texts: each changes what is seen."
    page.wait_for_selector("text=Opinion monitor", timeout=120_000)
    page.wait_for_selector("text=points above the usual", timeout=60_000)
    before = page.locator("figcaption").first.inner_text()
    select = page.locator("select").filter(has_text="refund").first
    select.select_option(label="○ refund")
    page.wait_for_selector("text=refund: no alarm", timeout=30_000)
    select.select_option(label="● delivery")
    page.locator("select").filter(has_text="last 30 days").first.select_option(label="last 30 days")
    page.wait_for_timeout(1500)
    assert before.startswith("delivery")
    page.get_by_role("tab", name="Texts").click()
    page.wait_for_timeout(800)


def test_dashboard_as_a_page(serve):
    shutil.copy(NBS / "lessons" / "more" / "dashboard.ipynb", "page.ipynb")
    look(serve("voila", "page.ipynb"), use_dashboard, "voila")


def test_dashboard_in_jupyterlab(serve):
    shutil.copy(NBS / "lessons" / "more" / "dashboard.ipynb", "page.ipynb")
    look(lab(serve), use_dashboard, "dashboard")


# The assistant's panel

CELL = """
from insight_nb.apps.assistant.assistant import Assistant, ChatPanel
from insight_nb.data.samples import load_sample
from insight_nb.apps.assistant.out_of_scope import IntentClassifier
frame = load_sample("synthetic", 150)
kinds = sorted(set(frame.label))
reader = IntentClassifier().fit(list(frame.text), [kinds.index(l) for l in frame.label], kinds)
order = {"name": "order", "ask": "Which order?", "pattern": r"\\d{5}"}
flows = {"refund": {"say": "The money for order {order} is on its way.", "slots": [order]},
         "delivery": {"say": "It comes in 3 days."}}
ChatPanel(Assistant(reader, None, flows))
"""


def use_panel(page):
    "A form is asked for and filled, markup stays text, and a new conversation is empty."
    line = page.get_by_placeholder("Say something")
    said = page.locator(".widget-html-content")
    line.wait_for(timeout=120_000)
    for text, answer in (
        ("my refund is too low", "Which order?"),
        ("12345", "The money for order 12345 is on its way."),
    ):
        line.fill(text)
        line.press("Enter")
        said.get_by_text(answer).first.wait_for(timeout=60_000)
    line.fill("<img src=x onerror=alert(1)> the parcel is late")
    page.get_by_role("button", name="Send", exact=True).click()
    said.get_by_text("<img src=x onerror=alert(1)>").first.wait_for(timeout=60_000)
    page.locator("select").filter(has_text="delivery").first.select_option(label="delivery")
    said.get_by_text("noted: delivery").first.wait_for(timeout=30_000)


def test_panel_in_jupyterlab(serve):
    write_page(CELL)
    look(lab(serve), use_panel, "panel")


# The launch memo's sliders

MEMO = """
from insight_nb.decide.launch.memo import EXAMPLES, LaunchCase, read_assumptions, read_evidence
from insight_nb.decide.launch.panel import sliders
evidence = read_evidence(EXAMPLES / "evidence.json")
sliders(LaunchCase(evidence, read_assumptions(EXAMPLES / "assumptions.yaml")))
"""


def use_sliders(page):
    "Worse answers end in stop, better ones in launch, each as soon as the slider is let go."
    said = page.locator(".widget-html-content").first
    said.get_by_text("Launched now it brings").first.wait_for(timeout=120_000)
    before, handle = said.inner_text(), page.get_by_role("slider").first  # of the quality
    handle.focus()
    for key, words in (("Home", "Stop: it does not pay"), ("End", "Launch.")):
        handle.press(key)
        said.get_by_text(words).first.wait_for(timeout=30_000)
    assert said.inner_text() != before


def test_sliders_in_jupyterlab(serve):
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": MEMO,
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    Path("page.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )
    look(lab(serve), use_sliders, "sliders")


# The labeling panel: 50 rows by keys, the kernel restarted after 30

POOL = ["房间很大，服务也好 😀", "<b>bold</b><img src=x onerror=alert(1)>"]
LABEL = """
from insight_nb.jobs.label_panel import open_panel
panel = open_panel("pool.csv", "labels.sqlite", annotator="Ann", names=["refund", "delivery"],
                   test_rows=20)
panel.widget()
"""


def write_label_page():
    from insight_nb.data.samples import load_sample

    texts = [*POOL, *dict.fromkeys(load_sample("synthetic", 150).text)]
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    Path("pool.csv").write_text("\n".join(["text", *quoted]) + "\n", encoding="utf-8")
    write_page(LABEL)


def write_page(source):
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    Path("page.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )


def answers():
    "What the store holds now, in the order in which it came."
    from insight_nb.jobs.labeling import LabelStore

    store = LabelStore("labels.sqlite")
    frame = store.frame()
    store.close()
    return frame


def wait_for(page, said):
    page.locator(".label-message").filter(has_text=said).first.wait_for(timeout=30_000)


def press_key(page, key):
    "Press a key and wait until the next row, or the same one with another word, is drawn."
    drawn = page.locator(".label-text").first.element_handle()
    page.keyboard.press(key)
    page.wait_for_function("node => !node.isConnected", arg=drawn, timeout=30_000)


def label_rows(page, n):
    "n rows by keys; returns the texts that were drawn."
    page.locator(".label-panel").last.click(position={"x": 5, "y": 5})
    seen = []
    for k in range(n):
        seen.append(page.locator(".label-text").first.inner_text())
        press_key(page, "12"[k % 2])
    return seen


def use_label_panel(page):
    page.locator(".label-panel").wait_for(timeout=120_000)
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    seen = label_rows(page, 30)
    assert len(answers()) == 30
    assert set(answers().text) == set(seen)
    if "/lab/" in page.url:
        restart(page)
    else:
        page.reload()
        page.locator(".label-panel").wait_for(timeout=120_000)
    assert len(answers()) == 30
    seen += label_rows(page, 20)
    assert len(set(seen)) == len(answers()) == 50
    press_key(page, "z")
    wait_for(page, "Taken back")
    assert len(answers()) == 49
    assert page.locator(".label-text").first.inner_text() == seen[-1]
    press_key(page, "u")
    press_key(page, "s")
    assert answers().kind.value_counts().to_dict() == {"label": 49, "unsure": 1, "skip": 1}
    assert "%" not in page.locator(".label-name").first.inner_text()
    press_key(page, "h")
    assert "%" in page.locator(".label-name").first.inner_text()
    press_key(page, "h")
    page.keyboard.press("/")
    page.keyboard.type("好评 😀")
    press_key(page, "Enter")
    wait_for(page, "A new class: 好评 😀")
    assert page.locator(".label-name").nth(2).inner_text() == "3 好评 😀"
    rest = label_rows(page, 110)
    assert set(POOL) <= {*seen, *rest}
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells


def restart(page):
    "A new kernel, and all cells once more."
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_timeout(3000)
    page.get_by_text("| Idle").first.wait_for(timeout=120_000)
    page.locator(".label-panel").wait_for(timeout=120_000)
    page.wait_for_timeout(1500)


@pytest.mark.slow
def test_labeling_in_jupyterlab(serve):
    write_label_page()
    look(lab(serve), use_label_panel, "label")


@pytest.mark.slow
def test_labeling_as_a_page(serve):
    write_label_page()
    look(serve("voila", "page.ipynb"), use_label_panel, "label_voila")


# The course's figures to play with


def move(page, panel, act):
    "Use a control of a panel, and wait until the finding of its figure is another one."
    title = panel.locator("figcaption")
    panel.scroll_into_view_if_needed()
    before = title.inner_text()
    act(panel)
    page.wait_for_function(
        "([node, before]) => node.querySelector('figcaption').innerText !== before",
        arg=[panel.element_handle(), before], timeout=60_000)
    return title.inner_text()


def press(number, *keys):
    def act(panel):
        handle = panel.get_by_role("slider").nth(number)
        handle.focus()
        for key in keys:
            handle.press(key)

    return act


def write_sentence(panel):
    line = panel.get_by_role("textbox").first
    line.fill("<img src=x onerror=alert(1)> 房间很大")
    line.press("Enter")


def use_explore(page):
    "Each of the six figures answers each of its controls, and what is typed stays text."
    page.locator(".widget-vbox").filter(has_text="test rows").first.wait_for(timeout=240_000)
    def panel(words): return page.locator(".widget-vbox").filter(has_text=words).first

    attention = panel("sentence")
    attention.locator("figcaption").wait_for(timeout=120_000)
    assert "Layer 2, head 1" in move(page, attention, press(0, "ArrowRight"))
    assert "Layer 2, head 2" in move(page, attention, press(1, "ArrowRight"))
    write_sentence(attention)
    attention.locator("td").get_by_text("<", exact=True).first.wait_for(timeout=60_000)
    assert attention.locator("img").count() == 0
    assert "too large" in move(page, panel("learning rate"), press(0, "End"))
    assert "Threshold 0.00" in move(page, panel("cost of a miss"), press(0, "Home"))
    move(page, panel("cost of a miss"), press(1, "End"))
    move(page, panel("cost of a miss"), press(2, "End"))
    assert "Temperature 5" in move(page, panel("temperature"), press(0, "End"))
    assert move(page, panel("share right"), press(0, "End")).startswith("10,000 rows")
    assert "100% right" in move(page, panel("share right"), press(1, "End"))
    assert "100% of the test rows leak" in move(page, panel("known customers"), press(0, "End"))


@pytest.mark.slow
def test_explore_as_a_page(serve):
    shutil.copy(NBS / "lessons" / "more" / "explore.ipynb", "page.ipynb")
    look(serve("voila", "page.ipynb"), use_explore, "explore_voila")


@pytest.mark.slow
def test_explore_in_jupyterlab(serve):
    shutil.copy(NBS / "lessons" / "more" / "explore.ipynb", "page.ipynb")
    look(lab(serve), use_explore, "explore")
