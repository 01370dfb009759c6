"""Made rows: what is never changed, where they come from, which rows they may join, and what the
gate and the robustness report say of a whole run."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, in_process, refused, rows_of, tiny_encoder, write_csv
from insight_nb.data.augment import (
    PERTURBATIONS,
    add_made_rows,
    is_negation,
    make_rows,
    perturb,
    rare_rows,
    read_units,
)
from insight_nb.data.samples import synthetic
from insight_nb.data.split import split
from insight_nb.data.table import clean_table
from insight_nb.eval.compare import Difference
from insight_nb.methods import augmentation, classical
from insight_nb.methods.augmentation import (
    AugmentationTrial,
    TokenSynonyms,
    augment_training,
    augmentation_ways,
    check_augment,
    text_robustness,
    try_augmentations,
)
from insight_nb.models.backbone import load_backbone
from notebooks import NBS

ODD = ["", " ", "a", "好", "😀", "👨‍👩‍👧 not 3.50 bad",
       "<b>not</b> good & 12", "[EMAIL_1] [PHONE_2a] 不好",
       "I didn’t say “no”… 3,000€", "https://a.org/b?c=1 www.x.y @me #tag", "é" * 50,
       "酒店 hotel 没有 wifi",
       "a\u200bb\nc\td", "無 12 半 tRuE", "مرحبا ليس 5", "\ud800 x"]
PIECES = ["not", "never", "12", "[EMAIL_1]", "好", "不", "房间", "good", "Slow", "!", "...", "😀",
          "don't",
          "a_b", "x1y", " ", "\n", "，", "https://a.b/c", "三", "ß", "Ünder"]


def kept(text):
    return [text[a:b] for a, b, kind in read_units(text) if kind == "kept"]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_what_must_stay_stays(name):
    rng = np.random.default_rng(0)
    texts = ODD + ["".join(rng.choice(PIECES, 12)) for _ in range(300)]
    texts += [" ".join(rng.choice(PIECES, 12)) for _ in range(300)]
    for share in (.05, .5, 1.):
        new = perturb(texts, name, seed=3, share=share)
        assert len(new) == len(texts) and new == perturb(texts, name, seed=3, share=share)
        for a, b in zip(texts, new):
            assert a.count("[EMAIL_1]") == b.count("[EMAIL_1]")
            assert re.findall(r"\d+", b) == re.findall(r"\d+", a)
    spaced = [" ".join(rng.choice(PIECES, 12)) for _ in range(300)]
    for a, b in zip(spaced, perturb(spaced, name, seed=1, share=.5)):
        assert kept(a) == kept(b), (a, b)


def test_synonyms_keep_it_too():
    texts = ["the food was not good at all, 12 times", "no slow rooms [NAME_1]", "", "很好"]
    words = TokenSynonyms(load_backbone())
    assert [kept(t) for t in words(texts, 0, 1.)] == [kept(t) for t in texts]
    assert words(texts, 0, 1.) == words(texts, 0, 1.) and words(texts, 0, 1.)[0] != texts[0]


def test_negations():
    assert all(map(is_negation, ["Not", "DON'T", "isn’t", "没", "無", "nicht", "kein"]))
    assert not any(map(is_negation, ["note", "knot", "好", "good", ""]))


def test_large_and_many():
    big = "word not 12 好房间 " * 5_000
    for name in PERTURBATIONS:
        assert len(perturb([big, "a" * 2 * 10**5, "好" * 2 * 10**4], name)) == 3


def test_made_rows_know_their_source():
    texts = synthetic(60, chinese=.5)["text"].tolist()
    made = make_rows(texts, list(PERTURBATIONS), np.arange(60).repeat(3), seed=4)
    again = make_rows(texts, list(PERTURBATIONS), np.arange(60).repeat(3), seed=4)
    assert made.texts == again.texts and made.names == again.names
    assert len(set(made.texts)) == len(made) and not set(made.texts) & set(texts)
    for text, row in zip(made.texts, made.rows):
        assert sorted(kept(text)) == sorted(kept(texts[row]))
    assert len(make_rows(["", "😀", "12"], list(PERTURBATIONS))) == 0


def test_rare_classes():
    y = np.array([0] * 50 + [1] * 2)
    assert np.bincount(y[rare_rows(y)], minlength=2).tolist() == [0, 8]
    assert len(rare_rows([0, 1])) == len(rare_rows([0])) == 0


def test_only_training_rows_are_made_from():
    frame = synthetic(150, chinese=.3).assign(who=lambda f: f.index // 3, day="2026-01-02")
    for rules in ({}, {"group": "who"}):
        table = clean_table(frame)
        parts = split(table, seed=0, **rules)
        found = augment_training(table, parts, "typos,swap-characters")
        assert set(found.made.rows) <= set(parts.train) and len(found.made) > 50
        new = found.parts
        assert new.test.tolist() == parts.test.tolist()
        assert new.valid.tolist() == parts.valid.tolist()
        held_out = {table.texts[i] for i in [*parts.test, *parts.valid]}
        assert not held_out & set(found.made.texts)
        assert found.originals.tolist() == parts.train.tolist()
        if rules:
            assert [new.groups[i] for i in new.train[-len(found.made):]] == [
                parts.groups[r] for r in found.made.rows]
    with pytest.raises(ValueError, match="others than training rows"):
        add_made_rows(table, parts, make_rows(table.texts, ["typos"], parts.test))


def test_the_gate_stays_shut_where_nothing_can_be_measured():
    encoder = tiny_encoder("tiny")
    some = augmentation_ways(encoder)
    assert try_augmentations(["a b c"] * 3, [0, 1, 0], ["typos"], some, encoder)[0] == []
    assert try_augmentations(["a b c"] * 30, [0] * 30, ["typos"], some, encoder)[0] == []
    table = clean_table(pd.DataFrame({"text": [f"some text {i}" for i in range(12)],
                                      "label": list("ab" * 6)}))
    found = augment_training(table, split(table, seed=0), "auto", "tiny")
    assert not len(found.made) and "No rows were made" in found.summary()


def test_it_opens_where_it_pays():
    "Each class has forty words of its own; made rows say which words belong together."
    rng = np.random.default_rng(0)
    words = [["".join(rng.choice(list("bcdfghklmnprst"), 6)) for _ in range(40)] for _ in range(4)]
    belongs = {w: k for k, own in enumerate(words) for w in own}

    def other(texts, seed, share):
        draw = np.random.default_rng(seed)
        return [f"the {words[belongs[t.split()[0]]][draw.integers(40)]} room" for t in texts]

    y = np.arange(160) % 4
    texts = [f"{words[k][i // 4]} room" for i, k in enumerate(y)]
    encoder = load_backbone()
    (found,), how = try_augmentations(texts, y, ["other"], {"other": other}, encoder)
    assert found.pays and found.gain.low > 0 and found.made > 50 and "5 folds" in how
    (same,), _ = try_augmentations(texts, y, ["same"], {"same": lambda t, s, h: list(t)}, encoder)
    assert not same.pays and same.made == 0
    shuffled = rng.permutation(y)  # nothing to learn: luck alone may not open it
    (luck,), _ = try_augmentations(texts, shuffled, ["typos"], PERTURBATIONS, encoder)
    assert not luck.pays


class Words:  # a model that reads one word
    classes_ = np.array(["<b>no</b>", "yes"])

    def predict_proba(self, texts):
        p = np.array([.9 if "good" in t else .2 for t in texts])
        return np.stack([1 - p, p], 1)


def test_robustness_of_a_model():
    texts = [f"{'good' if i % 2 else 'poor'} hotel rooms number {i}" for i in range(300)]
    labels = [Words.classes_[i % 2] for i in range(300)]
    found = text_robustness(Words(), texts, labels)
    assert found.accuracy.value == 1 and found.results
    for r in found.results:
        assert r.loss.low <= r.loss.value <= r.loss.high and r.changed > 0
        assert len(r.lost) == round(300 * r.loss.value)
    assert "typos" in found.sure()
    assert text_robustness(Words(), texts, labels).sure() == found.sure()
    assert text_robustness(Words(), ["12", "😀"], labels[:2]).results == []


def test_a_whole_run_with_made_rows():
    rows = rows_of(150)
    write_csv("table.csv", rows)
    given = {"table": "table.csv", "backbone": "tiny", "epochs": 1, "max_length": 32,
             "augment": "typos,oversample", "robustness": True, "out": "run", "anyway": True,
             "keep_rows": 3}
    tiny_encoder("tiny")
    in_process(NBS / "recipes" / "classify.ipynb", "run.ipynb", given)
    e = json.loads(Path("run/evidence.json").read_text(encoding="utf-8"))
    more = e["augmentation"]
    assert set(more["trials"]) == {"typos", "oversample"} and more["used"] == ["typos"]
    assert e["data"]["rows"]["train"] == more["training_rows"] + sum(more["made_rows"].values())
    assert e["robustness"]["changes"]["typos"]["changed_rows"] > 5
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "Augmentation" in page and "Robustness" in page and "<script>alert" not in page
    sample = pd.read_csv("run/augmented_sample.csv", encoding="utf-8-sig")
    texts = {i: r["text"] for i, r in enumerate(rows)}
    assert 0 < len(sample) <= 50 and set(sample.perturbation) == {"typos"}
    assert all(texts[r] == t for r, t in zip(sample.source_row, sample.source_text))
    info = json.loads(Path("run/bundle/bundle.json").read_text(encoding="utf-8"))
    assert sum(info["class_count"]) == more["training_rows"] and set(e["data"]["labels"]) == set(
        LABELS)


def test_the_ladder_with_made_rows(monkeypatch):
    "No fold of a rung holds a made row apart from the row that it was made from."
    apart, cut = [], classical.grouped_folds

    def spied(y, groups, *more):
        found = cut(y, groups, *more)
        codes = np.asarray(groups)
        apart.extend(not set(codes[a]) & set(codes[b]) for a, b in found)
        return found

    monkeypatch.setattr(classical, "grouped_folds", spied)
    write_csv("table.csv", rows_of(90))
    given = {"table": "table.csv", "rungs": "majority,TF-IDF + linear", "state": "state",
             "device": "cpu", "augment": "typos,oversample", "out": "run"}
    in_process(NBS / "recipes" / "ladder.ipynb", "run.ipynb", given)
    e = json.loads(Path("run/evidence.json").read_text(encoding="utf-8"))
    more = e["augmentation"]
    assert len(apart) >= 4 and all(apart)
    assert more["used"] == ["typos"] and set(more["trials"]) == {"typos", "oversample"}
    assert e["data"]["rows"]["train"] == more["training_rows"] + sum(more["made_rows"].values())
    # a learning curve counts labels that people gave
    assert max(e["curves"]["TF-IDF + linear"]["sizes"]) == more["training_rows"]
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "Augmentation" in page and "<script>alert" not in page
    assert Path("run/augmented_sample.csv").is_file()


def test_auto_takes_the_best_way_alone(monkeypatch):
    "And names it, oversampling too, whose rows are of rare classes alone."
    def trial(name, gain):
        d = Difference(gain, gain - .01, gain + .01, 0., 60, "")
        return AugmentationTrial(name, 9, d, None)

    monkeypatch.setattr(augmentation, "try_augmentations", lambda *_: (
        [trial("typos", .02), trial("oversample", .05), trial("case", 0.)], "here"))
    frame = pd.DataFrame(rows_of(120)).drop(index=range(30, 120, 3))  # most of one class is gone
    table = clean_table(frame)
    found = augment_training(table, split(table, seed=0), "auto")
    assert found.used == ["oversample"] and len(found.made) > 3
    assert {table.labels[i] for i in found.made.rows} == {LABELS[0]}
    assert "by oversample, of rare classes alone: it surely pays" in found.summary()
    report = SimpleNamespace(lead_sections=[], extra={})
    trials = found.trials
    found.trials = []
    found.describe(report)
    assert report.extra["augmentation"]["used"] == ["oversample"] and len(trials) == 3


def test_made_rows_are_in_the_group_of_their_source():
    frame = synthetic(150, chinese=.3).assign(who=lambda f: [None, *(f.index[1:] // 3)])
    table = clean_table(frame)
    for rules in ({}, {"group": "who"}):
        found = augment_training(table, split(table, seed=0, **rules), "typos")
        own = found.groups()
        assert len(own) == len(found.parts.train) and len(found.made) > 20
        place = {row: g for row, g in zip(found.originals, own)}
        assert own[found.learned:] == [place[row] for row in found.made.rows]
        assert found.labeled_parts().train.tolist() == found.originals.tolist()
    assert len(set(own)) < found.learned  # by customers, and the row of nobody alone


def test_what_is_refused(ends):
    write_csv("table.csv", rows_of(60))

    def end(*more): return ends("run", "classify", "-p", "table", "table.csv", *more, "--out", "o")

    refused(end("-p", "augment", "typoes"), "Did you mean 'typos'")
    refused(end("-p", "augment", "auto,typos"), "augment has 'auto'")
    refused(ends("run", "ladder", "-p", "table", "table.csv", "-p", "augment", "typoes", "--out",
                 "o"), "Did you mean 'typos'")
    refused(ends("run", "ladder", "-p", "task", "tag", "-p", "augment", "auto", "--out", "o"),
            "augment is for labels of texts")
    assert check_augment("") == []
