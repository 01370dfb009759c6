"""Weak labels: rules that nobody vouches for, on texts that nobody vouches for, end to end."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SECTIONS, in_process, refused
from insight_nb.base.core import InputError
from insight_nb.data.weak import (
    LabelFunction,
    Votes,
    apply_functions,
    compile_function,
    find_matches,
    fit_label_model,
    known_labels,
    majority_vote,
    picked_labels,
    read_functions,
)
from notebooks import NBS

TEXTS = ["<script>alert(1)</script> great stay", "很好的房间 😀", "so slow, broken door",
         "nothing here",
         "great but slow", "=1+1 great", "房间不好"] * 12
RULES = pd.DataFrame({
    "pattern": ["great|<b>nice</b>", "很好", r"\bslow\b|不好", "broken", "model", "zzz"],
    "label": ["<i>good</i>", "<i>good</i>", "bad", "bad", "", "bad"],
    "kind": ["keyword", "keyword", "regex", "keyword", "column", "keyword"]})
TRUTH = ["<i>good</i>", "<i>good</i>", "bad", "bad", "bad", "<i>good</i>", "bad"] * 12


def rule(pattern, label="a", kind="regex"):
    return LabelFunction(pattern, label, kind, "rules.csv, row 0")


def run(out, **more):
    pool = pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(TEXTS)], "label": TRUTH})
    pool.loc[40:, "label"] = ""
    pool["model"] = [TRUTH[i] if i % 3 == 0 else "" for i in range(len(TRUTH))]
    pool.to_csv("pool.csv", index=False)
    RULES.to_csv("rules.csv", index=False)
    given = {"table": "pool.csv", "functions": "rules.csv", "out": out} | more
    in_process(NBS / "recipes" / "weak.ipynb", "run.ipynb", given)
    return json.loads(Path(out, "evidence.json").read_text(encoding="utf-8")), pool


def test_a_whole_run():
    e, pool = run("a")
    assert set(e) >= SECTIONS and e["task"] == "weak" and len(e["weak"]["rules"]) == 6
    new = pd.read_csv("a/weak.csv", keep_default_na=False)
    assert list(new.text) == list(pool.text) and len(new) == 84
    assert set(new.weak_label) == {"<i>good</i>", "bad", ""}
    for rules, label in zip(new.weak_rules.astype(str), new.weak_label):
        assert label == "" or rules
    first = new.iloc[0]
    assert first.weak_rules == "0;4" and float(first.weak_probability) > .5
    assert e["metrics"]["accuracy"]["n"] + (new.weak_label[:40] == "").sum() == 40
    page = Path("a/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<i>good" not in page and "很好" in page
    assert any("fits no row" in note for note in e["data"]["notes"])
    again, _ = run("b")
    assert again == e and Path("a/weak.csv").read_bytes() == Path("b/weak.csv").read_bytes()
    sure, _ = run("c", least=.99, combine="model")
    assert sure["metrics"]["coverage"]["value"] < e["metrics"]["coverage"]["value"]


def test_without_labeled_rows():
    pd.DataFrame({"text": TEXTS}).to_csv("pool.csv", index=False)
    RULES[:4].to_csv("rules.csv", index=False)
    in_process(NBS / "recipes" / "weak.ipynb", "run.ipynb",
               {"table": "pool.csv", "functions": "rules.csv", "out": "o"})
    e = json.loads(Path("o/evidence.json").read_text(encoding="utf-8"))
    assert e["metrics"]["accuracy"]["value"] is None and e["weak"]["combine"] == "majority"
    assert "is not known" in Path("o/report.html").read_text(encoding="utf-8")


def test_nothing_runs_for_ever():
    long = ["a" * 3000 + "!", "x" * 10**6, "word " * 10**5, "好" * 10**5]
    begun = time.monotonic()
    for pattern in ("(a+)+$", "(a|aa)+$", r"^(\w+\s?)*$", "((a{1,99}){1,99})+b", "(.*a){25}",
                    "(?:x+x+)+y", "(?R)a", r"(\w*)*\1$"):
        made = rule(pattern)
        try:
            found = find_matches(made, long)
        except InputError:
            continue
        assert found is None or len(found) == 4
    assert time.monotonic() - begun < 60
    said = apply_functions([rule("(a+)+$"), rule("x", "b")], long, pd.DataFrame(), ["a", "b"])
    assert [f.pattern for f in said.functions] == ["x"] and "takes too long" in said.notes[0]


@pytest.mark.parametrize("pattern", [
    "(", "[", "*a", "a" * 501, "(((a{999}){999}){999})", r"\L<x>", "", "   ", "a*", "|", "(?P<n",
    "a{9999999999999}"])
def test_broken_patterns_are_refused(pattern):
    with pytest.raises(InputError) as e:
        functions = read_functions(pd.DataFrame({"pattern": [pattern], "label": ["a"],
                                                 "kind": ["regex"]}))
        compile_function(functions[0])
    assert "row 0" in str(e.value) and "\n" not in str(e.value)


def test_keywords_are_words():
    texts = ["Great!", "greatly", "ingreat", "不错的great房间", "c++ is", "C++"]
    assert find_matches(rule("great", kind="keyword"), texts).tolist() == [
        True, False, False, True, False, False]
    assert find_matches(rule("c++|(x", kind="keyword"), texts).tolist() == [False] * 4 + [True] * 2
    assert find_matches(rule("错", kind="keyword"), texts)[3]
    assert find_matches(rule("😀", kind="keyword"), ["a😀b", "a"]).tolist() == [True, False]


def test_votes_and_models_agree_on_simple_cases():
    f = [rule("a"), rule("b")]
    for votes in (np.full((0, 2), -1), np.full((4, 2), -1), np.array([[0, 1]] * 4)):
        said = Votes(f, ["a", "b"], votes, [])
        for probs in (majority_vote(said), fit_label_model(said).predict_proba(said)):
            assert probs.shape == (len(votes), 2) and np.isfinite(probs).all()
    said = Votes(f, ["a", "b", "c"], np.array([[0, 0], [1, -1], [-1, -1]]), [])
    assert picked_labels(fit_label_model(said).predict_proba(said)).tolist() == [0, 1, -1]
    p = fit_label_model(said).predict_proba(said)
    assert p[0, 0] > p[1, 1] > .5 and p[2].sum() == 0  # two witnesses are more than one


@pytest.mark.parametrize("seed", range(3))
def test_the_model_finds_good_rules(seed):
    rng = np.random.default_rng(seed)
    truth, wanted = rng.integers(3, size=3000), np.array([.95, .85, .5, .5, .5])
    wrong = (truth[:, None] + rng.integers(1, 3, size=(3000, 5))) % 3
    votes = np.where(rng.random((3000, 5)) < wanted, truth[:, None], wrong)
    votes[rng.random((3000, 5)) < .4] = -1
    said = Votes([rule("a")] * 5, ["a", "b", "c"], votes, [])
    model = fit_label_model(said)
    assert (model.accuracy.argsort()[::-1][:2] == [0, 1]).all()
    right = [(picked_labels(p) == truth)[said.covered].mean()
             for p in (model.predict_proba(said), majority_vote(said))]
    assert right[0] > right[1] + .03
    flipped = Votes(said.functions, said.names, votes[::-1], [])
    assert np.allclose(fit_label_model(flipped).accuracy, model.accuracy)


def test_many_texts():
    texts = ["a great and slow stay, number 12, 房间很好"] * 100_000
    begun = time.monotonic()
    said = apply_functions([rule("great", "a", "keyword"), rule(r"slow|\d+", "b")], texts,
                           pd.DataFrame(), ["a", "b"])
    fit_label_model(said).predict_proba(said)
    assert said.conflicting.all() and time.monotonic() - begun < 20


def test_labels_that_no_row_has():
    with pytest.raises(InputError, match="Did you mean 'good'"):
        known_labels([rule("x", "goood")], pd.DataFrame(), ["good", "bad"])
    assert known_labels([rule("x", "other")], pd.DataFrame(), ["good", "bad"]) == [
        "bad", "good", "other"]


def test_what_is_refused(ends):
    pd.DataFrame({"text": TEXTS, "label": TRUTH}).to_csv("pool.csv", index=False)
    pd.DataFrame({"text": TEXTS, "label": "a"}).to_csv("one.csv", index=False)
    pd.DataFrame({"text": []}).to_csv("empty.csv", index=False)
    RULES[:4].to_csv("good.csv", index=False)
    RULES[:1].assign(label="a").to_csv("single.csv", index=False)
    RULES.rename(columns={"kind": "kinds"}).to_csv("columns.csv", index=False)
    RULES.to_csv("lacks.csv", index=False)
    pd.DataFrame([["(", "bad", "regex"]], columns=RULES.columns).to_csv("broken.csv", index=False)

    def end(rules, *more, table="pool.csv"):
        return ends("run", "weak", "-p", "table", table, "-p", "functions", rules, *more,
                    "--out", "o")

    refused(end("columns.csv"), "no column 'kind'")
    refused(end("broken.csv"), "no regular expression")
    refused(end("lacks.csv"), "no column 'model'")
    refused(end("single.csv", table="one.csv"), "1 label in all")
    refused(end("good.csv", "-p", "combine", "mean"), "combine is 'mean'")
    refused(end("good.csv", "-p", "least", "2"), "least is 2")
    refused(end("gone.csv"), "gone.csv")
    refused(end("good.csv", table="empty.csv"), "empty.csv")
    refused(ends("run", "weak", "-p", "table", "pool.csv", "--out", "o"), "functions names")
