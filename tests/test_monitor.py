"""The monitor as a whole: a recipe that reads on, counts once and keeps its promises; and a
dashboard that works in a browser."""

import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, SECTIONS, in_process, refused, rows_of
from insight_nb.apps.monitor import outbox
from insight_nb.apps.monitor.baseline import Baseline, bucket_calendar, draw_counts, fit_baseline
from insight_nb.apps.monitor.estimated_accuracy import EstimatedAccuracy
from insight_nb.apps.monitor.label_queue import draw_labels, read_label_queue
from insight_nb.apps.monitor.monitor import Alert, Monitor, annotate
from insight_nb.apps.monitor.outbox import AlarmOutbox, Command, Webhook
from insight_nb.apps.monitor.stream import StreamColumns, Stream, simulate_stream
from insight_nb.apps.monitor.text_drift import TextDrift, word_vectors
from insight_nb.apps.monitor.control_charts import (
    ControlChart,
    summarize_delay,
    find_first_alarms,
    arl_interval,
    binomial_tail,
)
from insight_nb.base.tables import write_frame
from insight_nb.eval.metrics import Metric
from insight_nb.ship.bundle import load_bundle
from loopback import Loopback
from notebooks import NBS

NAMES = {"id": "id", "opinion": "said", "truth": "truth"}
NOW = pd.Timestamp("2026-12-01").timestamp()


def given(**more):
    return [w for k, v in ({"now": "2026-12-01"} | more).items() for w in ("-p", k, str(v))]


