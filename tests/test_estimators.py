"""The estimators keep the promises of scikit-learn: its own checks, and its own tools on them."""
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_validate
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data
from transformers import AutoConfig, AutoModel

from insight_nb import (
    MultiLabelClassifier, PairClassifier, PairRegressor, SpanTagger, TextClassifier, TextRegressor,
    load)
from insight_nb.base.core import InputError
from insight_nb.data.split import split
from insight_nb.data.table import Table
from insight_nb.base.tensors import set_seed
from insight_nb.models.backbone import embedded_folder, load_tokenizer

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 48}
QUICK = {"max_length": 48, "epochs": 1, "batch_size": 32, "learning_rate": 2e-3, "device": "cpu"}
WORDS = "room soup guide train coat film day bed tea shop bus sea hill 很 书 car door lamp".split()


def said(mood, seed):
    "Thirty texts, no two of them alike."
    draw = np.random.default_rng(seed)
    return [f"{mood} {' '.join(draw.permutation(WORDS)[:6])}" for _ in range(30)]


LEARNS = QUICK | {"epochs": 4, "batch_size": 8}
GOOD, BAD = said("good fine", 0), said("坏 slow", 1)
TEXTS, ANSWERS = [*GOOD, *BAD], ["yes"] * 30 + ["no"] * 30
OTHERS = [*said("good fine", 2), *said("坏 slow", 3)] # a model that has learned nothing: about .5


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    "A tiny encoder, so that an estimator is fitted in a moment."
    folder = str(tmp_path_factory.mktemp("tiny"))
    set_seed(0)
    AutoModel.from_config(AutoConfig.for_model("bert", **SMALL)).save_pretrained(folder)
    load_tokenizer(embedded_folder(), local_files_only=True).save_pretrained(folder)
    return folder


def as_texts(X):
    return [" ".join(f"c{i} {round(float(v) * 4)}" for i, v in enumerate(row)) for row in X]


class OfNumbers:
    "Reads tables of numbers as texts: scikit-learn's checks know no other data."
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.string = False
        return tags

    def check_rows(self, X, y, name="X"):
        if y is not None:
            X = as_texts(validate_data(self, X))
        return super().check_rows(X, y, name)

    def asked(self, X):
        self.fitted_bundle()
        return as_texts(validate_data(self, X, reset=False))


class NumberClassifier(OfNumbers, TextClassifier):
    def predict_proba(self, X): return super().predict_proba(self.asked(X))
    def decision_function(self, X): return super().decision_function(self.asked(X))


class NumberRegressor(OfNumbers, TextRegressor):
    def predict(self, X): return super().predict(self.asked(X))


SEEDED = ("a row of weight 2 and two copies of a row make other batches, and so another run of "
          "stochastic training")
NUMBERS = "wants a good fit to numbers, which a small encoder of texts does not give in one epoch"
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": SEEDED,
            "check_classifiers_train": NUMBERS, "check_regressors_train": NUMBERS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NumberClassifier, NumberRegressor])
def test_the_checks_of_scikit_learn(kind, backbone):
    found = check_estimator(kind(backbone, **QUICK), expected_failed_checks=EXPECTED,
                            on_fail=None, on_skip=None)
    assert [f["check_name"] for f in found if f["status"] == "failed"] == []
    assert sum(f["status"] == "passed" for f in found) > 40


@pytest.mark.parametrize("kind", [TextClassifier, TextRegressor, MultiLabelClassifier,
                                  PairClassifier, SpanTagger])
def test_estimators_of_texts_can_be_cloned(kind, backbone):
    check_estimator(kind(backbone))


