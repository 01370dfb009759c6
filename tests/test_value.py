"""Thresholds, money and information: the numbers that a reader may check, on other data than the notebooks show, and what is refused."""
import importlib.util
import json
import time

import numpy as np
import pytest
from insight_nb.core import InputError
from insight_nb.decide.curve import decision_curve, net_benefit, prevalence_curve, profit_curve
from insight_nb.decide.information import NormalChoice, ShareChoice, choice_of, errors_of, evpi_of, next_spend, sampling, training, worth_knowing
from insight_nb.decide.policy import Payoffs, answer_gains, answer_thresholds, class_grid, measure, measure_table, tally
from insight_nb.decide.value import Project, between, correlation, dated, irr_all, measured, measured_amount, mirr, normal, npv, payback, simulate, triangular, uniform
from insight_nb.eval.calibrate import reliability
from insight_nb.eval.curve import fit_curve
from insight_nb.eval.metrics import WILSON, Metric, softmax, wilson

COSTS = Payoffs(tp=0, fp=-1, fn=-5)
LAUNCH = ShareChoice(100_000, .45, 8, 12)


def world(n, seed):
    "Outcomes drawn with the very probabilities that are said."
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-1.5, 1.5, n)))
    return (rng.random(n) < p).astype(int), p

def share(k, n): return Metric(k / n, *map(float, wilson(k, n)), n, WILSON)


# Policy

@pytest.mark.parametrize("fn", [-1., -5., -20.])
def test_the_threshold_costs_what_an_oracle_costs(fn):
    "n = 2,000, 200 repeats: within 2 % of the best threshold that any of 1,000 finds on 200,000 other cases."
    payoffs, (y, p) = Payoffs(tp=0, fp=-1, fn=fn), world(200_000, 0)
    cost = lambda t: -payoffs.gains[y, (p >= t).astype(int)].mean()
    oracle = min(cost(t) for t in np.quantile(p, np.linspace(0, 1, 301)))
    ours = [-measure(payoffs, *world(2000, 1 + k), draws=2).brings["this rule"].value for k in range(200)]
    assert abs(cost(payoffs.threshold) / oracle - 1) < .02
    assert abs(np.mean(ours) / oracle - 1) < .02


def test_net_benefit_has_the_known_values():
    "750 patients, 105 of them ill; true and false positives at .05, .10, .20, .35 (the example data of dcurves)."
    at, tp, fp = [.05, .10, .20, .35], [96, 87, 75, 57], [320, 193, 98, 36]
    groups = [(0, 105 - 96, 645 - 320), *((t, a - b, c - d) for t, a, b, c, d in zip(at, tp, tp[1:] + [0], fp, fp[1:] + [0]))]
    p, y = np.concatenate([np.full(a + b, t) for t, a, b in groups]), np.concatenate([np.r_[np.ones(a), np.zeros(b)] for _, a, b in groups])
    curve = decision_curve(tally(y, p, at)) # a case just at the threshold is acted on
    np.testing.assert_allclose(curve.lines["the model"][0], [a / 750 - b / 750 * t / (1 - t) for t, a, b in zip(at, tp, fp)], atol=1e-12)
    np.testing.assert_allclose(curve.lines["the model"][0], [.105544, .087407, .067333, .050154], atol=5e-7)
    np.testing.assert_allclose(curve.lines["all"][0], [.094737, .044444, -.075, -.323077], atol=5e-7)
    np.testing.assert_allclose(net_benefit(np.array([[91] * 4, [24] * 4]), 750, at), [.025614, .018519, .001667, -.033333], atol=5e-7)


def test_bands_hold_the_truth():
    "Pointwise bands of both curves on 200 samples of 500 cases."
    y, p = world(200_000, 0)
    at = [.1, .3, .5]
    truth = [f(tally(y, p, at), *more).lines["the model"][0] for f, more in ((decision_curve, ()), (profit_curve, (COSTS,)))]
    held = np.zeros((2, 3))
    for k in range(200):
        t = tally(*world(500, 10 + k), at)
        for i, c in enumerate((decision_curve(t, 300), profit_curve(t, COSTS, 300))):
            _, low, high = c.lines["the model"]
            held[i] += (low <= truth[i]) & (truth[i] <= high)
    assert (held / 200 > .88).all() and (held / 200 <= 1).all() and abs(held.mean() / 200 - .94) < .03


