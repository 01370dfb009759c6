"""Runs of the recipes for tables, ladders, pictures and decisions, each in a second or two."""
import functools
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from harness import Found, Outcome, ask, error_of, guard_lines, run_recipe, write_table
from insight_nb.apps.monitor.stream import simulate_stream
from insight_nb.decide.series.forecast import backtest_forecasts
from insight_nb.decide.series.series import Series
from table_checks import CHECKS
from text_runs import rows, tiny

RUNGS = "majority,TF-IDF + linear,full fine-tune"


def loans(n=300, seed=0):
    "An outcome that two columns tell; each customer has two rows; a date for each."
    rng = np.random.default_rng(seed)
    x, z, late = rng.normal(size=n), rng.integers(0, 4, n), rng.normal(size=n)
    y = rng.random(n) < 1 / (1 + np.exp(-(1.5 * x - z + 1.2)))
    return pd.DataFrame({
        "income": 100 + 20 * x, "kind": np.array(["a", "b", "c", "d"])[z], "noise": late,
        "customer": np.arange(n) // 2, "day": rng.permutation(n),
        "label": np.where(y, "yes", "no")})


def visits(n=60, seed=0):
    "Users of two tastes, who see the items of their taste one after another."
    rng, made = np.random.default_rng(seed), []
    for user in range(n):
        taste = user % 2
        items = rng.permutation(20)[:14] + 20 * taste
        start = rng.integers(0, 20)
        for k, item in enumerate(items):
            made.append({"user": f"u{user}", "item": f"i{item}", "kind": "ab"[taste],
                         "time": 1.7e9 + 86400 * (start + 5 * k) + user})
    return pd.DataFrame(made)


def posts(seed=0):
    return simulate_stream(n_days=50, texts_per_day=60, surge=.25, surge_start=40, surge_days=10,
                           seed=seed)


EVIDENCE = {
    "schema": 1, "task": "classify", "data": {"source": "made up", "rows": {"test": 800},
                                              "sha256": "0" * 64, "labels": ["bad", "good"]},
    "model": {"backbone": "x", "identity": "y", "method": "full"}, "baseline": {},
    "metrics": {"accuracy": {"value": .9, "low": .877, "high": .919, "n": 800,
                             "method": "Wilson 95 %"}},
    "calibration": None, "cost": {"predict_ms_per_text": 2.},
    "guard": [{"check": "reload_equal", "passed": True, "detail": "all the same"}], "seed": 0,
    "versions": {}}
ASSUMED = """title: Sort or not?
currency: EUR
period: year
periods: {value: 2, source: "a test: two years"}
volume: {value: 1000, source: "a test: a thousand"}
gain: {value: 2, source: "a test: two"}
loss: {value: 5, source: "a test: five"}
unit: {value: 0, source: "a test: nothing"}
running: {value: 0, source: "a test: nothing"}
build: {value: 400, source: "a test: four hundred"}
decay: {value: 0, source: "a test: nothing"}
rate: {value: 0.1, source: "a test: a tenth"}
"""


def given_of(kind, folder) -> tuple:  # the recipe, its table or None, its parameters
    small = {"folds": 3, "repeats": 1, "compare": False}
    if kind == "decide":
        (folder / "evidence.json").write_text(json.dumps(EVIDENCE))
        (folder / "assumed.yaml").write_text(ASSUMED)
        return "decide", None, {"evidence": [str(folder / "evidence.json")],
                                "assumptions": str(folder / "assumed.yaml")}
    return {
        "risk": ("risk", loans, small | {"drop": "customer, day"}),
        "risk by group": ("risk", loans, small | {"group": "customer", "drop": "day"}),
        "risk by time": ("risk", loans, small | {"time": "day", "drop": "customer"}),
        "ladder": ("ladder", rows, {"rungs": RUNGS, "backbone": tiny(), "max_length": 32,
                                    "method": "full", "epochs": 6, "batch_size": 8,
                                    "learning_rate": 5e-3, "device": "cpu",
                                    "state": str(folder / "state")}),
        "recommend": ("recommend", visits, {"text": None, "categories": "kind", "folds": 1}),
        "monitor": ("monitor", posts, {"id": "id", "opinion": "said", "truth": "truth",
                                       "now": "2026-12-01", "drift": False}),
        "diagnose": ("diagnose", None, {"rows": 500, "folds": 0, "epochs": 4, "augment": False,
                                        "device": "cpu"}),
    }[kind]


def run_table(kind, folder: Path) -> list:
    "Run the recipe on a small table; then ask all questions."
    recipe, make, given = given_of(kind, folder)
    outcome = Outcome(folder / "run", frame=make and make())
    outcome.kind, outcome.make, outcome.given = kind, make, given
    asked = given | {"out": str(outcome.folder)}
    if make:
        asked["table"] = write_table(folder / "table.csv", outcome.frame)
    outcome.folder.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "ladder":  # the state folder has the answers of an earlier, other table
                other = write_table(folder / "other.csv", make(seed=5))
                run_recipe(recipe, asked | {"table": other, "out": str(folder / "earlier")})
            outcome.names = run_recipe(recipe, asked)
    except Exception as e:
        return [error_of(e)]
    if kind == "decide":
        failed = outcome.names["decision"].failed
        outcome.found += [Found("guard: decision", line) for line in failed]
    else:
        outcome.found += guard_lines(outcome.report)
    ask([c for c in CHECKS if kind.startswith(c.__name__.split("_")[0])], outcome)
    return outcome.found


def run_forecast(folder) -> list:
    "A series with a season; forecasts from earlier dates."
    rng, t = np.random.default_rng(0), np.arange(72)
    values = 100 + t + 20 * np.sin(t * np.pi / 6) + rng.normal(size=72) * 3
    outcome = Outcome(folder)
    series = Series("sales", values, pd.period_range("2018-01", periods=72, freq="M"), "month", 12)
    try:
        outcome.back = backtest_forecasts(series, 6, 5, ())
        outcome.values = values
    except Exception as e:
        return [error_of(e)]
    ask([c for c in CHECKS if c.__name__.startswith("forecast")], outcome)
    return outcome.found


TABLE_KINDS = ("risk", "risk by group", "risk by time", "ladder", "recommend", "monitor",
               "diagnose", "decide")
TABLE_RUNS = {kind: functools.partial(run_table, kind) for kind in TABLE_KINDS}
TABLE_RUNS["forecast"] = run_forecast
