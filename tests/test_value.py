"""Thresholds, money and information: the numbers that a reader may check, on other data than the
notebooks show, and what is refused."""

import importlib.util
import json
import time

import numpy as np
import pytest
from insight_nb.base.core import InputError
from insight_nb.decide.launch.decision_curve import (
    decision_curve,
    net_benefit,
    prevalence_curve,
    profit_curve,
)
from insight_nb.decide.launch.information import (
    NormalChoice,
    ShareChoice,
    make_choice,
    curve_errors,
    expected_value_of_information,
    next_spend,
    sampling_value,
    training_value,
    value_of_each_input,
)
from insight_nb.decide.launch.policy import (
    Payoffs,
    answer_gains,
    answer_thresholds,
    class_thresholds_table,
    measure_policy,
    policy_from_table,
    count_by_threshold,
)
from insight_nb.decide.launch.value import (
    Project,
    lognormal_from_quantiles,
    correlation,
    dated,
    all_irr,
    beta_from_interval,
    normal_from_interval,
    mirr,
    normal_distribution,
    npv,
    payback,
    simulate,
    triangular_distribution,
    uniform_distribution,
)
from insight_nb.eval.calibrate import reliability_bins
from insight_nb.eval.learning_curve import fit_curve
from insight_nb.eval.metrics import WILSON, Metric, softmax, wilson_interval

COSTS = Payoffs(tp=0, fp=-1, fn=-5)
LAUNCH = ShareChoice(100_000, 0.45, 8, 12)


def world(n, seed):
    "Outcomes drawn with the very probabilities that are said."
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-1.5, 1.5, n)))
    return (rng.random(n) < p).astype(int), p


def share(k, n):
    return Metric(k / n, *map(float, wilson_interval(k, n)), n, WILSON)


# Policy


@pytest.mark.parametrize("fn", [-1.0, -5.0, -20.0])
def test_the_threshold_costs_what_an_oracle_costs(fn):
    """n = 2,000, 200 repeats: within 2 % of the best threshold that any of 1,000 finds on 200,000
    other cases."""
    payoffs, (y, p) = Payoffs(tp=0, fp=-1, fn=fn), world(200_000, 0)

    def cost(t):
        return -payoffs.gains[y, (p >= t).astype(int)].mean()

    oracle = min(cost(t) for t in np.quantile(p, np.linspace(0, 1, 301)))
    ours = [
        -measure_policy(payoffs, *world(2000, 1 + k), draws=2).per_case["this rule"].value
        for k in range(200)
    ]
    assert abs(cost(payoffs.threshold) / oracle - 1) < 0.02
    assert abs(np.mean(ours) / oracle - 1) < 0.02


def test_net_benefit_has_the_known_values():
    """750 patients, 105 of them ill; true and false positives at .05, .10, .20, .35 (the example
    data of dcurves)."""
    at = [0.05, 0.10, 0.20, 0.35]
    tp = [96, 87, 75, 57]
    fp = [320, 193, 98, 36]
    groups = [
        (0, 105 - 96, 645 - 320),
        *((t, a - b, c - d) for t, a, b, c, d in zip(at, tp, tp[1:] + [0], fp, fp[1:] + [0])),
    ]
    p = np.concatenate([np.full(a + b, t) for t, a, b in groups])
    y = np.concatenate([np.r_[np.ones(a), np.zeros(b)] for _, a, b in groups])
    curve = decision_curve(count_by_threshold(y, p, at))  # a case just at the threshold is acted on
    np.testing.assert_allclose(
        curve.lines["the model"][0],
        [a / 750 - b / 750 * t / (1 - t) for t, a, b in zip(at, tp, fp)],
        atol=1e-12,
    )
    np.testing.assert_allclose(
        curve.lines["the model"][0], [0.105544, 0.087407, 0.067333, 0.050154], atol=5e-7
    )
    np.testing.assert_allclose(
        curve.lines["all"][0], [0.094737, 0.044444, -0.075, -0.323077], atol=5e-7
    )
    np.testing.assert_allclose(
        net_benefit(np.array([[91] * 4, [24] * 4]), 750, at),
        [0.025614, 0.018519, 0.001667, -0.033333],
        atol=5e-7,
    )


