"""The assistant as a whole: the recipe, its folder, and what users may do to it."""

import json
import sys

import pytest
from conftest import refused, run_here, write_csv
from insight_nb.apps.assistant.assistant import Assistant, load_assistant
from insight_nb.apps.assistant.dialogue import read_flows
from insight_nb.apps.assistant.handover import open_fallback
from insight_nb.apps.assistant.out_of_scope import IntentClassifier
from insight_nb.cli import main
from insight_nb.data.samples import load_sample
from insight_nb.ship.bundle import SCHEMA, write_manifest
from llm_server import LLMServer

KINDS = {
    "card": [
        "my card is lost",
        "the card was eaten",
        "I need a new card",
        "card blocked again",
        "where is my card",
        "the card does not work",
    ],
    "loan": [
        "I want a loan",
        "what does a loan cost",
        "pay the loan back early",
        "loan for a house",
        "is my loan granted",
        "the loan is too dear",
    ],
    "账户": [
        "我要开户",
        "账户余额是多少",
        "怎么关闭账户",
        "账户被冻结了",
        "账户名字错了",
        "我的账户在哪里",
    ],
}


def table(path, times=8):
    rows = [
        {"text": f"{t} {'again ' * (i % 3)}{i}", "label": k, "answer": f"<b>Ask</b> for {k}."}
        for k, ts in KINDS.items()
        for i in range(times)
        for t in ts
    ]
    return write_csv(path, rows)


def taken_apart(e):
    "By language, by kind, several requests, small talk, conversations."
    assert {g["kind"]: g["recall"]["n"] for g in e["scope"]} == {"near": 4, "far": 4}
    found = {v["language"]: v for v in e["languages"]}
    assert found["en"]["fits"] and not found["zh"]["fits"]
    assert sum(v["accuracy"]["n"] for v in found.values()) == e["data"]["rows"]["test"]
    several = e["several_intents"]
    assert several["pairs_found"]["n"] > 5 and several["singles_cut"]["low"] <= 0.05
    assert several["pairs_found"]["value"] <= several["pairs_readable"]["high"]
    assert e["small_talk"]["false_rate"]["value"] == 0 and "handover" not in e
    assert (e["dialogues"]["failed"], e["dialogues"]["first_failed"]) == (1, ["gone"])
    checks = {g["check"]: g for g in e["guard"]}
    assert checks["dialogues"]["passed"] is False and checks["language"]["passed"] is False
    assert "multilingual-e5-small" in checks["language"]["detail"]


STRANGE = {
    "near": ["is my mortgage approved", "insure my car", "change my pension", "我要买基金"],
    "far": ["what is the tallest mountain", "sing a song", "今天天气怎么样", "cook me some rice"],
}


def recipe(folder, given):
    words = [w for k, v in given.items() for w in ("-p", k, v)]
    assert run_here("assistant", *words, "--out", folder / "runs") == 0
    return json.loads((folder / "runs/evidence.json").read_text(encoding="utf-8"))


