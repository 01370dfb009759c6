"""What is true of growth, balance, score and demand as a whole: the stated numbers, and bad input
from files that ends in one line."""

import math
from datetime import date

import numpy as np
import pandas as pd
import pytest
from conftest import write_csv
from insight_nb.base.core import InputError
from insight_nb.decide.strategy.balance import Balance, pareto_mask
from insight_nb.decide.strategy.demand import (
    find_themes,
    kano_table,
    needs_table,
    opportunity_score,
    read_mentions,
    compare_strengths,
    strengths_table,
    share_difference_test,
)
from insight_nb.decide.strategy.growth import (
    Growth,
    WorkLog,
    CapabilityStock,
    stock_levels,
    weighted_product,
    read_log,
)
from insight_nb.decide.strategy.score import Indicator, ScoreTable
from insight_nb.eval.metrics import Metric
from scipy.stats import false_discovery_control

COSTS = dict(T=1, A=2, S=3)
NASTY = "<script>alert(1)</script>很好😀"


def one_line(call, *words):
    "An InputError of one line with these words in it."
    with pytest.raises(InputError) as e:
        call()
    said = str(e.value)
    assert len(said.splitlines()) == 1 and all(w in said for w in words), said


# Growth


def test_a_product_is_not_the_integral_of_a_product():
    """a = 2, b = 3, t = 4: 96 is T I and the integral of the product rule; 128 is the integral of T
    I."""
    t = np.linspace(0, 4, 100_001)
    T, part_ = 2 * t, 3 * t
    whole = Growth(WorkLog(date(2026, 1, 1), np.array([[2.0] * 4, [3.0] * 4]))).result()
    assert whole.value == pytest.approx(96, abs=1e-9)
    assert np.trapezoid(2 * part_ + 3 * T, t) == pytest.approx(96, abs=1e-6)
    assert np.trapezoid(T * part_, t) == pytest.approx(128, abs=1e-6)


def test_a_log_from_a_file(tmp_path):
    # in any order
    rows = [{"date": f"2026-03-{d:02}", "technical": d, "insight": 1} for d in (9, 2, 5)]
    log = read_log(write_csv(tmp_path / "log.csv", rows))
    assert (str(log.start), log.hours[0].tolist()) == ("2026-03-02", [2, 0, 0, 5, 0, 0, 0, 9])
    assert stock_levels(CapabilityStock(), log.hours[0])[-1] == 16


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(technical="-1"), ["row 1", "-1 hours", "'technical'"]),
        (dict(technical=""), ["row 1", "no number of hours", "Write 0"]),
        (dict(insight="nan"), ["row 1", "no number of hours"]),
        (dict(date="2026-03-01"), ["row 1", "is already in row 0"]),
        (dict(date=NASTY), ["row 1", "is no date"]),
        (dict(insight="inf"), ["row 1", "no number of hours"]),
    ],
)
def test_a_broken_log(tmp_path, change, words):
    rows = [{"date": f"2026-03-0{d}", "technical": 2, "insight": 1} for d in (1, 2)]
    path = write_csv(tmp_path / "log.csv", [rows[0], rows[1] | change])
    one_line(lambda: read_log(path), "log.csv", *words)


def test_a_log_without_rows_or_hours(tmp_path):
    (tmp_path / "log.csv").write_text("date,technical,insight\n")
    one_line(lambda: read_log(tmp_path / "log.csv"), "no rows")
    path = write_csv(tmp_path / "none.csv", [{"date": "2026-03-01", "technical": 0, "insight": 2}])
    one_line(lambda: Growth(read_log(path)), "no technical hours")


def test_ten_years_of_days_are_quick():
    "And forecasts under a ceiling stay below it."
    log = WorkLog(date(2016, 1, 1), np.random.default_rng(0).poisson(3.0, (2, 3650)) * 1.0)
    share = CapabilityStock(half_life=365, gain=Metric(0.001, 0.0005, 0.002, 50, ""), ceiling=1)
    team = Growth(log, share, share)
    shown = team.plot({"a": (5, 0), NASTY: (0, 5)}, 365)
    assert "<script" not in shown._repr_html_() and "<script" not in shown.table.to_html()
    assert 0 < team.result(team.follow((9, 9), 3650)[:, -1]).high < 1


# Balance