def test_the_tools_of_scikit_learn(backbone):
    model = TextClassifier(backbone, **LEARNS)
    grid = GridSearchCV(model, {"method": ["full", "lora"], "epochs": [1, 4]}, cv=2)
    grid.fit(np.array(TEXTS), ANSWERS)
    assert set(grid.best_params_) == {"method", "epochs"}
    assert grid.best_score_ > .9 and grid.score(OTHERS, ANSWERS) > .9
    lower = FunctionTransformer(lambda X: [x.lower() for x in X])
    pipe = Pipeline([("lower", lower), ("model", model)])
    pipe.set_params(model__epochs=5).fit(TEXTS, ANSWERS)
    assert pipe.score([t.upper() for t in OTHERS], ANSWERS) > .9
    calibrated = CalibratedClassifierCV(model, cv=2).fit(np.array(TEXTS), ANSWERS)
    assert calibrated.score(OTHERS, ANSWERS) > .9
    groups = np.arange(60) // 2
    scores = cross_validate(model, TEXTS, ANSWERS, groups=groups, cv=GroupKFold(2),
                            scoring=["accuracy", "roc_auc", "neg_log_loss"])
    assert scores["test_roc_auc"].mean() > .9 and scores["test_neg_log_loss"].mean() > -.69
    proba = cross_val_predict(model, TEXTS, ANSWERS, cv=2, method="predict_proba")
    assert proba.shape == (60, 2)
    both = MultiOutputClassifier(model).fit(TEXTS, np.array([ANSWERS, ANSWERS]).T)
    assert both.predict(TEXTS[:2]).shape == (2, 2)


def test_the_same_seed_gives_the_same_answers_and_a_fit_forgets_the_one_before(backbone):
    one, two = (TextClassifier(backbone, **QUICK) for _ in "ab")
    one.fit(TEXTS, ANSWERS)
    two.fit(BAD + GOOD, [3] * 30 + [4] * 30).fit(TEXTS, ANSWERS)
    assert np.array_equal(one.predict_proba(TEXTS), two.predict_proba(TEXTS))
    copy = pickle.loads(pickle.dumps(one))
    assert np.array_equal(copy.predict_proba(TEXTS), one.predict_proba(TEXTS))
    other = TextClassifier(backbone, **QUICK, random_state=np.random.RandomState(1))
    assert not np.array_equal(other.fit(TEXTS, ANSWERS).predict_proba(TEXTS),
                              one.predict_proba(TEXTS))


def test_nothing_of_an_earlier_fit_is_left(backbone):
    model = TextClassifier(backbone, **QUICK).fit(TEXTS, ANSWERS)
    with pytest.raises(InputError):
        model.fit(TEXTS, ["a"] * 60)
    with pytest.raises(NotFittedError):
        model.predict(TEXTS)
    model.fit(TEXTS, ANSWERS).fit(TEXTS[20:40], ANSWERS[20:40])  # too few for validation rows
    assert len(model.parts_.valid) == 0
    assert model.evaluate(TEXTS[:5] + TEXTS[-5:], ANSWERS[:5] + ANSWERS[-5:]).calibration is None


def test_groups_stay_on_one_side(backbone):
    groups = np.arange(60) // 6
    for kind, y in ((TextClassifier, ANSWERS), (SpanTagger, spans_of(TEXTS))):
        model = kind(backbone, **QUICK).fit(TEXTS, y, groups=groups)
        assert not set(groups[model.parts_.train]) & set(groups[model.parts_.valid])
        with pytest.raises(InputError, match="groups"):
            kind(backbone, **QUICK).fit(TEXTS, y, groups=groups[:5])
        with pytest.raises(InputError, match="copy among the validation rows"):
            kind(backbone, **QUICK).fit(TEXTS, y, valid=(TEXTS, y))


def spans_of(texts):
    return [[(0, text.index(" "), "WORD")] for text in texts]


def pairs_of(texts): return [(text, "so good 好?") for text in texts]
def same(texts): return texts
def words_of(texts): return [text.split() for text in texts]


