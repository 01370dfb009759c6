"""Risks of a table: scikit-learn's contract without exceptions, the measured numbers by their
protocol, nothing fitted outside the folds, and each bad table ends as promised.
"""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import SECTIONS, refused
from insight_nb.apps.risk.risk import (
    RiskJob,
    nested_search,
    check_no_leakage,
    make_folds,
    leaking_columns,
    open_risk,
    out_of_fold,
)
from insight_nb.cli import recipes
from insight_nb.apps.risk.risk_metrics import decision_metrics, outcome_metrics
from insight_nb.apps.risk.estimators import RiskClassifier, RiskRegressor
from insight_nb.apps.risk.boosting import BoostingClassifier, BoostingRegressor
from insight_nb.apps.risk.cutoffs import cutoff_facts
from insight_nb.apps.risk.drift import drift_baseline, measure_drift
from insight_nb.apps.risk.reasons import contributions
from insight_nb.apps.risk.risk_bundle import load_risk, predict_table, table_drift
from insight_nb.apps.risk.woe import (
    column_woe, divergence_by_chance, information_value, psi, weight_of_evidence)
from insight_nb.data.arrays import ColumnEncoder
from notebooks import Notebook, _python
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks


@parametrize_with_checks(
    [RiskClassifier(), RiskRegressor(), RiskClassifier(hidden=2), RiskClassifier(bins=3)]
)
def test_keeps_the_contract_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.fixture(scope="module")
def tumours():
    return open_risk("sample:breast_cancer")


@pytest.fixture(scope="module")
def diabetes():
    return open_risk("sample:diabetes", "target")


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_the_coefficients_are_those_of_scikit_learn(tumours, diabetes, l2):
    ours = RiskClassifier(l2).fit(tumours.frame, tumours.target)
    theirs = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12, max_iter=1000),
    ).fit(tumours.frame, tumours.target)
    assert (
        np.abs(ours.coef_ - theirs[-1].coef_).max() < 1e-4
        and np.abs(ours.intercept_ - theirs[-1].intercept_).max() < 1e-4
    )
    assert (
        np.abs(ours.predict_proba(tumours.frame) - theirs.predict_proba(tumours.frame)).max() < 1e-6
    )
    ours = RiskRegressor(l2).fit(diabetes.frame, diabetes.target)
    theirs = make_pipeline(StandardScaler(), Ridge(alpha=l2)).fit(diabetes.frame, diabetes.target)
    assert (
        np.abs(ours.coef_ - theirs[-1].coef_).max() < 1e-4
        and np.abs(ours.predict(diabetes.frame) - theirs.predict(diabetes.frame)).max() < 1e-6
    )


def test_the_published_coefficients_of_diabetes(diabetes):
    ours = RiskRegressor().fit(diabetes.frame, diabetes.target)
    assert np.allclose(
        ours.coef_,
        [-0.476, -11.407, 24.727, 15.429, -37.680, 22.676, 4.806, 8.422, 35.734, 3.217],
        atol=6e-4,
    )
    assert (
        abs(ours.intercept_ - 152.1335) < 1e-4
        and abs(ours.score(diabetes.frame, diabetes.target) - 0.517748) < 1e-6
    )
    assert (
        np.abs(
            ours.coef_
            - LinearRegression()
            .fit(StandardScaler().fit_transform(diabetes.frame), diabetes.target)
            .coef_
        ).max()
        < 1e-4
    )


def test_breast_cancer_by_its_protocol(tumours):
    """Ten shuffles of stratified ten-fold, the scaler inside, malignant = 1, all folds of a shuffle
    pooled."""
    job = RiskJob(tumours, RiskClassifier())
    m = {k: v.value for k, v in job.measure().items()}
    assert (tumours.names, job.p.shape) == (("benign", "malignant"), (10, 569))
    assert (
        m["auc"] >= 0.9945 and m["brier"] <= 0.0205 and m["log_loss"] <= 0.078 and m["ece"] <= 0.02
    )
    found = decision_metrics(job.y, job.p, 10, 1)
    assert (
        abs(found["sensitivity"].value - 0.984) < 0.004
        and abs(found["false_alarms"].value - 0.102) < 0.006
    )


