"""Odd surroundings: a home that is none, other languages and clocks, caches that were damaged."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import damage
from insight_nb.apps.assistant.dialogue import DialogueAction, ParsedTurn, Transcript
from insight_nb.apps.monitor.stream import Stream
from insight_nb.base.core import InputError, ScratchFolder, atomic_output, lock_path
from insight_nb.cli import main
from insight_nb.data.tokens import tokenize
from insight_nb.jobs.rungs import save_rung
from insight_nb.methods.classical import Tfidf
from insight_nb.models.backbone import load_backbone
from insight_nb.ship.feedback import Answered, FeedbackStore

COMMAND = Path(sys.executable).with_name("insight-nb")
TEXTS = ["gutes Essen", "schlecht", "很好", "太差了", "=1+1", "<b>ü</b> 👍"]
WORLDS = {
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "half a language": {"LANG": "xx_YY.nothing", "LC_ALL": ""},
    "Kathmandu": {"TZ": "Asia/Kathmandu"}, "no zone": {"TZ": ":/nonexistent"},
    "64 threads": {"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "64"},
    "no home": {"HOME": "/dev/null/x", "XDG_CACHE_HOME": "/dev/null/x", "INSIGHT_NB_CACHE": "",
                "HF_HOME": "/dev/null/x"}}


@pytest.fixture
def bundle(tmp_path):
    rung = Tfidf().fit(TEXTS * 4, [1, 0, 1, 0, 1, 0] * 4, ["bad", "good"])
    save_rung(tmp_path / "bundle", rung)
    pd.DataFrame({"text": TEXTS, "label": ["a", "b"] * 3}).to_csv("t.csv", index=False)
    return tmp_path / "bundle"


def predicted(**more):
    done = subprocess.run([COMMAND, "predict", "bundle", "t.csv", "--out", "o.csv", "--force"],
                          env=os.environ | more, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1), done.stderr.decode()
    return Path("o.csv").read_bytes()


@pytest.mark.slow
def test_the_same_answers_in_every_world(bundle):
    want = predicted()
    worlds = list(WORLDS.values())
    for some in (worlds[::2], worlds[1::2]):
        assert predicted(**{k: v for world in some for k, v in world.items()}) == want, some


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_training_in_every_world(world, tmp_path):
    "What is trained is the same to the last byte, but for the number of threads."
    pd.DataFrame({"text": [f"{t} {i}" for i in range(20) for t in TEXTS],
                  "label": ["a", "b"] * 60}).to_csv("t.csv", index=False)
    words = ["run", "classify", "-p", "table", "t.csv", "-p", "epochs", "1", "-p", "max_length",
             "16", "--out"]
    usual = {"OMP_NUM_THREADS": "2"}
    for out, more in (("a", {}), ("b", world)):
        done = subprocess.run([COMMAND, *words, out], env=os.environ | usual | more, timeout=600,
                              capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    weights = [Path(out, "bundle", "head.safetensors").read_bytes() for out in "ab"]
    assert weights[0] == weights[1] or "OMP_NUM_THREADS" in world


@pytest.mark.slow
def test_a_run_without_a_home():
    done = subprocess.run([COMMAND, "run", "decide", "--out", "d"], capture_output=True, text=True,
                          env=os.environ | WORLDS["no home"], timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize("out", ["/dev/null/x", "t.csv/x", "/proc/x", "/sys/x"])
def test_a_place_that_cannot_be_written(out, bundle, capsys):
    for words in (["predict", "bundle", "t.csv", "--out", f"{out}/o.csv"],
                  ["run", "decide", "--out", out], ["check", "t.csv", "--json", f"{out}/o.json"]):
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "can't be written: " in said
    for words in (["predict", "bundle", "t.csv", "--feedback", f"{out}/a.db", "--out", "o.csv"],
                  ["feedback", "show", f"{out}/a.db"]):
        assert main(words) == 2, words
        assert capsys.readouterr().err.count("\n") == 1
    assert not Path("o.csv").exists()


def test_no_temporary_folder(bundle):
    "Every folder for temporary files may be closed."
    shut = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "/dev/null/x")
    program = ("import tempfile, sys; from insight_nb.cli import main\n"
               "def none(*_): raise FileNotFoundError(2, 'No usable temporary directory found')\n"
               "tempfile._get_default_tempdir = none; sys.exit(main(sys.argv[1:]))")
    for words in (["run", "decide", "--out", "d"], ["predict", "bundle", "t.csv"]):
        done = subprocess.run([sys.executable, "-c", program, *words], env=os.environ | shut,
                              capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "temporary" in done.stderr and not Path("d").exists()


def test_a_clock_that_was_set_back(tmp_path, monkeypatch):
    now = time.time()
    FeedbackStore("a.db").add(Answered("m", "v", "classify"), ["a", "b"], [("x", .5)] * 2)
    with Stream("s.db", now=now).db.transaction():
        pass
    with atomic_output(tmp_path / "a.txt") as f:
        f.write_text("new")
    monkeypatch.setattr("time.time", lambda: now - 10 * 365 * 86_400)
    with atomic_output(tmp_path / "a.txt", force=True) as f:
        f.write_text("from the past")
    assert Path("a.txt").read_text() == "from the past"
    with lock_path(tmp_path / "a.txt"), pytest.raises(InputError, match="being written"):
        with lock_path(tmp_path / "a.txt", wait=.1):
            pass
    with ScratchFolder() as folder:
        assert folder.is_dir()
    with FeedbackStore("a.db") as store:
        key = store.correct(texts="a", label="y")
        store.add(Answered("m", "v", "classify"), ["a"], [("x", .5)])
        found = store.frame()
        assert found["label"].tolist() == ["y", None, None] and found["id"][0] == key
        assert store.purge(1) == 0  # of the future, which is not older than a day
    stream = Stream("s.db")
    day = pd.Timestamp(time.time(), unit="s").strftime("%Y-%m-%d")
    assert stream.add(pd.DataFrame({"text": ["a"], "date": [day]}))["new"] == 1


def test_a_damaged_cache_of_tokens():
    tokenizer = load_backbone().tokenizer
    texts = [f"{t} {i}" for i in range(50) for t in TEXTS]
    want = tokenize(texts, tokenizer, 16)
    tokenize(texts, tokenizer, 16, cache="cache")
    file, = Path("cache").iterdir()
    sound = file.read_bytes()
    for how in ("half", "empty", "other", *range(20)):
        damage(file, how)
        found = tokenize(texts, tokenizer, 16, cache="cache")
        assert np.array_equal(found.input_ids, want.input_ids), how
        assert np.array_equal(found.offsets, want.offsets), how
        del found
        assert isinstance(how, int) or file.read_bytes() == sound  # made again
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="tokens are not cached"):
        found = tokenize(texts, tokenizer, 16, cache="cache")
    assert np.array_equal(found.input_ids, want.input_ids)


def answers(path):
    with FeedbackStore(path) as store:
        store.estimates()
        return len(store.frame())


def texts(path):
    stream = Stream(path)
    try:
        stream.add(pd.DataFrame({"text": ["新"], "date": ["2026-09-02"]}))
        return len(stream.to_frame()), stream.rejected(), stream.counts()
    finally:
        stream.db.close()


def turns(path):
    log = Transcript(path)
    try:
        log.add("bob", ParsedTurn("好"), DialogueAction("answer", "yes"))
        return len(log.to_frame())
    finally:
        log.db.close()


def fill(path, use):
    if use is answers:
        with FeedbackStore(path) as store:
            store.add(Answered("m", "v", "classify"), ["很好 " * 50] * 60, [("x", .5)] * 60)
    elif use is texts:
        stream = Stream(path)
        rows = [f"{i} " + "很好 " * 50 for i in range(60)]
        stream.add(pd.DataFrame({"text": rows, "date": "2026-09-01"}))
        stream.db.close()
    else:
        log = Transcript(path)
        for _ in range(60):
            log.add("ann", ParsedTurn("很好 " * 50), DialogueAction("answer", "yes"))
        log.db.close()


@pytest.mark.parametrize("use", [answers, texts, turns])
def test_a_damaged_store(use):
    "It opens, or one line says why not: never a traceback."
    fill("a.db", use)
    sound, refused = Path("a.db").read_bytes(), 0
    for how in ("half", "empty", "other", *range(6)):
        for left in Path().glob("a.db-*"):
            left.unlink()
        Path("a.db").write_bytes(sound)
        damage("a.db", how)
        try:
            use("a.db")
        except InputError as e:
            assert "a.db" in str(e) and "\n" not in str(e)
            refused += 1
    assert refused > 1


def test_a_store_of_another_version():
    with sqlite3.connect("a.db") as db:
        db.execute("create table answers(id, what)")
        db.execute("insert into answers values (1, 2)")
    with pytest.raises(InputError, match="a.db can't be"):
        answers("a.db")