@pytest.mark.parametrize(
    "powers, high, levels, value, price",
    [
        (None, None, [30, 15, 10], 4500, 150),
        (
            dict(T=0.5, A=0.3, S=0.2),
            None,
            [45, 13.5, 6],
            45**0.5 * 13.5**0.3 * 6**0.2,
            45**0.5 * 13.5**0.3 * 6**0.2 / 90,
        ),
        (None, dict(T=20), [20, 17.5, 35 / 3], 12250 / 3, 350 / 3),
    ],
)
def test_the_closed_forms(powers, high, levels, value, price):
    best = Balance(90, COSTS, powers, high=high).best()
    assert (
        np.abs(best.levels - levels).max() < 1e-6
        and best.value == pytest.approx(value, abs=1e-6)
        and best.price == pytest.approx(price, abs=1e-6)
    )


def test_no_feasible_point_is_better():
    "Ten thousand random points of each of fifty problems with bounds; the budget is kept."
    rng = np.random.default_rng(0)
    for _ in range(50):
        c = rng.uniform(0.5, 4, 4)
        w = rng.uniform(0, 2, 4)
        low = rng.uniform(0, 2, 4)
        high = low + rng.uniform(0.1, 9, 4)
        budget = c @ low + rng.uniform(0.5, 20)
        b = Balance(budget, *(dict(zip("abcd", v)) for v in (c, w, low, high)))
        best = b.best()
        x = low + rng.random((10_000, 4)) * (high - low)
        assert (
            c @ best.levels <= budget * (1 + 1e-12)
            and (best.levels >= low - 1e-9).all()
            and (best.levels <= high + 1e-9).all()
        )
        x = x[x @ c <= budget]
        assert not len(x) or b.value(x).max() <= best.value * (1 + 1e-9)


def test_the_interval_of_a_product():
    m = [Metric(v, v * math.exp(-0.196), v * math.exp(0.196), 9, "") for v in (30, 15, 10)]
    found = weighted_product(m, [1, 1, 1])
    assert (round(found.value), round(found.low), round(found.high)) == (4500, 3205, 6319)


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: Balance(50, COSTS, low=dict(T=40, S=10)),
            ["infeasible", "lower bounds alone cost 70", "budget is 50"],
        ),
        (lambda: Balance(math.inf, COSTS), ["unbounded"]),
        (lambda: Balance(90, COSTS, dict(T=0, A=0, S=0)), ["powers sum to 0"]),
        (lambda: Balance(90, {}), ["no factor"]),
        (lambda: Balance(90, dict(T=float("nan"))), ["'T' is nan"]),
        (lambda: Balance(90, COSTS, low={NASTY: 1}), ["which has no cost"]),
        (lambda: Balance(90, COSTS).table_of_plans({NASTY: dict(T=1)}), ["no level of 'A'"]),
    ],
)
def test_what_can_not_be_balanced(call, words):
    one_line(call, *words)


def test_the_pareto_set_is_right():
    x = np.random.default_rng(0).integers(0, 4, (200, 3))
    slow = [not any((b >= a).all() and (b > a).any() for b in x) for a in x]
    assert pareto_mask(x).tolist() == slow and 0 < sum(slow) < 200


# Score


def of(names="xyz", **options):
    return ScoreTable(
        {n: dict(zip(names, v)) for n, v in options.items()},
        [Indicator(n, 0, 1) for n in names[: len(next(iter(options.values())))]],
    )


