"""Faults in runs for tables, ladders, recommendations, streams, pictures and decisions."""
import numpy as np
from harness import around, registrar, ungroup
from insight_nb.apps.diagnose import diagnose, imaging
from insight_nb.apps.monitor import control_charts, monitor, stream
from insight_nb.apps.recommend import collaborative, recommender
from insight_nb.apps.risk import estimators, risk, risk_bundle
from insight_nb.decide.launch import memo, value
from insight_nb.decide.series import forecast
from insight_nb.jobs import comparison
from insight_nb.methods import classical
from insight_nb.methods import evaluation as method_evaluation

FAULTS = []
fault = registrar(FAULTS)


# Risk


@fault("columns scaled by all rows", "means and spreads of the columns are of all rows", "risk",
       "guard: fitted_inside", "something looks at them")
def _(patch):
    around(patch, risk, "out_of_fold", lambda old, table, model, splits: old(
        table, Known(model, table), splits))
    patch.setattr(risk.check_no_leakage, "__defaults__", (risk.out_of_fold,))


class Known:
    "An estimator whose columns were fitted before, on a whole table."
    def __init__(self, model, table): self.model, self.table = model, table
    def __sklearn_clone__(self): return Known(self.model, self.table)

    def fit(self, x, y):
        fitted = risk.clone(self.model)
        columns = estimators.ColumnEncoder(fitted.bins).fit(self.table.frame)
        old = estimators.ColumnEncoder
        columns.fit_transform = lambda frame, target, seed: columns.transform(frame)
        estimators.ColumnEncoder = lambda bins: columns
        try:
            return fitted.fit(x, y)
        finally:
            estimators.ColumnEncoder = old


@fault("test rows learned", "each fold's model is fitted on all rows", "risk",
       "guard: fitted_inside", "something looks at them")
def _(patch):
    def all_rows(old, table, model, splits):
        every = np.arange(len(table))
        return old(table, model, [(every, test) for _, test in splits])
    around(patch, risk, "out_of_fold", all_rows)
    patch.setattr(risk.check_no_leakage, "__defaults__", (risk.out_of_fold,))


@fault("customers on both sides", "folds are drawn row by row", "risk by group",
       "guard: group_leak", "some have a group on both sides")
def _(patch):
    around(patch, risk, "_stratified_groups", lambda old, y, groups, k, seed: (
        np.random.default_rng(seed).integers(0, k, len(y))))


@fault("later rows learned", "folds with a time are drawn at random", "risk by time",
       "guard: time_leak", "some learn from rows as late as the test rows")
def _(patch):
    def shuffled(old, table, folds=10, seed=0):
        found = old(table, folds, seed)
        return [(np.concatenate([a, b[:3]]), b[3:]) for a, b in found]
    around(patch, risk, "make_folds", shuffled)


@fault("outcomes swapped in the bundle", "bundle.json names the event first", "risk",
       "guard: label_order", "in the bundle")
def _(patch): turn_labels(patch, risk_bundle)


def turn_labels(patch, place):
    around(patch, place, "write_manifest", lambda old, folder, info: old(
        folder, info | {"labels": info["labels"][::-1]}))


