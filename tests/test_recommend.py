"""The recommender as a whole: the recipe on small tables, bad input, and what must hold for any
rows."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

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
from insight_nb.apps.recommend.events import weigh_events
from insight_nb.apps.recommend.recommender import (
    Hybrid,
    Recommender,
    build_catalog,
    item_features,
    item_vectors,
    load_recommender,
)
from insight_nb.apps.recommend.rules import ListRules, Rules
from insight_nb.apps.recommend.sequential import SASRec
from insight_nb.apps.recommend.serving import find_list
from insight_nb import cli
from insight_nb.cli import recipes
from insight_nb.base.core import InputError
from insight_nb.data.samples import load_sample
from insight_nb.jobs.loading import open_served
from insight_nb.ship.serve import ServeOptions, Service, make_app, make_page
from starlette.responses import HTMLResponse
from starlette.testclient import TestClient
from test_browser import CHROMIUM
from test_serve import drawn_page

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


# Rules, events, new users, lists and the service


def random_rules(draw, names, kinds, k):
    "Rules that may contradict each other, as people write them."
    def some(values, most):
        return tuple(map(str, draw.permutation(values)[:draw.integers(most + 1)]))

    places = draw.permutation(np.arange(1, k + 2))[:draw.integers(4)]
    caps = {name: int(draw.integers(4)) for name in some(kinds, 3)}
    if draw.random() < .3:
        caps["*"] = int(draw.integers(1, 5))
    return Rules(
        some(names, 5), some(kinds, 1) if draw.random() < .3 else (), caps,
        float(draw.choice([0, 0, .3, 1])),
        {int(p): str(draw.choice(names)) for p in places} if draw.random() < .5 else {})


def broken(rules, listed, kinds_of, k):
    "Written apart from the code that makes lists, and from the one that checks them."
    assert len(listed) == len(set(listed)) <= k
    assert not set(listed) & set(rules.exclude_items)
    counts = Counter(kind for item in listed for kind in kinds_of[item])
    assert not [c for c in rules.exclude_categories if counts[c]]
    for kind, n in counts.items():
        assert n <= rules.caps.get(kind, rules.caps.get("*", k))
    at_their_place = {p: item for p, item in rules.must_show.items()
                      if p <= len(listed) and listed[p - 1] == item}
    early = [item for p, item in sorted(rules.must_show.items()) if p not in at_their_place]
    # what has no place of its own ends a list in which nothing else is left
    assert early == listed[len(listed) - len(early):]


def test_no_list_breaks_a_rule_in_ten_thousand():
    draw = np.random.default_rng(0)
    lists, refusals, short = 0, 0, 0
    while lists < 10_000:
        n, k = int(draw.integers(8, 40)), int(draw.integers(1, 11))
        names = [f"物{i}" if i % 2 else f"item {i}" for i in range(n)]
        kinds = [f"类{j}" for j in range(4)]
        of = [tuple(map(str, draw.choice(kinds, draw.integers(3), replace=False)))
              for _ in range(n)]
        there = sorted({kind for kinds_ in of for kind in kinds_})
        try:
            rules = random_rules(draw, names, there, k)
            made = ListRules(rules, names, of, draw.normal(size=(n, 3)), k)
        except InputError as e:
            assert "\n" not in str(e) and "rules" in str(e) or "positions" in str(e)
            refusals += 1
            continue
        scores = draw.normal(size=(40, n)).round(1)  # some are equal
        scores[draw.random((40, n)) < draw.random()] = -np.inf
        top = made.pick(scores, k)
        assert made.count_broken(top) == 0
        for row, line in zip(scores, top):
            listed = [names[i] for i in line if i >= 0]
            broken(rules, listed, dict(zip(names, of)), k)
            shown = set(rules.must_show.values())
            assert all(np.isfinite(row[i]) or names[i] in shown for i in line if i >= 0)
            short += len(listed) < k
        lists += len(top)
    assert lists >= 10_000 and refusals > 50 and short > 500


def test_without_variety_no_allowed_item_is_passed_over():
    draw = np.random.default_rng(1)
    names, of = list("abcdefgh"), [("x",)] * 4 + [("y",)] * 4
    made = ListRules(Rules(("a",), (), {"x": 1}, 0., {2: "h"}), names, of, k=4)
    for _ in range(50):
        scores = draw.normal(size=8)
        found = made.pick_list(scores, 4)
        best_x = max((1, 2, 3), key=lambda i: scores[i])
        want = [i for i in np.argsort(-scores) if i in (best_x, 4, 5, 6)][:3]
        assert found == [want[0], 7, *want[1:]]


RULES = """
exclude items: [t003]
exclude categories: [crime]
cap: {"*": 3, 烹饪: 2}
diversify: 0.2
must show: {2: 书}
"""


def in_chinese(frame):
    "Some items and a category with Chinese names."
    return frame.assign(item=frame.item.replace({"t004": "书", "t005": "茶 <b>"}),
                        kind=frame.kind.replace({"cooking": "烹饪"}))


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    "A run with all that a shop may ask for."
    place, here = tmp_path_factory.mktemp("ruled"), os.getcwd()
    os.chdir(place)
    try:
        Path("rules.yaml").write_text(RULES, encoding="utf-8")
        given = {"table": save(in_chinese(small(900))), "categories": "kind", "event": "event",
                 "event_weights": "view=1,buy=5", "rules": "rules.yaml", "lists": 4, "folds": 1,
                 "min_history": 2, "sequential": "true"}
        words = [str(w) for pair in given.items() for w in ("-p", *pair)]
        assert run_here("recommend", *words, "--out", "out") == 0
    finally:
        os.chdir(here)
    return place / "out"


def test_a_run_with_rules_events_and_lists(ruled):
    e = json.loads((ruled / "evidence.json").read_text(encoding="utf-8"))
    rungs = e["rungs"]
    assert {"SASRec", "EASE with recency", "hybrid", "popularity"} <= set(rungs["rungs"])
    assert rungs["stop_at"] in rungs["rungs"] and rungs["conclusion"]
    assert rungs["rungs"]["SASRec"]["gain"]["low"] <= rungs["rungs"]["SASRec"]["gain"]["high"]
    assert e["cost"]["rung_seconds"]["SASRec"] > 0 and e["cost"]["devices"]["SASRec"]
    assert list(e["rules"])[0] == "all of them" and len(e["rules"]) == 6
    for rule in e["rules"].values():
        assert rule["gain"]["low"] <= rule["gain"]["value"] <= rule["gain"]["high"]
    assert [row["clicks"] for row in e["first_clicks"]["after"]] == [1, 2, 3]
    assert e["event_weights"]["weights"] == {"view": 1, "buy": 5}
    assert {c["check"]: c["passed"] for c in e["guard"]}["rules_kept"]
    page = (ruled / "report.html").read_text(encoding="utf-8")
    assert "The rung to stop at" in page and rungs["conclusion"][:40] in page
    assert "茶 <b>" not in page and "书 at position 2" in page


def test_lists_are_the_same_in_both_files_and_keep_the_rules(ruled):
    lists = pd.read_parquet(ruled / "lists.parquet")
    opened = load_recommender(ruled / "bundle")
    assert (lists.groupby("user").item.nth(1) == "书").all() and lists["rank"].max() == 4
    of = dict(zip(opened.names, opened.rules.categories))
    for user, rows in lists.groupby("user"):
        assert opened.rules.find_broken([opened.item_index[i] for i in rows.item]) == []
        assert not any("kind: crime" in of[i] for i in rows.item)
        assert [r["item"] for r in find_list(ruled / "lists.sqlite", user)] == rows.item.tolist()
    assert find_list(ruled / "lists.sqlite", "nobody")[0]["reason"] == "popular lately"
    assert not [p for p in ruled.iterdir() if p.name.startswith(".")]


def test_the_service_answers_histories_as_the_bundle_does(ruled):
    opened = load_recommender(ruled / "bundle")
    service = Service([ruled / "bundle"], ServeOptions(max_texts=5), "cpu", open_served)
    asked = [["t006", {"item": "t007", "event": "buy"}], [], ["茶 <b>", "gone"], "t006", [None],
             [{"item": "t006", "event": "lend"}]]
    with TestClient(make_app(service)) as client:
        reply = client.post("/predict", json={"histories": asked[:3], "k": 3})
        for history, answer in zip(asked, reply.json()["predictions"]):
            assert answer["prediction"] == opened.recommend(history, 3).items
            assert answer["error"] is None and len(answer["reasons"]) == 3
        assert reply.json()["predictions"][2]["unknown"] == ["gone"]
        reply = client.post("/predict", json={"histories": asked[3:]}).json()["predictions"]
        assert [bool(a["error"]) for a in reply] == [True] * 3
        bodies = [({"text": "a"}, 400), ({"history": ["t006"], "k": 0}, 400), ({"k": 3}, 400),
                  ({"histories": asked}, 413), ({"history": ["t006"], "model": "x"}, 400)]
        for body, status in bodies:
            assert client.post("/predict", json=body).status_code == status, body
        # a list that is too short for what it must show is an error in its place
        short = client.post("/predict", json={"history": ["t006"], "k": 1}).json()["predictions"]
        assert "ask for 2 or more" in short[0]["error"]
        draw = np.random.default_rng(0)
        good = json.dumps({"histories": [["茶 <b>", 5, 1.5, {"item": "书"}]], "k": 2}).encode()
        for i in range(150):
            body = bytearray(good)
            for _ in range(i % 5):
                body[int(draw.integers(len(body)))] = int(draw.integers(256))
            assert client.post("/predict", content=bytes(body)).status_code in (200, 400)
        assert client.get("/info").json()["models"][0]["row"] == "history"
    with pytest.raises(InputError, match="serve it without feedback"):
        Service([ruled / "bundle"], ServeOptions(feedback="answers.db"), "cpu", open_served)


def test_the_log_of_a_service_may_hide_what_is_personal(ruled, tmp_path):
    log = tmp_path / "log"
    options = ServeOptions(log=str(log), mask=True)
    with TestClient(make_app(Service([ruled / "bundle"], options, "cpu", open_served))) as client:
        assert client.post("/predict", json={"history": ["eve@example.org"]}).status_code == 200
    line = json.loads(log.read_text())
    assert "eve@example.org" not in log.read_text() and len(line["prediction"]) == 10


def test_a_damaged_bundle_is_not_served(ruled, tmp_path, capsys):
    shutil.copytree(ruled / "bundle", tmp_path / "b")
    (tmp_path / "b" / "rules.json").write_text("{}")
    assert cli.main(["serve", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert "rules.json is damaged" in said and said.count("\n") == 1


RULED = {  # what is wrong -> (file of rules or None, parameters, words)
    "an item that isn't there": ("exclude items: [t9999]", [], ["'t9999'", "not there"]),
    "a category that isn't there": ("cap: {crme: 1}", [], ["'crme'", "crime"]),
    "rules that contradict": (
        "exclude items: [t5]\nmust show: {1: t5}", [], ["t5", "leave it out"]),
    "a place beyond the list": ("must show: {11: t5}", [], ["position 11", "10 items"]),
    "a place beyond a shorter list": (
        "must show: {4: t5}", ["-p", "lists", "3"], ["position 4", "3 items"]),
    "no number": ("cap: {crime: many}", [], ["r.yaml, line 1", "'many'"]),
    "nothing left": ("cap: {'*': 0}", [], ["leave no item"]),
    "no YAML": ("cap: [", [], ["no YAML"]),
    "no file": (None, ["-p", "rules", "gone.yaml"], ["gone.yaml", "No such file"]),
    "weights without event": (None, ["-p", "event_weights", "view=1"], ["with event"]),
    "weights that are none": (
        None, ["-p", "event", "event", "-p", "event_weights", "view"], ["event_weights", "'view'"]),
    "an event without weight": (
        None, ["-p", "event", "event", "-p", "event_weights", "buy=1"], ["'buy'", "view"]),
    "lists of nothing": (None, ["-p", "lists", "0"], ["lists is 0"]),
}


@pytest.mark.parametrize("text, words, said", RULED.values(), ids=RULED)
def test_rules_and_weights_that_cannot_be(ends, text, words, said):
    frame = [{**r, "kind": "crime"} for r in rows]
    if text is not None:
        Path("r.yaml").write_text(text, encoding="utf-8")
        words = ["-p", "rules", "r.yaml", *words]
    refused(ends("run", "recommend", "-p", "table", write_csv("t.csv", frame), "-p", "categories",
                 "kind", *words, "--out", "out"), *said)


def test_weights_change_what_is_learned_and_never_what_is_asked():
    frame = small(900)
    plain = clean_interactions(frame, event="event")
    weighed = weigh_events(plain, {"view": 1, "buy": 9})
    alike = weigh_events(plain, {"view": 3, "buy": 3})  # only ratios count
    fold = split_by_time(plain).test
    for kind in (EASE, ItemKNN, Popularity):
        tops = [rank(kind().fit(v, fold.history), v, fold, 2) for v in (plain, alike, weighed)]
        assert np.array_equal(tops[0].top, tops[1].top)
        assert not np.array_equal(tops[0].top, tops[2].top)
        assert len({tuple(t.users) for t in tops}) == 1


def test_a_network_reads_only_what_came_before():
    visits = clean_interactions(in_chinese(small(500)))
    fold = split_by_time(visits).test
    network = SASRec(epochs=2, width=16, device="cpu").fit(visits, fold.history)
    profiles = network.profiles(visits, fold.history)
    late = profiles.copy()
    late.data[:] = 1 / (1 / late.data + 0)  # the same order, the same scores
    assert np.array_equal(network.score(profiles), network.score(late))
    turned = profiles.copy()
    turned.data[:] = -turned.data
    assert not np.array_equal(network.score(profiles), network.score(turned))
    assert np.isfinite(network.score(profiles)).all()


LIST_DRIVER = """<script>window.onload = async () => {
  await know(); first.value = "t006\\n\\n 茶 <b> "; document.forms[0].requestSubmit();
};</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_the_page_lists_items_for_a_history(ruled, tmp_path):
    service = Service([ruled / "bundle"], ServeOptions(), "cpu", open_served)
    app = make_app(service)

    async def driven():
        return HTMLResponse(make_page(["b"], service.options, ["history"]) + LIST_DRIVER)
    app.add_api_route("/driven", driven)
    drawn = drawn_page(app, "/driven", tmp_path).split('id="more"')[1].split("</table>")[0]
    want = load_recommender(ruled / "bundle").recommend(["t006", "茶 <b>"])
    assert re.findall(r"<tr><td>\d+</td><td>(.*?)</td>", drawn) == want.items
    assert "set by a rule" in drawn and "茶 &lt;b&gt;" in drawn and "<b>" not in drawn
