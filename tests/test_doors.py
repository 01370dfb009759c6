"""Recipes of decisions: each runs on its sample and leaves a page and numbers; bad tables end in
one line; what was run is joined in a plan."""

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import in_process, refused, run_here
from insight_nb.cli import main, recipes
from insight_nb.decide.launch.plan import read_runs
from insight_nb.decide.series.parts import reconcile
from insight_nb.decide.strategy.demand import find_themes
from insight_nb.decide.strategy.inputs import STRATEGY_EXAMPLES, sample_log, sample_reviews

DOORS = ("trend", "forecast", "demand", "growth", "balance", "prioritize", "plan")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A folder with a run of each recipe on its sample, in this process."
    folder = tmp_path_factory.mktemp("runs")
    for name in DOORS:
        (folder / name).mkdir()
        in_process(recipes()[name], str(folder / f"{name}.ipynb"), {"out": str(folder / name)})
    return folder


@pytest.mark.parametrize("name", DOORS)
def test_a_sample_leaves_a_page_and_numbers(runs, name):
    e = json.loads((runs / name / "evidence.json").read_text(encoding="utf-8"))
    page = (runs / name / "report.html").read_text(encoding="utf-8")
    assert e["schema"] == 1 and e["task"] == name and e["said"] and e["data"]["sample"] is True
    assert "<script" not in page and "Traceback" not in page and "nan" not in e["said"]
    for m in e["metrics"].values():
        assert m["low"] <= m["value"] <= m["high"] and m["method"]
    if name != "plan":
        assert e["metrics"] and e["values"] and e["data"]["sha256"]


def test_a_plan_joins_what_was_run(runs, monkeypatch):
    monkeypatch.chdir(runs)
    assert run_here("plan", "-p", "folder", ".", "--out", "../joined") == 0
    e = json.loads(Path("../joined/evidence.json").read_text(encoding="utf-8"))
    assert {r["task"] for r in e["values"]["runs"]} == set(DOORS) - {"plan"} # none of yesterday's
    page = Path("../joined/report.html").read_text(encoding="utf-8")
    for name in DOORS[:-1]:
        assert f"{name}/evidence.json" in page
    assert any(c["passed"] is False and "sample" in c["said"] for c in e["checks"])


def test_broken_evidence_is_named_and_left_out(tmp_path):
    bad = {
        "half": "{",
        "list": "[1]",
        "old": json.dumps({"schema": 2, "metrics": {}}),
        "odd": json.dumps({"schema": 1, "task": 3, "metrics": {"a": {"value": "x"}}, "guard": [3]}),
        "of no list": json.dumps({"schema": 1, "task": ["a"], "metrics": {}, "guard": 5,
                                  "checks": {"a": 1}, "baseline": [1], "data": "x"}),
    }
    for name, text in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "evidence.json").write_text(text)
    found, odd = read_runs(tmp_path)
    assert [r.where for r in found] == ["odd", "of no list"] and found[0].metrics == {}
    assert sorted(odd) == [f"{n}/evidence.json" for n in ("half", "list", "old")]


def test_markup_in_a_run_is_text(tmp_path):
    (tmp_path / "x").mkdir()
    evil = {"schema": 1, "task": "<img src=x>", "said": "<script>alert(1)</script>", "metrics": {}}
    (tmp_path / "x" / "evidence.json").write_text(json.dumps(evil))
    out = tmp_path / "out"
    in_process(recipes()["plan"], str(tmp_path / "p.ipynb"),
               {"folder": str(tmp_path / "x"), "out": str(out)})
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x>" not in page and "&lt;script&gt;" in page


def csv(name, **columns):
    pd.DataFrame(columns).to_csv(name, index=False)
    return name


