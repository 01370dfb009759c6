"""A disk that is full at every write: the old file or the new one, and one line."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_encoder
from insight_nb.apps.assistant.dialogue import Transcript
from insight_nb.apps.monitor.stream import Stream
from insight_nb.apps.risk.estimators import RiskClassifier
from insight_nb.apps.risk.risk_bundle import load_risk, save_risk
from insight_nb.base.core import InputError, hash_folder
from insight_nb.base.files import read_frame
from insight_nb.base.tables import write_frame
from insight_nb.cli import recipes
from insight_nb.data.samples import synthetic
from insight_nb.data.tokens import tokenize
from insight_nb.jobs.rungs import load_rung, save_rung
from insight_nb.methods.classical import Tfidf
from insight_nb.methods.evaluation import Evaluation, ResultCache, evaluate_method
from insight_nb.models.backbone import load_backbone
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.ship.bundle import load_bundle, save_bundle
from insight_nb.ship.feedback import Answered, FeedbackStore

COMMAND = Path(sys.executable).with_name("insight-nb")
ROWS = synthetic(200)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def learned():
    y = (ROWS["label"] == ROWS["label"][0]).to_numpy().astype(int)
    rung = Tfidf().fit(ROWS["text"].tolist(), y, ["a", "b"])
    ages = pd.DataFrame({"age": np.arange(200.)})
    return rung, RiskClassifier().fit(ages, (ages["age"] > 99).astype(int))


def writers(tiny, learned):
    "name -> (write version 1 or 2, read it back)"
    def table(end):
        return (lambda n: write_frame(ROWS.assign(n=n), f"t{end}", force=True),
                lambda: read_frame(f"t{end}"))

    rung, risk = learned
    model = Model(tiny, ClassificationTask(("a", "b")))
    return {
        **{end: table(end) for end in (".csv", ".csv.gz", ".jsonl", ".json", ".parquet", ".xlsx")},
        "bundle": (lambda n: save_bundle("b", model, 30 + n, force=True),
                   lambda: load_bundle("b", device="cpu")),
        "rung": (lambda n: save_rung("r", rung, {"n": n}, force=True), lambda: load_rung("r")),
        "risk": (lambda n: save_risk("k", risk, "late", ("no", "yes"), {"n": n}, force=True),
                 lambda: load_risk("k"))}


NAMES = [".csv", ".csv.gz", ".jsonl", ".json", ".parquet", ".xlsx", "bundle", "rung", "risk"]


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))


def attempt(write):
    "True: it wrote. False: one line says why not."
    try:
        write()
        return True
    except InputError as e:
        assert "can't be" in str(e) and "\n" not in str(e), e
        return False


@pytest.mark.parametrize("name", NAMES)
def test_no_file_may_grow(name, tiny, learned, capfd):
    write, read = writers(tiny, learned)[name]
    write(1)
    before, size, wrote = hash_folder("."), 0, False
    while not wrote:
        limit_files(size)
        try:
            wrote = attempt(lambda: write(2))
        finally:
            limit_files(-1)
        assert wrote or hash_folder(".") == before
        size = 8 * size or 1
    read()
    assert hash_folder(".") != before and size > 8
    assert capfd.readouterr().err == ""


# calls of the system that need space, as Python's audit events name them
EVENTS = {"open", "os.mkdir", "os.rename", "tempfile.mkdtemp", "tempfile.mkstemp"}
FAIL = {"on": False, "at": 0, "seen": 0}


def watch(event, given):
    if not FAIL["on"] or event not in EVENTS:
        return
    if event == "open":
        writes = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes:
            return
    FAIL["seen"] += 1
    if FAIL["seen"] == FAIL["at"]:
        full()


sys.addaudithook(watch)


@contextmanager
def full_at(number):
    "The disk is full at this call."
    FAIL.update(on=True, at=number, seen=0)
    try:
        yield
    finally:
        FAIL["on"] = False


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", NAMES)
def test_full_at_each_call(name, tiny, learned, monkeypatch):
    write, read = writers(tiny, learned)[name]
    write(1)
    before, number, refused = hash_folder("."), 0, 0
    FAIL["seen"] = 0
    while FAIL["seen"] >= number:
        number += 1
        with full_at(number):
            wrote = attempt(lambda: write(2))
        assert wrote or hash_folder(".") == before, number
        assert not [p for p in os.listdir() if "insight_nb_" in p], number
        refused += not wrote
        if wrote:  # some calls may fail
            write(1)
            before = hash_folder(".")
    assert refused > 3
    read()
    before = hash_folder(".")
    monkeypatch.setattr("os.fsync", full)
    assert not attempt(lambda: write(2)) and hash_folder(".") == before


@contextmanager
def files_of(size):
    "No file may grow over so many bytes."
    limit_files(size)
    try:
        yield
    finally:
        limit_files(-1)


def test_a_cache_of_tokens_that_cannot_be_written_is_told(tiny):
    texts = ROWS["text"].tolist()
    want = tokenize(texts, tiny.tokenizer, 32)
    for size in (0, 100, 3000):
        with files_of(size), pytest.warns(UserWarning, match="tokens are not cached: .*too large"):
            found = tokenize(texts, tiny.tokenizer, 32, cache="cache")
        assert np.array_equal(found.input_ids, want.input_ids)
        assert not os.path.exists("cache")


def test_a_ladder_whose_cache_is_full(tmp_path):
    y = np.arange(200) % 2
    evaluation = Evaluation(ROWS["text"].tolist()[:100], y[:100], ROWS["text"].tolist()[100:],
                            y[100:], ("a", "b"))
    cache, rung = ResultCache(tmp_path / "state", evaluation), Tfidf()
    cache.start(rung)
    step, size, kept = evaluate_method(rung, evaluation), 1, False
    while not kept:
        with files_of(size):
            kept = attempt(lambda: cache.put(rung, step))
        found = cache.get(rung)
        assert (found is not None) == kept  # never half of it
        size *= 4
    assert np.allclose(found.predictions, step.predictions) and size > 64


def keep_answers(n):
    with FeedbackStore("answers.db") as store:
        store.add(Answered("m", "v", "classify"), ["很好 " * 300] * n, [("a", .5)] * n)


def keep_turns(n):
    with Transcript("turns.db").db.transaction() as db:
        for i in range(n):
            db.execute("insert into notes values (?, ?, ?, ?)", ("ann", i, "x" * 3000, "user"))


def keep_texts(n):
    texts = [f"{n} {i} " + "很好 " * 300 for i in range(n)]
    Stream("texts.db").add(pd.DataFrame({"text": texts, "date": "2026-09-01"}))


@pytest.mark.parametrize("keep, file, table", [
    (keep_answers, "answers.db", "answers"), (keep_turns, "turns.db", "notes"),
    (keep_texts, "texts.db", "texts")])
def test_a_store_keeps_all_of_a_call_or_nothing(keep, file, table):
    import sqlite3
    keep(3)
    for size in (0, 1000, 20_000, 60_000, 300_000):
        with files_of(size):
            assert not attempt(lambda: keep(500)), size
        with sqlite3.connect(file) as db:
            assert db.execute(f"select count(*) from {table}").fetchone() == (3,)
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        db.close()
    keep(500)


def test_recipes_keep_nothing_in_the_temporary_folder():
    "But where nobody said where the results go: what a killed run leaves there, nobody removes."
    for path in recipes().values():
        made = re.findall(r".*(?:mkdtemp|TemporaryDirectory|mkstemp).*", path.read_text("utf-8"))
        assert [line for line in made if "out or tempfile.mkdtemp()" not in line] == [], path


def can_mount():
    "Whether a small disk may be made for one process and its children."
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no small disk can be made here")
@pytest.mark.parametrize("where, kilobytes", [
    ("out", 4), ("out", 40), ("out", 400), ("out", 40_000), ("temp", 4), ("temp", 40),
    ("temp", 40_000), ("cache", 4), ("cache", 8), ("cache", 40_000)])
def test_a_run_on_a_small_disk(where, kilobytes, tmp_path):
    "The results, the temporary folder, or the cache on a disk of so many kilobytes."
    for name in ("out", "temp", "cache"):
        (tmp_path / name).mkdir()
    ROWS.to_csv("t.csv", index=False)
    run = f"{COMMAND} run ladder -p table t.csv -p rungs 'majority,TF-IDF + linear' --out out/a"
    script = (f"mount -t tmpfs -o size={kilobytes}k none {where} && {run}; status=$?; "
              "ls -A out temp; ls out/a 2>/dev/null; exit $status")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=300,
        env=os.environ | {"TMPDIR": str(tmp_path / "temp"), "INSIGHT_NB_CACHE": "cache"})
    said = done.stderr.strip()
    assert done.returncode in (0, 2) and said.count("\n") == 0, (done.returncode, said[-500:])
    assert ("No space left on device" in said) == (done.returncode == 2), said
    assert ("evidence.json" in done.stdout) == (done.returncode == 0), done.stdout
    assert "insight_nb_" not in done.stdout and ".npz" not in done.stdout


def fill_but(kilobytes):
    disk = os.statvfs(".")
    room = disk.f_bavail * disk.f_frsize - 1024 * kilobytes
    Path("filler").write_bytes(bytes(max(room, 0)))


def write_on_a_small_disk(write, read):
    "Write a version, fill the disk but for some kilobytes, write another, make space, read."
    write(1)
    before, refused = hash_folder("."), 0
    for free in (0, 4, 16, 64, 256, 1024):
        fill_but(free)
        wrote = attempt(lambda: write(2))
        os.unlink("filler")
        assert wrote or hash_folder(".") == before, free
        assert not [p for p in os.listdir() if "insight_nb_" in p or p.startswith(".")], free
        refused += not wrote
        read()
        write(1)
        before = hash_folder(".")
    assert refused, "there was space enough each time"


def keep_on_a_small_disk():
    import sqlite3
    keep_answers(3)
    for free in (0, 4, 64, 256):
        fill_but(free)
        assert not attempt(lambda: keep_answers(500)), free
        os.unlink("filler")
        with sqlite3.connect("answers.db") as db:
            assert db.execute("select count(*) from answers").fetchone() == (3,), free
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        db.close()
    keep_answers(500)


def on_a_small_disk(folder):
    "All of it, in a process whose folder is on a disk of 8 MB."
    y = (ROWS["label"] == ROWS["label"][0]).to_numpy().astype(int)
    rung = Tfidf().fit(ROWS["text"].tolist(), y, ["a", "b"])
    ages = pd.DataFrame({"age": np.arange(200.)})
    risk = RiskClassifier().fit(ages, (ages["age"] > 99).astype(int))
    for name, how in writers(load_backbone(folder), (rung, risk)).items():
        try:
            write_on_a_small_disk(*how)
        except Exception as e:
            raise AssertionError(name) from e
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    keep_on_a_small_disk()


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no small disk can be made here")
def test_a_full_disk_under_what_other_libraries_write(tiny, tmp_path):
    "Parquet by pyarrow, weights by safetensors, tokenizers, SQLite: the disk is really full."
    (tmp_path / "disk").mkdir()
    code = ("import os, sys; sys.path.insert(0, sys.argv[1]); import test_disk; "
            "os.chdir('disk'); test_disk.on_a_small_disk(sys.argv[2])")
    script = f"mount -t tmpfs -o size=8m none disk && exec {sys.executable} -c \"$0\" \"$@\""
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, code, str(Path(__file__).parent), tiny.name],
        capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-1500:]
