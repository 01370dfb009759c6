"Two processes share each batch, and end with the weights of one."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from compare_runs import COMMAND
from conftest import LABELS, rows_of, tiny_encoder, write_csv
from insight_nb import TextClassifier
from insight_nb.cli import checkpoint_file, main
from insight_nb.train.checkpoint import read_checkpoint
from insight_nb.train.processes import GROUP, free_port
from safetensors.numpy import load_file

JOB = Path(__file__).with_name("two_processes.py")


def start(folder, *words, **more):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, str(JOB), str(folder), *map(str, words)],
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"} | more)


def end(process):
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong[-2000:]
    return said


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_encoder(folder)
    return folder


@pytest.mark.parametrize("kinds, files", [
    ("full,lora,tag", ["full", "full.run", "lora", "lora.run", "tag", "tag.run"]),
    pytest.param("several", ["anew", "first", "replay+distill+ewc", "student"],
                 marks=pytest.mark.slow)])
def test_two_processes_give_the_result_of_one(kinds, files, tmp_path, encoder):
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    n = len(kinds.split(","))
    ports = [free_port() for _ in range(n)]
    alone = start(tmp_path / "one", encoder, kinds)
    both = [start(tmp_path / "two", encoder, kinds, *ports, RANK=str(i), LOCAL_RANK=str(i), **group)
            for i in range(2)]
    first, second = map(end, both)
    assert first.count("2 processes, 0 differ") == n and second.count("a follower") == n
    assert end(alone).count("1 processes, None differ") == n
    for name in ("one", "two"):
        assert sorted(p.stem for p in (tmp_path / name).iterdir()) == files
    for kind in [name for name in files if ".run" not in name]: # that is a checkpoint
        one, two = (load_file(tmp_path / n / f"{kind}.safetensors") for n in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-5,
                                       err_msg=f"{kind} {name}")


def words_of(given): return [w for k, v in given.items() for w in ("-p", k, str(v))]


def run_in_two(tmp_path, monkeypatch, recipe, *more, **given):
    "Run a recipe in two processes; its evidence. Nothing is left beside its results."
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    words = words_of({"epochs": 1, "processes": 2} | given)
    before = {name: os.environ.get(name) for name in GROUP}
    here = {p.name for p in tmp_path.iterdir()} - {"out.checkpoint.safetensors"}
    assert main(["run", recipe, *words, "--out", str(tmp_path / "out"), *more]) == 0
    assert {name: os.environ.get(name) for name in GROUP} == before
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["cost"]["processes"] == 2
    guard = {g["check"]: g["passed"] for g in evidence["guard"]}
    assert guard["processes_agree"] and guard["reload_equal"]
    assert {p.name for p in tmp_path.iterdir()} == here | {"out"} # followers leave nothing
    assert not list(place.iterdir())
    return evidence


def test_a_recipe_in_two_processes(tmp_path, monkeypatch, encoder):
    table = write_csv(tmp_path / "t.csv", rows_of(90))
    run_in_two(tmp_path, monkeypatch, "classify", table=table, backbone=encoder, anyway="true")


@pytest.fixture(scope="module")
def bundle(encoder):
    "Of two labels; the third arrives later."
    rows = [row for row in rows_of(90) if row["label"] != LABELS[2]]
    model = TextClassifier(str(encoder), epochs=1, max_length=32, device="cpu")
    texts, labels = ([row[name] for row in rows] for name in ("text", "label"))
    model.fit(texts, labels).save(encoder / "bundle")
    return encoder / "bundle"


def tables_of(folder, n=240): # of an update
    rows = rows_of(n)
    known, later = ([r for r in rows if (r["label"] == LABELS[2]) == new] for new in (False, True))
    tables = {"old": known[:60], "old_test": known[60:], "table": later}
    return {name: write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items()}


@pytest.mark.slow
def test_an_update_in_two_processes(tmp_path, monkeypatch, bundle):
    found = run_in_two(tmp_path, monkeypatch, "update", bundle=bundle, **tables_of(tmp_path))
    assert {*found["update"]["strategies"]} == {"before", "replay+distill", "plain", "anew"}


@pytest.mark.slow
def test_two_processes_go_on_from_one_checkpoint(tmp_path, monkeypatch, capfd, bundle):
    given = tables_of(tmp_path, 400) | {"bundle": bundle, "compare": "false", "epochs": 3,
                                        "batch_size": 4}
    words = ["run", "update", *words_of(given | {"processes": 2}), "--out", str(tmp_path / "out")]
    cut = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True, env=os.environ |
                           {"INSIGHT_NB_CHECKPOINT_SECONDS": "0", "INSIGHT_NB_PROGRESS": "quiet"})
    while not (file := checkpoint_file(tmp_path / "out")).exists():
        assert cut.poll() is None, cut.stderr.read()
        time.sleep(.02)
    cut.send_signal(signal.SIGTERM)
    assert cut.wait(60) == 143
    done = read_checkpoint(file)[0]["state"]["global_step"]
    found = run_in_two(tmp_path, monkeypatch, "update", "--resume", **given)
    assert f"Goes on at step {done} of " in capfd.readouterr().out
    assert 0 < done < found["cost"]["steps"] and not file.exists()


@pytest.mark.slow
def test_a_distillation_in_two_processes(tmp_path, monkeypatch, bundle):
    known = [row for row in rows_of(240) if row["label"] != LABELS[2]]
    texts = write_csv(tmp_path / "texts.csv", [{"text": row["text"]} for row in known[:90]])
    labeled = write_csv(tmp_path / "labeled.csv", known[90:])
    found = run_in_two(tmp_path, monkeypatch, "distill", bundle=f"{bundle},{bundle}", table=texts,
                       test=labeled, student="layers:1")
    assert [s["name"] for s in found["students"]] == ["teacher", "layers:1"]


@pytest.mark.parametrize("given, there, said", [
    (["classify", "-p", "processes", "0"], {}, "processes is 0"),
    (["classify"], {"ACCELERATE_USE_FSDP": "true"}, "FSDP is not for encoders"),
    (["audit"], {"WORLD_SIZE": "2"}, "audit works in one process"),
    (["diagnose"], {"WORLD_SIZE": "2"}, "diagnose works in one process"),
    (["distill", "-p", "student", "tfidf", "-p", "processes", "2"], {"WORLD_SIZE": "2"},
     "student tfidf has no layers to train"),
])
def test_what_can_t_work_is_refused(ends, monkeypatch, given, there, said):
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    done = ends("run", *given)
    assert done.status == 2 and said in done.lines[-1] and done.same