DAYS = pd.date_range("2026-01-01", periods=40).strftime("%Y-%m-%d").tolist()
# recipe, a maker of the table, parameters, words that the message must hold
BAD = {
    "trend: no column": ("trend", lambda: csv("t.csv", when=DAYS), {}, ["'date'"]),
    "trend: no date": (
        "trend", lambda: csv("t.csv", date=["x"] * 9), {}, ["t.csv, row 0", "no date"]),
    "trend: the row of a topic is that of the file": (
        "trend",
        lambda: csv("t.csv", date=["x"] * 9, topic=["a"] * 4 + ["b"] * 5),
        {"topic": "topic"},
        ["t.csv, row 4", "no date"],
    ),
    "trend: one short topic": (
        "trend",
        lambda: csv("t.csv", date=DAYS[:3], topic=["甲"] * 3),
        {"topic": "topic", "freq": "day"},
        ["3 days", "it takes 8"],
    ),
    "trend: negative counts": (
        "trend",
        lambda: csv("t.csv", date=DAYS, n=[-1] * 40),
        {"count": "n"},
        ["row 0", "begin at 0"],
    ),
    "forecast: a constant": (
        "forecast",
        lambda: csv("f.csv", date=DAYS, value=[3] * 40),
        {},
        ["needs no forecast"],
    ),
    "forecast: too short": (
        "forecast",
        lambda: csv("f.csv", date=DAYS[:9], value=range(9)),
        {},
        ["has 9 days"],
    ),
    "forecast: text": (
        "forecast",
        lambda: csv("f.csv", date=DAYS, value=["many"] * 40),
        {},
        ["f.csv, row 0", "'many'", "no number"],
    ),
    "forecast: a driver that never moved": (
        "forecast",
        lambda: csv("f.csv", date=DAYS, value=[*range(30), *[""] * 10], x=[0] * 35 + [1] * 5),
        {"drivers": "x"},
        ["x has not changed"],
    ),
    "forecast: no drivers ahead": (
        "forecast",
        lambda: csv("f.csv", date=DAYS, value=range(40), x=range(40)),
        {"drivers": "x"},
        ["ends with its last value"],
    ),
    "forecast: one part": (
        "forecast",
        lambda: csv("f.csv", date=DAYS, value=range(40), shop=["a"] * 40),
        {"part": "shop"},
        ["1 part"],
    ),
    "forecast: no method": (
        "forecast",
        lambda: csv("f.csv", date=DAYS, value=range(40)),
        {"method": "prophet"},
        ["no method 'prophet'"],
    ),
    "demand: few texts": ("demand", lambda: csv("d.csv", text=["a"] * 3), {}, ["3 usable texts"]),
    "demand: no column": ("demand", lambda: csv("d.csv", txt=["a"] * 30), {}, ["'text'", "'txt'"]),
    "demand: we are nowhere": (
        "demand",
        lambda: csv(
            "d.csv",
            text=sample_reviews(40).text,
            firm=["x", "y"] * 20,
            said=["positive"] * 40,
            theme=["t"] * 40,
        ),
        {"firm": "firm", "opinion": "said", "theme": "theme"},
        ["no row has 'us'"],
    ),
    "demand: no good opinion": (
        "demand",
        lambda: csv("d.csv", text=sample_reviews(40).text, said=["bad"] * 40, theme=["t"] * 40),
        {"opinion": "said", "theme": "theme"},
        ["no row has 'positive'"],
    ),
    "demand: no date that can be read": (
        "demand",
        lambda: csv("d.csv", text=sample_reviews(40).text, theme=["t"] * 40, day=["3.4.26"] * 40),
        {"theme": "theme", "date": "day"},
        ["no date in column 'day'", "'3.4.26'"],
    ),
    "growth: hours below 0": (
        "growth",
        lambda: csv("g.csv", date=DAYS, technical=[-1] * 40, insight=[1] * 40),
        {},
        ["g.csv, row 0", "-1 hours"],
    ),
    "growth: no half-life is 0": (
        "growth",
        lambda: csv("g.csv", date=DAYS, technical=[1] * 40, insight=[1] * 40),
        {"technical_half_life": "0"},
        ["half-life of 0 days"],
    ),
    "growth: a plan of one number": (
        "growth",
        lambda: csv("g.csv", date=DAYS, technical=[1] * 40, insight=[1] * 40),
        {"plan_a": "3"},
        ["plan_a", "give 2 numbers"],
    ),
    "growth: no insight": (
        "growth",
        lambda: csv("g.csv", date=DAYS, technical=[1] * 40, insight=[0] * 40),
        {},
        ["no insight hours"],
    ),
    "balance: no money": (
        "balance",
        lambda: csv("b.csv", factor=["a", "b"], cost=[1, 2]),
        {"budget": "0"},
        ["a budget of 0"],
    ),
    "balance: nothing of one factor": (
        "balance",
        lambda: csv("b.csv", factor=["a", "b"], cost=[1, 2], high=[0, 3]),
        {},
        ["'a' is to be at most 0"],
    ),
    "balance: a price without end": (
        "balance",
        lambda: csv("b.csv", factor=["a", "b"], cost=[1, "∞"]),
        {},
        ["'∞' is no number"],
    ),
    "prioritize: one table": (
        "prioritize",
        lambda: csv("o.csv", option=["a"], gain=[1]),
        {},
        ["give both table and indicators"],
    ),
    "prioritize: one option": (
        "prioritize",
        lambda: csv("o.csv", option=["甲"], gain=[1]),
        {"indicators": "gain.csv"},
        ["o.csv has 1 option"],
    ),
    "prioritize: too many options": (
        "prioritize",
        lambda: csv("o.csv", option=[f"o{i}" for i in range(1000)], gain=range(1000)),
        {"indicators": "gain.csv"},
        ["o.csv has 1,000 options", "100 that matter"],
    ),
    "balance: one factor": (
        "balance",
        lambda: csv("b.csv", factor=["甲"], cost=[1]),
        {},
        ["b.csv has 1 factor"],
    ),
    "forecast: one row": (
        "forecast",
        lambda: csv("f.csv", date=DAYS[:1], value=[3]),
        {},
        ["has 1 day:"],
    ),
    "plan: nothing there": ("plan", None, {"folder": "nowhere"}, ["no folder nowhere"]),
    "decide: an offer for nothing": (
        "decide",
        None,
        {"offer": "gone.yaml"},
        ["gone.yaml", "can't be read"],
    ),
    "balance: a name for no column": (
        "balance",
        None,
        {"columns": "costs=单价"},
        ["'costs'", "'cost'"],
    ),
    "decide: a test of three": (
        "decide",
        None,
        {"ab_test": "three.csv"},
        ["3 variants"],
    ),
    "decide: a test of endless people": (
        "decide", None, {"ab_test": "endless.csv"}, ["row 0", "'inf' is no count"]),
    "decide: energy without watts": ("decide", None, {"max_wh": "1"}, ["takes watts"]),
}


