"""Tables to try things on, and one small trained bundle for all tests that need one."""
import csv
import os

import pytest
from insight_nb.cli import main

LABELS = ["<b>good</b>", "=1+1", "很好"] # labels are users' text too
WORDS = {LABELS[0]: "lovely warm friendly clean bright", LABELS[1]: "broken dirty late rude cold", LABELS[2]: "房间 干净 早餐 服务 安静"}


def rows_of(n, labels=LABELS):
    "`n` texts, all different, a third of them of each label."
    said = [(labels[i % len(labels)], WORDS[LABELS[i % 3]].split()) for i in range(n)]
    return [{"text": f"{words[i % 5]} {words[(i * 7 + i // 5) % 5]} stay number {i * 7919 % 10007} <script>alert({i})</script>", "label": label}
            for i, (label, words) in enumerate(said)]


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Each test works in a folder of its own, whose cache it shares with nobody."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSIGHT_NB_CACHE", str(tmp_path.parent / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def train(table, out):
    "`insight-nb run classify` with a real kernel: small, but whole."
    return main(["run", "classify", "-p", "table", str(table), "-p", "epochs", "1", "-p", "max_length", "32", "--out", str(out)])

@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    "The folder that a run leaves."
    folder = tmp_path_factory.mktemp("trained")
    os.environ["INSIGHT_NB_CACHE"] = str(folder / "cache")
    assert train(write_csv(folder / "table.csv", rows_of(150)), folder / "run") == 0
    return folder / "run"