def test_a_run_leaves_an_assistant(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "insight_nb.methods.llm", None)  # not asked for: not imported
    monkeypatch.delitem(sys.modules, "insight_nb.apps.assistant.handover", raising=False)
    flows = {
        "card": {
            "say": "Card {number} is on its way.",
            "slots": [{"name": "number", "ask": "Which number?", "pattern": r"\b\d{4}\b"}],
        }
    }
    (tmp_path / "flows.json").write_text(json.dumps(flows))
    strange = [{"text": t, "kind": k} for k, texts in STRANGE.items() for t in texts]
    talks = [
        {"name": "hello", "turns": [{"user": "hello", "action": "chat", "intent": ""}]},
        {"name": "gone", "turns": [{"user": "my card is lost", "intent": "loan"}]},
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    given = {
        "table": table(tmp_path / "t.csv"),
        "answer": "answer",
        "flows": tmp_path / "flows.json",
        "out_of_scope": write_csv(tmp_path / "strange.csv", strange),
        "out_of_scope_kind": "kind",
        "dialogues": tmp_path / "talks.jsonl",
        "anyway": "true",  # a third of the questions is Chinese
    }
    e = recipe(tmp_path, given)
    taken_apart(e)
    assert {"in_scope_accuracy", "oos_auroc", "oos_recall", "recall_at_1"} <= set(
        e["metrics"]
    ) and e["task"] == "assistant"
    for m in e["metrics"].values():
        assert m["low"] <= m["value"] <= m["high"] and m["n"] > 0
    assert {g["check"]: g["passed"] for g in e["guard"]}["replay"] and {
        g["check"]: g["passed"] for g in e["guard"]
    }["reload_equal"]
    page = (tmp_path / "runs/report.html").read_text(encoding="utf-8")
    assert "<b>Ask</b>" not in page and "账户" in page
    for title in ("Several requests", "Languages", "near and far", "Small talk", "must work"):
        assert title in page
    bot = load_assistant(tmp_path / "runs/bundle")
    acts = [bot.reply(t).kind for t in ("my card is lost", "1234", "I want a human")]
    assert acts == ["ask", "done", "handover"]


@pytest.mark.parametrize(
    "how, words",
    [
        (["-p", "rejection_rate", "2"], ["rejection_rate is 2"]),
        (["-p", "wrong_cost", "-1"], ["wrong_cost is -1"]),
        (["-p", "answer", "nothing"], ["no column", "nothing"]),
        (["-p", "flows", "gone.json"], ["gone.json"]),
        (["-p", "reranker", "./gone"], ["gone"]),
        (["-p", "out_of_scope", "gone.csv"], ["gone.csv"]),
        (["-p", "label", "labl"], ["labl"]),
        (["-p", "out_of_scope_kind", "kind"], ["name that table, too"]),
        (["-p", "dialogues", "gone.jsonl"], ["gone.jsonl"]),
        (["-p", "llm", "http://127.0.0.1:1"], ["llm needs llm_model"]),
        (["-p", "llm_model", "m"], ["llm_model needs llm"]),
        (["-p", "llm", "http://127.0.0.1:1", "-p", "llm_model", "m"], ["nothing answers at"]),
        (["-p", "llm_answers", "gone.csv"], ["gone.csv"]),
    ],
)
def test_bad_parameters(ends, tmp_path, how, words):
    refused(
        ends(
            "run",
            "assistant",
            "-p",
            "table",
            table(tmp_path / "t.csv", 3),
            "-p",
            "anyway",
            "true",
            *how,
            "--out",
            tmp_path / "runs/a",
        ),
        *words,
    )


def test_an_answer_table_without_answers(ends, tmp_path):
    rows = [
        {"text": f"{t} {i}", "label": k, "answer": ""}
        for k, ts in KINDS.items()
        for i in range(3)
        for t in ts
    ]
    refused(
        ends(
            "run",
            "assistant",
            "-p",
            "table",
            write_csv(tmp_path / "t.csv", rows),
            "-p",
            "answer",
            "answer",
            "--out",
            tmp_path / "runs/a",
        ),
        "holds no answer",
    )


# A language model behind the threshold


def test_what_the_threshold_rejects_goes_to_a_language_model(tmp_path, monkeypatch):
    for name in ("INSIGHT_NB_LLM_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    rows = [{"text": f"{t} {i} me@example.org", "label": k}
            for k in ("card", "loan") for i in range(12) for t in KINDS[k]]  # fmt: skip
    truth = {r["text"].replace("me@example.org", "[EMAIL_1]"): r["label"] for r in rows}
    strange = [{"text": t} for texts in STRANGE.values() for t in texts]
    truth |= {r["text"]: "none of these" for r in strange}
    with LLMServer(truth) as s:
        e = recipe(tmp_path, {
            "table": write_csv(tmp_path / "t.csv", rows), "rejection_rate": "0.3",
            "out_of_scope": write_csv(tmp_path / "s.csv", strange), "llm": s.url,
            "llm_model": "m", "llm_shots": 1, "llm_price_in": 1, "llm_price_out": 2})  # fmt: skip
        assert "example.org" not in json.dumps(s.requests) and s.requests
        f = e["handover"]
        assert f["asked"] == len(s.requests) < e["data"]["rows"]["test"] + len(strange)
        assert f["more_right"]["low"] > 0 and f["more_wrong"]["value"] == 0
        assert f["more_strange"]["value"] == 0 and f["price_per_text"] > 0
        assert f["model"] == "m, 1-shot" and f["masked"]["EMAIL"] > 0
        bot = load_assistant(tmp_path / "runs/bundle")
        bot.dialogue.flows |= read_flows({k: {"say": f"About {k}."} for k in ("card", "loan")})
        asked = "zzz qqq 77 vvv"
        assert bot.reply(asked, "a").kind == "unknown"
        s.truth[asked] = "loan"
        bot.language_model = open_fallback(("card", "loan"), ([], []), s.url, "m", how={"shots": 0})
        assert bot.reply(asked, "b").text == "About loan."
        sent = len(s.requests)
        for said in ("hello", "I want a human"):  # need no language model
            bot.reply(said, said)
        assert len(s.requests) == sent
    bot.language_model.hurry()
    assert bot.reply("www 5 kkk", "c").kind == "unknown"  # nobody answers there any more
    assert bot.language_model.quiet_until > 0


# Conversations as a test


@pytest.fixture(scope="module")
def clerk():
    frame = load_sample("synthetic", 240)
    names = sorted(set(frame.label))
    y = [names.index(v) for v in frame.label]
    return IntentClassifier().fit(list(frame.text), y, names)


FLOWS = {
    "refund": {
        "say": "The money for {order} is on its way.",
        "slots": [{"name": "order", "ask": "Which order?", "pattern": r"\b\d{5}\b"}],
    },
    "delivery": {"say": "Within 3 days."},
    "praise": {"say": "Thank you!"},
}


def test_a_planted_regression_in_one_of_50_dialogues(clerk, tmp_path, capsys):
    talks = [
        {
            "name": f"refund {i}",
            "turns": [
                {"user": "my refund is too low", "intent": "refund", "action": "ask"},
                {"user": f"{10000 + i}", "slots": {"order": f"{10000 + i}"}, "action": "done"},
            ],
        }
        for i in range(49)
    ]
    said = {"user": "the service is wonderful", "intent": "praise", "text": "Thank you!"}
    hello = {"user": "你好", "text": "您好，请问有什么可以帮您？"}
    talks.insert(31, {"name": "the happy one", "turns": [hello, said]})
    lines = "\n".join(json.dumps(t, ensure_ascii=False) for t in talks)
    (tmp_path / "talks.jsonl").write_text(lines, encoding="utf-8")
    Assistant(clerk, None, FLOWS).save(tmp_path / "good")
    worse = FLOWS | {"praise": {"say": "Thanks a lot!"}}
    Assistant(clerk, None, worse).save(tmp_path / "worse")
    assert main(["test-dialogues", "good", "talks.jsonl"]) == 0
    assert "50 conversations, 100 turns: all as expected" in capsys.readouterr().out
    assert main(["test-dialogues", "worse", "talks.jsonl", "--out", "diff.html"]) == 1
    end = capsys.readouterr()
    assert "the happy one" in end.out and "refund" not in end.out
    assert "Thank you!" in end.out and "Thanks a lot!" in end.out
    assert "50 conversations, 100 turns: 1 not as expected" in end.err and end.err.count("\n") == 1
    assert "Thanks a lot!" in (tmp_path / "diff.html").read_text(encoding="utf-8")
    assert main(["test-dialogues", "worse", "talks.jsonl", "--update"]) == 0
    changed = (tmp_path / "talks.jsonl").read_text(encoding="utf-8").splitlines()
    differ = [i for i, (a, b) in enumerate(zip(talks, map(json.loads, changed))) if a != b]
    assert differ == [31]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.jsonl", '{"turns": [{"usr": "a"}]}', ["a.jsonl, line 1, turn 1"]),
        ("a.jsonl", '{"turns": [{"user": "a", "acton": "b"}]}', ["Did you mean 'action'?"]),
        ("a.yaml", "- &x [1]\n- *x", ["a.yaml, line 1"]),
        ("a.yaml", "x: [", ["is no YAML"]),
        ("a.txt", "x", [".jsonl or .yaml"]),
        ("a.jsonl", "\n", ["holds no conversation"]),
    ],
)
def test_bad_files_of_conversations(ends, tmp_path, name, text, words):
    (tmp_path / "b").mkdir()
    write_manifest(tmp_path / "b", {"schema": SCHEMA, "task": "assistant"})
    (tmp_path / name).write_text(text, encoding="utf-8")
    refused(ends("test-dialogues", "b", name), *words)


def test_conversations_of_another_bundle(ends, tmp_path):
    (tmp_path / "b").mkdir()
    write_manifest(tmp_path / "b", {"schema": SCHEMA, "task": "risk"})
    refused(ends("test-dialogues", "b", "a.jsonl"), "has no conversations")
    refused(ends("test-dialogues", "gone", "a.jsonl"), "gone")