def run(out, **more):
    "The recipe's cells in this process; its evidence."
    in_process(
        NBS / "recipes" / "monitor.ipynb", "run.ipynb", {"now": "2026-12-01", "out": out} | more
    )
    return json.loads(Path(out, "evidence.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def small():
    "Fifty days of a planted stream, with a surge in the last of them."
    return simulate_stream(n_days=50, texts_per_day=60, surge=0.25, surge_start=40, surge_days=10)


# The recipe


def test_a_run_leaves_what_it_promises(small):
    small.to_csv("posts.csv", index=False)
    e = run("a", table="posts.csv", **NAMES)
    assert {p.name for p in Path("a").iterdir()} >= {
        "report.html",
        "evidence.json",
        "stream.sqlite",
        "dashboard.ipynb",
        "label_these.csv",
    }
    assert (e["schema"], e["task"]) == (1, "monitor") and set(e) >= SECTIONS
    for m in (e["metrics"][k] for k in ("false_alarm_interval", "mean_delay")):
        assert m["low"] < m["value"] < m["high"] and m["n"] > 0
    assert {g["check"]: g["passed"] for g in e["guard"] if g["passed"] is not None} == {
        "counted_once": True,
        "false_alarms": True,
        "replay": True,
    }
    first = next(a for a in e["alerts"] if a["watched"] == "delivery")
    mean = first["buckets_needed"]["value"]
    # planted on April 11
    assert "2026-04-10" <= first["since"] <= "2026-04-14" and first["raised"] <= "2026-04-17"
    assert (
        mean > 1
        and any("rise of 10 points is seen after" in s for s in first["said"])
        and first["rise"]["low"] > 0
    )
    page = Path("a/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "three-sigma" in page


def test_it_reads_on_and_counts_nothing_twice(small):
    lines = [
        json.dumps(r, ensure_ascii=False)
        for r in small.astype(object).where(small.notna(), None).to_dict("records")
    ]
    Path("posts.jsonl").write_text(
        "\n".join(lines[:2500]) + "\n" + lines[2500][:30], encoding="utf-8"
    )
    words = dict(table="posts.jsonl", store="posts.sqlite", drift=False, **NAMES,
                 opinions="delivery", false_alarms=3.0)
    a = run("a", **words)["data"]
    Path("posts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    b = run("b", **words)["data"]
    once = Stream(columns=StreamColumns(**NAMES), now=NOW)
    once.add(small)
    assert (
        a["rows"]["read"] == 2500
        and b["rows"]["read"] == len(small)
        and b["texts"] == len(once.to_frame())
    )
    assert run("c", **words)["data"] == b  # nothing new: the same


BAD = [  # what is wrong, the table, parameters, words of the answer
    ("no meaning", {"text": ["a"], "date": ["2026-01-01"]}, {}, "name the column opinion"),
    (
        "no date column",
        {"text": ["a"], "when": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said"},
        "no column 'date'",
    ),
    (
        "no dates",
        {"text": ["a", "b"], "date": ["", ""], "said": ["x", "x"]},
        {"opinion": "said"},
        "2 no date",
    ),
    (
        "dates of two readings",
        {"text": ["a", "b"], "date": ["03/04/2026", "01/02/2026"], "said": ["x", "x"]},
        {"opinion": "said"},
        "2 unreadable date",
    ),
    (
        "all from the future",
        {"text": ["a", "b"], "date": ["2031-01-01", "2030-01-01"], "said": ["x", "x"]},
        {"opinion": "said"},
        "2 from the future",
    ),
    (
        "one day",
        {"text": ["a", "b"], "date": ["2026-01-01", "2026-01-01"], "said": ["x", "y"]},
        {"opinion": "said"},
        "Gather more",
    ),
    ("empty", {"text": [], "date": [], "said": []}, {"opinion": "said"}, "has no rows"),
    (
        "no such opinion",
        {
            "text": list("abcdefghijkl"),
            "date": [f"2026-01-{d:02}" for d in range(1, 13)],
            "said": ["bad", "good"] * 6,
        },
        {"opinion": "said", "opinions": "bat"},
        "Did you mean 'bad'",
    ),
    (
        "too many alarms",
        {
            "text": list("abcdefghijkl"),
            "date": [f"2026-01-{d:02}" for d in range(1, 13)],
            "said": ["bad", "good"] * 6,
        },
        {"opinion": "said", "false_alarms": 0},
        "more than 0",
    ),
    (
        "no such bucket",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "freq": "dya"},
        "Did you mean 'day'",
    ),
    (
        "no such zone",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "timezone": "Europe/Pari"},
        "Europe/Paris",
    ),
    (
        "no such chart",
        {
            "text": list("abcdefghijkl"),
            "date": [f"2026-01-{d:02}" for d in range(1, 13)],
            "said": ["bad", "good"] * 6,
        },
        {"opinion": "said", "chart": "ewna"},
        "Did you mean 'ewma'",
    ),
    (
        "now is no date",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "now": "soon"},
        "write it as 2026-11-22",
    ),
    (
        "no evidence",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "evidence": "gone.json"},
        "no file gone.json",
    ),
    (
        "no such effect",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "drift_effect": "medum"},
        "Did you mean 'medium'",
    ),
    (
        "a webhook that is a file",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "store": "s.db", "alarm_webhook": "file:///etc/passwd"},
        "only http:// and https:// are taken",
    ),
    (
        "no store for alarms",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "alarm_webhook": "http://127.0.0.1:9/"},
        "needs store",
    ),
    (
        "no such command",
        {"text": ["a"], "date": ["2026-01-01"], "said": ["x"]},
        {"opinion": "said", "store": "s.db", "alarm_command": "no-such-program --x"},
        "there is no program 'no-such-program'",
    ),
    (
        "labels without a truth",
        {
            "text": list("abcdefghijkl"),
            "date": [f"2026-01-{d:02}" for d in range(1, 13)],
            "said": ["bad", "good"] * 6,
        },
        {"opinion": "said", "labeled": "bad.csv"},
        "no column 'key'",
    ),
]