@pytest.mark.parametrize("kind, read, y, least", [
    (TextClassifier, same, ANSWERS, .9), (PairClassifier, pairs_of, ANSWERS, .9),
    (MultiLabelClassifier, same, [("a",)] * 30 + [("b", "c")] * 30, .7),
    (TextRegressor, same, [1.] * 30 + [4.] * 30, .5),
    (SpanTagger, same, [[(0, 4, "A")]] * 30 + [[(0, 1, "B")]] * 30, .9),
    (SpanTagger, words_of, [["B-A", *"OOOOOOO"]] * 30 + [["B-B", *"OOOOOOO"]] * 30, .9)])
def test_each_kind_learns(kind, read, y, least, backbone):
    model = kind(backbone, **LEARNS).fit(read(TEXTS), y)
    assert model.score(read(OTHERS), y) > least
    if read is words_of:
        assert np.mean([a == b for a, b in zip(model.predict(read(OTHERS)), y)]) > .9


@pytest.mark.parametrize("kind, X, y", [
    (TextClassifier, TEXTS, [True] * 30 + [False] * 30),
    (TextClassifier, pd.Series(TEXTS, index=range(5, 65)), pd.Series(ANSWERS, dtype="category")),
    (PairClassifier, pd.DataFrame({"a": TEXTS, "b": TEXTS[::-1]}), ANSWERS),
    (MultiLabelClassifier, TEXTS, [("好", "a/b\n"), ()] * 30),
    (MultiLabelClassifier, TEXTS, np.array([[1, 0, 1], [0, 1, 1]] * 30)),
    (TextRegressor, np.array(TEXTS, dtype=object), np.arange(60) / 7),
    (PairRegressor, [(t, "so good 好?") for t in TEXTS], np.arange(60) / 7),
    (SpanTagger, TEXTS, spans_of(TEXTS))])
def test_what_was_saved_opens_in_another_process_as_what_it_was(kind, X, y, backbone, tmp_path):
    model = kind(backbone, **QUICK)
    model.fit(X, y)
    model.evaluate(X, y)
    model.save(tmp_path / "b")
    opened = load(tmp_path / "b", device="cpu")
    assert type(opened) is kind and opened.get_params() == model.get_params()
    want, got = model.predict(X), opened.predict(X)
    assert np.array_equal(want, got) if isinstance(want, np.ndarray) else want == got
    if hasattr(model, "classes_"):
        assert list(opened.classes_) == list(model.classes_)
    report = opened.evaluate(X, y)
    assert report.metrics and "not trained in this session" in repr(report.guard_table())


def test_a_clone_of_what_was_loaded_trains_as_it_was_trained(backbone, tmp_path):
    model = TextClassifier(backbone, **QUICK | {"learning_rate": 1e-3}, method="lora", rank=2,
                           random_state=np.int64(3), class_weight={True: 2., False: .5},
                           options={"focal": 1., "layer_decay": None})
    y = [a == "yes" for a in ANSWERS]
    model.fit(TEXTS, y).save(tmp_path / "b")
    again = clone(load(tmp_path / "b", device="cpu"))
    assert again.get_params() == model.get_params()
    assert np.array_equal(again.fit(TEXTS, y).predict_proba(OTHERS), model.predict_proba(OTHERS))
    several = MultiLabelClassifier(backbone, **QUICK, class_weight="balanced",
                                   random_state=np.random.RandomState(1))
    several.fit(TEXTS, [[1], [2, 3]] * 30).save(tmp_path / "c")
    opened = load(tmp_path / "c", device="cpu")
    assert opened.class_weight == "balanced" and opened.predict(TEXTS) == several.predict(TEXTS)
    assert opened.classes_.tolist() == [1, 2, 3]
    seeded = clone(opened).fit(TEXTS, [[1], [2, 3]] * 30)
    assert np.array_equal(seeded.predict_proba(TEXTS), opened.predict_proba(TEXTS))


