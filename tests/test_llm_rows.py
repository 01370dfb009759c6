"""A language model that proposes labels, and one that writes rows, old ones in other words and new
ones: what is said of them is what the server was told to give, no machine's label is taken for a
person's, and no row learns from rows that are asked."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, WORDS, in_process, refused, rows_of, tiny_encoder
from insight_nb.base.core import InputError
from insight_nb.data.augment import MadeRows
from insight_nb.data.sources import open_table
from insight_nb.data.split import split
from insight_nb.data.table import clean_table
from insight_nb.jobs.labeling import LabelStore
from insight_nb.jobs.training import open_writers, split_rows
from insight_nb.methods import augmentation
from insight_nb.methods.augmentation import augment_training, try_augmentations
from insight_nb.methods.llm_rows import SYNTHETIC_OUTCOMES
from insight_nb.methods.llm_rung import OUTCOMES
from insight_nb.models.backbone import load_backbone
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


@pytest.mark.slow
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
        writers = open_writers("paraphrase", s.url, "m", limits)
        found = augment_training(table, parts, "paraphrase", "tiny", writers=writers)
        sent = [json.loads(r["messages"][1]["content"].split("\n")[0][6:]) for r in s.requests]
        kinds = Counter(s.kind(t) for t in dict.fromkeys(sent))
        again = augment_training(table, parts, "paraphrase", "tiny", writers=open_writers(
            "paraphrase", s.url, "m", limits))
        assert len(s.requests) == len(sent) == len(train) + 2  # two came twice; all is kept
    assert "example.org" not in json.dumps(sent) and "[EMAIL_1]" in json.dumps(sent)
    assert {unmasked(t) for t in sent} == {unmasked(t) for t in train}
    way = writers["paraphrase"]
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
        writers = open_writers("auto,paraphrase", s.url, "m", {"calls": 20}, rows=50)
        found = augment_training(table, parts, "auto,paraphrase", "tiny", writers=writers)
        way = writers["paraphrase"]
        assert len(s.requests) == 20
        assert way.evidence()["not_asked"] == 30 and way.evidence()["reworded"] == 20
        trial = next(t for t in found.trials if t.name == "paraphrase")
        assert trial.made == 20 and found.gated
        open_writers("typos")
        augment_training(table, parts, "auto", "tiny")
        assert len(s.requests) == 20


@pytest.mark.parametrize("recipe", ["classify", pytest.param("ladder", marks=pytest.mark.slow)])
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


def uneven(group=False):
    "All rows of two labels, 12 of the third; their split. A customer has seven rows."
    frame = pd.DataFrame({"text": WORDED, "label": list(LABELED.values())})
    few = frame.index[frame.label == LABELS[2]][12:]
    frame = frame.drop(few).reset_index(drop=True)
    frame["who"] = frame.index // 7
    table = clean_table(frame)
    return table, split(table, seed=0, **({"group": "who"} if group else {}))


def questions(s):
    "(label, examples, texts wanted) of the requests."
    for r in s.requests:
        prompt = r["messages"][1]["content"]
        yield (re.search("(?m)^- ([^:\n]*)", prompt)[1],
               [json.loads(t) for t in re.findall(r"(?m)^Text: (.*)$", prompt)],
               int(re.search(r"label, (\d+) of them", prompt)[1]))


def synthetic(s, parts, table, augment="synthetic", limits=None, **more):
    writers = open_writers(augment, s.url, "m", limits or {}, **more)
    found = augment_training(table, parts, augment, "tiny", writers=writers)
    return found, writers["synthetic"].evidence(), writers["synthetic"].summary()


def test_new_rows_of_a_label():
    "Training rows alone are shown, masked; copies are dropped; each row knows all of its sources."
    table, parts = uneven()
    side = {s: [table.texts[i] for i in getattr(parts, s)] for s in ("train", "valid", "test")}
    long = [t for t in side["test"] if "@" not in t]
    plants = [long[0], long[1].upper(), f"Q: {long[2]} A: yes", long[3][:-6], side["valid"][0],
              side["train"][0], side["train"][1] + "!", "write to [EMAIL_1] at once, please"]

    def writes(label, examples, n, seed):
        new = s.new_texts(label, examples, n, seed)
        if plants and n > 1 and s.kind(examples[-1]) != "refuse":
            new[0] = plants.pop()
        return json.dumps([*new[:n - 1], new[min(n, 2) - 1], "one too many"])

    prices = {"price_in": 1.0, "price_out": 1.0}
    with LLMServer(LABELED, refuse=0.25, writes=writes, faults=["429"]) as s:
        found, e, said = synthetic(s, parts, table, limits=prices, rows=100)
        sent = list(questions(s))[1:]  # one came twice
        again, more, _ = synthetic(s, parts, table, limits=prices, rows=100)
        assert len(s.requests) == len(sent) + 1 and more["from_cache"] == len(sent)
    assert {unmasked(t) for _, some, _ in sent for t in some} <= set(map(unmasked, side["train"]))
    assert "example.org" not in json.dumps(sent) and "[EMAIL_1]" in json.dumps(sent)
    assert e["texts"] == sum(n for *_, n in sent) == 100 and e["calls"] == len(sent)
    asked = Counter()
    for label, some, n in sent:
        asked[label] += n
        assert len(some) > 1 and {LABELED_UNMASKED[unmasked(t)] for t in some} == {label}
    counts = Counter(table.labels[i] for i in parts.train)
    assert asked[LABELS[2]] == 4 * counts[LABELS[2]]  # the rare one first
    refused_ = [n for _, some, n in sent if s.kind(some[-1]) == "refuse"]
    doubled = sum(n > 2 for _, some, n in sent if s.kind(some[-1]) != "refuse")
    assert e["refused"] == sum(refused_) > 0 and not plants
    assert (e["copy_of_a_held-out_row"], e["copy_of_a_training_row"], e["masked_name"]) == (5, 2, 1)
    assert e["copy_of_another_new_text"] == doubled
    assert sum(e[k.replace(" ", "_")] for k in SYNTHETIC_OUTCOMES) == 100
    assert e["kept"] == len(found.made) and found.made.texts == again.made.texts
    assert e["money"] == pytest.approx((e["tokens_in"] + e["tokens_out"]) / 1e6) and e["money"] > 0
    assert f"{e['kept']} could be used" in said and "5 copy of a held-out row" in said
    assert set(found.made.names) == {"synthetic by llm:m"}
    assert {i for own in found.made.sources for i in own} <= set(parts.train)
    assert all(len({table.labels[i] for i in own}) == 1 < len(own) for own in found.made.sources)
    frame = found.made.frame(table.texts, table.labels)
    assert (frame.source_text.str.count("\n") > 0).all()
    assert found.parts.test.tolist() == parts.test.tolist()
    assert not set(found.made.texts) & {*side["test"], *side["valid"]}
    assert "synthetic by llm:m" in found.parts.notes[-1]


LABELED_UNMASKED = {re.sub(r"jo\d+@example.org", "", t): label for t, label in LABELED.items()}


@pytest.mark.parametrize("group", [False, True])
def test_rows_that_were_read_together_are_held_out_together(monkeypatch, group):
    seen, try_one = [], augmentation._try
    monkeypatch.setattr(augmentation, "_try", lambda t, texts, name, ways, *more: (
        seen.append((t, ways)), try_one(t, texts, name, ways, *more))[1])
    table, parts = uneven(group)
    with LLMServer(LABELED) as s:
        found, e, _ = synthetic(s, parts, table, "auto,synthetic", rows=90)
    t, ways = seen[0]
    made = ways["synthetic"]
    assert len(made) > 60 and len(t.folds) == 5 and found.trials[-1].made == len(made)
    for a, b in t.folds:
        assert (made.only_from(a) | made.only_from(b)).all() and made.only_from(a).any()
    if group:
        who = [parts.groups[i] for i in parts.train]
        assert all(len({who[i] for i in side}) + len({who[i] for i in other}) == len(set(who))
                   for side, other in t.folds)
    found.made, found.learned = made.renumber(parts.train), len(parts.train)  # as if it were used
    codes = dict(zip(parts.train.tolist(), found.groups()))
    assert len(set(codes.values())) >= 4
    assert all(len({codes[i] for i in own}) == 1 for own in found.made.sources)


def test_no_made_row_learns_where_one_of_its_sources_is_asked():
    "Each tells the answer to its second source: a fold that lets it in would be right each time."
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("bcdfghklmnprst"), 7)) for _ in range(3))
             for _ in range(120)]
    y = np.arange(120) % 2
    other = (np.arange(120) + 2) % 120  # of the same class
    made = MadeRows([f"{texts[i]} !" for i in other], np.arange(120), ["new"] * 120,
                    [[int(i)] for i in other])
    (told,), _ = try_augmentations(texts, y, ["synthetic"], {"synthetic": made}, load_backbone())
    assert not told.pays and told.gain.value < .2
    blind = MadeRows(made.texts, made.rows, made.names)  # the second source is not said
    (leak,), _ = try_augmentations(texts, y, ["synthetic"], {"synthetic": blind}, load_backbone())
    assert leak.pays and leak.gain.value > .3  # so the test can fail


def test_texts_of_another_label_are_dropped():
    table = clean_table(pd.DataFrame({"text": list(TRUTH), "label": list(TRUTH.values())}))
    parts = split(table, seed=0)

    def writes(label, examples, n, seed):
        new = s.new_texts(label, examples, n, seed)
        wrong = WORDS[LABELS[1] if label == LABELS[0] else LABELS[0]]
        return json.dumps([f"{wrong} {wrong} stay number {i}{seed}" if i == 0 else t
                           for i, t in enumerate(new)])

    with LLMServer(LABELED, writes=writes) as s:
        found, e, said = synthetic(s, parts, table, rows=60)
    assert 0 < e["surely_another_label"] <= e["calls"] and e["kept"] == len(found.made)
    assert f"{e['surely_another_label']} surely another label" in said
    wrong = [t for t, i in zip(found.made.texts, found.made.rows)
             if t.startswith(WORDS[LABELS[0]]) and table.labels[i] != LABELS[0]]
    assert len(wrong) < e["surely_another_label"]


@pytest.mark.parametrize("said, outcome, sent", [
    ("[]", "missing", 1), ("", "missing", 1), ("<html>hello</html>", "unreadable", 2),
    ('["a text that breaks', "unreadable", 2), ("I can't help with that.", "refused", 1)])
def test_answers_without_texts(said, outcome, sent):
    table, parts = uneven()
    with LLMServer(LABELED, writes=lambda *_: said) as s:
        found, e, told = synthetic(s, parts, table, rows=20)
        assert len(s.requests) == sent * e["calls"]
    assert e[outcome] == e["texts"] == 20 and not len(found.made)
    assert found.summary() == "No rows were made: synthetic gave none that can be used."
    assert f"0 could be used (20 {outcome})" in told and found.table is table


def test_a_budget_ends_the_writing():
    table, parts = uneven()
    with LLMServer(LABELED) as s:
        _, e, _ = synthetic(s, parts, table, limits={"calls": 3}, rows=50)
        wanted = sum(n for *_, n in questions(s))
        assert len(s.requests) == 3 == e["calls"] and e["not_asked"] == 50 - wanted
    with LLMServer(LABELED) as s:
        price = {"price_in": 1000.0, "price_out": 1000.0, "money": 2.2}
        _, e, told = synthetic(s, parts, table, limits=price, rows=300)
        assert 0 < e["money"] <= 2.2 and e["not_asked"] > 0 and "in money" in told


def test_what_writing_refuses(ends):
    frame = pd.DataFrame({"text": WORDED, "label": list(LABELED.values())})
    table = clean_table(frame)
    parts = split(table, seed=0)
    one = [next(i for i in parts.train if table.labels[i] == LABELS[0])]
    none = [i for i in parts.train if table.labels[i] != LABELS[2]]
    few = [i for i in none if table.labels[i] == LABELS[1]] + one
    with LLMServer(LABELED) as s:
        parts.train = np.array(few)
        found, e, said = synthetic(s, parts, table, rows=20)
        assert {label for label, *_ in questions(s)} == {LABELS[1]} and e["labels_left_out"] == 2
        assert f"2 labels with fewer than two different training rows, such as {LABELS[0]!r}" in (
            said)
        parts.train = np.array(one)
        with pytest.raises(InputError, match="no label has two different training rows"):
            synthetic(s, parts, table)
    frame.to_csv("t.csv", index=False)
    with LLMServer(LABELED) as s:
        def end(*more): return ends("run", "classify", "-p", "table", "t.csv", "-p", "backbone",
                                    "tiny", "-p", "augment", "synthetic", *more, "--out", "o")

        asks = ("-p", "llm", s.url, "-p", "llm_model", "m")
        refused(end(), "give its address with llm")
        refused(end(*asks, "-p", "llm_calls", "0"), "llm_calls is 0: give a number of 1 or more")
        refused(end(*asks, "-p", "llm_rows", "0"), "llm_rows is 0: give 1 or more")
        pd.DataFrame({"label": ["other"], "description": ["rest"]}).to_csv("d.csv", index=False)
        refused(end(*asks, "-p", "descriptions", "d.csv"), "'other', which is not a label")
        assert not s.requests
        s.faults = ["", *["html"] * 9]
        stopped = end(*asks)  # the first answer is kept in the cache
    assert stopped.status == 2 and len(stopped.lines) == 1
    assert "is not an OpenAI-compatible address" in stopped.lines[0]


@pytest.mark.parametrize("recipe", ["classify", pytest.param("ladder", marks=pytest.mark.slow)])
def test_recipes_with_new_rows(recipe):
    pd.DataFrame({"text": WORDED, "label": list(LABELED.values())}).to_csv("t.csv", index=False)
    pd.DataFrame({"label": LABELS, "description": [f"about {w}" for w in WORDS.values()]}).to_csv(
        "d.csv", index=False)
    given = {"table": "t.csv", "backbone": "tiny", "augment": "synthetic,paraphrase", "out": "run",
             "max_length": 32, "llm_rows": 40, "device": "cpu", "llm_model": "m",
             "descriptions": "d.csv"}
    more = {"classify": {"epochs": 1, "anyway": True},
            "ladder": {"rungs": "majority,TF-IDF + linear", "state": "state", "llm_shots": 0}}
    with LLMServer(LABELED) as s:
        path = NBS / "recipes" / f"{recipe}.ipynb"
        in_process(path, "run.ipynb", given | more[recipe] | {"llm": s.url})
        assert any("about lovely warm" in r["messages"][1]["content"] for r in s.requests)
    e = json.loads(Path("run/evidence.json").read_text(encoding="utf-8"))
    asked, made = e["augmentation"]["synthetic"], e["augmentation"]["made_rows"]
    assert (asked["by"], asked["texts"], asked["calls"]) == ("llm:m", 40, 9)
    assert made == {"synthetic by llm:m": asked["kept"], "paraphrase by llm:m": 40}
    sample = pd.read_csv("run/augmented_sample.csv", encoding="utf-8-sig")
    assert set(sample.perturbation) == set(made)
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "llm:m was asked for 40 new texts in 9 answers" in page
    assert "llm:m was asked for another wording of 40 texts" in page
    assert "<script>alert" not in page