@pytest.mark.parametrize("recipe, make, given, words", BAD.values(), ids=BAD)
def test_bad_input_ends_in_a_line(ends, recipe, make, given, words):
    csv("three.csv", variant=["a", "b", "c"], right=[1, 1, 1], n=[2, 2, 2])
    csv("gain.csv", indicator=["gain"], worst=[0], best=[2])
    csv("endless.csv", variant=["a", "b"], right=["inf", 1], n=["inf", 2])
    table = ["-p", "table", make()] if make else []
    given = [w for k, v in given.items() for w in ("-p", k, v)]
    refused(ends("run", recipe, *table, *given, "--out", "out"), *words)


def test_an_offer_and_a_test_are_on_the_memo():
    csv("ab.csv", variant=["old", "new"], right=[700, 780], n=[1000, 1000])
    given = {"offer": "example", "ab_test": "ab.csv", "ab_quality": True, "max_latency_ms": 1e6}
    in_process(recipes()["decide"], "run.ipynb", given | {"out": "memo"})
    d = json.loads(Path("memo/decision.json").read_text(encoding="utf-8"))
    page = Path("memo/memo.html").read_text(encoding="utf-8")
    assert 0 <= d["offer"]["chance"] <= 1 and d["ab_test"]["split_as_planned"] is True
    assert abs(d["ab_test"]["lift"]["value"] - 0.08) < 1e-9
    assert "Build or buy?" in page and "What real users said" in page and "Joined" in page