def test_a_frame_of_pairs_keeps_its_columns(backbone, tmp_path):
    X = pd.DataFrame({"title": TEXTS, "body": TEXTS[::-1]})
    PairClassifier(backbone, **QUICK).fit(X, ANSWERS).save(tmp_path / "b")
    opened = load(tmp_path / "b", device="cpu")
    assert opened.bundle_.info["second"] == "body"
    with pytest.raises(InputError, match="training had"):
        opened.predict(X[["body", "title"]])


def test_valid_is_a_share_a_number_or_rows(backbone):
    spans = spans_of(TEXTS)
    for kind, y in ((TextClassifier, ANSWERS), (SpanTagger, spans)):
        for valid, n in ((.2, 12), (5, 5), ([OTHERS[25:35], (ANSWERS if y is ANSWERS else
                                                             spans_of(OTHERS))[25:35]], 10)):
            model = kind(backbone, **QUICK).fit(TEXTS, y, valid=valid)
            assert len(model.parts_.valid) == n
    assert not len(TextClassifier(backbone, **QUICK).fit(TEXTS, ANSWERS, valid=0).parts_.valid)


def test_a_split_that_is_given_is_kept_to(backbone):
    table = Table(pd.DataFrame({"text": TEXTS, "label": ANSWERS}), "text", "label", "made up")
    parts = split(table)
    model = TextClassifier(backbone, **LEARNS, random_state=3)
    model.fit(TEXTS, ANSWERS, valid=parts)
    report = model.evaluate(source=table)
    assert report.data["source"] == "made up" and report.seed == 3
    assert report.data["rows"] == {"train": len(parts.train), "valid": len(parts.valid),
                                   "test": len(parts.test)}
    want = model.score([TEXTS[i] for i in parts.test], [ANSWERS[i] for i in parts.test])
    assert report.metrics["accuracy"].value == want > .6
    assert report.failed() == ["language"]  # half of these texts are Chinese
    with pytest.raises(InputError, match="groups are for a split"):
        model.fit(TEXTS, ANSWERS, valid=parts, groups=range(60))
    with pytest.raises(InputError, match="a split of other rows"):
        model.fit(TEXTS[:9], ANSWERS[:9], valid=parts)
    with pytest.raises(InputError, match="no split with test rows"):
        model.fit(TEXTS, ANSWERS).evaluate()


KINDS = {TextClassifier: ANSWERS, PairClassifier: ANSWERS, TextRegressor: list(range(60)),
         MultiLabelClassifier: [["a"], ["b"]] * 30, SpanTagger: spans_of(TEXTS)}


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_wrong_kind_end_in_one_line(kind, backbone):
    wrong = {"epochs": ("3", 0, True), "batch_size": (2.5, -1), "learning_rate": ("1e-3", 0),
             "rank": ("8", 0), "windows": ("no", 1), "verbose": ("yes",), "random_state": ("x", -1),
             "options": (["focal"], {"focl": 1}, {"layer_decay": "x"}, {1: 1}), "method": (None, 3),
             "max_length": ("64", float("nan")), "device": (3, "tpu"), "backbone": (3,)}
    if kind is not TextRegressor:
        wrong["class_weight"] = ("even", ["balanced"], {"yes": "2"}, {"a": -1})
    if kind not in (TextClassifier, PairClassifier):
        wrong["options"] += ({"smoothing" if kind is not SpanTagger else "pool": .1},)
    X = pairs_of(TEXTS) if kind is PairClassifier else TEXTS
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(InputError) as e:
                kind(**{"backbone": backbone} | QUICK | {name: value}).fit(X, KINDS[kind])
            assert name in str(e.value) and "\n" not in str(e.value)
    for given in ({"valid": 1.5}, {"valid": "x"}, {"valid": {"X": X}}, {"valid": True},
                  {"valid": -1}, {"groups": 3}, {"groups": dict.fromkeys(range(60))},
                  {"groups": [[1]] * 60}, {"valid": 60}, {"valid": (X, KINDS[kind], 1)}):
        with pytest.raises(InputError) as e:
            kind(backbone, **QUICK).fit(X, KINDS[kind], **given)
        assert "\n" not in str(e.value)
    if kind is not SpanTagger:
        for weights in (["1"] * 60, [1j] * 60, [float("nan")] * 60, {1: 1}, [[1]] * 60, "1" * 60):
            with pytest.raises(InputError, match="sample_weight"):
                kind(backbone, **QUICK).fit(X, KINDS[kind], sample_weight=weights)