def test_a_report_says_what_the_cases_say():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 3))
    truth = (softmax(logits).cumsum(1) > rng.random((20_000, 1))).argmax(1)
    probs, use = softmax(logits), Payoffs(tp=1, fp=-3)
    evidence = {"task": "classify", "calibration": {"reliability_after": reliability(probs, truth, bins=20)}}
    coarse, fine = measure_table(use, evidence), measure(use, probs.argmax(1) == truth, probs.max(1))
    for k in fine.brings: assert abs(coarse.brings[k].value - fine.brings[k].value) < 1e-9 and abs(coarse.brings[k].low - fine.brings[k].low) < .01
    assert json.loads(json.dumps(coarse.asdict(), allow_nan=False)) == coarse.asdict()
    assert "20 bins" not in fine.said() and "bins; the payoffs give 0.750" in coarse.said()


def test_large_strange_and_safe():
    y, p = world(100_000, 0)
    start = time.perf_counter()
    rule = measure(Payoffs(0, -1, -5, review=.2, person=.95), y, p)
    prevalence_curve(rule).picture()
    assert time.perf_counter() - start < 5 and set(rule.shares) == {"left", "acted on", "asked about"}
    grid = class_grid(np.arange(300) % 3, np.full((300, 3), 1 / 3), {"<script>alert(1)</script>": COSTS, "退款": COSTS, "🙂": COSTS})
    assert "<script" not in grid.to_html() and "退款" in grid.to_html()
    one = measure(COSTS, [0, 1], [.2, .2]) # two cases, one probability
    assert one.brings["this rule"].value == -.5 and one.said()


# Value

def test_present_value_and_modified_rate_agree_with_another_library():
    px, rng = pytest.importorskip("pyxirr"), np.random.default_rng(0)
    for _ in range(1000):
        flows = rng.normal(size=rng.integers(2, 40)) * 1000
        flows[0], flows[1] = -abs(flows[0]), abs(flows[1])
        r, a, b = rng.uniform(0, .3, 3)
        assert abs(npv(r, flows) - px.npv(r, flows)) < 1e-8 * np.abs(flows).sum()
        assert abs(mirr(flows, a, b) - px.mirr(flows, a, b)) < 1e-8


def test_all_rates_of_return():
    "Flows built from their rates: all are found again, and no other."
    rng = np.random.default_rng(0)
    for _ in range(300):
        rates = np.sort(np.exp(rng.uniform(-.6, 1., rng.integers(1, 5))) - 1)
        if len(rates) > 1 and np.diff(rates).min() < .02: continue
        flows = np.poly(1 + rates)
        if not (flows > 0).any(): continue
        np.testing.assert_allclose(irr_all(flows), rates, atol=1e-6)
    start = time.perf_counter()
    loan = np.r_[-1000., np.full(360, 1000 * .004 / (1 - 1.004**-360))]
    np.testing.assert_allclose(irr_all(loan), [.004], atol=1e-9)
    assert time.perf_counter() - start < 5
    assert payback(loan) > payback(loan[:2] * [1, 200]) and np.isinf(payback([-1, .5]))


def test_a_simulation_hits_the_known_risks():
    for rho, sd, loss in ((0., 102.633, .0906), (.5, 176.445, .2184), (1., 227.447, .2731)):
        pairs = {(f"y{i}", f"y{j}"): rho for i in range(5) for j in range(i)}
        f = lambda **y: npv(.1, np.stack([np.full(len(y["y0"]), -1000.), *y.values()], -1))
        v = simulate(f, {f"y{k}": normal(300, 60) for k in range(5)}, pairs, draws=200_000, seed=7).value
        assert abs(v.mean() - 137.236) < 3 * sd / len(v)**.5 and abs(v.std() - sd) < 3 * sd / (2 * len(v))**.5
        assert abs((v < 0).mean() - loss) < 3 * (loss * (1 - loss) / len(v))**.5


