"""A language model that proposes labels, and one that writes rows in other words: what is said of
them is what the server was told to give, and no machine's label is taken for a person's."""

import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import in_process, refused, rows_of, tiny_encoder
from insight_nb.base.core import InputError
from insight_nb.data.sources import open_table
from insight_nb.data.split import split
from insight_nb.data.table import clean_table
from insight_nb.jobs.labeling import LabelStore
from insight_nb.jobs.training import open_paraphraser, split_rows
from insight_nb.methods.augmentation import augment_training
from insight_nb.methods.llm_rung import OUTCOMES
from llm_server import LLMServer
from notebooks import NBS

TRUTH = {f"{row['text']} 第{i}条": row["label"] for i, row in enumerate(rows_of(200))}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    for name in ("INSIGHT_NB_LLM_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INSIGHT_NB_CACHE", str(tmp_path / "cache"))
    tiny_encoder("tiny")


def label(server, out, **more):
    "The recipe's cells in this process; its evidence."
    frame = pd.DataFrame({"text": list(TRUTH), "label": list(TRUTH.values())})
    frame.loc[100:, "label"] = None
    frame.to_csv("pool.csv", index=False)
    given = {"table": "pool.csv", "rows": 5, "test_rows": 60, "out": out}
    if server:
        given |= {"llm": server.url, "llm_model": "m", "llm_rows": 40, "llm_shots": 2}
    in_process(NBS / "recipes" / "label.ipynb", "run.ipynb", given | more)
    return json.loads(Path(out, "evidence.json").read_text(encoding="utf-8"))


def sides(out):
    return [pd.read_csv(f"{out}/labeled_{s}.csv", keep_default_na=False) for s in ("train", "test")]


def test_proposals_are_counted_and_kept_apart():
    errs = {"refuse": 0.1, "invent": 0.1, "empty": 0.1, "stumble": 0.1}
    inside = ("answer", "stumble", "refuse", "invent", "empty")  # their names in the server
    with LLMServer(TRUTH, 0.9, **errs) as s:
        e = label(s, "a")
        p, sent = e["proposals"], len(s.requests)
        made = pd.read_csv("a/proposals.csv", keep_default_na=False)
        kinds = Counter(s.kind(t) for t in made.text)
        assert {k: p[k] for k in OUTCOMES} == {k: kinds[i] for k, i in zip(OUTCOMES, inside)}
        names = e["data"]["labels"]
        usable = made[made.outcome.isin(OUTCOMES[:2])]
        assert usable.proposal.tolist() == [s.label(t, names) for t in usable.text]
        train, test = sides("a")
        seen = [(TRUTH[t], s.label(t, names)) for t in test.text
                if s.kind(t) in ("answer", "stumble")]
        assert p["right"]["value"] == pytest.approx(sum(a == b for a, b in seen) / len(test))
        assert p["sample"] == len(test) > 20 and p["asked"] == len(made) == 40
        again = sum(s.kind(t) in ("invent", "empty", "stumble") for t in [*made.text, *test.text])
        assert sent == p["asked"] + p["sample"] + again == p["asking"]["replies"]
        assert set(made.label) == {""} and set(made.proposed_by) == {"llm:m"}
        assert not set(made.text) & {*train.text, *test.text} and "labeled_by" not in train
        assert p["kappa"]["low"] < p["kappa"]["value"] < p["kappa"]["high"]
        assert p["to_check"] == 40 == sum(made.check == "yes") and p["machine_labels"] == 0
        assert e["labeling"]["labels"] == len(train) + len(test) == 100
        store = LabelStore("a/labels.sqlite")
        assert len(store.frame()) == 100 and set(store.frame()["annotator"]) == {"first"}
        store.close()
        page = Path("a/report.html").read_text(encoding="utf-8")
        assert "llm:m proposes" in page and "a person must check all 40" in page
        assert "No proposal trains or measures anything" in page and "<script>alert" not in page

        e = label(s, "b", llm_train="all")  # the replies are there already
        assert len(s.requests) == sent
    n = e["proposals"]["machine_labels"]
    assert n == p["answered"] + p["repaired"] == e["data"]["rows"]["machine_labels"]
    train, test = sides("b")
    assert Counter(train.labeled_by) == {"person": len(train) - n, "llm:m": n}
    assert set(test.labeled_by) == {"person"} and len(test) == p["sample"]
    assert e["proposals"]["gain"]["n"] == len(test)
    assert any(f"{n} of {len(train)} labels to train on are proposals" in note
               for note in e["data"]["notes"])
    # whoever trains on the table measures on labels of people
    table, parts = split_rows(open_table("b/labeled_train.csv"))
    by = table.frame["labeled_by"].to_numpy()
    assert set(by[parts.test]) == set(by[parts.valid]) == {"person"} and "llm:m" in by[parts.train]
    assert "training labels are a language model's" in parts.notes[-1]
    # given back as labels, these are no labels of a person
    assert label(None, "c", labeled=["b/labeled_train.csv"])["labeling"]["labels"] == 100
    # whoever fills in the empty column decides, whatever was proposed
    made.assign(label=[TRUTH[t] for t in made.text]).to_csv("checked.csv", index=False)
    assert label(None, "d", labeled=["checked.csv"])["labeling"]["labels"] == 140