@pytest.mark.parametrize("kind, X, y, said", [
    (TextClassifier, dict(zip(TEXTS, ANSWERS)), ANSWERS, "X is a dict"),
    (TextClassifier, set(TEXTS), ANSWERS, "X is a set"),
    (TextClassifier, TEXTS, set(ANSWERS), "y is a set"),
    (SpanTagger, dict.fromkeys(TEXTS), spans_of(TEXTS), "X is a dict"),
    (SpanTagger, TEXTS, dict.fromkeys(TEXTS), "y is a dict"),
    (SpanTagger, [TEXTS[0].split(), *TEXTS[1:]], spans_of(TEXTS), "row 1 of X is a text"),
    (TextClassifier, TEXTS, [pd.Timestamp("2026-01-31")] * 60, "row 0 of y holds Timestamp"),
    (TextClassifier, TEXTS, np.array(["2026-01-31"] * 60, "datetime64[D]"), "row 0 of y holds"),
    (TextClassifier, TEXTS, [b"a", b"b"] * 30, "Turn it into a string"),
    (TextClassifier, TEXTS, [1j, 2j] * 30, "Turn it into a string"),
    (TextClassifier, TEXTS, [True, 1, 0] * 20, "mixes numbers and booleans"),
    (TextClassifier, TEXTS, [np.bool_(1), np.int8(0)] * 30, "mixes numbers and booleans"),
    (TextClassifier, TEXTS, ["a", "a\0", "b"] * 20, "NUL"),
    (MultiLabelClassifier, TEXTS, [[True], [2]] * 30, "mixes numbers and booleans"),
    (MultiLabelClassifier, TEXTS, [[b"a"], [b"b"]] * 30, "Turn it into a string"),
    (PairClassifier, pd.DataFrame({"a": TEXTS, "b": TEXTS, "c": TEXTS}), ANSWERS, "3 columns"),
    (PairClassifier, pd.DataFrame({"a": TEXTS}), ANSWERS, "1 column"),
    (TextClassifier, "a text", ["a"], "give a list"), (TextClassifier, [], [], "0 rows"),
    (TextClassifier, TEXTS, None, "y"), (TextClassifier, TEXTS, ["a"] * 60, "only 1 class"),
    (TextClassifier, TEXTS, [1, "1"] * 30, "mixes strings"),
    (TextClassifier, [float("nan"), *TEXTS[1:]], ANSWERS, "row 0 of X: missing text"),
    (TextClassifier, TEXTS, [float("nan"), *ANSWERS[1:]], "row 0 of y is nan"),
    (TextRegressor, TEXTS, [1.] * 60, "nothing to learn"),
    (TextRegressor, TEXTS, ANSWERS, "not a number"),
    (PairClassifier, TEXTS, ANSWERS, "expected two texts"),
    (MultiLabelClassifier, TEXTS, [["a"]] * 60, "two are needed"),
    (MultiLabelClassifier, TEXTS, ANSWERS, "give a list of labels"),
    (MultiLabelClassifier, TEXTS, [["a", None]] * 60, "missing"),
    (SpanTagger, TEXTS, [[]] * 60, "no span"), (SpanTagger, TEXTS, [[(0, 999, "A")]] * 60, "row 0"),
    (SpanTagger, TEXTS, [[]], "y has 1 row")])
def test_bad_input_ends_in_one_line(kind, X, y, said, backbone):
    with pytest.raises(InputError) as e:
        kind(backbone, **QUICK).fit(X, y)
    assert said in str(e.value) and "\n" not in str(e.value)