def test_diabetes_by_its_protocol(diabetes):
    job = RiskJob(diabetes, RiskRegressor())
    m = {k: v.value for k, v in job.measure().items()}
    by_fold = [
        r2_score(diabetes.target[t], a.p[t]) for a, s in zip(job.answers, job.splits) for _, t in s
    ]
    assert (
        m["r2"] >= 0.47
        and np.mean(by_fold) >= 0.47
        and 0.94 <= m["coverage"] <= 0.97
        and len(by_fold) == 100
    )


def test_nothing_is_fitted_outside_the_folds(diabetes):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": [None if i % 7 == 0 else str(20 + i % 50) for i in range(120)],
            "城市": rng.choice(["北京", "上海", "<b>x"], 120),
            "since": [f"2026-01-{1 + i % 28:02}" for i in range(120)],
            "label": rng.choice(["yes", "no"], 120),
        }
    )
    table = open_risk(frame)
    splits = make_folds(table, 3)
    for model in (
        RiskClassifier(),
        RiskClassifier(bins=4, calibrate=True),
        RiskClassifier(hidden=2),
        nested_search(RiskClassifier(), (1.0, 10.0), folds=2),
    ):
        assert check_no_leakage(
            table, model, splits, out_of_fold(table, model, splits).models
        ).passed
    splits = make_folds(diabetes, 3)
    for model in (RiskRegressor(), RiskRegressor(10.0, hidden=2)):
        assert check_no_leakage(
            diabetes, model, splits, out_of_fold(diabetes, model, splits).models
        ).passed


def test_a_fit_leaves_the_dice_alone(tumours):
    np.random.seed(1)
    want = np.random.rand(2)
    np.random.seed(1)
    first = np.random.rand()
    RiskClassifier().fit(tumours.frame, tumours.target)
    assert [first, np.random.rand()] == want.tolist()


# The recipe, and bad tables


def loans(n=80, **more):
    rng = np.random.default_rng(0)
    age = rng.integers(20, 60, n)
    city = rng.choice(["北京", "<script>alert(1)</script>", "Rome"], n)
    late = (age < 35) ^ (rng.random(n) < 0.15)
    frame = pd.DataFrame(
        {
            "年龄": age,
            "city": city,
            "since": [f"2025-{1 + i % 12:02}-01" for i in range(n)],
            "flat": 1,
            "void": "",
            "id": [f"c{i}" for i in range(n)],
            "label": np.where(late, "late", "paid"),
        }
    )
    return frame.assign(**more)


QUICK = ("-p", "repeats", "1", "-p", "folds", "3", "-p", "compare", "False")


def write(frame, name="t.csv"):
    frame.to_csv(name, index=False)
    return name


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "The recipe's cells on a small table with everything in it, and what it leaves."
    folder, names = tmp_path_factory.mktemp("risk"), {"display": lambda *_: None}
    table = loans(sensitive=["m", "f"] * 40)
    table.loc[::9, "年龄"] = np.nan
    table.loc[3, "label"] = None
    table.to_csv(folder / "t.csv", index=False)
    for cell in Notebook(recipes()["risk"]).code:
        exec(compile(_python(cell.source), "recipe", "exec"), names)
        if "parameters" in cell.tags:
            names.update(
                table=str(folder / "t.csv"),
                sensitive="sensitive",
                monotone="年龄-",
                repeats=2,
                folds=4,
                compare=False,
                cutoffs="0.3, 0.6",
                scored=str(folder / "t.csv"),
                out=str(folder / "out"),
            )
    return folder, names