@pytest.mark.parametrize("table, more, words", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_line(ends, table, more, words):
    pd.DataFrame(table).to_csv("bad.csv", index=False)
    refused(ends("run", "monitor", *given(table="bad.csv", **more), "--out", "a"), words)


ITEM = (
    "<item><guid>{0}</guid><title>{1} "
    "&lt;script&gt;alert(1)&lt;/script&gt;</title><pubDate>{2:%a, %d %b %Y} 10:00:00 "
    "GMT</pubDate></item>"
)


@pytest.mark.slow
def test_a_feed_that_breaks_off_and_html_in_it(trained):
    days, rows = pd.date_range("2026-03-02", periods=12), rows_of(96)
    feed = (
        "<?xml version='1.0' encoding='utf-8'?><rss version='2.0'><channel><title>x</title>"
        + "".join(
            ITEM.format(i, r["text"].split(" <")[0], days[i // 8]) for i, r in enumerate(rows)
        )
        + "</channel></rss>"
    )
    words = dict(
        table="news.xml",
        id="id",
        bundle=str(trained / "bundle"),
        evidence=str(trained / "evidence.json"),
        opinions=LABELS[1],
        false_alarms=3.0,
        store="news.sqlite",
    )
    Path("news.xml").write_text(feed[:-80], encoding="utf-8")
    e = run("a", **words)
    assert (
        e["data"]["texts"] == 95
        and e["data"]["rows"]["cut off"] == 1
        and set(e["data"]["labels"]) <= {*LABELS, "texts unlike before"}
    )
    assert (
        "<script" not in Path("a/report.html").read_text(encoding="utf-8")
        and e["cost"]["predict_ms_per_text"] > 0
    )
    Path("news.xml").write_text(feed, encoding="utf-8")
    assert run("b", **words)["data"]["texts"] == 96


# The store


def test_a_killed_reading_leaves_nothing_half():
    Path("posts.jsonl").write_text(
        "".join(
            json.dumps({"id": i, "text": f"第{i}条", "date": f"2026-09-{1 + i % 28:02}"}) + "\n"
            for i in range(20_000)
        ),
        encoding="utf-8",
    )
    code = (
        "from insight_nb.apps.monitor.stream import *; s = Stream('s.sqlite', "
        "StreamColumns(id='id')); print('go', flush=True); s.follow('posts.jsonl'); print('done')"
    )
    for wait in (0.05, 0.3, None):
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        if wait is not None:
            time.sleep(wait)
            p.kill()
        p.wait()
        n = len(Stream("s.sqlite", StreamColumns(id="id")).to_frame())
        assert n in (0, 20_000)
    assert n == 20_000


def test_odd_texts_and_numbers_of_rows():
    odd = [
        "😀" * 300,
        "<b>x</b>",
        "a\x00b",
        "很好" * 5000,
        "\ud800 half",
        "'; drop table texts; --",
    ]
    s = Stream(now=NOW)
    assert (
        s.add(pd.DataFrame({"text": odd, "date": ["2026-09-01"] * 6}))["new"] == 6
        and len(s.to_frame()) == 6
    )
    began = time.perf_counter()
    assert (
        s.add(
            pd.DataFrame(
                {"text": [f"text {i}" for i in range(20_000)], "date": ["2026-09-02"] * 20_000}
            )
        )["new"]
        == 20_000
    )
    assert time.perf_counter() - began < 30


def test_a_bundle_reads_each_text_once(trained):
    s = Stream(now=NOW)
    s.add(pd.DataFrame({"text": [r["text"] for r in rows_of(30)], "date": ["2026-09-01"] * 30}))
    bundle = load_bundle(trained / "bundle")
    assert (annotate(s, bundle), annotate(s, bundle), s.to_frame().opinion.isin(LABELS).all()) == (
        30,
        0,
        True,
    )


def test_a_constant_opinion_and_empty_days():
    days = [d for d in pd.date_range("2026-01-01", periods=60) if d.day % 5]
    s = Stream(columns=StreamColumns(opinion="o"), now=NOW)
    s.add(
        pd.DataFrame(
            {
                "text": [f"t{i}" for i in range(5 * len(days))],
                "date": np.repeat([str(d) for d in days], 5),
                "o": "same",
            }
        )
    )
    assert [a.name for a in Monitor(s).find_alerts()] == []


# Weekdays and holidays


def shop(days=150, seed=0, holidays=(), surge=0.0):
    "A stream in which a third complain at weekends, a fifth else, and everybody on holidays."
    rng = np.random.default_rng(seed)
    rows = []
    for i, day in enumerate(pd.date_range("2026-03-02", periods=days)):
        share = 0.35 if day.weekday() > 4 else 0.2
        share = 0.95 if i in holidays else share + surge * (i >= days - 20)
        said = np.where(rng.random(80) < share, "bad", "good")
        rows += [(f"{day:%Y-%m-%d}", f"text {i} {k}", o, "Easter" if i in holidays else "no")
                 for k, o in enumerate(said)]
    return pd.DataFrame(rows, columns=["date", "text", "o", "off"])


def watched(frame, **settings):
    stream = Stream(columns=StreamColumns(opinion="o", holiday="off"), now=NOW)
    stream.add(frame)
    return Monitor(stream, watch=["bad"], drift=False, **settings)


def test_a_weekend_is_no_surge():
    quiet = watched(shop())
    assert quiet.find_alerts() == []
    usual = quiet.series[0].alarms.usual
    assert abs(usual[5] - 0.35) < 0.06 and abs(usual[0] - 0.2) < 0.06
    found = watched(shop(surge=0.15)).find_alerts()
    assert len(found) == 1 and found[0].raised >= "2026-07-09"
    # measured against what is usual for those days, not for the mean of all
    assert found[0].rise.low < 0.15 < found[0].rise.high


def test_holidays_are_set_aside_until_there_are_enough():
    few, many = [20, 100, 101], [*range(9, 60, 10), 100, 101]
    monitor = watched(shop(holidays=few))
    assert monitor.unwatched.sum() == 3 and monitor.find_alerts() == []
    assert "3 holiday days not watched" in monitor.series_table().caption
    monitor = watched(shop(holidays=many))
    assert not monitor.unwatched.any() and monitor.find_alerts() == []
    usual = monitor.series[0].alarms.usual
    assert usual[100] > 0.85 and usual[99] < 0.4
    unmarked = watched(shop(holidays=few).assign(off=None))
    assert any(a.raised == "2026-06-10" for a in unmarked.find_alerts())


def test_hours_have_hours_and_weekdays():
    hours = pd.date_range("2026-03-02", periods=24 * 28, freq="h")
    night = np.where(hours.hour < 6, 0.4, 0.1)
    n = np.full(len(hours), 30)
    x = draw_counts(np.random.default_rng(0), n, night, 0.0, n.shape)
    learned = fit_baseline(x, n, bucket_calendar(hours, "hour"), "hour")
    assert set(learned.effects) == {"hour", "weekday"} and learned.phi(30) < 1.3
    usual = 1 / (1 + np.exp(-learned.usual_log_odds(learned.calendar)))
    assert np.abs(usual - night).max() < 0.08


def test_a_store_from_before_holidays_is_read_on(tmp_path):
    old = Stream(tmp_path / "old.sqlite", StreamColumns(opinion="o"), now=NOW)
    old.add(shop(40).drop(columns="off"))
    for table in ("texts", "waiting"):
        old.db.connection.execute(f"alter table {table} drop column holiday")
    old.db.close()
    again = Stream(tmp_path / "old.sqlite", StreamColumns(opinion="o", holiday="off"), now=NOW)
    again.add(shop(41, holidays=[40]))
    frame = again.to_frame()
    assert len(frame) == 41 * 80 and set(frame.holiday.dropna()) == {"Easter"}


@pytest.mark.parametrize("cell", ["no", "", None, 0, "0", False, "否", float("nan"), "False"])
def test_what_is_no_holiday(cell):
    stream = Stream(columns=StreamColumns(holiday="off"), now=NOW)
    stream.add(pd.DataFrame({"text": ["a"], "date": ["2026-03-02"], "off": [cell]}, dtype=object))
    assert stream.to_frame().holiday.tolist() == [None]


@pytest.mark.parametrize("cell", ["yes", 1, True, "春节", "Christmas"])
def test_what_is_a_holiday(cell):
    stream = Stream(columns=StreamColumns(holiday="off"), now=NOW)
    stream.add(pd.DataFrame({"text": ["a"], "date": ["2026-03-02"], "off": [cell]}, dtype=object))
    assert stream.to_frame().holiday.tolist() == [str(cell)]


def test_a_fall_is_called_a_fall():
    def share(v): return Metric(v, v - 0.02, v + 0.02, 100, "test")
    alert = Alert("x", "a", "b", "c", share(0.18), share(0.2), share(-0.03), None, 7,
                  (share(5.0), 9.0), 50.0, (0.9, 0.5), False, [], [], pd.DataFrame())
    assert alert.sentences()[0].startswith("x: 3.0 [1.0, 5.0] points below the usual 20.0 %")


# Acceptance


@pytest.mark.parametrize(
    "chart, n, delay",
    [("ewma", 20, 7.29), ("ewma", 100, 2.62),
     pytest.param("glr", 100, 2.27, marks=pytest.mark.slow),
     pytest.param("glr", 20, 7.50, marks=pytest.mark.slow)],
)
def test_time_between_false_alarms_and_delay(chart, n, delay):
    w = ControlChart(Baseline(0.2, 0.0, np.array([float(n)]), is_known=True), 370, chart)
    assert (
        abs(w.estimate_arl0().value / 370 - 1) < 0.1
        and abs(summarize_delay(w, 0.1, 4000)[0].value / delay - 1) < 0.1
    )


def test_exact_binomial():
    assert np.allclose(
        [
            1 / binomial_tail(31, 100, 0.2),
            1 / binomial_tail(9, 20, 0.2),
            1 / binomial_tail(10, 20, 0.2),
        ],
        [165.0, 100.2, 385.4],
        atol=0.05,
    )


def test_likeness_volumes_and_an_estimated_baseline():
    rng, seen = np.random.default_rng(0), []
    for i in range(8):
        n = rng.integers(20, 501, 60)
        w = ControlChart(fit_baseline(draw_counts(rng, n, 0.2, 0.02, 60), n), 370, seed=i)
        n = rng.integers(20, 501, (1000, 40))
        seen.append(
            find_first_alarms(w.statistic(draw_counts(rng, n, 0.2, 0.02, n.shape), n)).count_alarms(
                w.limit
            )
        )
    assert arl_interval(*map(int, np.sum(seen, axis=0))).value >= 250


# Drift of the texts


def stand_in(texts, opinions, buckets, n_baseline):
    "What `TextDrift` asks of a monitor."
    days = pd.date_range("2026-01-01", periods=max(buckets) + 1)
    frame = pd.DataFrame({"bucket": days[buckets], "text": texts, "opinion": opinions})
    return SimpleNamespace(frame=frame, bucket_index=days, n_baseline=n_baseline,
                           stream=SimpleNamespace(freq="day"),
                           bucket_names=lambda: [f"{d:%Y-%m-%d}" for d in days])


WORDS_OF = {"en": "parcel late refund room service clean slow fine staff door".split(),
            "zh": "快递 太慢 退款 房间 服务 干净 早餐 不错 客服 前台".split()}


def made_texts(n, language, seed=0):
    rng = np.random.default_rng(seed)
    draws, numbers = rng.integers(0, 10, (n, 5)), rng.integers(10**6, size=n)
    return [" ".join(WORDS_OF[language][i] for i in row) + f" {k}"
            for row, k in zip(draws, numbers)]


def test_many_texts_are_sampled_and_are_no_drift():
    "A hundred thousand texts of one kind, a hundredth of the later ones odd: no alarm, bounded."
    n = 100_000
    texts, day = made_texts(n, "en"), np.arange(n) * 120 // n
    odd = (day >= 60) & (np.arange(n) % 100 == 0)
    texts = [f"{t} dear customer" if o else t for t, o in zip(texts, odd)]
    read = []

    def vectors(texts):
        read.append(len(texts))
        return word_vectors(texts)

    drift = TextDrift(stand_in(texts, np.array(["a", "b"])[np.arange(n) % 2], day, 60), vectors)
    assert sum(read) <= 500 + 1500 + 10 * 1000 and len(drift.table().rows) <= 10
    assert {w.verdict for w in drift.windows} == {"none"}
    assert "were read, drawn at random" in drift.summary()[-1]
    assert len(json.dumps(drift.facts(), default=vars)) < 10_000


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_change_of_the_texts_is_found_and_a_few_texts_are_too_few(language):
    texts, other = made_texts(2400, language), made_texts(600, language, 1)
    odd = "系统升级" if language == "zh" else "app crash"
    strange = [f"{t} {odd}" if i % 2 else t for i, t in enumerate(other)]
    day = np.r_[np.arange(2400) // 40, 60 + np.arange(600) // 40]
    same = TextDrift(stand_in(texts + other, ["a"] * 3000, day, 60))
    changed = TextDrift(stand_in(texts + strange, ["a"] * 3000, day, 60))
    assert "drift" not in {w.verdict for w in same.windows}
    assert changed.newest().verdict == "drift" and len(changed.newest().texts) == 3
    few = TextDrift(stand_in(texts + strange[1:16:2], ["a"] * 2408, [*day[:2400], *[60] * 8], 60))
    assert (few.newest().verdict, few.newest().auc) == ("too few", None)
    assert "can't be told from 8 texts" in few.summary()[0]


def test_a_surge_of_one_opinion_is_no_change_of_the_texts():
    rng = np.random.default_rng(0)
    day = np.arange(6000) // 60
    late = rng.random(6000) < np.where(day < 60, 0.2, 0.6)
    texts = [f"{'parcel late courier' if bad else 'lovely room clean'} {t}"
             for bad, t in zip(late, made_texts(6000, "en"))]
    mixed = TextDrift(stand_in(texts, np.where(late, "bad", "good"), day, 60))
    blind = TextDrift(stand_in(texts, ["all"] * 6000, day, 60))
    assert "drift" not in {w.verdict for w in mixed.windows}
    assert blind.newest().verdict == "drift"  # without the opinions it would be one


# Alarms that arrive


class Clock:
    "Hours pass at once."

    def __init__(self):
        self.now = 1e9

    def time(self):
        return self.now

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Receiver(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        hook = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if hook.mood == "break":
            self.close_connection = True
            return
        if hook.mood == "hang":
            time.sleep(0.5)
            return
        if hook.mood == "late":
            time.sleep(0.4)
        if hook.mood in (200, "late"):
            hook.got.append((self.headers["Idempotency-Key"], body))
        with suppress(OSError):
            self.send_response(200 if hook.mood == "late" else hook.mood)
            self.end_headers()


class Hook(Loopback):
    "A webhook on this machine."

    path = "/hook?key=secret"

    def __init__(self):
        self.mood, self.got = 200, []

    def handler(self):
        return Receiver


@pytest.fixture(scope="module")
def alarmed(small):
    "A monitor with an alarm."
    stream = Stream(columns=StreamColumns(**NAMES), now=NOW)
    stream.add(small)
    monitor = Monitor(stream, watch=["delivery"], drift=False)
    return monitor, monitor.find_alerts()[-1]


def test_a_webhook_that_is_down_for_an_hour(alarmed, monkeypatch):
    "Each run is a new process on the same store; each brings a new alarm."
    monkeypatch.setattr(outbox, "TRY_SECONDS", 0.25)
    monitor, alert = alarmed
    clock, hook, late = Clock(), Hook(), []
    with hook:
        pass  # a port that nobody listens at any more
    moods = ["refused", "hang", 500, "break", "late", 429, "hang", 503, "refused", 500, 408, 500]
    for i, hook.mood in enumerate([*moods, 200, 200]):
        day = f"2027-01-{1 + 2 * i:02}"
        new = replace(alert, since=day, raised=day, ended=f"2027-01-{2 + 2 * i:02}")
        box = AlarmOutbox(Stream("posts.sqlite").db, clock)
        began, real = clock.now, time.monotonic()
        with nullcontext() if hook.mood == "refused" else hook:
            found = box.hand_over(monitor, [alert, new], [Webhook(hook.url)], seconds=5)
            if hook.mood in ("hang", "late"):
                time.sleep(0.5)  # whoever was left behind ends
        assert clock.now - began <= 5 and time.monotonic() - real < 8
        late += [k for k, _ in hook.got if k not in late] if hook.mood == "late" else []
        assert found[0].waiting == (0 if hook.mood == 200 else i + 2) or hook.mood == "late"
        box.db.close()
        clock.now += 300
    keys = Counter(k for k, _ in hook.got)
    assert len(keys) == len(moods) + 3  # none lost
    twice = {k for k, n in keys.items() if n > 1}
    assert twice <= set(late) and late  # but for those taken after we gave up: the same key
    assert all(k == body["key"] for k, body in hook.got)
    assert sorted({b["bucket"] for _, b in hook.got})[0] == alert.raised


def test_the_recipe_sends_once_never_fails_and_takes_labels(small, monkeypatch):
    small.to_csv("posts.csv", index=False)
    words = dict(table="posts.csv", store="posts.sqlite", **NAMES, probability="probability",
                 opinions="delivery", false_alarms=3.0, alarm_webhook="env:SHOP_HOOK")
    with Hook() as hook:
        monkeypatch.setenv("SHOP_HOOK", hook.url)
    down = run("a", **words, alarm_seconds=0.5)
    n = len(down["alerts"])
    assert n and [d["waiting"] for d in down["alarms_sent"]] == [n]
    assert next(g for g in down["guard"] if g["check"] == "alarms_delivered")["passed"] is False
    queue = pd.read_csv("a/label_these.csv", dtype=str)
    truth = small.drop_duplicates("id").set_index("id").said  # a classifier that is always right
    queue.assign(truth=queue.key.str.removeprefix("id ").map(truth)).to_csv("done.csv")
    with hook:
        up = run("b", **words, labeled="done.csv")
        box = AlarmOutbox(Stream("posts.sqlite").db)
        assert up["alarms_sent"][0]["sent"] == n and box.deliver([Webhook(hook.url)])[0].tries == 0
    page = Path("b/report.html").read_text("utf-8")
    assert len(hook.got) == n and "secret" not in page and "What the labels say" in page
    text = json.dumps([body for _, body in hook.got])
    assert not any(t in text for t in small.text) and hook.got[0][1]["ids"]
    assert up["labels"]["realized_accuracy"]["value"] == 1
    assert up["estimated_performance"]["windows"] and up["text_drift"]["windows"]


def test_a_command_gets_the_alarm_and_no_shell(alarmed):
    monitor, alert = alarmed
    Path("take.py").write_text("import sys; open('got.txt', 'ab').write(sys.stdin.buffer.read())")
    taker = Command(f"{shlex.quote(sys.executable)} take.py ; touch evil $(touch evil)")
    box = AlarmOutbox(Stream().db)
    found = [box.hand_over(monitor, [alert], [taker], texts=True)[0].sent for _ in range(2)]
    got = json.loads(Path("got.txt").read_text("utf-8"))
    assert found == [1, 0] and got["series"] == "delivery"
    assert len(got["texts"]) == 5 and not Path("evil").exists()


def test_a_hook_that_comes_later_is_not_told_of_what_was(alarmed):
    monitor, alert = alarmed
    box = AlarmOutbox(Stream().db)
    assert (box.put(monitor, [alert]), box.put(monitor, [alert], [Command("true")])) == (1, 0)
    assert box.deliver([Command("true")])[0].tries == 0


# Labels that come back


@pytest.mark.parametrize("language", ["en", "zh"])
def test_labels_come_back(language):
    names = ["bad", "good"] if language == "en" else ["差评", "好评"]
    rng, n = np.random.default_rng(0), 6000
    truth = np.where(rng.random(n) < 0.2, *names)
    hard = np.arange(n) % 4 == 0
    wrong = rng.random(n) < np.where(hard, 0.4, 0.02)
    said = np.where(wrong, np.where(truth == names[0], names[1], names[0]), truth)
    frame = pd.DataFrame({"id": np.arange(n), "text": made_texts(n, language), "said": said,
                          "date": pd.date_range("2026-03-01", periods=n, freq="30min"),
                          "sure": np.where(hard, 0.6, 0.98)})
    columns = StreamColumns(id="id", opinion="said", probability="sure")
    stream = Stream(columns=columns, now=pd.Timestamp("2026-07-04").timestamp())
    stream.add(frame)
    monitor = Monitor(stream, drift=False)
    right = (said == truth)[-28 * 48:].mean()
    estimated = EstimatedAccuracy(monitor).windows[-1].estimated
    assert abs(estimated.value - (said == truth)[-7 * 48:].mean()) < 0.03
    queue = draw_labels(monitor, monitor.find_alerts())
    assert queue.sampling_probability.nunique() > 1 and queue.key.is_unique
    write_frame(queue.assign(truth=truth[queue.key.str[3:].astype(int)]), "done.xlsx")
    sample = read_label_queue("done.xlsx", monitor)
    found, share = sample.accuracy(), sample.share(sample.frame.truth == names[0])
    assert len(sample.frame) == len(queue) and found.low < right < found.high
    assert share.low < (truth[-28 * 48:] == names[0]).mean() < share.high