def test_bands_hold_the_truth():
    "Pointwise bands of both curves on 200 samples of 500 cases."
    y, p = world(200_000, 0)
    at = [0.1, 0.3, 0.5]
    truth = [
        f(count_by_threshold(y, p, at), *more).lines["the model"][0]
        for f, more in ((decision_curve, ()), (profit_curve, (COSTS,)))
    ]
    held = np.zeros((2, 3))
    for k in range(200):
        t = count_by_threshold(*world(500, 10 + k), at)
        for i, c in enumerate((decision_curve(t, 300), profit_curve(t, COSTS, 300))):
            _, low, high = c.lines["the model"]
            held[i] += (low <= truth[i]) & (truth[i] <= high)
    assert (
        (held / 200 > 0.88).all()
        and (held / 200 <= 1).all()
        and abs(held.mean() / 200 - 0.94) < 0.03
    )


def test_a_report_says_what_the_cases_say():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 3))
    truth = (softmax(logits).cumsum(1) > rng.random((20_000, 1))).argmax(1)
    probs, use = softmax(logits), Payoffs(tp=1, fp=-3)
    evidence = {
        "task": "classify",
        "calibration": {"reliability_after": reliability_bins(probs, truth, n_bins=20)},
    }
    coarse = policy_from_table(use, evidence)
    fine = measure_policy(use, probs.argmax(1) == truth, probs.max(1))
    for k in fine.per_case:
        assert (
            abs(coarse.per_case[k].value - fine.per_case[k].value) < 1e-9
            and abs(coarse.per_case[k].low - fine.per_case[k].low) < 0.01
        )
    assert json.loads(json.dumps(coarse.asdict(), allow_nan=False)) == coarse.asdict()
    assert "20 bins" not in fine.summary() and "bins; the payoffs give 0.750" in coarse.summary()


def test_large_strange_and_safe():
    y, p = world(100_000, 0)
    start = time.perf_counter()
    rule = measure_policy(Payoffs(0, -1, -5, review=0.2, person=0.95), y, p)
    prevalence_curve(rule).plot()
    assert time.perf_counter() - start < 5 and set(rule.shares) == {
        "left",
        "acted on",
        "asked about",
    }
    grid = class_thresholds_table(
        np.arange(300) % 3,
        np.full((300, 3), 1 / 3),
        {"<script>alert(1)</script>": COSTS, "退款": COSTS, "🙂": COSTS},
    )
    assert "<script" not in grid.to_html() and "退款" in grid.to_html()
    one = measure_policy(COSTS, [0, 1], [0.2, 0.2])  # two cases, one probability
    assert one.per_case["this rule"].value == -0.5 and one.summary()


# Value


def test_present_value_and_modified_rate_agree_with_another_library():
    px, rng = pytest.importorskip("pyxirr"), np.random.default_rng(0)
    for _ in range(1000):
        flows = rng.normal(size=rng.integers(2, 40)) * 1000
        flows[0], flows[1] = -abs(flows[0]), abs(flows[1])
        r, a, b = rng.uniform(0, 0.3, 3)
        assert abs(npv(r, flows) - px.npv(r, flows)) < 1e-8 * np.abs(flows).sum()
        assert abs(mirr(flows, a, b) - px.mirr(flows, a, b)) < 1e-8


def test_all_rates_of_return():
    "Flows built from their rates: all are found again, and no other."
    rng = np.random.default_rng(0)
    for _ in range(300):
        rates = np.sort(np.exp(rng.uniform(-0.6, 1.0, rng.integers(1, 5))) - 1)
        if len(rates) > 1 and np.diff(rates).min() < 0.02:
            continue
        flows = np.poly(1 + rates)
        if not (flows > 0).any():
            continue
        np.testing.assert_allclose(all_irr(flows), rates, atol=1e-6)
    start = time.perf_counter()
    loan = np.r_[-1000.0, np.full(360, 1000 * 0.004 / (1 - 1.004**-360))]
    np.testing.assert_allclose(all_irr(loan), [0.004], atol=1e-9)
    assert time.perf_counter() - start < 5
    assert payback(loan) > payback(loan[:2] * [1, 200]) and np.isinf(payback([-1, 0.5]))


def test_a_simulation_hits_the_known_risks():
    for rho, sd, loss in ((0.0, 102.633, 0.0906), (0.5, 176.445, 0.2184), (1.0, 227.447, 0.2731)):
        pairs = {(f"y{i}", f"y{j}"): rho for i in range(5) for j in range(i)}

        def f(**y):
            return npv(0.1, np.stack([np.full(len(y["y0"]), -1000.0), *y.values()], -1))

        v = simulate(
            f,
            {f"y{k}": normal_distribution(300, 60) for k in range(5)},
            pairs,
            draws=200_000,
            seed=7,
        ).value
        assert (
            abs(v.mean() - 137.236) < 3 * sd / len(v) ** 0.5
            and abs(v.std() - sd) < 3 * sd / (2 * len(v)) ** 0.5
        )
        assert abs((v < 0).mean() - loss) < 3 * (loss * (1 - loss) / len(v)) ** 0.5


