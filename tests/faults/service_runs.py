"""Runs of what comes after training: a bundle is updated, its answers are corrected, and it is
exported. The bundles that they begin with are made once, before anything is planted."""
import contextlib
import functools
import io
import json
import random
import sqlite3
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from harness import Found, Outcome, ask, error_of, guard_lines, run_recipe, write_table
from insight_nb.base.core import InputError, hash_folder
from insight_nb.base.tensors import set_seed
from insight_nb.cli import main
from insight_nb.jobs import update_rows
from insight_nb.jobs.loading import open_bundle
from insight_nb.jobs.rungs import save_rung
from insight_nb.jobs.text_estimators import TextClassifier
from insight_nb.methods.classical import Tfidf
from insight_nb.models.backbone import load_backbone
from insight_nb.models.tasks import ClassificationTask, Model, MultiLabelTask
from insight_nb.ship import export, feedback
from insight_nb.ship.bundle import load_bundle, read_info, save_bundle
from insight_nb.ship.export import export_bundle
from insight_nb.ship.feedback import Answered, FeedbackStore, bundle_version
from insight_nb.ship.predict import bundle_logits, predict
from service_checks import CHECKS
from text_runs import FILL, HOW, clustered, rows, say, tiny

KEPT = []  # folders of bundles, for as long as this process


def keep() -> Path:
    KEPT.append(tempfile.TemporaryDirectory())
    return Path(KEPT[-1].name)


# Update


def moods(n, seed, names):
    "Texts of these labels alone."
    frame = rows(4 * n, seed, 0)
    return frame[frame.label.isin(names)][["text", "label"]].drop_duplicates("text").head(n)


@functools.cache
def first_bundle() -> Path:
    "It knows two labels; `fair` is new to it."
    folder, frame = keep() / "first", moods(160, 0, ["bad", "good"])
    model = TextClassifier(tiny(), **HOW | {"epochs": 12})
    model.fit(frame.text.tolist(), frame.label.tolist()).save(folder)
    return folder


def update_tables() -> dict:
    "New rows, the last four of which correct old ones to the new label."
    old = moods(160, 0, ["bad", "good"])
    wrong = old.head(4).assign(label="fair")
    return {"old": old, "table": pd.concat([moods(80, 1, ["fair"]), wrong]),
            "old_test": moods(100, 2, ["bad", "good"]), "test": moods(60, 3, ["fair"])}


def run_update(folder: Path, strategy="replay+distill") -> list:
    outcome = Outcome(folder / "run", frame=update_tables())
    outcome.folder.mkdir()
    outcome.kind, outcome.first, outcome.strategy = "update", first_bundle(), strategy
    outcome.make = lambda seed: moods(120, seed, ["bad", "good", "fair"])
    before = hash_folder(outcome.first)
    given = {k: v for k, v in HOW.items() if k != "max_length"} | {"epochs": 8}
    given |= {name: write_table(folder / f"{name}.csv", frame)
              for name, frame in outcome.frame.items()}
    given |= {"bundle": str(outcome.first), "out": str(outcome.folder), "compare": False,
              "keep_rows": 15, "limit": 5., "strategy": strategy}
    try:
        outcome.names = run_recipe("update", given)
        outcome.found += guard_lines(outcome.report)
    except Exception as e:
        return [error_of(e)]
    outcome.untouched = before == hash_folder(outcome.first)
    ask([c for c in CHECKS if c.__name__.startswith("update")], outcome)
    return outcome.found


# Feedback


@functools.cache
def words_bundle() -> Path:
    "Without an encoder, and not very good."
    folder, frame = keep() / "words", clustered(40, 1)
    y = (frame.label == "good").astype(int).to_numpy()
    save_rung(folder, Tfidf().fit(frame.text.tolist(), y, ["bad", "good"]))
    return folder


def serve(path, texts) -> dict:  # a file to make -> id: chance, of answers that were drawn
    "Answers half of which are drawn when they are given, as a service gives them."
    bundle = open_bundle(words_bundle())
    answers, probs = bundle.answer(texts)
    with FeedbackStore(path, review=.5) as store:
        store.add(Answered("another", "v9", "classify"), ["another model's text"], [("good", .9)])
        by = Answered.of_bundle(bundle, "words")
        notes = store.add(by, texts, [(a, float(max(p))) for a, p in zip(answers, probs)])
    return {note["id"]: .5 for note in notes if note["review"]}


def read_store(path) -> pd.DataFrame:
    with contextlib.closing(sqlite3.connect(path)) as sql:
        rows = pd.read_sql("select id, version, texts, answer from answers", sql)
        corrected = [key for key, in sql.execute("select id from corrections")]
    return rows.assign(text=[json.loads(t)[0] for t in rows.texts],
                       answer=[json.loads(a) for a in rows.answer]), corrected


def command(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(word) for word in words]) == 0, words


def complain(o):
    "Users correct wrong answers that they see, some of them twice."
    with FeedbackStore(o.path) as store:
        rows = store.frame()
        for i, row in enumerate(rows.itertuples()):
            text = row.texts[0]
            if row.id in o.drawn or row.answer == o.truth[text] or i % 3 == 0:
                continue
            if i % 2:
                store.correct(row.id, "no idea")
            store.correct(row.id, o.truth[text])
        store.correct(texts="another model's text", label="bad")