def test_a_run_leaves_what_it_promises(ran):
    folder, names = ran
    e = json.loads((folder / "out" / "evidence.json").read_text(encoding="utf-8"))
    assert (e["schema"], e["task"]) == (1, "risk")
    assert set(e) >= SECTIONS | {"decision", "slices", "coefficients", "score_card"}
    assert set(e) >= {"cutoffs", "gini", "woe", "reasons", "drift"}
    assert [c["cutoff"] for c in e["cutoffs"]] == [0.6, 0.3, 1 / 11]
    for row in e["reasons"]["rows"]:
        assert abs(e["reasons"]["base"] + sum(row["parts"].values()) - row["score"]) < 1e-9
    assert {f["column"] for f in e["woe"]} == {"年龄", "city", "since", "flat", "void", "id"}
    assert e["drift"]["verdict"].startswith(("No drift", "80 rows can't tell"))
    for m in [*e["metrics"].values(), *e["baseline"].values()]:
        assert m["low"] <= m["value"] <= m["high"] and m["n"] == 79
    assert (
        set(e["metrics"]) == {"auc", "brier", "log_loss", "ece"}
        and e["data"]["dropped"] == {"missing label": 1}
        and sorted(e["data"]["left_out"]) == ["flat", "id", "void"]
    )
    assert (
        not [g for g in e["guard"] if g["passed"] is False]
        and {g["check"]: g["passed"] for g in e["guard"]}["fitted_inside"] is True
    )
    assert all(c["value"] <= 0 for c in e["coefficients"] if c["feature"] == "年龄")
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "年龄" in page


def test_the_bundle_answers_new_rows(ran):
    bundle = load_risk(ran[0] / "out" / "bundle")
    new = loans(4).drop(columns="label").astype(object)
    new.loc[0, "city"], new.loc[1, "年龄"], new.loc[2, "年龄"] = "never seen", "inf", "unknown"
    answer = predict_table(bundle, new)
    assert answer.error.tolist() == [
        "",
        "年龄: 'inf' is no finite number",
        "年龄: 'unknown' is no number",
        "",
    ] and answer.probability.notna().tolist() == [True, False, False, True]
    assert list(answer)[:6] == list(new) and set(answer.prediction[[0, 3]]) <= {"late", "paid"}


BAD = {
    "one class": (loans(label="paid"), ["one class", "paid"]),
    "two rows": (loans(2), ["2 rows"]),
    "a label under another name": (
        loans().assign(again=lambda f: (f.label == "late") * 1),
        ["again", "under another name"],
    ),
    "an infinite value": (loans(年龄=["inf", *range(20, 99)]), ["row 0", "年龄", "infinite"]),
    "no column that tells": (loans()[["flat", "void", "id", "label"]], ["none of the 3 columns"]),
    "no label": (loans(label=""), ["label"]),
    "three outcomes": (loans(label=["a", "b", "c", "a"] * 20), ["3 outcomes", "positive"]),
    "rejected as an outcome": (
        loans(label=["a", "b", "已拒绝", "a"] * 20),
        ["'已拒绝' is no outcome", "reject inference"],
    ),
    "an empty file": (pd.DataFrame({"a": [], "label": []}), ["no rows"]),
}


@pytest.mark.parametrize("frame, words", BAD.values(), ids=BAD)
def test_bad_tables_are_refused(ends, frame, words):
    refused(ends("run", "risk", "-p", "table", write(frame), *QUICK, "--out", "out"), *words)


WRONG = {
    "an unknown label": (["-p", "label", "lable"], ["Did you mean 'label'?"]),
    "a direction without a sign": (["-p", "monotone", "年龄"], ["+", "-"]),
    "a direction of a category": (["-p", "monotone", "city+"], ["city", "categories"]),
    "an unknown direction": (["-p", "monotone", "age+"], ["age"]),
    "an unknown event": (["-p", "positive", "lat"], ["late"]),
    "a cost of nothing": (["-p", "false_negative_cost", "0"], ["costs"]),
    "a negative penalty": (["-p", "l2", "-1"], ["l2"]),
    "reject inference": (["-p", "reject_inference", "true"], ["not offered", "guesses"]),
    "a cut-off that is no risk": (["-p", "cutoffs", "5 %"], ["between 0 and 1"]),
    "group and time": (["-p", "group", "id", "-p", "time", "since"], ["one of them"]),
    "no such task": (["-p", "task", "rank"], ["rank", "amount"]),
    "an amount of words": (["-p", "task", "amount"], ["paid", "number"]),
}