def test_the_same_seed_gives_the_same_bytes():
    project = Project(volume=100, gain=1, build=200)
    what = {
        "volume": lognormal_from_quantiles(80, 120),
        "quality": beta_from_interval(share(45, 50)),
        "gain": triangular_distribution(0.5, 1, 2),
    }
    first, again = (
        simulate(project, what, {("volume", "gain"): -0.5}, draws=2000, seed=3) for _ in range(2)
    )
    assert (
        first.value.tobytes() == again.value.tobytes()
        and first.sensitivity_values().svg == again.sensitivity_values().svg
        and first.plot().svg == again.plot().svg
    )
    assert np.corrcoef(first.inputs["volume"], first.inputs["gain"])[0, 1] < -0.4
    odd = simulate(
        lambda **k: k["$a$ <b>"] + k["量"],
        {"$a$ <b>": normal_distribution(0, 2), "量": normal_distribution(1, 2)},
    )
    assert (
        "<b>" not in odd.sensitivity_values()._repr_html_().replace("<figcaption><b>", "")
        and "$a$ &lt;b&gt;" in odd.sensitivity_values().svg
    )
    assert json.loads(json.dumps(odd.asdict(), allow_nan=False)) == odd.asdict()


def test_a_rule_becomes_a_project():
    "From cases to a threshold, from what it brings to a value, from that to what is worth knowing."
    rule = measure_policy(Payoffs(tp=4, fp=-1, fn=-1), *world(500, 3))
    sim = simulate(
        Project(volume=10_000, gain=0, build=3_000, periods=3),
        {
            "gain": normal_from_interval(rule.per_case["this rule"]),
            "volume": lognormal_from_quantiles(5_000, 15_000),
        },
    )
    gain = rule.per_case["this rule"].value
    mean = Project(volume=10_000, gain=gain, build=3_000, periods=3).npv()
    assert (
        abs(np.mean(sim.value) / mean - 1) < 0.1
        and list(value_of_each_input(sim))[0] == "everything"
    )


# Information


def test_information_has_the_known_values():
    np.testing.assert_allclose(LAUNCH.evpi(), 2310.579, atol=1e-3)
    np.testing.assert_allclose(
        [LAUNCH.evsi(n) for n in (10, 20, 50, 100, 200, 1000)],
        [810.09, 1201.10, 1723.26, 1973.07, 2129.80, 2272.22],
        atol=0.005,
    )
    s = sampling_value(LAUNCH, 20)
    assert s.best == 28 and abs(s.net.max() - 868.75) < 0.005 and abs(s.net[100] + 26.93) < 0.005
    bell = NormalChoice(-20, 100, 400)
    np.testing.assert_allclose(
        [bell.evpi(), *(bell.evsi(n) for n in (4, 16, 64))],
        [30.6895, 9.5962, 19.3304, 26.5708],
        atol=1e-4,
    )


def test_information_is_never_worth_less_for_being_more():
    rng = np.random.default_rng(1)
    for _ in range(200):
        for c in (
            ShareChoice(rng.normal() * 1e4, rng.uniform(), *rng.uniform(0.5, 60, 2)),
            NormalChoice(rng.normal(), *rng.uniform(0.1, 5, 2)),
        ):
            v = np.array([c.evsi(n) for n in range(0, 60, 3)])
            assert (v >= 0).all() and (np.diff(v) > -1e-7).all() and v[-1] <= c.evpi() + 1e-7


def test_a_closed_form_agrees_with_a_simulated_project():
    project = Project(volume=40_000, gain=2.0, loss=9.0, build=60_000, running=8_000, periods=4)
    sim = simulate(
        project,
        {
            "quality": beta_from_interval(share(90, 100)),
            "volume": uniform_distribution(35_000, 45_000),
        },
        draws=100_000,
    )
    choice = make_choice(project, share(90, 100))
    drawn = expected_value_of_information(np.stack([sim.value, 0 * sim.value], 1))
    found = value_of_each_input(sim)
    assert (
        abs(found["quality"] / choice.evpi() - 1) < 0.02
        and drawn.value >= found["quality"] >= found["volume"]
    )
    assert max(found, key=found.get) == "everything"