def test_themes_agree_with_the_planted_ones():
    "200 rows; the adjusted Rand index, with the number of themes known and chosen."
    from sklearn.metrics import adjusted_rand_score

    reviews = sample_reviews(200, seed=3)
    for k in (5, None):
        found = find_themes(reviews.text.tolist(), k)
        assert adjusted_rand_score(reviews.theme[found.rows], found.labels) >= 0.6


def test_a_swot_line_opens_its_rows(runs):
    e = json.loads((runs / "demand" / "evidence.json").read_text(encoding="utf-8"))
    page = (runs / "demand" / "report.html").read_text(encoding="utf-8")
    reviews = sample_reviews()
    assert {"strength", "weakness"} <= {s["box"] for s in e["values"]["swot"]}
    for line in e["values"]["swot"]:
        assert line["rows"] and line["theme"]
        assert all(reviews.text[row] in page for row in line["rows"])
    assert page.count("<details>") >= len(e["values"]["swot"])


@pytest.mark.parametrize("empty", ["text", "opinion"])
def test_an_empty_cell_is_no_bad_opinion(empty):
    "The others' numbers are those of a table without these rows, and the page counts them."
    reviews = sample_reviews(240)
    gone = reviews.index % 3 == 0
    reviews.assign(**{empty: reviews[empty].mask(gone, " ")}).to_csv("gaps.csv", index=False)
    reviews[~gone].to_csv("without.csv", index=False)
    given = {"theme": "theme", "firm": "firm", "opinion": "opinion"}
    e, page = ran("demand", given | {"table": "gaps.csv"})
    assert e["metrics"] == ran("demand", given | {"table": "without.csv"})[0]["metrics"]
    assert any(c["said"].startswith("80 of 240 rows left out") for c in e["checks"])
    n = (reviews.opinion[~gone] == "positive").sum()
    assert f"good is 'positive' ({n})" in html.unescape(page)


def test_what_counts_as_not_good_is_on_the_page():
    reviews = sample_reviews(240)
    reviews.loc[:8, "opinion"] = "<b>Positiv"
    reviews.to_csv("odd.csv", index=False)
    e, page = ran("demand", {"table": "odd.csv", "theme": "theme", "opinion": "opinion"})
    assert any("'<b>Positiv' (9)" in c["said"] for c in e["checks"]) and "<b>Positiv" not in page


def test_a_short_log_says_that_its_ratio_is_rough():
    checks = {}
    for n in (1, 40, 200):
        days = pd.date_range("2026-01-01", periods=n).strftime("%Y-%m-%d")
        csv("g.csv", date=days, technical=[5] * n, insight=[1] * n)
        given = {"table": "g.csv", "technical_level": "0.7,0.6,0.8", "technical_ceiling": 1.0}
        checks[n] = [c["said"] for c in ran("growth", given)[0]["checks"] if c["passed"] is False]
    assert any(s.startswith("the log holds 1 day, less") for s in checks[1])
    assert any(s.startswith("the log holds 40 days, less") for s in checks[40])
    assert not any("the log holds" in s for s in checks[200]) # longer than insight's 180 days


def test_many_factors_fit_in_a_sentence():
    csv("b.csv", factor=[f"因素{i}" for i in range(30)], cost=[1] * 30)
    e, _ = ran("balance", {"table": "b.csv"})
    assert "因素7, the rest for 22 more" in e["said"] and "因素8," not in e["said"]


