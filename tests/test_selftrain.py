"""Unlabeled rows as a whole: what the recipes leave, that no test row is among them, that a gate
which stays shut changes nothing, and how bad input ends."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SECTIONS, in_process, refused, rows_of, tiny_encoder, write_csv
from insight_nb import load
from insight_nb.base.core import InputError
from insight_nb.data.split import duplicate_groups
from insight_nb.jobs.rungs import load_rung, save_rung
from insight_nb.methods import selftrain
from insight_nb.methods.classical import Tfidf
from insight_nb.methods.selftrain import (
    Consistency, Gate, SelfTraining, UnlabeledTexts, compare_out_of_fold, open_unlabeled,
    unlabeled_rungs)
from insight_nb.models.backbone import EMBEDDED_SHA256
from notebooks import NBS

SELF, ADAPTED = "TF-IDF + linear + self-training", "adapted + linear"


def run(recipe, out, **given):
    "The recipe's cells in this process; its evidence and its page."
    names = {"table": "table.csv", "max_length": 32, "device": "cpu", "out": out} | given
    in_process(NBS / "recipes" / f"{recipe}.ipynb", "run.ipynb", names)
    return (json.loads(Path(out, "evidence.json").read_text(encoding="utf-8")),
            Path(out, "report.html").read_text(encoding="utf-8"))


def words_of(n, seed=0, size=300):
    "Texts of two classes with three words of 300 each: few labels leave many words unknown."
    made, draw = np.random.default_rng(9), np.random.default_rng(seed)
    own = [["".join(made.choice(list("aeiknorstu"), 5)) for _ in range(size)] for _ in range(2)]
    y = draw.integers(2, size=n)
    usual = ["the", "and", "so", "or", "but"]
    return [" ".join([*draw.choice(own[c], 3), *draw.choice(usual, 2)]) for c in y], y


@pytest.fixture
def tables(monkeypatch):
    "Labeled rows; and others without labels, among them copies of all labeled rows."
    monkeypatch.setattr("insight_nb.train.adapt.adapt_passes", lambda n: 1)
    rows = rows_of(330)
    write_csv("table.csv", rows[:240])
    more = [{"text": row["text"]} for row in rows]
    shouted = [{"text": row["text"].upper() + "!"} for row in rows[:240]]
    write_csv("more.csv", [*more, *shouted])
    return {row["text"] for row in rows[:240]}


@pytest.mark.parametrize("names", [(SELF,), pytest.param((SELF, ADAPTED), marks=pytest.mark.slow)])
def test_the_ladder_reads_them(names, tables):
    e, page = run("ladder", "a", unlabeled="more.csv", adapt=ADAPTED in names,
                  rungs=",".join(["TF-IDF + linear", *names]), margin=60.)
    assert set(e) >= SECTIONS | {"rungs"}
    used = e["data"]["unlabeled"]
    # the copies and the shouted copies of labeled rows are gone
    assert used["texts"] <= 90 and used["removed"]["copies of labeled rows"] >= 480
    told = {r["name"]: r for r in e["rungs"]}
    assert {r["status"] for r in told.values()} == {"done"}
    for name in names:
        gate = told[name]["details"]["gate"]
        assert gate["low"] <= gate["gain"] <= gate["high"] and gate["rows"] > 100
        assert ("paid: " if gate["opened"] else "did not pay: ") in told[name]["why"]
        assert gate["opened"] or told[name]["why"].split("; ")[0] in page
    if not told[SELF]["details"]["gate"]["opened"]: # then it is the plain method, to the row
        assert told[SELF]["metrics"] == told["TF-IDF + linear"]["metrics"]
    if ADAPTED in names:
        adaptation = told[ADAPTED]["details"]["adaptation"]
        assert adaptation["identity"] != EMBEDDED_SHA256 and adaptation["texts"] > 100
    assert "Rows without labels" in page and "<script>alert" not in page
    assert not [g for g in e["guard"] if g["passed"] is False]
    assert load("a/bundle").predict(["lovely warm stay"]).shape == (1,)


def test_adapt_is_gated_and_said(tables, monkeypatch):
    began = tiny_encoder("tiny").identity
    tiny = {"backbone": "tiny", "adapt": True, "epochs": 8, "learning_rate": 1e-2}
    e, page = run("classify", "a", unlabeled="more.csv", **tiny)
    gate, used = e["adapted"]["gate"], e["adapted"]["unlabeled"]
    n = e["data"]["rows"]["train"]
    assert used["texts"] <= 90 and gate["rows"] == n == e["adapted"]["training_rows"]
    said = f"those of {n} training rows and {used['texts']} texts without labels; copies count once"
    assert said in page and e["adapted"]["texts"] < n + used["texts"]
    begun = began if not gate["opened"] else e["adapted"]["identity"]
    assert e["model"]["identity"] == begun and "Adapted to your texts" in page
    # as if it had paid: training begins with the copy, and the bundle is whole
    opened = Gate("adapted", .05, .01, .09, 150, 10)
    monkeypatch.setattr("insight_nb.jobs.training.gate_adaptation", lambda *_: opened)
    e, page = run("classify", "b", **tiny)
    assert e["adapted"]["gate"]["opened"] and "paid: +5.0 points [1.0, 9.0]" in page
    assert e["model"]["identity"] == e["adapted"]["identity"] != began
    red = [g["check"] for g in e["guard"] if g["passed"] is False]
    # a third of these texts is Chinese; of 8 numbers, the loss may not fall as surely
    assert "language" in red and set(red) <= {"language", "loss_fell"}
    assert {g["check"]: g["passed"] for g in e["guard"]}["reload_equal"]
    assert len(load("b/bundle").predict(["dirty cold stay", "房间 干净"])) == 2


@pytest.mark.parametrize("kind", [SelfTraining, pytest.param(Consistency, marks=pytest.mark.slow)])
def test_where_it_pays_the_gate_opens_and_the_bundle_answers_alike(kind, tmp_path):
    texts, y = words_of(2000)
    asked, names = texts[1600:], ("a", "b")
    pool = UnlabeledTexts(texts[150:1600], "made up")
    plain = Tfidf().fit(texts[:150], y[:150], names)
    rung = kind(Tfidf(), pool).fit(texts[:150], y[:150], names)
    assert rung.gate.opened, rung.remark
    right = [(r.predict_proba(asked).argmax(1) == y[1600:]).mean() for r in (rung, plain)]
    assert right[0] > right[1] + .03
    info = save_rung(tmp_path / rung.name, rung)
    opened = load_rung(tmp_path / rung.name).rung
    np.testing.assert_allclose(opened.predict_proba(asked), rung.predict_proba(asked))
    assert info["rung"]["name"] == rung.name and info["details"]["gate"]["opened"]


def test_a_shut_gate_is_the_plain_method():
    texts, y = words_of(400)
    plain = Tfidf().fit(texts[:40], y[:40], ("a", "b"))
    others = {"another language": [f"酒店的房间第{i}次很好" for i in range(100)],
              "emoji": [f"{'🎉' * (i % 9 + 1)} 😀{i}" for i in range(100)],
              "noise": ["".join(np.random.default_rng(i).choice(list("qwxyz"), 30))
                        for i in range(100)]}
    for name, pool in others.items():
        rung = SelfTraining(Tfidf(), UnlabeledTexts(pool, name)).fit(texts[:40], y[:40], ("a", "b"))
        assert not rung.gate.opened and "did not pay" in rung.remark
        np.testing.assert_array_equal(*(r.predict_proba(texts[40:]) for r in (rung, plain)))


def test_few_rows_and_odd_classes():
    texts, y = words_of(300)
    pool = UnlabeledTexts(texts[100:], "made up")
    rung = SelfTraining(Tfidf(), pool).fit(texts[:3], [0, 1, 1], ("a", "b"))
    assert rung.remark.startswith("not tried: ") and rung.predict_proba(texts[:2]).shape == (2, 2)
    with pytest.raises(InputError, match="of one label"):
        SelfTraining(Tfidf(), pool).fit(texts[:30], np.zeros(30, int), ("a",))
    rung = Consistency(Tfidf(), pool).fit(texts[:41], [*y[:40], 2], ("a", "b", "alone"))
    assert rung.predict_proba(texts[:2]).shape == (2, 3)
    soft = np.eye(2)[y[:40]] * .8 + .1 # of a teacher
    assert SelfTraining(Tfidf(), pool).fit(texts[:40], soft, ("a", "b")).gate.rows == 40


def test_groups_stay_on_one_side_of_the_gate(monkeypatch):
    """Thirty customers, each with an opinion and words of their own: a made-up method that knows
    customers again pays only where a customer is on both sides of a fold."""
    texts, y = words_of(150)
    owner = np.arange(150) // 5
    told = np.random.default_rng(1).integers(2, size=30)[owner]
    named = [f"{t} client{o}" for t, o in zip(texts, owner)]
    pool, seen = UnlabeledTexts(words_of(120, 5)[0], "made up"), []
    right = selftrain.repeated_folds

    def folds(y, *a, **k):
        found = right(y, *a, **k)
        own = k.get("groups", a[3] if len(a) > 3 else None)
        if own is not None:
            seen.extend(bool(set(own[i]) & set(own[j])) for i, j in found if len(j))
        return found

    monkeypatch.setattr(selftrain, "repeated_folds", folds)
    rung = SelfTraining(Tfidf(), pool)
    rung.row_groups = [f"client {o}" for o in owner]
    rung.fit(named, told, ("a", "b"))
    assert len(seen) > 30 and not any(seen)  # of the gate, and of each self-training
    assert rung.details["gate"]["rows"] == 150 and rung.chosen.row_groups is None
    blind = compare_out_of_fold("x", memory(False), memory(True), named, told)
    apart = compare_out_of_fold("x", memory(False), memory(True), named, told,
                                groups=owner)
    assert blind.opened and not apart.opened
    few = compare_out_of_fold("x", memory(False), memory(True), named, told,
                              groups=owner // 6)
    assert "rows of 5 groups can't tell" in few.reason


class Memory:
    "The opinion of the customer, if it was heard; else that of most."
    def __init__(self, known, often): self.known, self.often = known, often

    def predict_proba(self, texts):
        return np.eye(2)[[self.known.get(t.split()[-1], self.often) for t in texts]]


def memory(knows):
    def fit(texts, y, groups=None):
        known = {t.split()[-1]: int(c) for t, c in zip(texts, y)} if knows else {}
        return Memory(known, int(np.bincount(y).argmax()))
    return fit


def test_settings_tell_rungs_apart_and_stay():
    texts, y = words_of(120)
    one, two = (unlabeled_rungs(UnlabeledTexts(texts[a:], "x"), adapt=True) for a in (50, 60))
    every = [json.dumps(r.settings(), sort_keys=True) for r in [*one, *two]]
    assert len(set(every)) == len(every) == 10
    rung = one[0]
    rung.balanced = True
    before = rung.settings()
    rung.fit(texts[:40], y[:40], ("a", "b"))
    assert rung.settings() == before


def test_no_copy_comes_in_and_many_rows_do():
    texts, _ = words_of(3000, 1)
    labeled = texts[:500]
    found = open_unlabeled(pd.DataFrame({"text": [t.title() + " ..." for t in texts]}),
                           labeled=labeled)
    plain = {duplicate_groups([a, b])[0].tolist() == [0, 0]
             for a, b in zip(labeled, found.texts)}
    assert plain == {False}
    both = duplicate_groups([*labeled, *found.texts])[1]
    assert not set(both[:500]) & set(both[500:])
    few = open_unlabeled(pd.DataFrame({"text": texts}), labeled=labeled, at_most=100)
    again = open_unlabeled(pd.DataFrame({"text": texts}), labeled=labeled, at_most=100)
    assert len(few) == 100 and few.identity == again.identity


def test_what_is_refused(ends, tables):
    frame = pd.read_csv("table.csv")
    frame.rename(columns={"text": "note"})[["note"]].to_csv("named.csv", index=False)
    pd.DataFrame({"text": [None, "", " "]}).to_csv("blank.csv", index=False)
    frame[["text"]].to_csv("copies.csv", index=False)
    pd.DataFrame({"text": ["one", "two"]}).to_csv("two.csv", index=False)
    chinese = [f"第{i}间客房宽敞舒适，早餐种类繁多，服务员态度热情{i * 7}" for i in range(300)]
    pd.DataFrame({"text": chinese}).to_csv("chinese.csv", index=False)
    Path("empty.csv").write_text("text\n")

    def end(recipe, *more):
        return ends("run", recipe, "-p", "table", "table.csv", *more, "--out", "o")

    for recipe, more in (("classify", ("-p", "adapt", "true")), ("ladder", ())):
        def given(name): return end(recipe, *more, "-p", "unlabeled", name)
        refused(given("named.csv"), "'text'")
        refused(given("blank.csv"), "text")
        refused(given("empty.csv"))
        refused(given("copies.csv"), "copies of labeled rows", "leave unlabeled out")
        refused(given("two.csv"), "2 unlabeled texts", "are too few")
        refused(given("gone.csv"), "gone.csv")
    refused(end("classify", "-p", "unlabeled", "more.csv"), "add -p adapt true")
    refused(end("classify", "-p", "adapt", "true", "-p", "method", "lora"), "full or frozen")
    refused(end("classify", "-p", "adapt", "true", "-p", "unlabeled", "chinese.csv"),
            "can't be adapted to these texts")
    refused(end("ladder", "-p", "task", "tag", "-p", "adapt", "true"), "leave them out for tags")
