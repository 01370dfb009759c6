"""Each line of the guard is green in a sound run of the recipe, and turns red when its fault is
planted in one."""
import functools
import random

import numpy as np
import pytest
from conftest import tiny_encoder, write_csv
from insight_nb.cli import recipes
from insight_nb.jobs import training
from notebooks import Notebook, _python

WORDS = {
    "bad": "broken dirty late rude cold noisy", "good": "lovely warm friendly clean bright quiet"}


def sound(n=160):
    "Texts that two classes can be told apart by, all different."
    def pick(i, label): return " ".join(random.Random(i).sample(WORDS[label].split(), 3))

    return [{
        "text": f"{pick(i, label)} stay number {i * 7919 % 10007} of the year", "label": label
    } for i, label in zip(range(n), ["bad", "good"] * n)]


def rotten(n=160):
    "Chinese texts with random labels, a fifth of them copies, and a class of four rows."
    def said(i): return "".join(random.Random(i).choices("房间很好干净早餐服务安静冷脏晚", k=30))

    rows = [{"text": said(i % int(n * .8)), "label": random.Random(-i).choice(["bad", "good"])}
            for i in range(n)]
    return rows + [{"text": said(-i - 1), "label": "rare"} for i in range(4)]


def run(table, names=None, **given):
    "The recipe's cells, run here. Returns all its names."
    names = {} if names is None else names
    names["display"] = lambda *_: None
    for cell in Notebook(recipes()["classify"]).code:
        exec(compile(_python(cell.source), "classify", "exec"), names)
        if "parameters" in cell.tags:
            names.update({"table": table, "max_length": 32, "epochs": 2} | given)
    return names

def guard(names): return {c.name: c.passed for c in names["report"].guard}


@pytest.fixture
def table(tmp_path): return write_csv(tmp_path / "table.csv", sound())


def test_a_sound_run_is_green(table):
    lines = guard(run(table))
    assert len(lines) == 13 and {k for k, v in lines.items() if v is None
                                 } == {"adapters_changed", "ranks_moved"}
    assert all(lines[k] for k in lines if lines[k] is not None), lines


def test_faults_in_data_and_training_turn_red(tmp_path, monkeypatch):
    copies = functools.partial(training.split, keep_duplicates=True)
    monkeypatch.setattr(training, "split", copies)
    table = write_csv(tmp_path / "table.csv", rotten())
    tiny_encoder("tiny")
    lines = guard(run(table, backbone="tiny", max_length=8, learning_rate=1e-12, epochs=8,
                      anyway=True))
    wrong = {k for k, v in lines.items() if v is False}
    assert wrong == {"loss_fell", "beats_majority", "truncation", "split_duplicates",
                     "small_classes", "language"}


def test_faults_in_code_turn_red(table, monkeypatch):
    names = {}
    predict_frame, load_bundle = training.predict_frame, training.load_bundle
    bundle_logits = training.bundle_logits

    def shuffled(bundle, frame, *args, **how):
        words = names["model"].trainer_.model.backbone.encoder.embeddings.word_embeddings
        words.weight.data[29_000] = float("nan")  # of a word that no row has
        out = predict_frame(bundle, frame, *args, **how)
        new = [c for c in out if c not in frame]
        out[new] = out[new].iloc[::-1].to_numpy()
        return out

    def swapped(folder, **how):
        bundle = load_bundle(folder, **how)
        bundle.info["labels"] = bundle.info["labels"][::-1]
        return bundle

    def shifted(*args): return bundle_logits(*args) + np.float32(1)

    for name, fault in (("predict_frame", shuffled), ("load_bundle", swapped),
                        ("bundle_logits", shifted)):
        monkeypatch.setattr(training, name, fault)
    wrong = {k for k, v in guard(run(table, names)).items() if v is False}
    assert wrong == {"weights_finite", "label_order", "row_order", "reload_equal"}


def test_a_dead_run_ends_in_a_report_that_says_so(table):
    tiny_encoder("tiny")
    names = run(table, backbone="tiny", learning_rate=1e6)
    assert len(names["model"].trainer_.collapses) == 2 and guard(names)["loss_fell"] is False
    assert "Training ended early: collapsed twice" in names["report"].verdict()