def test_chinese_reviews():
    rng = np.random.default_rng(0)
    words = {
        "物流": ["快递", "送货", "物流"],
        "电池": ["电池", "充电", "电量"],
        "价格": ["价格", "价钱", "折扣"],
    }
    good, bad = ["很好很满意", "非常不错"], ["太差了失望", "让人生气"]
    rows = []
    for _ in range(240):
        theme = str(rng.choice(list(words)))
        firm = str(rng.choice(["我们", "对手"]))
        happy = rng.random() < (0.9 if firm == "我们" else 0.3)
        said = str(rng.choice(good if happy else bad))
        rows.append([firm, f"{rng.choice(words[theme])}{said}", "正面" if happy else "负面", theme])
    pd.DataFrame(rows, columns=["店", "评论", "态度", "主题"]).to_csv("z.csv", index=False)
    given = {"table": "z.csv", "text": "评论", "theme": "主题", "firm": "店", "us": "我们",
             "opinion": "态度", "positive": "正面", "important": "重要程度",
             "satisfied": "满意程度"} | chinese_examples(survey="survey")
    e, page = ran("demand", given)
    assert {s["box"] for s in e["values"]["swot"]} == {"strength"} and "物流" in e["said"]
    assert "送货快" in page and "：重要程度" not in page


def ran(recipe, given):
    "What a recipe says in its numbers and on its page."
    in_process(recipes()[recipe], "run.ipynb", given | {"out": "z"})
    page = Path("z/report.html").read_text(encoding="utf-8")
    return json.loads(Path("z/evidence.json").read_text(encoding="utf-8")), page


def chinese_examples(**named): # parameter -> a table that comes with the package
    return {p: str(STRATEGY_EXAMPLES / f"{name}_zh.csv") for p, name in named.items()}


def test_a_chinese_log_of_hours():
    log = sample_log().set_axis(["日期", "研发", "调研"], axis=1)
    days = [f"{d.year}年{d.month}月{d.day}日" for d in pd.to_datetime(log["日期"])]
    log.assign(**{"日期": days, "访谈": log["调研"]}).to_csv("z.csv", index=False)
    given = {"date": "日期", "technical": "研发", "insight": "调研，访谈", "plan_b": "3，3"}
    e, page = ran("growth", {"table": "z.csv"} | given)
    sample_log().assign(more=sample_log().insight).to_csv("e.csv", index=False)
    same = {"table": "e.csv", "insight": "insight,more", "plan_b": "3,3"}
    assert e["values"]["best_split"] == ran("growth", same)[0]["values"]["best_split"]
    assert "z.csv" in page


def test_chinese_factors_and_plans():
    names = ("factor=因素,cost=单价,power=弹性,low=下限,high=上限,plan=方案,"
             "level=现状,level_low=现状下限，level_high=现状上限")
    given = chinese_examples(table="factors", plans="plans")
    e, page = ran("balance", given | {"columns": names})
    other = ran("balance", {})[0]
    best, same = e["values"]["best"], other["values"]["best"]
    assert [best[n] for n in ("技术", "场景", "服务")] == [
        same[n] for n in ("technology", "application", "service")]
    assert "加强服务" in page and "for 技术" in e["said"]


def test_chinese_options_and_indicators():
    names = ("option=方向,low=下限,high=上限,indicator=指标,worst=最差,best=最好,"
             "weight=权重,group=类别,veto=否决线")
    given = chinese_examples(table="options", indicators="indicators")
    e, page = ran("prioritize", given | {"columns": names})
    other = ran("prioritize", {})[0]
    assert "来信分类" in e["values"]["order"] and "一次错误的代价" in page
    assert sorted(e["values"]["first"].values()) == sorted(other["values"]["first"].values())
    asked = "，".join(pd.read_csv(given["indicators"])["指标"])
    assert ran("prioritize", given | {"columns": names, "order": asked})[0]["values"]["first"]


def test_parts_add_up_whatever_they_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts = int(rng.integers(2, 8))
        moved = reconcile(rng.normal(size=(parts + 1, 3)), rng.random(parts + 1))
        np.testing.assert_allclose(moved[0], moved[1:].sum(0), atol=1e-12)


