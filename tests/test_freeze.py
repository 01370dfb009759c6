"""Frozen lower layers: the answers of a training that computes them once are those of one that
computes them in every step; what can't be frozen is said in one line."""
import json
import os
import signal
import subprocess
import time

import insight_nb.train.trainer as trainer
import numpy as np
import pytest
import torch
from compare_runs import COMMAND, content, files_of
from conftest import LABELS, rows_of, run_here, tiny_encoder, write_csv
from insight_nb import (
    MultiLabelClassifier, PairClassifier, SpanTagger, TextClassifier, TextRegressor, load)
from insight_nb.cli import checkpoint_file, main
from insight_nb.train.layer_cache import LayerCache
from safetensors.torch import load_file
from transformers import AutoModel

ROWS = rows_of(90)
TEXTS = ["a", "。", *(row["text"] for row in ROWS)] # two of a single token
CLASSES = [LABELS[0], LABELS[1], *(row["label"] for row in ROWS)]
WORDS = [text.split() or ["none"] for text in TEXTS]
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1]))
SETS = [[c, LABELS[i % 2]] for i, c in enumerate(CLASSES)]
TAGS = [["B-A" if word.isdigit() else "O" for word in words] for words in WORDS]
JOBS = {"text": (TextClassifier, TEXTS, CLASSES, {}),
        "windows": (TextClassifier, TEXTS, CLASSES, {"windows": True, "max_length": 12}),
        "pairs": (PairClassifier, PAIRS, CLASSES, {}),
        "labels": (MultiLabelClassifier, TEXTS, SETS, {}),
        "numbers": (TextRegressor, TEXTS, [float(len(text)) for text in TEXTS], {}),
        "tags": (SpanTagger, WORDS, TAGS, {"options": {"casing": False}})}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_encoder(folder, layers=3)
    return str(folder)


def fit(encoder, job="text", **more):
    kind, X, y, how = JOBS[job]
    options = {"freeze": 2} | how.get("options", {}) | more.pop("options", {})
    given = {"backbone": encoder, "epochs": 2, "batch_size": 8, "device": "cpu"} | how | more
    return kind(**given | {"options": options}).fit(X, y)


def weights(model): return model.bundle_.model.state_dict()


def caches(model): return [c for c in model.trainer_.callbacks if isinstance(c, LayerCache)]


@pytest.mark.parametrize("job", JOBS)
def test_a_training_that_keeps_their_output_gives_the_same(job, encoder, monkeypatch):
    monkeypatch.setattr(trainer, "default_precision", lambda device="cpu": "no")
    kept = fit(encoder, job)
    assert [c.reason for c in caches(kept)] == [""] and caches(kept)[0].size_mb > 0
    rows = kept.trainer_.train_dataset, kept.trainer_.valid_dataset
    assert [r.hidden for r in rows] == [None, None] # what was kept is gone
    monkeypatch.setattr(LayerCache, "obstacle", lambda self, trainer: "of a test")
    plain = fit(encoder, job) # dropout above the frozen layers draws the same numbers
    assert [c.reason for c in caches(plain)] == ["of a test"]
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(kept)[name], value, rtol=0, atol=1e-5)