def test_the_same_seed_gives_the_same_bytes():
    project, what = Project(volume=100, gain=1, build=200), {"volume": between(80, 120), "quality": measured(share(45, 50)), "gain": triangular(.5, 1, 2)}
    first, again = (simulate(project, what, {("volume", "gain"): -.5}, draws=2000, seed=3) for _ in range(2))
    assert first.value.tobytes() == again.value.tobytes() and first.matters().svg == again.matters().svg and first.picture().svg == again.picture().svg
    assert np.corrcoef(first.inputs["volume"], first.inputs["gain"])[0, 1] < -.4
    odd = simulate(lambda **k: k["$a$ <b>"] + k["量"], {"$a$ <b>": normal(0, 2), "量": normal(1, 2)})
    assert "<b>" not in odd.matters()._repr_html_().replace("<figcaption><b>", "") and "$a$ &lt;b&gt;" in odd.matters().svg
    assert json.loads(json.dumps(odd.asdict(), allow_nan=False)) == odd.asdict()


def test_a_rule_becomes_a_project():
    "From cases to a threshold, from what it brings to a value, from that to what is worth knowing."
    rule = measure(Payoffs(tp=4, fp=-1, fn=-1), *world(500, 3))
    sim = simulate(Project(volume=10_000, gain=0, build=3_000, periods=3), {"gain": measured_amount(rule.brings["this rule"]), "volume": between(5_000, 15_000)})
    mean = Project(volume=10_000, gain=rule.brings["this rule"].value, build=3_000, periods=3).npv()
    assert abs(np.mean(sim.value) / mean - 1) < .1 and list(worth_knowing(sim))[0] == "everything"


# Information

def test_information_has_the_known_values():
    np.testing.assert_allclose(LAUNCH.evpi(), 2310.579, atol=1e-3)
    np.testing.assert_allclose([LAUNCH.evsi(n) for n in (10, 20, 50, 100, 200, 1000)], [810.09, 1201.10, 1723.26, 1973.07, 2129.80, 2272.22], atol=.005)
    s = sampling(LAUNCH, 20)
    assert s.best == 28 and abs(s.net.max() - 868.75) < .005 and abs(s.net[100] + 26.93) < .005
    bell = NormalChoice(-20, 100, 400)
    np.testing.assert_allclose([bell.evpi(), *(bell.evsi(n) for n in (4, 16, 64))], [30.6895, 9.5962, 19.3304, 26.5708], atol=1e-4)


def test_information_is_never_worth_less_for_being_more():
    rng = np.random.default_rng(1)
    for _ in range(200):
        for c in (ShareChoice(rng.normal() * 1e4, rng.uniform(), *rng.uniform(.5, 60, 2)), NormalChoice(rng.normal(), *rng.uniform(.1, 5, 2))):
            v = np.array([c.evsi(n) for n in range(0, 60, 3)])
            assert (v >= 0).all() and (np.diff(v) > -1e-7).all() and v[-1] <= c.evpi() + 1e-7


def test_a_closed_form_agrees_with_a_simulated_project():
    project = Project(volume=40_000, gain=2., loss=9., build=60_000, running=8_000, periods=4)
    sim = simulate(project, {"quality": measured(share(90, 100)), "volume": uniform(35_000, 45_000)}, draws=100_000)
    choice, drawn = choice_of(project, share(90, 100)), evpi_of(np.stack([sim.value, 0 * sim.value], 1))
    found = worth_knowing(sim)
    assert abs(found["quality"] / choice.evpi() - 1) < .02 and drawn.value >= found["quality"] >= found["volume"]
    assert max(found, key=found.get) == "everything"


def test_labels_to_train_and_to_evaluate_are_two_things():
    n = np.repeat([100, 200, 400, 800], 3)
    curve, project = fit_curve(n, 1 - (.05 + 1.4 * n**-.5)), Project(volume=20_000, gain=2, loss=9, build=10_000)
    cheap, dear = (training(project, errors_of(curve), 800, price) for price in (1., 1e4))
    assert cheap.best > 0 == dear.best and "none pay" in dear.said()
    labels = next_spend(sampling(choice_of(project, share(90, 100)), 1.), cheap)
    assert [r[0] for r in labels.rows] == ["labels to evaluate", "labels to train on"]


