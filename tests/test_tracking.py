"""Runs are written down in trackers, keep their predictions, and are compared.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import WORDS, refused, rows_of, run_here, tiny_encoder, write_csv
from insight_nb.base.core import InputError
from insight_nb.cli import main
from insight_nb.eval.row_predictions import PREDICTIONS_FILE, read_predictions
from insight_nb.train import tracking

SMALL = ["-p", "epochs", "1", "-p", "max_length", "16", "-p", "backbone"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_encoder(folder)
    return folder


def classify(tiny, out, *words, n=60):
    "A run of some seconds."
    table = write_csv(f"{Path(out).name}.csv", rows_of(n))
    return run_here("classify", "-p", "table", table, *SMALL, tiny, "--out", out, *words)


def wanted(run):
    "The named values of a report: name -> number."
    found = json.loads(Path(run, "evidence.json").read_text(encoding="utf-8"))
    values = {}
    for name, m in found["metrics"].items():
        values |= {name: m["value"], f"{name}_low": m["low"], f"{name}_high": m["high"]}
    values |= {f"guard/{g['check']}": int(g["passed"]) for g in found["guard"]
               if g["passed"] is not None}
    assert len(values) >= 10
    return values, found


# What a run without trackers has to do with them: nothing

def test_without_track_nothing_is_imported():
    code = ("import sys; from insight_nb.train.tracking import start_tracking; "
            "start_tracking(None, 'classify'); import insight_nb.methods.ladder; "
            "print([m for m in sys.modules if m in ('mlflow', 'wandb', 'tensorboard')])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("recipe", ["classify", "regress", "multilabel", "pair", "tag", "update",
                                    "distill", "ladder"])
def test_every_recipe_says_what_is_not_installed(recipe, ends, monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "wandb", ("no_such_tracker",))
    refused(ends("run", recipe, "-p", "track", "wandb"), "pip install 'insight_nb[track]'")


def test_names_that_are_not_known(ends):
    refused(ends("run", "classify", "-p", "track", "mlfow"), "'mlfow'", "mlflow")
    refused(ends("run", "tag", "-p", "track", ","), "name some of tensorboard, mlflow, wandb")


# Each tracker, read back by its own reader

def test_tensorboard(tiny):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert classify(tiny, "runs/a", "-p", "track", "tensorboard") == 0
    events = EventAccumulator("runs/a/tensorboard", size_guidance={"scalars": 0}).Reload()
    values, found = wanted("runs/a")
    for name, value in values.items(): # 32 bits
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6), name
    assert len(events.Scalars("train/loss")) == found["cost"]["steps"]
    assert {"parameters/text_summary", "result/text_summary"} <= set(events.Tags()["tensors"])
    whole = b"".join(f.read_bytes() for f in Path("runs/a/tensorboard").rglob("*"))
    assert found["data"]["sha256"].encode() in whole
    assert b"stay number" not in whole # no text of a row


def test_a_tracker_that_fails_ends_no_run(tiny, monkeypatch, capsys):
    class Broken:
        name = "broken"
        def __init__(self, place): pass
        def __getattr__(self, method):
            raise OSError("no such place at https://eve:pass@host")

    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", ())
    monkeypatch.setitem(tracking.RUN_KINDS, "tensorboard", Broken)
    assert classify(tiny, "runs/a", "-p", "track", "tensorboard") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "broken" in line]
    assert len(said) == 1 and "the run goes on" in said[0] and "eve:pass" not in said[0]


@pytest.fixture
def mlflow(monkeypatch):
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return pytest.importorskip("mlflow")


def runs_of(client):
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.info.run_name: run for run in found}


def test_mlflow(tiny, mlflow):
    assert classify(tiny, "runs/a", "-p", "track", "mlflow") == 0
    client = mlflow.MlflowClient(f"sqlite:///{Path('runs/mlflow.db').absolute()}")
    run, (values, found) = runs_of(client)["a"], wanted("runs/a")
    assert {name: run.data.metrics[name] for name in values} == values
    assert run.info.status == "FINISHED"
    assert run.data.params["data.rows_sha256"] == found["data"]["sha256"]
    assert run.data.params["epochs"] == "1"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history] == list(range(1, found["cost"]["steps"] + 1))
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert files == {"bundle", "evidence.json", "report.html"}


def test_a_ladder_is_one_run_with_a_run_for_each_rung(tiny, mlflow):
    table = write_csv("t.csv", rows_of(60))
    assert run_here("ladder", "-p", "table", table, *SMALL, tiny, "-p", "track", "mlflow", "-p",
                    "rungs", "majority,TF-IDF + linear,full fine-tune", "--out", "runs/l") == 0
    client = mlflow.MlflowClient(f"sqlite:///{Path('runs/mlflow.db').absolute()}")
    found = runs_of(client)
    parent = found.pop("l").info.run_id
    assert set(found) == {"majority", "TF-IDF + linear", "full fine-tune"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent}
    rungs = json.loads(Path("runs/l/evidence.json").read_text(encoding="utf-8"))["rungs"]
    for rung in rungs:
        got = found[rung["name"]].data.metrics
        assert got["accuracy_low"] == rung["metrics"]["accuracy"]["low"]
    assert "train/loss" in found["full fine-tune"].data.metrics


def test_a_broken_run_is_written_down_as_failed(mlflow):
    code = ("from insight_nb.train.tracking import start_tracking; "
            "start_tracking('mlflow', 'classify', 'runs/a'); 1 / 0")
    subprocess.run([sys.executable, "-c", code], capture_output=True)
    client = mlflow.MlflowClient(f"sqlite:///{Path('runs/mlflow.db').absolute()}")
    assert runs_of(client)["a"].info.status == "FAILED"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "sqlite:////dev/null/x/mlflow.db",
                                     "SILENT"])
def test_an_address_that_does_not_answer(address, mlflow, ends, monkeypatch):
    with socket.socket() as silent: # it takes what is sent, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        if address == "SILENT":
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        began = time.monotonic()
        with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is"):
            tracking.start_tracking("mlflow", "classify")
        assert time.monotonic() - began < 10
        end = ends("run", "classify", "-p", "track", "mlflow")
    refused(end, "MLFLOW_TRACKING_URI", "leave mlflow out of track")


def test_mlflow_over_http(tiny, mlflow, monkeypatch):
    pytest.importorskip("flask")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "mlflow", "server", "--backend-store-uri", "sqlite:///server.db",
             "--artifacts-destination", "kept", "--host", "127.0.0.1", "--port", str(port),
             "--workers", "1"]
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                tracking.check_reachable(address)
                break
            except OSError:
                time.sleep(.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert classify(tiny, "runs/a", "-p", "track", "mlflow") == 0
        import urllib.request
        body = json.dumps({"experiment_ids": ["1"], "max_results": 5}).encode()
        asked = urllib.request.Request(f"{address}/api/2.0/mlflow/runs/search", body,
                                       {"Content-Type": "application/json"})
        run = json.load(urllib.request.urlopen(asked))["runs"][0]
        got = {m["key"]: m["value"] for m in run["data"]["metrics"]}
        values = wanted("runs/a")[0]
        assert {name: got[name] for name in values} == values
        client = mlflow.MlflowClient(address)
        assert {f.path for f in client.list_artifacts(run["info"]["run_id"])} == {
            "bundle", "evidence.json", "report.html"}
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def wandb_records(file):
    """The records of an offline run: a log of blocks of 32 KiB, as LevelDB has it, of wandb's own
    messages."""
    from wandb.proto import wandb_internal_pb2 as messages
    data, at, part = Path(file).read_bytes(), 7, b"" # after the head
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4:at + 6], "little"), data[at + 6]
        part += data[at + 7:at + 7 + size]
        at += 7 + size
        if kind in (1, 4): # whole, or the last part
            record = messages.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def test_wandb(tiny, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert classify(tiny, "runs/a", "-p", "track", "wandb") == 0
    file, = Path("runs/wandb").glob("offline-run-*/*.wandb")
    got, losses, kept = {}, 0, set()
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json)
                   for i in record.history.item}
            losses += "train/loss" in row
            got |= row
        elif kind == "artifact":
            kept.add((record.artifact.name, record.artifact.type))
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found = record.request.log_artifact.artifact
            kept.add((found.name, found.type))
    values, found = wanted("runs/a")
    assert {name: got[name] for name in values} == values
    assert losses == found["cost"]["steps"]
    assert {("a-bundle", "model"), ("a-report", "report"), ("a-evidence", "report")} <= kept
    whole = file.read_bytes()
    assert found["data"]["sha256"].encode() in whole and b"stay number" not in whole
    hosts = {r.run.host for r in wandb_records(file) if r.WhichOneof("record_type") == "run"}
    assert hosts == {"-"} # not this machine's name


# Predictions, and runs side by side

def test_a_run_keeps_its_predictions_without_texts(trained):
    said = read_predictions(trained)
    values = wanted(trained)[0]
    right = said.frame["truth"] == said.frame["prediction"]
    assert right.mean() == pytest.approx(values["accuracy"])
    names = [f"probability_{n}" for n in said.labels]
    assert np.allclose(said.frame[names].sum(1), 1, atol=1e-5)
    text = Path(trained, PREDICTIONS_FILE).read_bytes() + said.frame.to_csv().encode()
    assert not any(word.encode() in text for words in WORDS.values() for word in words.split())


def other_run(trained, folder, share):
    "The run again, with some of its predictions made right."
    shutil.copytree(trained, folder)
    said = read_predictions(folder)
    some = np.random.default_rng(0).random(len(said)) < share
    said.frame["prediction"] = np.where(some, said.frame["truth"], said.labels[0])
    said.save(folder)
    return said


def test_compare(trained, capsys):
    said = other_run(trained, "good", 1.)
    other_run(trained, "bad", .2)
    assert main(["compare", "good", "bad", "--out", "c.html", "--out", "c.json"]) == 0
    printed = capsys.readouterr().out
    assert "good is better than bad" in printed and "NOT the same" not in printed
    found = json.loads(Path("c.json").read_text(encoding="utf-8"))
    d = found["differences"][0]
    assert d["metric"] == "accuracy" and d["high"] < 0 and found["rows"] == len(said)
    page = Path("c.html").read_text(encoding="utf-8")
    assert "<script" not in page and "good is better than bad" in page


def test_a_run_and_its_copy(trained, capsys, ends):
    shutil.copytree(trained, "copy")
    assert main(["compare", str(trained), "copy"]) == 0
    assert "No difference of the accuracy is sure" in capsys.readouterr().out
    refused(ends("compare", trained, trained), "is named twice")


def test_runs_that_cannot_be_compared(trained, ends):
    refused(ends("compare", trained), "name two or more")
    refused(ends("compare", trained, "nowhere"), "nowhere is no run")
    said = other_run(trained, "other", .5)
    said.labels[1] = "<b>fair"
    said.save("other")
    refused(ends("compare", trained, "other"), "has other labels", "<b>fair")
    said = read_predictions(trained)
    said.frame = said.frame.iloc[:5]
    said.save("other")
    refused(ends("compare", trained, "other"), "5 test rows in common")
    Path("other", PREDICTIONS_FILE).write_bytes(b"PAR1")
    refused(ends("compare", trained, "other"), "or damaged")
    Path("other", PREDICTIONS_FILE).unlink()
    refused(ends("compare", trained, "other"), "holds no predictions.parquet")
    shutil.copytree(trained, "copy")
    refused(ends("compare", trained, "copy", "--out", "a.csv"), ".html or .json")


def test_masked_rows_are_known_as_masked(tiny):
    rows = [row | {"text": f"{row['text']} eve{i}@example.org"}
            for i, row in enumerate(rows_of(60))]
    table = write_csv("m.csv", rows)
    words = ["classify", "-p", "table", table, *SMALL, tiny, "-p", "mask"]
    assert run_here(*words, "true", "--out", "m") == 0
    assert read_predictions("m").masked
    assert "example.org" not in Path("m", PREDICTIONS_FILE).read_bytes().decode("latin-1")
    assert isinstance(read_predictions("m").frame, pd.DataFrame)