def test_what_is_sure_need_not_be_checked():
    with LLMServer(TRUTH, 1.0) as s:
        e = label(s, "a", llm_train="trusted", test_rows=100)
        p = e["proposals"]
        assert p["sample"] >= 44 and p["to_check"] == 0 and p["machine_labels"] == 40
        assert p["trusted_from"] < 0.9 and p["kappa"]["value"] == 1
        few = label(s, "b", llm_calls=10, llm_shots=0)["proposals"]  # the sample comes first
        assert (few["asked"], few["sample"], few["not_asked"]) == (0, 10, 40)


def test_nobody_asks_without_an_address(ends):
    with LLMServer(TRUTH) as s:
        assert "proposals" not in label(None, "a")
        assert not s.requests and not Path("a/proposals.csv").exists()
    pd.DataFrame({"text": list(TRUTH)}).to_csv("pool.csv", index=False)

    def end(*more):
        return ends("run", "label", "-p", "table", "pool.csv", *more, "--out", "o")

    refused(end("-p", "llm_model", "m"), "llm_model needs llm")
    refused(end("-p", "llm_train", "all"), "give llm and llm_model too")
    refused(end("-p", "llm", "http://127.0.0.1:9", "-p", "llm_model", "m"), "nothing answers at")
    refused(end("-p", "llm", "http://127.0.0.1:9", "-p", "llm_train", "yes"), "say none, trusted")
    refused(end("-p", "llm", "http://127.0.0.1:9", "-p", "llm_goal", "2"), "llm_goal is 2")
    with LLMServer(TRUTH) as s:
        refused(end("-p", "llm", s.url, "-p", "llm_model", "m"), "has 0 labels to choose from")


def test_labels_of_a_machine_alone_measure_nothing():
    frame = pd.DataFrame({"text": list(TRUTH), "label": list(TRUTH.values())})
    frame["labeled_by"] = "llm:m"
    with pytest.raises(InputError, match="give test rows that people labeled|give valid rows"):
        split_rows(open_table(frame))


WORDED = [f"call jo{i}@example.org about order {i} 第{i}条" if i % 4 == 0 else f"{t} 第{i}条"
          for i, t in enumerate(r["text"] for r in rows_of(160))]
LABELED = dict(zip(WORDED, (r["label"] for r in rows_of(160))))