def test_what_is_frozen_stays_and_the_bundle_has_it(encoder, tmp_path):
    model, again = fit(encoder), fit(encoder)
    for name, value in weights(model).items(): # same seed, same bytes
        assert torch.equal(weights(again)[name], value), name
    model.save(tmp_path / "bundle")
    opened = load(tmp_path / "bundle")
    np.testing.assert_allclose(opened.predict_proba(TEXTS), model.predict_proba(TEXTS), atol=1e-6)
    before, after = (AutoModel.from_pretrained(f).state_dict()
                     for f in (encoder, tmp_path / "bundle" / "encoder"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    layers = {name for name in before if ".layer." in name}
    assert {name for name in layers & same} == {n for n in layers if ".layer.2." not in n}
    assert {name for name in before if name.startswith("embeddings")} <= same
    held = {id(p) for g in model.trainer_.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in model.bundle_.model.parameters() if p.requires_grad}


def test_with_a_decay_unfreezing_and_the_mean_of_weights(encoder):
    more = {"layer_decay": .8, "unfreeze": True, "weight_averaging": True}
    model = fit(encoder, options=more)
    first = AutoModel.from_pretrained(encoder).state_dict()["encoder.layer.1.output.dense.weight"]
    now = weights(model)["backbone.encoder.encoder.layer.1.output.dense.weight"]
    assert torch.equal(first, now)


def test_a_tagger_that_learns_casing_keeps_nothing(encoder):
    model = fit(encoder, "tags", options={"casing": True})
    assert "casing false leaves that out" in caches(model)[0].summary()
    assert "computed in each epoch anew" in caches(model)[0].summary()


def tables_of(folder):
    rows = [row | {"second": ROWS[i - 1]["text"], "number": i, "labels": f"{row['label']};x"}
            for i, row in enumerate(ROWS)]
    return write_csv(folder / "rows.csv", rows)


@pytest.mark.parametrize("recipe, given", [
    ("classify", {}), ("multilabel", {"label": "labels"}),
    pytest.param("pair", {"second": "second"}, marks=pytest.mark.slow),
    pytest.param("regress", {"label": "number"}, marks=pytest.mark.slow)])
def test_a_recipe_says_what_was_frozen(recipe, given, encoder, tmp_path):
    words = {"table": tables_of(tmp_path), "backbone": encoder, "epochs": 1, "freeze": 2,
             "anyway": "true"} | given
    out = tmp_path / "out"
    assert run_here(recipe, *(w for k, v in words.items() for w in ("-p", f"{k}", v)),
                    "--out", out) == 0
    evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["model"]["frozen_layers"] == 2
    rule = evidence["model"]["rule"]
    assert "the lowest 2 layers of 3 are frozen, without dropout" in rule
    assert "computed once and kept: " in rule and "MB in memory" in rule
    guard = {g["check"]: g["passed"] for g in evidence["guard"]}
    assert guard["reload_equal"] and guard["adapters_changed"] is None
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "the lowest 2 layers of 3 are frozen" in report


@pytest.mark.parametrize("given, word", [
    ({"freeze": "3"}, "only the head is trained. Take method frozen."),
    ({"freeze": "7"}, "the encoder has 3 layers: freeze at most 2."),
    ({"freeze": "-1"}, "freeze is -1: give a whole number from 0"),
    ({"freeze": "1.5"}, "must be a whole number, not '1.5'"),
    ({"freeze": "two"}, "must be a whole number, not 'two'"),
    ({"freeze": "1", "method": "bitfit"}, "take method full, or leave freeze out"),
    ({"freeze": "1", "method": "frozen"}, "take method full, or leave freeze out")])
def test_what_cannot_be_frozen_is_said(given, word, encoder, tmp_path, capsys):
    words = [w for k, v in given.items() for w in ("-p", k, v)]
    assert run_here("classify", "-p", "backbone", encoder, *words, "--out", tmp_path / "a") == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1, said
    assert not (tmp_path / "a").exists()


def start(*words):
    ready = os.environ | {"INSIGHT_NB_CHECKPOINT_SECONDS": "0", "INSIGHT_NB_PROGRESS": "quiet"}
    return subprocess.Popen([*COMMAND, *words], env=ready, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_that_was_cut_off_goes_on(processes, encoder, tmp_path, capsys):
    table = write_csv(tmp_path / "rows.csv", rows_of(400))
    words = ["run", "classify", "-p", "table", table, "-p", "backbone", encoder, "-p", "epochs",
             "3", "-p", "max_length", "24", "-p", "batch_size", "4", "-p", "processes", processes]
    frozen, whole, cut = ["-p", "freeze", "2"], tmp_path / "whole", tmp_path / "cut"
    assert main([*words, *frozen, "--out", str(whole)]) == 0
    process = start(*words, *frozen, "--out", str(cut))
    while not checkpoint_file(cut).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert main([*words, "-p", "freeze", "1", "--out", str(cut), "--resume"]) == 2
    assert "another method" in capsys.readouterr().err
    assert main([*words, *frozen, "--out", str(cut), "--resume"]) == 0
    if processes == "1": # to the byte
        different = [n for n in files_of(whole) if content(whole / n) != content(cut / n)]
        assert files_of(whole) == files_of(cut) and different == []
    else:
        evidence = json.loads((cut / "evidence.json").read_text(encoding="utf-8"))
        guard = {g["check"]: g["passed"] for g in evidence["guard"]}
        assert guard["processes_agree"] and guard["reload_equal"]
        body = load_file(cut / "bundle" / "encoder" / "model.safetensors")
        first = AutoModel.from_pretrained(encoder).state_dict()
        assert all(torch.equal(first[k], v) for k, v in body.items() if ".layer.1." in k)