def test_sparse_demand_and_drivers_are_forecast():
    rng = np.random.default_rng(0)
    years = [str(y) for y in range(1960, 2024)] # one season, so the models are quick
    csv("sparse.csv", date=years[:60], value=rng.poisson(0.3, 60) * 3)
    in_process(recipes()["forecast"], "run.ipynb",
               {"table": "sparse.csv", "horizon": 3, "out": "s"})
    e = json.loads(Path("s/evidence.json").read_text(encoding="utf-8"))
    assert e["values"]["requested"] in ("CrostonSBA", "TSB", "ADIDA", "median", "naive")
    on = (rng.random(64) < 0.3).astype(int)
    sold = [str(round(v, 2)) for v in 50 + 30 * on[:60] + rng.normal(0, 2, 60)] + [""] * 4
    csv("shop.csv", date=years, value=sold, promotion=on)
    in_process(recipes()["forecast"], "run.ipynb",
               {"table": "shop.csv", "drivers": "promotion", "out": "d"})
    e = json.loads(Path("d/evidence.json").read_text(encoding="utf-8"))
    assert e["values"]["method"] == "AutoARIMA with drivers" and e["values"]["horizon"] == 4
    found = [r["value"] for r in e["values"]["forecast"]]
    assert max(abs(v - 50 - 30 * p) for v, p in zip(found, on[60:])) < 8


def test_the_page_says_whether_the_intervals_held(runs):
    page = (runs / "forecast" / "report.html").read_text(encoding="utf-8")
    e = json.loads((runs / "forecast" / "evidence.json").read_text(encoding="utf-8"))
    assert "Did the intervals hold?" in page and "6 windows of 12 months" in page
    assert any(c["said"].startswith("replayed, what was chosen") for c in e["checks"])


def test_what_is_free_or_idle_is_no_error():
    csv("b.csv", factor=["a", "b"], cost=[0, 0], high=[2, 3], level=[1, 1])
    in_process(recipes()["balance"], "run.ipynb", {"table": "b.csv", "out": "b"})
    csv("g.csv", date=DAYS, technical=[1] * 40, insight=[2] * 40)
    in_process(recipes()["growth"], "run.ipynb",
               {"table": "g.csv", "plan_a": "0,0", "plan_b": "1，1", "out": "g"})
    assert all(Path(f, "report.html").is_file() for f in "bg")


def test_a_slow_offer_is_named_on_the_memo():
    in_process(recipes()["decide"], "run.ipynb",
               {"offer": "example", "max_latency_ms": 100., "out": "memo"})
    assert "It is too slow to be bought." in Path("memo/memo.html").read_text(encoding="utf-8")


def test_parts_of_a_table_add_up():
    rng = np.random.default_rng(0)
    years = [str(y) for y in range(1970, 2018)]
    rows = {"date": years * 2, "shop": ["东"] * 48 + ["西"] * 48,
            "value": np.round(np.r_[30 + rng.normal(0, 2, 48), 50 + rng.normal(0, 4, 48)], 2)}
    csv("parts.csv", **rows)
    in_process(recipes()["forecast"], "run.ipynb",
               {"table": "parts.csv", "part": "shop", "horizon": 3, "out": "p"})
    frame = pd.read_csv("p/forecast.csv")
    whole, parts = frame[frame.series == "value"], frame[frame.series != "value"]
    e = json.loads(Path("p/evidence.json").read_text(encoding="utf-8"))
    assert e["metrics"]["forecast of 2018"]["value"] == pytest.approx(whole.value.iloc[0])
    np.testing.assert_allclose(whole.value, parts.groupby("period").value.sum(), atol=1e-6)


def test_a_run_of_the_command_line_says_what_was_found(capsys):
    assert run_here("balance", "--out", "out") == 0
    said = capsys.readouterr().out
    assert "found" in said and "Spend 100,000 as" in said and "majority" not in said
    assert main(["run", "balance", "-p", "seed", "-1", "--out", "x"]) == 2