def fill_in(o, n=200):
    "A sample is drawn, and filled in by somebody who reads the texts."
    drawn, before = o.folder / "drawn.csv", {*o.drawn}
    command("feedback", "sample", o.path, "--rows", n, "--out", drawn)
    table = pd.read_csv(drawn)
    with FeedbackStore(o.path) as store:
        pool = len(store.frame()) - len(before) - 1  # one is of another bundle
        o.drawn |= {key: (n - len(before)) / pool for key in table.id if key not in before}
        table.assign(label=table.text.map(o.truth)).to_csv(drawn, index=False)
        done = store.import_table(pd.read_csv(drawn))
        o.found += [Found("error", why) for _, why in done.errors[:1]]
        o.estimates = store.estimates()


def forget(o):
    "The first 50 answers are 40 days old, and are deleted."
    o.old = {*o.rows.id[:50]}
    with contextlib.closing(sqlite3.connect(o.path)) as sql, sql:
        sql.executemany("update answers set at = at - 40 * 86400 where id = ?",
                        [(key,) for key in o.old])
    with FeedbackStore(o.path) as store:  # and stays open, as in a service
        store.purge(30)
        o.bytes = b"".join(f.read_bytes() for f in o.folder.glob("answers.db*"))
    o.left, o.corrected = read_store(o.path)


def hide(o):
    o.secret, o.digests = "a text that is nobody's business", []
    for name in ("one", "two"):
        with FeedbackStore(o.folder / f"{name}.db", keep_texts=False) as store:
            store.add(Answered("m", "v", "classify"), [o.secret], [("good", .9)])
            o.digests.append(store.db.read("select digest from answers")[0][0])
    o.hashed = b"".join(f.read_bytes() for f in o.folder.glob("one.db*"))


def run_feedback(folder: Path) -> list:
    "Answers are given, corrected, drawn, filled in, learned from and deleted."
    o = Outcome(folder)
    o.kind, o.path, frame = "feedback", folder / "answers.db", clustered(400, 3)
    frame["text"] = [f"{text} {i}" for i, text in enumerate(frame.text)]
    o.truth = dict(zip(frame.text, frame.label))
    o.truth |= {"another model's text": "bad"}
    draw = random.Random(0)
    try:
        with mock.patch.object(feedback.secrets, "SystemRandom", lambda: draw):
            o.drawn = serve(o.path, frame.text[:200].tolist())
            table = write_table(folder / "new.csv", frame[["text"]][200:])
            command("predict", words_bundle(), table, "--out", folder / "out.csv",
                    "--feedback", o.path)
            complain(o)
            o.version = bundle_version(read_info(words_bundle()))
            fill_in(o)
        o.rows, _ = read_store(o.path)
        learned, o.notes = update_rows.feedback_rows(o.path, read_info(words_bundle()))
        o.learned = learned
        line = update_rows.check_fair_test(learned)
        o.found += [Found("guard: fair_test", line.detail)] if line.passed is False else []
        forget(o)
        hide(o)
    except (InputError, AssertionError) as e:
        return [*o.found, error_of(e)]
    ask([c for c in CHECKS if c.__name__.startswith("feedback")], o)
    return o.found


# Export


@functools.cache
def export_bundles() -> Path:
    "One label for each text; any number of three labels, each with its threshold."
    folder, backbone = keep(), load_backbone(tiny())
    texts = asked_texts()
    for name, task in (("one", ClassificationTask(("bad", "fair", "good"), pool="cls")),
                       ("several", MultiLabelTask(("bad", "fair", "good"), pool="cls"))):
        set_seed(0)
        model = Model(backbone, task).eval()
        torch.nn.init.normal_(model.head.linear.weight, std=.7)
        save_bundle(folder / name, model, 24, 1.4 if name == "one" else 1.)
        if name == "one":  # each label is given to some
            logits = bundle_logits(load_bundle(folder / name, device="cpu"), texts)
            model.head.linear.bias.data -= torch.tensor(np.median(logits, axis=0))
            save_bundle(folder / name, model, 24, 1.4, force=True)
        if name == "several":
            middle = np.median(predict(load_bundle(folder / name, device="cpu"), texts)[1], axis=0)
            model.task = MultiLabelTask(task.names, thresholds=middle, pool="cls")
            save_bundle(folder / name, model, 24, 1., force=True)
    return folder


def asked_texts():
    "Some are longer than 24 tokens."
    draw = random.Random(0)
    return [" ".join([say(draw, "good"), *draw.choices(FILL, k=draw.randint(0, 30))])
            for _ in range(40)]


def run_export(folder: Path) -> list:
    "A classifier for transformers, several labels for ONNX, and an encoder."
    o = Outcome(folder)
    o.kind, o.bundles, o.asked = "export", export_bundles(), asked_texts()
    o.labels = predict(load_bundle(o.bundles / "one", device="cpu"), o.asked)[0]
    o.labels[::4] = ["bad"] * len(o.labels[::4])
    for target, name, out, truth in (("transformers", "one", "transformers", o.labels),
                                     ("onnx", "several", "onnx", None),
                                     ("sentence-transformers", "one", "vectors", None)):
        try:
            export_bundle(o.bundles / name, target, folder / out, o.asked, truth)
        except (InputError, export.ExportRefused) as e:
            o.found.append(error_of(e))
    if not o.found:
        ask([c for c in CHECKS if c.__name__.startswith("export")], o)
    return o.found


SERVICE_RUNS = {"update": run_update, "feedback": run_feedback, "export": run_export}
run_update.prepare, run_feedback.prepare = first_bundle, words_bundle
run_export.prepare = export_bundles