@pytest.mark.parametrize(
    "options, first",
    [
        (dict(A=(1, 0), B=(0, 1), C=(0.6, 0.6)), [0.4, 0.4, 0.2]),
        (dict(A=(1, 0, 0), B=(0, 1, 0), C=(0.5, 0.5, 0.2)), [5 / 14, 5 / 14, 2 / 7]),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_rank_acceptability(options, first, seed):
    found, first = of(**options).smaa(100_000, seed=seed).ranks[:, 0], np.array(first)
    assert (np.abs(found - first) < 3 * np.sqrt(first * (1 - first) / 100_000)).all(), found


def test_a_dominated_option_changes_no_order():
    "Two hundred random tables, uncertain levels too."
    rng = np.random.default_rng(0)
    for i in range(200):
        options = {
            n: {k: (v, v - 0.1, v + 0.1) for k, v in zip("xyz", rng.random(3))} for n in "ABCD"
        }
        worse = {k: tuple(u - 0.3 for u in v) for k, v in options["B"].items()}
        by = [Indicator(k, -1, 2, w) for k, w in zip("xyz", rng.random(3))]
        before, after = ScoreTable(options, by), ScoreTable(options | {"E": worse}, by)
        assert after.dominated()["E"] and before.order() == [p for p in after.order() if p != 4]
        if i < 5:
            assert np.array_equal(before.smaa(2000).pairs, after.smaa(2000).pairs[:4, :4])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: of("xy", A=(1, 0), B=(1,)), ["option 'B' has no level of 'y'"]),
        (lambda: ScoreTable({}, [Indicator("x", 0, 1)]), ["0 options"]),
        (lambda: of(A=(1, float("nan"))), ["option 'A', 'y'"]),
        (lambda: ScoreTable({"A": {"x": 1}}, [Indicator("x", 0, 1, 0)]), ["weights sum to 0"]),
        (
            lambda: ScoreTable({NASTY: {"x": "high"}}, [Indicator("x", 0, 1)]),
            ["'high' is no level"],
        ),
    ],
)
def test_what_can_not_be_scored(call, words):
    one_line(call, *words)


def test_names_are_escaped_in_scores():
    found = of(**{NASTY: (1, 0.2), "B": (0.3, 0.8)})
    for shown in (
        found.table(),
        found.rank_reversals(),
        found.weights_table(),
        found.smaa(1000).table(),
        found.smaa(1000).pairs_table(),
    ):
        assert "<script" not in shown.to_html() + shown.to_markdown()
    assert "<script" not in found.smaa(1000).plot()._repr_html_()


# Demand


def mentioned(n, lead=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        (
            firm,
            theme,
            "positive" if rng.random() < 0.65 + lead * (firm == "us") else "negative",
            f"{NASTY} {theme} {i}",
        )
        for theme in ("price", "送货")
        for firm in ("us", "them")
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["firm", "theme", "opinion", "text"])


def test_a_table_of_strengths_cites_its_texts(tmp_path):
    table = mentioned(200, 0.2)
    table.loc[[5, 700], "opinion"] = None
    table.to_csv(tmp_path / "said.csv", index=False)
    m = read_mentions(tmp_path / "said.csv", "us")
    lines = compare_strengths(m)
    shown = strengths_table(lines, m.skipped)
    assert (
        {item.verdict for item in lines} == {"strength"}
        and "2 rows left out" in shown.caption
        and "<script" not in shown.to_html()
    )
    assert all(
        table.text[row] == text and table.opinion[row] == "positive" and table.firm[row] == "us"
        for item in lines
        for row, text in item.cites
    )


def test_few_cells_are_false_and_gaps_are_found():
    "1,000 tables of six themes, 200 mentions each."

    def filled(p, q, seed):
        rng = np.random.default_rng(seed)
        return np.array(
            [
                false_discovery_control(
                    [
                        share_difference_test(x, 200, y, 200)
                        for x, y in zip(rng.binomial(200, p), rng.binomial(200, q))
                    ]
                )
                <= 0.05
                for _ in range(1000)
            ]
        )

    same = np.full(6, 0.65)
    some = np.array([0.8, 0.8, 0.8, 0.65, 0.65, 0.65])
    false = filled(same, same, 0)
    assert false.mean() < 0.02 and false.any(1).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert filled(some, same, 1)[:, :3].mean() >= 0.8


def test_opportunity_of_eight_and_four():
    assert opportunity_score([1] * 80 + [0] * 20, [1] * 40 + [0] * 60).value == pytest.approx(12)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: needs_table({"a": [9] * 20}, {"a": [1] * 20}), ["row 0", "9 is no answer"]),
        (lambda: needs_table({}, {}), ["no need"]),
        (lambda: kano_table({"a": [0] * 9}, {"a": [1] * 9}), ["0 is no answer"]),
        (lambda: find_themes([None, "", NASTY]), ["1 usable text of 3"]),
        (lambda: read_mentions(mentioned(3), NASTY), ["no row has"]),
        (lambda: read_mentions(mentioned(0), "us"), ["no rows"]),
    ],
)
def test_what_can_not_be_read(call, words):
    one_line(call, *words)


def test_many_mentions_are_quick():
    table = pd.concat([mentioned(25_000)], ignore_index=True)
    assert len(table) == 100_000 and len(compare_strengths(read_mentions(table, "us"))) == 2
