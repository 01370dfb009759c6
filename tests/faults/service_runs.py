"""Runs of what comes after training: a bundle is updated, its answers are corrected, and it is
exported. The bundles that they begin with are made once, before anything is planted."""
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import Found, Outcome, ask, error_of, guard_lines, run_recipe, write_table
from insight_nb.base.core import hash_folder
from insight_nb.base.tensors import set_seed
from insight_nb.jobs.feedback_rows import check_fair_test, feedback_rows
from insight_nb.jobs.rungs import save_rung
from insight_nb.jobs.text_estimators import TextClassifier
from insight_nb.methods.classical import Tfidf
from insight_nb.models.backbone import load_backbone
from insight_nb.models.tasks import ClassificationTask, Model, MultiLabelTask
from insight_nb.ship.bundle import load_bundle, read_info, save_bundle
from insight_nb.ship.export import export_bundle
from insight_nb.ship.feedback import Answered, FeedbackStore
from insight_nb.ship.predict import predict
from service_checks import CHECKS
from text_runs import HOW, rows, say, tiny

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


SERVICE_RUNS = {"update": run_update}
for run in SERVICE_RUNS.values():
    run.prepare = first_bundle
