"""A column that is missing is called a missing column, with the names that are there: in every
recipe, for every parameter that names one."""

import numpy as np
import pandas as pd
import pytest
from conftest import refused, rows_of

N = 120
ROWS = pd.DataFrame(rows_of(N)).assign(
    second=[f"reply {i}" for i in range(N)],
    team=[f"g{i % 30}" for i in range(N)],
    day=pd.date_range("2026-01-01", periods=N).astype(str),
    w=1.5,
    stars=range(N),
    reply="yes",
    said="good",
    off="no",
)
VISITS = pd.DataFrame(
    {
        "user": [f"u{i % 20}" for i in range(400)],
        "item": [f"i{i * 7 % 15}" for i in range(400)],
        "time": range(400),
        "rating": 5,
        "event": "view",
        "title": "abc",
        "kind": "a|b",
    }
)
LOANS = pd.DataFrame(
    {
        "label": np.arange(N) % 2,
        "x": np.arange(N) % 7,
        "id": range(N),
        "team": np.arange(N) % 40,
        "day": range(N),
        "sex": ["a", "b"] * (N // 2),
    }
)
WORDS = pd.DataFrame({"words": [["Ann", "left"]] * N, "tags": [["B-PER", "O"]] * N})
WORDS = WORDS.assign(team=range(N), day=range(N))
PATHS = pd.DataFrame({"file": ["a.png"] * N, "label": ["a", "b"] * (N // 2), "team": range(N)})
TEXT, SPLIT = {"text": "text", "label": "label"}, {"group": "team", "time": "day"}
COLUMNS = {  # recipe -> its table, and the parameters that name a column of it
    "classify": (ROWS, TEXT | SPLIT | {"weight": "w"}),
    "multilabel": (ROWS, TEXT | SPLIT | {"weight": "w"}),
    "pair": (ROWS, TEXT | SPLIT | {"weight": "w", "second": "second"}),
    "regress": (ROWS, SPLIT | {"text": "text", "label": "stars", "weight": "w"}),
    "ladder": (ROWS, TEXT | SPLIT),
    "assistant": (ROWS, TEXT | SPLIT | {"answer": "reply"}),
    "tag": (WORDS, SPLIT | {"text": "words", "label": "tags"}),
    "risk": (LOANS, SPLIT | {"label": "label", "drop": "id", "sensitive": "sex"}),
    "diagnose": (PATHS, {"path": "file", "label": "label", "group": "team"}),
    "monitor": (
        ROWS,
        {"text": "text", "date": "day", "topic": "label", "opinion": "said", "truth": "said"}
        | {"id": "w", "holiday": "off", "probability": "w"},
    ),
    "label": (ROWS, {"text": "text"}),
    "recommend": (
        VISITS,
        {"user": "user", "item": "item", "time": "time", "rating": "rating", "event": "event"}
        | {"text": "title", "categories": "kind"},
    ),
}
CASES = [(recipe, what) for recipe, (_, names) in COLUMNS.items() for what in names]


@pytest.mark.parametrize("recipe, what", CASES)
def test_a_missing_column_is_called_one(recipe, what, ends):
    frame, names = COLUMNS[recipe]
    if what in SPLIT and recipe not in ("monitor", "recommend"):
        names = {k: v for k, v in names.items() if k == what or k not in SPLIT}
    else:
        names = {k: v for k, v in names.items() if k not in SPLIT or recipe == "recommend"}
    column = names[what]
    frame.rename(columns={column: "another"}).to_json("t.jsonl", orient="records", lines=True)
    given = [w for k, v in names.items() for w in ("-p", k, v)]
    end = ends("run", recipe, "-p", "table", "t.jsonl", *given, "--out", "o")
    refused(end, repr(column), "column")
    assert "Known: " in end.lines[0] or "Did you mean" in end.lines[0], end.lines[0]
