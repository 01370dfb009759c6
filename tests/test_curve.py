"""What is true of the learning curve as a whole: its intervals hold, its answers don't hang on
order, and what is no curve is said."""

import numpy as np
import pytest

from insight_nb.base.core import InputError
from insight_nb.eval.learning_curve import backtest_curve, fit_curve

SIZES = np.repeat([20, 40, 80, 160, 320], 4)


def law(seed):
    "A law drawn at random: its error at n rows, and scores of 500 test rows."
    rng = np.random.default_rng([7, seed])
    a, c, first = rng.uniform([0, 0.2, 0.2], [0.1, 1, 0.6])

    def error(n):
        return a + (first - a) * (n / 20) ** -c

    return error, lambda n: 1 - rng.binomial(500, error(n)) / 500


@pytest.fixture(scope="module")
def fits():
    return [
        (error, scores, fit_curve(SIZES, scores(SIZES), draws=1000))
        for error, scores in map(law, range(150))
    ]


def test_intervals_at_six_times_the_size(fits):
    inside = []
    for _, scores, curve in fits:
        _, low, high = curve.predict(1920, level=0.95)
        came = scores(np.full(50, 1920))
        inside.append(np.mean((low <= came) & (came <= high)))
    assert 0.92 <= np.mean(inside) <= 0.975


def test_the_chance_of_a_goal_is_calibrated(fits):
    said, came = map(
        np.array,
        zip(
            *[
                (curve.rows_needed(g, max_rows=1920).chance, error(1920) <= 1 - g)
                for error, _, curve in fits
                for g in np.arange(70, 100, 2) / 100
                if error(320) > 1 - g
            ]
        ),
    )
    groups = [(said >= a) & (said < b) for a, b in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.1))]
    assert all(g.sum() > 50 for g in groups)
    assert sum(g.mean() * abs(said[g].mean() - came[g].mean()) for g in groups) < 0.05


def test_rows_needed_are_an_interval_with_a_chance(fits):
    for error, _, curve in fits:
        need = curve.rows_needed(1 - error(960))
        assert 0 <= need.chance <= 1 and need.low <= need.rows <= need.high
        assert np.isfinite([need.rows, need.high]).all() == (
            need.chance > 0
        ) and "%" in curve.reach(1 - error(960))
    assert (
        np.mean(
            [
                c.rows_needed(1 - e(960), 0.95).low <= 960 <= c.rows_needed(1 - e(960), 0.95).high
                for e, _, c in fits
            ]
        )
        > 0.88
    )


def test_order_and_repeats_change_nothing():
    y = law(1)[1](SIZES)
    mixed = np.random.default_rng(0).permutation(20)
    assert fit_curve(SIZES, y).predict(1920) == pytest.approx(
        fit_curve(SIZES[mixed], y[mixed]).predict(1920), abs=1e-6
    )
    # the same bytes
    assert fit_curve(list(SIZES), y.tolist()).predict(1920) == fit_curve(SIZES, y).predict(1920)
    assert backtest_curve(SIZES, y, ahead=2) == backtest_curve(SIZES, y, ahead=2) != []


ODD = {
    "all equal": ([0.8] * 4, "have not risen"),
    "no error": ([1.0] * 4, "have not risen"),
    "nothing right": ([0.0] * 4, "have not risen"),
    "falling": ([0.9, 0.8, 0.7, 0.6], "Beware"),
    "a dip": ([0.5, 0.9, 0.6, 0.95], "Beware"),
    "a jump": ([0.1, 0.1, 0.9, 0.9], ""),
}


@pytest.mark.parametrize("scores, words", ODD.values(), ids=ODD)
def test_what_is_no_curve_is_said(scores, words):
    curve = fit_curve(np.repeat([100, 200, 400, 800], 3), np.repeat(scores, 3))
    assert (
        words in curve.warnings()
        and bool(words) == bool(curve.warnings())
        and curve.summary(0.97).count(words or "With 2 times") == 1
    )
    assert (
        all(0 <= v <= 1 for v in curve.predict(10**6))
        and np.isfinite(curve.errors(10**6)).all()
        and "<svg" in curve.plot(0.97)._repr_html_()
    )


def test_fewer_scores_say_less(fits):
    def spread(c):
        return np.subtract(*c.predict(1920)[:0:-1])

    few = SIZES > 40
    times = [
        spread(fit_curve(SIZES[few][::4], scores(SIZES)[few][::4])) / spread(curve)
        for _, scores, curve in fits
    ]
    assert np.mean(np.array(times) > 1) > 0.7
    assert np.exp(np.mean(np.log(times))) > 1.25


BAD = [
    ([1, 2], [0.1, 0.2], "three sizes or more, here are 2"),
    ([], [], "here are 0"),
    ([1, 2, 3], [0.1, 0.2], "a score for a size"),
    ([[1, 2, 3]], [[0.1, 0.2, 0.3]], "a list of each"),
    ([1, 2, 3], [0.1, np.nan, 0.3], "a score of nan with 2 rows, at place 1"),
    ([1, 2, 3], [10, 20, 30], "scores from 0 to 1"),
    ([0, 2, 3], [0.1, 0.2, 0.3], "with 0 rows"),
    ([1, 2, np.inf], [0.1, 0.2, 0.3], "with inf rows"),
]


@pytest.mark.parametrize("sizes, scores, words", BAD)
def test_bad_scores(sizes, scores, words):
    with pytest.raises(InputError, match=words) as e:
        fit_curve(sizes, scores)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("goal", [95, 0, -0.1, np.nan])
def test_bad_goals(goal):
    with pytest.raises(InputError, match="write 95 % as 0.95"):
        fit_curve([50, 100, 200], [0.6, 0.7, 0.75]).reach(goal)