@fault("coefficients swapped", "the saved weights of two columns are swapped", "risk",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    around(patch, risk_bundle, "save_file", lambda old, tensors, file: old(
        {k: v.flip(-1).contiguous() if v.ndim == 2 else v for k, v in tensors.items()}, file))


@fault("rows of a table shuffled", "a table of risks comes back in another order", "risk",
       "guard: row_order", "rows came back elsewhere")
def _(patch):
    around(patch, risk, "predict_table", lambda old, b, frame: (
        lambda out: out.assign(probability=out.probability.to_numpy()[::-1]))(old(b, frame)))


@fault("AUC of the wrong side", "the risk of no event is ranked", "risk", "guard: beats_majority",
       "not shown to be better")
def _(patch):
    around(patch, risk, "outcome_metrics", lambda old, y, p, **how: old(y, 1 - p, **how))


@fault("Brier of the root", "the Brier score is its root", "risk", "test: risk_metrics_by_hand",
       "Brier score")
def _(patch):
    def root(old, y, p, **how):
        found = old(y, p, **how)
        m = found["brier"]
        return found | {"brier": type(m)(m.value**.5, m.low**.5, m.high**.5, m.n, m.method)}
    around(patch, risk, "outcome_metrics", root)


@fault("threshold at one half", "the costs do not move the threshold", "risk",
       "test: risk_threshold_by_cost", "threshold")
def _(patch):
    around(patch, risk_bundle, "write_manifest", lambda old, folder, info: old(
        folder, info | {"threshold": .5}))


@fault("penalty a thousand times", "the penalty is a thousand times what was asked", "risk",
       "test: risk_answers_by_scikit_learn", "from scikit-learn's on average")
def _(patch):
    around(patch, estimators.TableEstimator, "_learn", lambda old, self, *a: strong(old, self, a))


def strong(old, self, args):
    known, self.l2 = self.l2, 1000 * self.l2
    try:
        return old(self, *args)
    finally:
        self.l2 = known


@fault("label among the columns", "the label stands in a second column, in other words", "risk",
       "error", "under another name")
def _(patch):
    def leak(old, source):
        frame, name, notes = old(source)
        return frame.assign(paid=frame["label"].map({"yes": "late", "no": "in time"})), name, notes
    around(patch, risk, "open_frame", leak)


# Ladder


@fault("cached answers of other rows", "kept answers have no digest of their rows", "ladder",
       "guard: reload_equal", "answers are the same")
def _(patch): patch.setattr(method_evaluation.Evaluation, "digest", lambda self: "same")


@fault("features of the test texts", "TF-IDF is fitted on the test texts as well", "ladder",
       "test: ladder_features_are_of_training_rows", "features are of no training text")
def _(patch):
    asked = []
    around(patch, comparison, "Evaluation", lambda old, *a, **k: (
        lambda made: (asked.append(made.texts), made)[1])(old(*a, **k)))
    around(patch, classical, "fit_vectorizer", lambda old, texts: old([*texts, *asked[-1]]))


@fault("test labels learned", "a method is fitted on the test rows", "ladder",
       "test: ladder_features_are_of_training_rows", "features are of no training text")
def _(patch):
    around(patch, method_evaluation.Evaluation, "fit", lambda old, self, rung: rung.fit(
        [*self.train, *self.texts], np.concatenate([self.train_y, self.y]), self.names, self.seed))


@fault("bundle of another rung", "the bundle is that of the first method", "ladder",
       "guard: reload_equal", "answers are the same")
def _(patch):
    first = []

    def same(old, path, rung, *args, **how):
        first.append(rung)
        return old(path, first[0], *args, **how)
    around(patch, comparison, "save_rung", same)


@fault("answers backwards", "a method's answers are those of the last row first", "ladder",
       "test: ladder_rungs_are_in_order", "scores are")
def _(patch):
    around(patch, method_evaluation.Evaluation, "predict_proba", lambda old, self, rung: old(
        self, rung)[::-1].copy())


@fault("labels of other texts", "test labels are shifted by one row", "ladder",
       "test: ladder_rows_are_apart", "texts with other labels")
def _(patch):
    around(patch, comparison, "Evaluation", lambda old, a, b, c, y, *rest: old(
        a, b, c, np.roll(y, 1), *rest))


# Recommendations


@fault("future visits learned", "visits of the tested weeks are learned from", "recommend",
       "guard: time_leak", "rows to learn from are later than what is asked")
def _(patch):
    def leak(old, visits, start, end):
        found = old(visits, start, end)
        return collaborative.Fold(np.sort(np.concatenate([found.history, found.target[::3]])),
                                  found.target, found.description)
    around(patch, collaborative, "window_fold", leak)


@fault("seen items recommended", "lists hold what the user has seen", "recommend",
       "test: recommend_ndcg_by_hand", "a list holds what the user has seen")
def _(patch):
    around(patch, collaborative, "score_unseen_items", lambda old, scorer, profiles: (
        np.array(scorer.score(profiles), dtype=float)))


@fault("items permuted in the bundle", "the bundle has the items' names backwards", "recommend",
       "guard: reload_equal", "other than those of the model in memory")
def _(patch):
    def turn(old, path, *a, **k):
        made = old(path, *a, **k)
        made.names = made.names[::-1]
        return made
    around(patch, recommender, "load_recommender", turn)


@fault("gain counted twice", "NDCG is not divided by the best that is possible", "recommend",
       "test: recommend_ndcg_by_hand", "NDCG@10")
def _(patch):
    def raw(old, top, target, k):
        ndcg, *rest = old(top, target, k)
        return ndcg * 1.3, *rest
    around(patch, collaborative, "ranking_metrics_per_user", raw)


@fault("popular for all", "each user gets what is popular", "recommend", "guard: beats_majority",
       "not shown to be better")
def _(patch):
    around(patch, recommender.Hybrid, "score", lambda old, self, profiles: np.broadcast_to(
        np.asarray(profiles.sum(0)).ravel(), profiles.shape))


# Streams


@fault("texts counted twice", "a text that comes again counts again", "monitor",
       "test: monitor_counts_by_pandas", "texts of")
def _(patch):
    around(patch, stream.Stream, "_row", lambda old, self, cells: (
        lambda row: (f"{row[0]} {np.random.default_rng().random()}", *row[1:]))(old(self, cells)))


@fault("a day late", "each text counts for the day after", "monitor",
       "test: monitor_counts_by_pandas", "texts of")
def _(patch):
    around(patch, stream.Stream, "bucket_start", lambda old, self, at: old(
        self, np.asarray(at, float) + 86400))


@fault("limit too low", "alarms are raised at half of the limit", "monitor", "guard: false_alarms",
       "asked was")
def _(patch):
    around(patch, control_charts, "find_limit", lambda old, *a, **k: .5 * old(*a, **k))


@fault("limit too high", "alarms are raised at four times the limit", "monitor",
       "test: monitor_surge_is_seen", "no ")
def _(patch):
    around(patch, control_charts, "find_limit", lambda old, *a, **k: 4 * old(*a, **k))


@fault("falls for rises", "a rise is told as a fall", "monitor", "test: monitor_surge_is_seen",
       "no rise")
def _(patch):
    def turn(old, now, then, quality):
        m = old(now, then, quality)
        return type(m)(-m.value, -m.high, -m.low, m.n, m.method)
    around(patch, monitor, "excess_share", turn)


@fault("lost rows", "every tenth row of a file is not read", "monitor", "guard: counted_once",
       "rows were read")
def _(patch):
    n = [0]

    def skip(old, self, *args):
        n[0] += 1
        return old(self, *args) if n[0] % 10 else []
    around(patch, stream.Stream, "_keep", skip)


# Pictures


@fault("writers on both sides", "pictures are split one by one", "diagnose",
       "guard: group_leak", "groups on two sides of the split")
def _(patch):
    ungroup(patch)


@fault("pictures turned", "the bundle reads pictures upside down", "diagnose",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    around(patch, imaging.ImagingBundle, "logits", lambda old, self, pixels, *a: old(
        self, np.ascontiguousarray(pixels[..., ::-1, :]), *a))


@fault("classes permuted", "the picture bundle has its classes backwards", "diagnose",
       "guard: label_order", "in the bundle")
def _(patch): turn_labels(patch, imaging)


@fault("pictures all dark", "training reads pictures that are all dark", "diagnose",
       "guard: loss_fell", "the loss")
def _(patch):
    def dark(old, self, pixels, *rest):
        old(self, pixels * 0, *rest)
    around(patch, diagnose.ImageTrainer, "__init__", dark)


# Decisions and forecasts


@fault("interval dropped", "the measured share is taken as known to the digit", "decide",
       "test: decide_money_by_hand", "as far as the interval says")
def _(patch):
    around(patch, value, "beta_parameters", lambda old, m: tuple(100 * v for v in old(m)))
    around(patch, memo, "beta_parameters", lambda old, m: tuple(100 * v for v in old(m)))


@fault("low and value swapped", "the memo takes the lower end for the value", "decide",
       "test: decide_measured_numbers", "the measured share")
def _(patch):
    around(patch, memo, "_metric", lambda old, *a: (
        lambda m: type(m)(m.low, m.low, m.high, m.n, m.method))(old(*a)))


@fault("losses forgotten", "wrong cases cost nothing", "decide", "test: decide_money_by_hand",
       "NPV")
def _(patch):
    around(patch, value.Project, "flows", lambda old, self: (
        lambda f: f + np.r_[0, np.full(self.periods, 5. * 1000 * (1 - np.mean(self.quality)))])(
            old(self)))


@fault("discounted twice", "the first year is discounted as the second", "decide",
       "test: decide_money_by_hand", "NPV")
def _(patch):
    around(patch, value, "npv", lambda old, rate, flows: old(rate, flows) / (1 + np.mean(rate)))


@fault("red evidence", "the run behind the evidence had a red line", "decide",
       "guard: decision", "reload_equal: all the same")
def _(patch):
    around(patch, memo, "_evidence", lambda old, e, *a: old(e | {"guard": [
        line | {"passed": False} for line in e["guard"]]}, *a))


@fault("future values known", "a forecast knows the values that it forecasts", "forecast",
       "test: forecast_naive_by_hand", "naive forecast")
def _(patch):
    around(patch, forecast, "seasonal_naive", lambda old, y, season, h: old(
        np.roll(y, 1), season, h))


@fault("windows shifted", "forecasts are compared with the values one period later", "forecast",
       "test: forecast_naive_by_hand", "values that came")
def _(patch):
    patch.setattr(forecast.ForecastBacktest, "actual", property(lambda self: np.stack(
        [self.series.values[o - 1:o - 1 + self.h] for o in self.origins])))


@fault("error scaled by all", "the scale of errors knows the values that come", "forecast",
       "test: forecast_error_by_hand", "scaled error")
def _(patch):
    patch.setattr(forecast.ForecastBacktest, "scale", property(lambda self: np.full(
        len(self.origins), forecast._scale(self.series.values, self.series.season))))


TABLE_FAULTS = FAULTS
