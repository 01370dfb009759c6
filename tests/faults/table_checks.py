"""What is asked of every run for tables, by tools that are not the product. The first word of a
function's name is the kind of run."""
import json

import numpy as np
import pandas as pd
from insight_nb.apps.diagnose.imaging import load_imaging
from insight_nb.apps.recommend.recommender import load_recommender
from insight_nb.apps.risk.risk_bundle import load_risk, predict_table
from insight_nb.jobs.loading import open_bundle
from insight_nb.ship.predict import predict
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from text_checks import close


def told(o): return json.loads((o.folder / "evidence.json").read_text())


# Risk


def risk_metrics_by_hand(o):
    job, m = o.names["job"], o.report.metrics
    p, y = job.p[0], (o.frame.label.to_numpy()[job.rows] == "yes").astype(int)
    close(m["auc"].value, roc_auc_score(y, p), "AUC")
    close(m["brier"].value, brier_score_loss(y, p), "Brier score")
    close(m["log_loss"].value, log_loss(y, p), "log-loss")


def risk_answers_by_scikit_learn(o):
    "The shipped model says about what scikit-learn's logistic regression says."
    frame = o.make(seed=9)
    x = frame[["income", "noise"]]
    def columns(f): return np.column_stack([f[["income", "noise"]], OneHotEncoder(
        categories=[list("abcd")], sparse_output=False).fit_transform(f[["kind"]])])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(columns(o.frame), o.frame.label)
    want = model.predict_proba(columns(frame))[:, 1]
    got = predict_table(load_risk(o.folder / "bundle"), frame.drop(columns="label"))
    gap = float(np.abs(got.probability - want).mean())
    assert gap < .06, f"probabilities are {gap:.3f} from scikit-learn's on average"
    assert len(x) == len(got), "rows are missing"


def risk_threshold_by_cost(o):
    "The decision follows from the costs: a missed event is ten false alarms."
    info = load_risk(o.folder / "bundle").info
    close(info["threshold"], 1 / 11, "threshold", 1e-9)
    out = predict_table(load_risk(o.folder / "bundle"), o.frame.drop(columns="label"))
    same = (out.prediction == "yes") == (out.probability >= 1 / 11)
    assert same.all(), f"{(~same).sum()} decisions don't follow from their risk"


def risk_folds_are_apart(o):
    for train, test in o.names["job"].splits[0]:
        assert not {*train} & {*test}, "a row is in training and in the test"
        if "customer" in o.given.get("drop", "") or o.kind != "risk by group":
            continue
        both = {*o.frame.customer[train]} & {*o.frame.customer[test]}
        assert not both, f"{len(both)} customers are on both sides of a fold"


def risk_calibration(o):
    "The mean risk is the share of events."
    job = o.names["job"]
    gap = abs(job.p[0].mean() - (o.frame.label.to_numpy()[job.rows] == "yes").mean())
    assert gap < .06, f"the mean risk is {gap:.3f} off the share of events"


# Ladder


def ladder_metrics_by_hand(o):
    e = o.names["evaluation"]
    for step in o.names["ladder"].done:
        found = step.predictions.argmax(1)
        close(step.metrics["accuracy"].value, accuracy_score(e.y, found), f"accuracy, {step.name}")
        close(step.metrics["macro_f1"].value, f1_score(e.y, found, average="macro"),
              f"macro F1, {step.name}")
        assert len(found) == len(e.texts), f"{step.name}: answers of other rows"


def ladder_rows_are_apart(o):
    e, frame = o.names["evaluation"], o.frame
    assert not {*e.train} & {*e.texts}, "a test text was learned from"
    labels = dict(zip(frame.text, frame.label))
    for texts, y in ((e.train, e.train_y), (e.texts, e.y)):
        assert [labels[t] for t in texts] == [e.names[i] for i in y], "texts with other labels"


def ladder_features_are_of_training_rows(o):
    "TF-IDF knows no word that the training texts don't have."
    rung = next(r for r in o.names["ladder"].rungs if r.name == "TF-IDF + linear")
    e = o.names["evaluation"]
    e.fit(rung)
    known = {w for _, v in rung.features.transformer_list for w in v.vocabulary_}
    text = " ".join(e.train).lower()
    strange = [w for w in known if w.strip() not in text]
    assert not strange, f"{len(strange)} features are of no training text, {strange[:1]}"


def ladder_fresh_rows(o):
    frame = o.make(seed=99).head(120)
    found = predict(open_bundle(o.folder / "bundle"), frame.text.tolist())[0]
    right = np.mean([a == b for a, b in zip(found, frame.label)])
    assert right > .6, f"{right:.3f} right on 120 fresh rows"


def ladder_rungs_are_in_order(o):
    "Each method is at least as good as saying the most frequent label."
    scores = {s.name: s.metrics["accuracy"].value for s in o.names["ladder"].done}
    worst = min(scores.values())
    assert len(scores) == 3 and worst >= scores["majority"] - 1e-9, f"scores are {scores}"


# Recommender


def recommend_ndcg_by_hand(o):
    "NDCG@10, item by item, from the lists that were ranked."
    visits, fold, ranking = (o.names[k] for k in ("visits", "cut", "report"))
    fold, ranking, scores = fold.test, ranking.ranking, []
    known, new = ({}, {})
    for side, rows in ((known, fold.history), (new, fold.target)):
        for i in rows:
            side.setdefault(visits.users[i], set()).add(visits.items[i])
    for user, top in zip(ranking.users, ranking.top):
        wanted = new[user] - known[user]
        assert not set(top) & known[user], "a list holds what the user has seen"
        gain = sum(1 / np.log2(k + 2) for k, item in enumerate(top) if item in wanted)
        scores.append(gain / sum(1 / np.log2(k + 2) for k in range(min(10, len(wanted)))))
    close(o.report.metrics["ndcg_at_10"].value, np.mean(scores), "NDCG@10", 1e-9)