def test_labels_to_train_and_to_evaluate_are_two_things():
    n = np.repeat([100, 200, 400, 800], 3)
    curve = fit_curve(n, 1 - (0.05 + 1.4 * n**-0.5))
    project = Project(volume=20_000, gain=2, loss=9, build=10_000)
    cheap, dear = (training_value(project, curve_errors(curve), 800, price) for price in (1.0, 1e4))
    assert cheap.best > 0 == dear.best and "none pay" in dear.summary()
    labels = next_spend(sampling_value(make_choice(project, share(90, 100)), 1.0), cheap)
    assert [r[0] for r in labels.rows] == ["labels to evaluate", "labels to train on"]


# What is refused, in one line

PROJECT = Project(volume=1, gain=1)
BAD = [
    ("equal answers", lambda: Payoffs(tp=1, fp=0, fn=1, tn=0), "both answers are worth the same"),
    (
        "costs with a wrong sign",
        lambda: Payoffs(tp=0, fp=1, fn=5),
        "Exchange positive and negative",
    ),
    ("NaN payoff", lambda: Payoffs(tp=np.nan, fp=-1), "the payoff tp is nan"),
    ("no cases", lambda: measure_policy(COSTS, [], []), "at least one case"),
    (
        "a probability over 1",
        lambda: measure_policy(COSTS, [0, 1], [0.1, 1.1]),
        "case 1 has the probability 1.1",
    ),
    (
        "NaN probability",
        lambda: measure_policy(COSTS, [0, 1], [np.nan, 0.5]),
        "case 0 has the probability nan",
    ),
    ("one kind", lambda: measure_policy(COSTS, [1, 1], [0.1, 0.5]), "needs both kinds"),
    ("words", lambda: measure_policy(COSTS, ["ja", "nein"], [0.1, 0.5]), "Give numbers"),
    (
        "no table",
        lambda: policy_from_table(COSTS, {"task": "ladder", "calibration": {}}),
        "no reliability table",
    ),
    (
        "wrong is right",
        lambda: answer_gains([1, 1], [2, 0], 0),
        "the right ones above the wrong ones",
    ),
    ("negative volume", lambda: Project(volume=-5, gain=1), "volume is -5"),
    ("a rate over 1", lambda: Project(volume=5, gain=1, rate=8), "0.08 for 8 %"),
    ("a quality over 1", lambda: Project(volume=5, gain=1, quality=90), "0.9 for 90 %"),
    ("NaN flow", lambda: npv(0.1, [-1, np.nan]), "the cash flow of period 1 is nan"),
    ("no flows", lambda: all_irr([]), "there are no cash flows"),
    ("never positive", lambda: all_irr([-1, -2]), "never turn positive"),
    ("never positive, modified", lambda: mirr([-1, -2], 0.1, 0.1), "never turn positive"),
    (
        "no correlation matrix",
        lambda: correlation("abc", {("a", "b"): 0.9, ("b", "c"): 0.9, ("a", "c"): -0.9}),
        "can't hold together",
    ),
    ("a correlation over 1", lambda: correlation("ab", {("a", "b"): 2}), "from -1 to 1"),
    (
        "an unknown input",
        lambda: simulate(PROJECT, {"volum": normal_distribution(1, 1)}),
        "Did you mean 'volume'",
    ),
    (
        "a volume drawn below 0",
        lambda: simulate(PROJECT, {"volume": normal_distribution(0, 1)}),
        "volume is -",
    ),
    (
        "no interval",
        lambda: beta_from_interval(Metric(0.9, np.nan, np.nan, 0, "")),
        "has no interval",
    ),
    ("a price of 0", lambda: sampling_value(LAUNCH, 0), "a price above 0"),
    ("half a label", lambda: LAUNCH.evsi(0.5), "a whole number"),
    (
        "an error over 1",
        lambda: training_value(PROJECT, lambda n: 2.0, 100, 1.0),
        "errors from 0 to 1",
    ),
    (
        "quality that does not matter",
        lambda: make_choice(Project(volume=0, gain=1), share(9, 10)),
        "does not hang on its quality",
    ),
]


@pytest.mark.parametrize("call, words", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_the_library_for_dates_is_named_when_it_is_gone(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyxirr", None)
    with pytest.raises(InputError, match=r"insight_nb\[decide\]"):
        dated(0.1, ["2027-01-01"], [1])


@pytest.mark.skipif(not importlib.util.find_spec("pyxirr"), reason="needs pyxirr")
def test_dates():
    value, rate = dated(0.05, ["2028-01-01", "2027-01-01"], [110, -100])
    assert abs(value - (110 / 1.05 - 100)) < 1e-9 and abs(rate - 0.1) < 1e-9


def test_thresholds_above_one_mean_never():
    assert answer_thresholds([1.0, 1.0], [-1.0, -4.0], 2.0).min() > 1