@pytest.mark.parametrize("given, words", WRONG.values(), ids=WRONG)
def test_wrong_parameters_are_refused(ends, given, words):
    refused(
        ends("run", "risk", "-p", "table", write(loans()), *QUICK, *given, "--out", "out"), *words
    )


def test_a_column_that_alone_tells_is_said_first():
    table = open_risk(
        loans().assign(days_late=lambda f: (f.label == "late") * 30.0 + np.arange(80) / 100)
    )
    assert leaking_columns(table) == ["days_late"]
    job = RiskJob(table, RiskClassifier(), 3, 1)
    job.measure()
    assert (
        job.report(RiskClassifier().fit(table.frame, table.target), leaking_columns(table))
        .verdict()
        .startswith("days_late alone nearly tells label")
    )


def test_a_category_that_training_never_saw():
    table = open_risk(loans())
    model = RiskClassifier().fit(table.frame, table.target)
    assert np.isfinite(model.predict_proba(table.frame.assign(city="新", 年龄=None))).all()


def test_a_large_table_in_seconds():
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(100_000, 10)), columns=[f"m{i}" for i in range(10)]).assign(
        city=rng.choice(list("abc"), 100_000)
    )
    y = (x.m0 + rng.logistic(size=100_000) > 0).astype(int).to_numpy()
    table = open_risk(x.assign(label=y))
    job = RiskJob(table, RiskClassifier(), folds=3)
    assert (
        job.repeats == 1
        and 0.7 < job.measure()["auc"].value < 0.8
        and outcome_metrics(job.y, job.p)["ece"].value < 0.01
    )


# The rival, and what credit people expect


def trees(frame):
    "scikit-learn's own pipeline, as its guide has it."
    words = [c for c in frame if not pd.api.types.is_numeric_dtype(frame[c])]
    code = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    return make_pipeline(
        make_column_transformer((code, words), remainder="passthrough"),
        HistGradientBoostingClassifier(categorical_features=range(len(words)), random_state=0))


def areas(table, folds=3):
    "AUC out of fold, of ours and of scikit-learn's, on the same folds."
    splits, p = make_folds(table, folds), np.zeros(len(table))
    for train, test in splits:
        model = trees(table.frame).fit(table.frame.iloc[train], table.target[train])
        p[test] = model.predict_proba(table.frame.iloc[test])[:, 1]
    ours = out_of_fold(table, BoostingClassifier(), splits).p
    return roc_auc_score(table.target, ours), roc_auc_score(table.target, p)


def test_the_rival_is_scikit_learns_own(tumours):
    loans = open_risk("sample:synthetic_loans", drop="month").select(np.arange(1000))
    for table in (tumours, loans):
        ours, theirs = areas(table)
        assert abs(ours - theirs) < 0.005 and ours > 0.6


def test_the_rival_is_compared_in_pairs(tumours, diabetes):
    job = RiskJob(tumours, RiskClassifier(), 3, 1)
    job.measure()
    rows = job.compare({"gradient boosting": BoostingClassifier(max_iter=20)}).rows
    found = job.compared["gradient boosting"]
    gap = found["auc"].value - job.metrics["auc"].value
    assert len(rows) == 2 and found["seconds"] > 0
    assert abs(found["auc_difference"]["value"] - gap) < 1e-12
    assert found["auc_difference"]["low"] < gap < found["auc_difference"]["high"]
    job = RiskJob(diabetes, RiskRegressor(), 3, 1)
    job.measure()
    job.compare({"gradient boosting": BoostingRegressor(max_iter=20)})
    assert 0.8 < job.compared["gradient boosting"]["coverage"].value <= 1