def recommend_past_only(o):
    visits, fold = o.names["visits"], o.names["cut"].test
    later = (visits.times[fold.history] >= visits.times[fold.target].min()).sum()
    assert not later, f"{later} visits to learn from are later than what is asked"


def recommend_lists_are_new(o):
    opened = load_recommender(o.folder / "bundle")
    for user in o.frame.user.unique()[:20]:
        seen = o.frame.item[o.frame.user == user].astype(str).tolist()
        found = opened.recommend(seen, 10).items
        assert found and not {*map(str, found)} & {*seen}, f"{user} gets what is known already"


# Monitor


def monitor_counts_by_pandas(o):
    "Texts a day and opinion, counted by pandas."
    frame, monitor = o.frame.drop_duplicates("id"), o.names["monitor"]
    days = pd.to_datetime(frame.date, utc=True, format="ISO8601").dt.tz_localize(None)
    days = days.dt.normalize()
    for series in monitor.series:
        mine = frame.said.eq(series.opinion).groupby(days).sum()
        mine = mine.reindex(monitor.bucket_index, fill_value=0)
        close(series.x, mine, f"texts of {series.opinion}", 0)


def monitor_surge_is_seen(o):
    "The surge of the last ten days is told, and it is a rise."
    alerts = o.report.alerts
    assert alerts, "no alert, though a quarter of the texts changed"
    late = [a for a in alerts if a.raised >= o.names["monitor"].bucket_names()[39]]
    assert late and late[0].rise.value > .05, "no rise at the time of the surge"


# Pictures


def diagnose_metrics_by_hand(o):
    test, y = o.names["parts"].test, o.names["y"]
    bundle = load_imaging(o.folder / "bundle", "cpu")
    logits = bundle.logits(o.names["images"].pixels[test])
    close(o.report.metrics["accuracy"].value, accuracy_score(y[test], logits.argmax(1)), "accuracy")
    right = accuracy_score(y[test], logits.argmax(1))
    assert right > .4, f"{right:.3f} of the pictures are right"


def diagnose_sides_are_apart(o):
    images, parts = o.names["images"], o.names["parts"]
    learned = [*parts.train, *parts.valid]
    both = {images.groups[i] for i in learned} & {images.groups[i] for i in parts.test}
    assert not both, f"{len(both)} writers are on both sides"


def diagnose_pixels_are_read_alike(o):
    "The bundle's weights and its answers to dark pictures are finite and not all alike."
    bundle = load_imaging(o.folder / "bundle", "cpu")
    found = bundle.logits(o.names["images"].pixels[:32])
    assert np.isfinite(found).all() and found.std(0).min() > 1e-4, "answers don't depend on pixels"
    assert all(np.isfinite(w).all() for w in map(np.asarray, load_file(
        next((o.folder / "bundle").glob("*.safetensors"))).values())), "a weight is not finite"


# Decisions


def decide_money_by_hand(o):
    "The project's value: build now, then two years of right and wrong cases, discounted."
    q = .9
    year = 1000 * (q * 2 - (1 - q) * 5)
    want = -400 + year / 1.1 + year / 1.1**2
    case = o.names["decision"].case
    close(case.project(quality=q).npv(), want, "NPV", 1e-6)
    close(case.project().break_even(), (5 + 400 / (1000 * (1 / 1.1 + 1 / 1.1**2))) / 7,
          "quality that breaks even", 1e-6)
    values = case.simulation.value
    rng = np.random.default_rng(1).beta(.9 * 800, .1 * 800, 20000)
    mine = -400 + 1000 * (rng * 2 - (1 - rng) * 5) * (1 / 1.1 + 1 / 1.1**2)
    close(np.mean(values), mine.mean(), "mean of the draws", 60)
    ratio = np.std(values) / np.std(mine)
    assert .8 < ratio < 1.25, f"the draws spread {ratio:.2f} times as far as the interval says"


def decide_measured_numbers(o):
    m = o.names["decision"].measurements()[0]
    close([m["value"], m["low"], m["high"]], [.9, .877, .919], "the measured share", 1e-9)


def decide_action(o):
    "A project that surely pays is launched, not stopped."
    best = o.names["decision"].best
    assert best.action in ("launch", "collect", "evaluate"), f"the advice is {best.action!r}"


# Forecasts


def forecast_naive_by_hand(o):
    "The naive forecast of each window, from the values that were known then."
    for k, start in enumerate(o.back.origins):
        want = np.resize(o.values[start - 12:start], 6)
        close(o.back.made["naive"][k][0], want, "naive forecast", 1e-9)
        close(o.back.actual[k], o.values[start:start + 6], "values that came", 1e-9)


def forecast_error_by_hand(o):
    mine = []
    for k, start in enumerate(o.back.origins):
        known = o.values[:start]
        error = np.abs(o.values[start:start + 6] - o.back.made["naive"][k][0]).mean()
        mine.append(error / np.abs(known[12:] - known[:-12]).mean())
    close(o.back.mase("naive"), mine, "scaled error", 1e-9)


CHECKS = [f for name, f in list(globals().items()) if name.split("_")[0] in (
    "risk", "ladder", "recommend", "monitor", "diagnose", "decide", "forecast")]