def test_rows_in_other_words():
    "Training rows alone are asked, masked; what is wrong makes no row; each row names the model."
    table = clean_table(pd.DataFrame({"text": WORDED, "label": list(LABELED.values())}))
    parts = split(table, seed=0)
    train = {table.texts[i] for i in parts.train}
    errs = {"refuse": 0.1, "invent": 0.1, "empty": 0.1}
    with LLMServer(LABELED, **errs, faults=["429", "broken"]) as s:
        limits = {"price_in": 1.0, "price_out": 1.0, "calls": 200}
        way = open_paraphraser("paraphrase", s.url, "m", limits)
        found = augment_training(table, parts, "paraphrase", "tiny", paraphrase=way)
        sent = [json.loads(r["messages"][1]["content"].split("\n")[0][6:]) for r in s.requests]
        kinds = Counter(s.kind(t) for t in dict.fromkeys(sent))
        again = augment_training(table, parts, "paraphrase", "tiny", paraphrase=open_paraphraser(
            "paraphrase", s.url, "m", limits))
        assert len(s.requests) == len(sent) == len(train) + 2  # two came twice; all is kept
    assert "example.org" not in json.dumps(sent) and "[EMAIL_1]" in json.dumps(sent)
    assert {unmasked(t) for t in sent} == {unmasked(t) for t in train}
    e = way.evidence()
    wrong = (e["refused"], e["empty"], e["facts_lost"] + e["length"] + e["another_language"])
    assert wrong == (kinds["refuse"], kinds["empty"], kinds["invent"]) and min(wrong) > 2
    assert e["reworded"] == kinds["answer"] == len(found.made) == len(again.made)
    assert e["money"] == pytest.approx((e["tokens_in"] + e["tokens_out"]) / 1e6)
    assert 0 < e["money"] < way.client.budget.spent  # broken JSON is paid, too
    assert set(found.made.names) == {"paraphrase by llm:m"} and set(found.made.rows) <= set(
        parts.train)
    frame = found.made.frame(table.texts, table.labels)
    assert (frame.label == [LABELED[t] for t in frame.source_text]).all()
    assert any("@example.org" in t for t in frame.made_text)  # it was put back
    assert found.parts.test.tolist() == parts.test.tolist()
    assert "paraphrase by llm:m" in found.parts.notes[-1]


def unmasked(text):
    return re.sub(r"jo\d+@example.org|\[EMAIL_1\]", "", text)


def test_a_budget_ends_the_rewording():
    table = clean_table(pd.DataFrame({"text": WORDED, "label": list(LABELED.values())}))
    parts = split(table, seed=0)
    with LLMServer(LABELED) as s:
        way = open_paraphraser("auto,paraphrase", s.url, "m", {"calls": 20}, rows=50)
        found = augment_training(table, parts, "auto,paraphrase", "tiny", paraphrase=way)
        assert len(s.requests) == 20
        assert way.evidence()["not_asked"] == 30 and way.evidence()["reworded"] == 20
        trial = next(t for t in found.trials if t.name == "paraphrase")
        assert trial.made == 20 and found.gated
        open_paraphraser("typos")
        augment_training(table, parts, "auto", "tiny")
        assert len(s.requests) == 20


@pytest.mark.parametrize("recipe", ["classify", "ladder"])
def test_recipes_with_rows_in_other_words(recipe):
    pd.DataFrame({"text": WORDED, "label": list(LABELED.values())}).to_csv("t.csv", index=False)
    given = {"table": "t.csv", "backbone": "tiny", "augment": "paraphrase", "llm_model": "m",
             "max_length": 32, "llm_rows": 60, "device": "cpu", "out": "run"}
    more = {"classify": {"epochs": 1, "anyway": True},
            "ladder": {"rungs": "majority,TF-IDF + linear", "state": "state", "llm_shots": 0}}
    with LLMServer(LABELED) as s:
        path = NBS / "recipes" / f"{recipe}.ipynb"
        in_process(path, "run.ipynb", given | more[recipe] | {"llm": s.url})
    e = json.loads(Path("run/evidence.json").read_text(encoding="utf-8"))
    asked = e["augmentation"]["paraphrase"]
    assert (asked["by"], asked["texts"], asked["reworded"]) == ("llm:m", 60, 60)
    assert e["augmentation"]["made_rows"] == {"paraphrase by llm:m": 60}
    sample = pd.read_csv("run/augmented_sample.csv", encoding="utf-8-sig")
    assert set(sample.perturbation) == {"paraphrase by llm:m"}
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "llm:m was asked for another wording of 60 texts: 60 could be used" in page


def test_what_rewording_refuses(ends):
    pd.DataFrame({"text": WORDED, "label": list(LABELED.values())}).to_csv("t.csv", index=False)
    for recipe in ("classify", "ladder"):
        def end(*more): return ends("run", recipe, "-p", "table", "t.csv", *more, "--out", "o")

        refused(end("-p", "augment", "paraphrase"), "give its address with llm")
        refused(end("-p", "augment", "auto,typos"), "augment has 'auto'")
    refused(ends("run", "classify", "-p", "table", "t.csv", "-p", "llm", "http://127.0.0.1:9", "-p",
                 "llm_model", "m", "--out", "o"), "add -p augment paraphrase")
