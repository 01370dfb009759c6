"""Tuning: a search goes on where it was killed, processes share it, and the page says what it was
worth."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import refused, rows_of, run_here, tiny_encoder, write_csv
from insight_nb.base.core import InputError
from insight_nb.train import search as search_module
from insight_nb.train.search import TrialStudy, search

SCRIPT = """
import sys, time
from insight_nb.train.search import TrialStudy, search
from pathlib import Path
file, log, pause = sys.argv[1:]
def objective(settings, report):
    with open(log, "a") as f:
        f.write(repr(round(settings["x"], 9)) + "\\n")
    time.sleep(float(pause))
    return -settings["x"] ** 2
study = TrialStudy({"x": (-2.0, 2.0), "n": (1, 1000)}, 12, storage=file)
search(objective, study)
"""


def start(file, log, pause):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(file), str(log), str(pause)])


def finished(file):  # how many trials of a store
    if not Path(file).exists():
        return 0
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as store:
        try:
            asked = "select count(*) from trials where state in ('COMPLETE', 'PRUNED')"
            return store.execute(asked).fetchone()[0]
        except sqlite3.OperationalError:  # no table yet
            return 0


def objective(settings, report):
    return -settings["x"] ** 2


def trials_of(file):
    study = TrialStudy({"x": (-2.0, 2.0), "n": (1, 1000)}, 12, storage=file)
    return search(objective, study).trials


def test_killed_after_five_of_twelve_it_does_the_other_seven(tmp_path):
    file, log = tmp_path / "a.sqlite", tmp_path / "log"
    first = start(file, log, 0.3)
    until = time.monotonic() + 60
    while finished(file) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    began, done = log.read_text().split(), finished(file)
    assert 5 <= done <= 6 and len(began) - done in (0, 1)
    assert start(file, log, 0).wait() == 0
    made = log.read_text().split()
    assert len(made) - len(began) == 12 - done
    assert len(set(made)) == 12  # the one that was cut off was made again, with the same settings
    found = trials_of(file)  # nothing is left to do
    assert [t.state for t in found] == ["done"] * 12
    alone = search(objective, TrialStudy({"x": (-2.0, 2.0), "n": (1, 1000)}, 12))
    assert [t.settings for t in found] == [t.settings for t in alone.trials]


@pytest.mark.parametrize("cut_trial", [0, 5])
def test_cut_off_between_two_draws_it_draws_both_anew(tmp_path, monkeypatch, cut_trial):
    space, calls, at = {"x": (-2.0, 2.0), "n": (1, 1000)}, [], 2 * cut_trial + 1
    draw = search_module.draw_setting

    def cut(trial, name, values):
        calls.append(name)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return draw(trial, name, values)

    monkeypatch.setattr(search_module, "draw_setting", cut)
    first = {"x": 0.5}
    with pytest.raises(KeyboardInterrupt):
        search(objective, TrialStudy(space, 12, storage=tmp_path / "a.sqlite", first=first))
    found = search(objective, TrialStudy(space, 12, storage=tmp_path / "a.sqlite", first=first))
    alone = search(objective, TrialStudy(space, 12, first=first))
    assert found.trials[0].settings["x"] == 0.5
    assert [t.settings for t in found.trials] == [t.settings for t in alone.trials]


def test_two_processes_never_make_the_same_trial(tmp_path):
    file, log = tmp_path / "a.sqlite", tmp_path / "log"
    both = [start(file, log, 0.05) for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    made = log.read_text().split()
    assert len(made) == 12 and len(set(made)) == 12
    assert len(trials_of(file)) == 12


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "A run of the recipe on rows of two languages, with markup in them."
    folder = tmp_path_factory.mktemp("tune")
    tiny_encoder(folder / "tiny")
    table = write_csv(folder / "table.csv", rows_of(240))
    os.environ["INSIGHT_NB_CACHE"] = str(folder / "cache")
    words = ["tune", "-p", "table", table, "-p", "backbone", folder / "tiny", "-p", "trials", 4,
             "-p", "epochs", 2, "-p", "folds", 1, "-p", "anyway", "true", "-p", "max_length", 24,
             "-p", "space", "learning_rate=1e-4:1e-1, batch_size=8|32", "--out"]
    assert run_here(*words, folder / "a") == 0
    return folder, words


def test_the_page_says_what_tuning_was_worth(ran):
    folder, _ = ran
    evidence = json.loads((folder / "a" / "evidence.json").read_text(encoding="utf-8"))
    found = evidence["tuning"]
    assert len(found["search"]["trials"]) == 4 and found["folds"] == 1
    assert set(found["search"]["trials"][0]["settings"]) == {"learning_rate", "batch_size"}
    assert found["verdict"] in ("paid", "lost", "unclear", "none")
    page = (folder / "a" / "report.html").read_text(encoding="utf-8")
    assert "Tuning" in page and "<script>alert(" not in page
    scores = [t["score"] for t in found["search"]["trials"] if t["state"] == "done"]
    assert found["search"]["best"]["score"] == max(scores)
    if found["verdict"] != "none":  # the measured metrics are those of the winner
        d, default = found["difference"]["value"], found["search"]["default"]["score"]
        lead = found["search"]["best"]["score"] - default
        assert found["flattered"] == pytest.approx(lead - d)
    assert not list((folder / "cache" / "tunings").glob("*"))  # all is in the report


@pytest.mark.slow
def test_a_shared_store_is_kept_and_gone_on_with(ran):
    folder, words = ran
    more = ["-p", "storage", folder / "all.sqlite", "--out"]
    assert run_here(*words[:-1], *more, folder / "b") == 0
    assert finished(folder / "all.sqlite") == 4
    before = (folder / "all.sqlite").read_bytes()
    assert run_here(*words[:-1], *more, folder / "c") == 0
    assert (folder / "all.sqlite").read_bytes() == before  # no trial was made again
    one, two = (json.loads((folder / name / "evidence.json").read_text(encoding="utf-8"))
                for name in "bc")
    assert one["metrics"] == two["metrics"]
    assert one["tuning"]["difference"] == two["tuning"]["difference"]


@pytest.mark.parametrize("given, said", [
    (["-p", "trials", 0], ["trials is 0"]),
    (["-p", "trials", 1], ["trials is 1", "at least 2"]),
    (["-p", "minutes", 0], ["minutes is 0"]),
    (["-p", "space", "learning_rate=1e-3:1e-5"], ["from 0.001 to 1e-05", "lower number"]),
    (["-p", "space", "learning_rate"], ["'learning_rate' is no setting"]),
    (["-p", "space", "dropout=0:1"], ["space names 'dropout'"]),
    (["-p", "recipe", "monitor"], ["recipe is 'monitor'", "can be tuned"]),
    (["-p", "recipe", "classify", "-p", "second", "b"], ["second is for pairs"]),
    (["-p", "engine", "spark"], ["engine is 'spark'", "local or ray"]),
    (["-p", "workers", 2], ["workers are for Ray"]),
    (["-p", "folds", 900], ["folds is 900"]),
])
def test_what_can_t_work_is_refused(ends, given, said):
    table = write_csv("t.csv", rows_of(60))
    refused(ends("run", "tune", "-p", "table", table, "--out", "a", *given), *said)


def test_a_store_that_is_none(ends):
    table = write_csv("t.csv", rows_of(60))
    Path("text.sqlite").write_text("no database " * 99)
    tiny_encoder("tiny")
    end = ends("run", "tune", "-p", "table", table, "-p", "backbone", "tiny", "-p", "anyway",
               "true", "-p", "epochs", 1, "-p", "folds", 1, "-p", "storage", "text.sqlite",
               "--out", "a")
    assert end.status == 2 and "can't be used as a store of trials" in end.lines[-1]
    assert Path("text.sqlite").read_text() == "no database " * 99


def test_without_optuna_or_ray_the_extra_is_named(monkeypatch):
    for module, extra, act in (
            ("optuna", "tune", lambda: TrialStudy({"x": (0, 1)})),
            ("ray", "ray", lambda: choose_engine("ray"))):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=rf"insight_nb\[{extra}\]"):
            act()


def choose_engine(name):
    from insight_nb.train.ray_search import choose_engine
    return choose_engine(name)