def test_woe_iv_and_psi_by_hand():
    # 200 paid, 100 late: shares .25 .5 .25 and .5 .4 .1
    paid, late = [50, 100, 50], [50, 40, 10]
    want = [np.log(0.5), np.log(1.25), np.log(2.5)]
    assert np.allclose(weight_of_evidence(paid, late), want, atol=1e-12)
    iv = -0.25 * np.log(0.5) + 0.1 * np.log(1.25) + 0.15 * np.log(2.5)
    assert abs(information_value(paid, late) - iv) < 1e-12 and abs(iv - 0.333045) < 1e-6
    assert abs(psi([100, 100], [60, 40]) - (0.1 * np.log(1.2) + 0.1 * np.log(1.25))) < 1e-12
    assert psi([0, 90], [10, 90]) == pytest.approx(
        (0.105 - 0.5 / 90) * np.log(0.105 / (0.5 / 90)) + 0.1 * np.log(1 / 0.9))
    assert divergence_by_chance(2, 100, 100) == pytest.approx(3.841459 * 0.02, abs=1e-6)
    cells = pd.Series(["北京"] * 100 + ["<b>"] * 140 + [None] * 60, name="城市")
    target = [0] * 50 + [1] * 50 + [0] * 100 + [1] * 40 + [0] * 50 + [1] * 10
    found = column_woe(cells, target)
    assert {b["bin"]: round(b["woe"], 6) for b in found["bins"]} == {
        "<b>": 0.223144, "北京": -0.693147, "(missing)": 0.916291}
    assert abs(found["iv"] - iv) < 1e-12


def test_cut_offs_by_hand():
    y, p = np.array([1, 1, 0, 1, 0, 0, 0, 0]), np.array([.9, .8, .7, .6, .5, .4, .3, .2])
    found = {f["cutoff"]: f for f in cutoff_facts(y, p, [.65, .55])}
    names = ("population", "bad_rate", "capture", "bad_rate_below")
    assert np.allclose([found[.65][k].value for k in names], [3 / 8, 2 / 3, 2 / 3, 1 / 5])
    assert np.allclose([found[.55][k].value for k in names], [4 / 8, 3 / 4, 1., 0.])
    assert all(f[k].low <= f[k].value <= f[k].high for f in found.values() for k in names)


def test_reasons_add_up_to_the_score(ran):
    bundle, new = load_risk(ran[0] / "out" / "bundle"), loans(40).drop(columns="label")
    new.loc[::5, "年龄"] = np.nan
    answer = predict_table(bundle, new)
    parts, base = contributions(bundle.model, new)
    odds = np.log(answer.probability / (1 - answer.probability))
    assert np.abs(base + parts.sum(axis=1) - odds).max() < 1e-9
    for words, own in zip(answer.reasons, parts.to_numpy()):
        assert len(words.split("; ")) == (own > 0).sum() if words else (own <= 0).all()
    assert answer.reasons.str.contains("年龄 = ").any()


def many(n=3000, values=500, seed=0):
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 70, n)
    late = rng.logistic(size=n) > age / 20 - 1.5
    return pd.DataFrame({"age": age, "雇主": [f"f{i}" for i in rng.integers(0, values, n)],
                         "label": np.where(late, "late", "paid")})


def test_a_random_category_of_500_values_gains_nothing():
    gains = []
    for seed in range(3):
        table = open_risk(many(seed=seed))
        splits = make_folds(table, 3)
        both = out_of_fold(table, RiskClassifier(), splits)
        assert [p for p in both.models[0].columns_.plans if "values" in p]
        alone = open_risk(many(seed=seed), drop="雇主")
        p = out_of_fold(alone, RiskClassifier(), splits).p
        gains.append(roc_auc_score(table.target, both.p) - roc_auc_score(table.target, p))
    assert max(gains) < 0.005
    assert check_no_leakage(table, RiskClassifier(), splits, both.models).passed