# What is refused, in one line

PROJECT = Project(volume=1, gain=1)
BAD = [
    ("equal answers", lambda: Payoffs(tp=1, fp=0, fn=1, tn=0), "both answers are worth the same"),
    ("costs with a wrong sign", lambda: Payoffs(tp=0, fp=1, fn=5), "Exchange positive and negative"),
    ("NaN payoff", lambda: Payoffs(tp=np.nan, fp=-1), "the payoff tp is nan"),
    ("no cases", lambda: measure(COSTS, [], []), "at least one case"),
    ("a probability over 1", lambda: measure(COSTS, [0, 1], [.1, 1.1]), "case 1 has the probability 1.1"),
    ("NaN probability", lambda: measure(COSTS, [0, 1], [np.nan, .5]), "case 0 has the probability nan"),
    ("one kind", lambda: measure(COSTS, [1, 1], [.1, .5]), "needs both kinds"),
    ("words", lambda: measure(COSTS, ["ja", "nein"], [.1, .5]), "Give numbers"),
    ("no table", lambda: measure_table(COSTS, {"task": "ladder", "calibration": {}}), "no reliability table"),
    ("wrong is right", lambda: answer_gains([1, 1], [2, 0], 0), "the right ones above the wrong ones"),
    ("negative volume", lambda: Project(volume=-5, gain=1), "volume is -5"),
    ("a rate over 1", lambda: Project(volume=5, gain=1, rate=8), "0.08 for 8 %"),
    ("a quality over 1", lambda: Project(volume=5, gain=1, quality=90), "0.9 for 90 %"),
    ("NaN flow", lambda: npv(.1, [-1, np.nan]), "the cash flow of period 1 is nan"),
    ("no flows", lambda: irr_all([]), "there are no cash flows"),
    ("never positive", lambda: irr_all([-1, -2]), "never turn positive"),
    ("never positive, modified", lambda: mirr([-1, -2], .1, .1), "never turn positive"),
    ("no correlation matrix", lambda: correlation("abc", {("a", "b"): .9, ("b", "c"): .9, ("a", "c"): -.9}), "can't hold together"),
    ("a correlation over 1", lambda: correlation("ab", {("a", "b"): 2}), "from -1 to 1"),
    ("an unknown input", lambda: simulate(PROJECT, {"volum": normal(1, 1)}), "Did you mean 'volume'"),
    ("a volume drawn below 0", lambda: simulate(PROJECT, {"volume": normal(0, 1)}), "volume is -"),
    ("no interval", lambda: measured(Metric(.9, np.nan, np.nan, 0, "")), "has no interval"),
    ("a price of 0", lambda: sampling(LAUNCH, 0), "a price above 0"),
    ("half a label", lambda: LAUNCH.evsi(.5), "a whole number"),
    ("an error over 1", lambda: training(PROJECT, lambda n: 2., 100, 1.), "errors from 0 to 1"),
    ("quality that does not matter", lambda: choice_of(Project(volume=0, gain=1), share(9, 10)), "does not hang on its quality"),
]

@pytest.mark.parametrize("call, words", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError) as e: call()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_the_library_for_dates_is_named_when_it_is_gone(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyxirr", None)
    with pytest.raises(InputError, match=r"insight_nb\[decide\]"): dated(.1, ["2027-01-01"], [1])

@pytest.mark.skipif(not importlib.util.find_spec("pyxirr"), reason="needs pyxirr")
def test_dates():
    value, rate = dated(.05, ["2028-01-01", "2027-01-01"], [110, -100])
    assert abs(value - (110 / 1.05 - 100)) < 1e-9 and abs(rate - .1) < 1e-9


def test_thresholds_above_one_mean_never():
    assert answer_thresholds([1., 1.], [-1., -4.], 2.).min() > 1
