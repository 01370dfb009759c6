"""The recommender as a whole: the recipe on small tables, bad input, and what must hold for any
rows."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import in_process, refused, run_here, write_csv
from insight_nb.apps.recommend.collaborative import (
    EASE,
    ItemKNN,
    Popularity,
    Fold,
    eval_users,
    split_by_time,
    leave_last_out,
    check_split,
    open_interactions,
    rank,
    clean_interactions,
)
from insight_nb.apps.recommend.recommender import (
    Hybrid,
    Recommender,
    build_catalog,
    item_features,
    item_vectors,
    load_recommender,
)
from insight_nb.cli import recipes
from insight_nb.base.core import InputError
from insight_nb.data.samples import load_sample

METRICS = {"ndcg_at_10", "recall_at_10", "hit_rate_at_10", "coverage_at_10"}


def small(rows=800):
    return load_sample("synthetic_visits", rows)


def save(frame, name="visits.csv"):
    frame.to_csv(name, index=False)
    return name


def test_a_run_leaves_what_it_promises(tmp_path):
    frame = small(700)
    frame.loc[frame.item == "t001", "text"] = "<script>alert(1)</script> 侦探"
    frame.loc[3, "rating"] = np.nan
    given = {"table": save(frame), "categories": "kind", "event": "event", "target_event": "buy",
             "min_history": 2, "folds": 1}
    words = [w for pair in given.items() for w in ("-p", *pair)]
    status = run_here("recommend", *words, "--out", "out")
    assert status == 0
    e = json.loads((tmp_path / "out" / "evidence.json").read_text(encoding="utf-8"))
    assert (
        e["schema"] == 1
        and e["task"] == "recommend"
        and METRICS <= set(e["metrics"])
        and METRICS <= set(e["baseline"])
    )
    assert set(e) >= {
        "data",
        "model",
        "calibration",
        "cost",
        "guard",
        "seed",
        "versions",
        "protocol",
        "paired_gain",
        "beside",
    }
    assert {"popularity", "recent popularity", "EASE", "ItemKNN", "hybrid"} <= set(e["beside"])
    for m in e["metrics"].values():
        assert m["low"] <= m["value"] <= m["high"] and m["n"] > 0
    checks = {c["check"]: c["passed"] for c in e["guard"]}
    assert (
        checks["time_leak"]
        and checks["reload_equal"]
        and checks["tied_times"]
        and checks["known_rows"] is not None
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "popularity" in page and "split by time" in page
    made = load_recommender(tmp_path / "out" / "bundle")
    assert (
        len(made.recommend(["t001", "t002"]).items) == 10
        and "u001" not in (tmp_path / "out" / "bundle" / "items.json").read_text()
    )


def test_items_of_their_own_and_the_last_visit(tmp_path):
    frame = small(600)
    things = frame.drop_duplicates("item")[["item", "text", "kind"]]
    things = pd.concat(
        [
            things,
            pd.DataFrame(
                {
                    "item": ["n1", "n2", "n3"],
                    "text": ["a book of soup", "", "侦探的故事"],
                    "kind": ["cooking", "crime", None],
                }
            ),
        ]
    )
    in_process(
        recipes()["recommend"],
        "n.ipynb",
        {
            "table": save(frame.drop(columns=["text", "kind"])),
            "items": save(things, "items.csv"),
            "categories": "kind",
            "split": "last",
            "history": 2,
            "folds": 1,
            "out": "out",
        },
    )
    e = json.loads((tmp_path / "out" / "evidence.json").read_text(encoding="utf-8"))
    # others' later visits are said
    assert {c["check"] for c in e["guard"] if c["passed"] is False} >= {"time_leak"}
    assert any("3 items that nobody visited" in n for n in e["data"]["notes"]) and e["data"][
        "catalog"
    ] == len(things)


rows = [
    {"user": f"u{i % 9}", "item": f"t{i % 7}", "time": i, "rating": i % 5, "event": "view"}
    for i in range(120)
]
BAD = {  # what is wrong -> (rows, parameters, words)
    "one user": ([{**r, "user": "a"} for r in rows], [], ["1 user"]),
    "one item": ([{**r, "item": "a"} for r in rows], [], ["1 item"]),
    "no column": (rows, ["-p", "user", "usr"], ["usr", "user"]),
    "an unreadable time": ([*rows, {**rows[0], "time": "soon"}], [], ["soon", "row 120"]),
    "all at once": ([{**r, "time": 7} for r in rows], [], ["1 time"]),
    "no ratings that high": (
        rows,
        ["-p", "rating", "rating", "-p", "min_rating", "9"],
        ["rated below 9"],
    ),
    "ratings that are NaN": (
        [{**r, "rating": "NaN"} for r in rows],
        ["-p", "rating", "rating", "-p", "min_rating", "1"],
        ["rating missing"],
    ),
    "an unknown split": (rows, ["-p", "split", "random"], ["random", "time or last"]),
    "shares that leave nothing": (rows, ["-p", "test", "0.9"], ["below 1"]),
    "an event that isn't there": (
        [{**r, "user": f"u{i % 4}", "item": f"t{i // 4}"} for i, r in enumerate(rows)],
        ["-p", "event", "event", "-p", "target_event", "buy", "-p", "min_history", "1"],
        ["'buy'", "view"],
    ),
    "bought without event": (rows, ["-p", "target_event", "buy"], ["with event"]),
    "nobody has a history": (rows, ["-p", "min_history", "500"], ["500 visits"]),
    "items of another shop": (rows, ["-p", "items", "sample:synthetic_visits"], ["share no item"]),
    "no such text column": (
        rows,
        ["-p", "items", "sample:synthetic_visits", "-p", "text", "txt"],
        ["txt", "text"],
    ),
}


@pytest.mark.parametrize("frame, words, said", BAD.values(), ids=BAD)
def test_bad_input(ends, frame, words, said):
    refused(
        ends(
            "run", "recommend", "-p", "table", write_csv("bad.csv", frame), *words, "--out", "out"
        ),
        *said,
    )


def test_an_item_seen_only_in_test_counts_as_missed_and_can_be_listed():
    frame = pd.DataFrame(
        [
            (u, i, t)
            for t, (u, i) in enumerate(
                [(u, i) for i in range(6) for u in range(8)] + [(u, 99) for u in range(8)]
            )
        ],
        columns=["user", "item", "time"],
    )
    visits = clean_interactions(frame)
    cut = split_by_time(visits, test_size=8 / 56, valid_size=0.1)
    r = rank(Popularity().fit(visits, cut.test.history), visits, cut.test, min_history=1)
    # the only item that nobody knew; it isn't dropped
    assert len(r.users) == 8 and r.n_items == 7 and (r.recall == 1).all()
    assert "6 of 7" not in r.protocol and not [
        c for c in check_split(visits, cut.test) if c.name == "time_leak" and not c.passed
    ]


def test_without_texts_and_without_history():
    visits, known = build_catalog(open_interactions(small()))
    vectors = item_vectors(known.texts)
    made = Recommender(
        Hybrid(vectors, item_features(vectors, known.categories)).fit(
            visits, np.arange(len(visits))
        ),
        visits.item_names,
        known.texts,
    )
    assert (
        len(made.recommend([]).items) == 10
        and len(made.recommend(visits.item_names[:2]).items) == 10
    )
    assert made.recommend(["nothing of ours"]).unknown_items == ["nothing of ours"]


def test_many_visits_and_too_many_items(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    visits = clean_interactions(
        pd.DataFrame(
            {
                "user": rng.integers(0, 6_000, 300_000),
                "item": (3000 * rng.random(300_000) ** 2).astype(int),
                "time": np.arange(300_000),
            }
        )
    )
    cut = split_by_time(visits)
    assert rank(Popularity().fit(visits, cut.test.history), visits, cut.test).ndcg.mean() > 0
    monkeypatch.setattr(
        "insight_nb.apps.recommend.collaborative.psutil.virtual_memory",
        lambda: type("", (), {"available": 1e8}),
    )
    with pytest.raises(InputError, match="EASE of 3,000 items needs 0.2 GB"):
        EASE().fit(visits, cut.test.history)
    few = clean_interactions(visits.frame[:20_000])
    vectors = item_vectors([""] * few.shape[1])
    hybrid = Hybrid(vectors, vectors).fit(few, np.arange(len(few)))
    assert hybrid.base == "ItemKNN"
    Recommender(hybrid, few.item_names, [""] * few.shape[1]).save(tmp_path / "b")
    assert load_recommender(tmp_path / "b").recommend(few.item_names[:3]).items


def test_the_order_of_rows_and_users_changes_nothing():
    frame = small()
    a, b = (
        open_interactions(f)
        for f in (frame, frame.sample(frac=1, random_state=0).reset_index(drop=True))
    )
    for kind in (Popularity, EASE, ItemKNN):
        found = [
            rank(kind().fit(v, c.test.history), v, c.test, 3).top
            for v in (a, b)
            for c in [split_by_time(v)]
        ]
        assert np.array_equal(*found)


def test_nothing_of_the_test_rows_is_learned():
    "Other rows after the cut: the same scores."
    frame = small()
    edge, found = split_by_time(clean_interactions(frame)).test, []
    late = np.arange(len(frame)) >= len(edge.history)
    for f in (
        frame,
        frame.assign(
            item=np.where(late, np.random.default_rng(0).permutation(frame.item), frame.item)
        ),
    ):
        visits = clean_interactions(f, event="event")
        history = np.flatnonzero(visits.frame.index < len(edge.history))
        turn = Fold(history, np.setdiff1d(np.arange(len(visits)), history), "by hand")
        scores = EASE().fit(visits, turn.history).score(visits.to_matrix(history))
        users = eval_users(visits, turn, 3)[0]
        found.append(
            {
                (visits.user_names[u], visits.item_names[i]): scores[u, i]
                for u in users
                for i in range(visits.shape[1])
            }
        )
    both = set(found[0]) & set(found[1])
    assert len(both) > 1000 and all(abs(found[0][k] - found[1][k]) < 1e-9 for k in both)


def test_a_leak_is_found():
    visits = open_interactions(small())
    assert [c.passed for c in check_split(visits, split_by_time(visits).test)][:2] == [True, True]
    assert not check_split(visits, leave_last_out(visits).test)[0].passed