def test_a_category_of_100_000_values():
    at = np.arange(100_000)
    frame = pd.DataFrame({"x": at % 7, "id": [f"客户 {i}" for i in at]})
    encoder = ColumnEncoder().fit(frame, at % 2)
    assert encoder.dropped_columns() == {"id": "no category with enough rows, or only one"}
    assert encoder.count_unseen(frame) == {"id: new or rare categories": 100_000}
    firms = pd.DataFrame({"firm": [f"f{i % 4_000}" for i in at[:20_000]]})
    encoder = ColumnEncoder().fit(firms, (at[:20_000] % 4_000 < 800) * 1)
    assert [f.kind for f in encoder.features] == ["target"]
    assert encoder.count_unseen(firms) == {}


def test_rejected_applicants_are_left_out_and_said():
    frame = loans()
    frame["决定"] = np.where(np.arange(80) % 4, "accepted", "拒绝")
    frame.loc[frame.决定 == "拒绝", "label"] = None
    table = open_risk(frame)
    assert len(table) == 60 and "20 rows without a label are rejected applicants" in table.notes[0]


def test_a_month_is_held_against_the_training_table(ran):
    def month(n, **more): # as many gaps as in training
        frame = loans(n, **more).drop(columns="label")
        return frame.assign(年龄=frame.年龄.where(np.arange(n) % 9 > 0))

    bundle, same = load_risk(ran[0] / "out" / "bundle"), month(400)
    older = month(400, 年龄=np.arange(400) % 40 + 45)
    drift = table_drift(bundle, older)
    assert "年龄" in {f["column"] for f in drift.drifted()} and "drifted: " in drift.summary()
    assert predict_table(bundle, older).attrs["note"] == drift.summary()
    assert "note" not in predict_table(bundle, same).attrs
    few = table_drift(bundle, month(20))
    assert few.drifted() == [] and "20 rows can't tell" in few.summary()


def test_drift_does_not_cry_wolf():
    "Thirty months without drift, against one training table: the promise is 5 in 100."
    rng = np.random.default_rng(0)

    def month(n):
        return pd.DataFrame({f"m{i}": rng.lognormal(size=n) for i in range(8)}).assign(
            城市=rng.choice(["北京"] * 60 + list("abcdefghij"), n), rare=rng.random(n) < 0.003)

    first = month(1000)
    base = drift_baseline(first, first.m0)
    found = [measure_drift(base, m, m.m0) for m in (month(250) for _ in range(30))]
    assert sum(bool(d.drifted()) for d in found) <= 4
    assert max(f["psi"] for d in found for f in d.found) > 0.1 # the usual rule would have cried


def test_psi_of_a_million_rows():
    rng = np.random.default_rng(0)
    first, now = (pd.DataFrame({"x": rng.normal(m, size=1_000_000)}) for m in (0, 0.02))
    drift = measure_drift(drift_baseline(first, first.x), now, now.x)
    assert drift.drifted() == [] # surely different, and far too little to matter
    assert drift.found[1]["psi"] > drift.found[1]["by_chance"]


BAD_MONTHS = {
    "no such file": ("nowhere.csv", ["nowhere.csv"]),
    "a column is missing": ("lacks.csv", ["no column '年龄'"]),
    "no rows": ("none.csv", ["no rows"]),
}


@pytest.mark.parametrize("name, words", BAD_MONTHS.values(), ids=BAD_MONTHS)
def test_bad_months_are_refused(ends, name, words):
    write(loans().drop(columns="年龄"), "lacks.csv")
    write(loans().head(0), "none.csv")
    refused(ends("run", "risk", "-p", "table", write(loans()), *QUICK, "-p", "scored", name,
                 "--out", "out"), *words)
