"""The assistant as a whole: the recipe, its folder, and what users may do to it."""

import json

import pytest
from conftest import refused, run_here, write_csv
from insight_nb.apps.assistant.assistant import load_assistant

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


def test_a_run_leaves_an_assistant(tmp_path):
    flows = {
        "card": {
            "say": "Card {number} is on its way.",
            "slots": [{"name": "number", "ask": "Which number?", "pattern": r"\b\d{4}\b"}],
        }
    }
    (tmp_path / "flows.json").write_text(json.dumps(flows))
    strange = write_csv(
        tmp_path / "strange.csv",
        [
            {"text": t}
            for t in (
                "what is the tallest mountain",
                "sing a song",
                "who won the match",
                "今天天气怎么样",
                "cook me some rice",
            )
        ],
    )
    given = {
        "table": table(tmp_path / "t.csv"),
        "answer": "answer",
        "flows": tmp_path / "flows.json",
        "out_of_scope": strange,
        "anyway": "true",  # a third of the questions is Chinese
    }
    words = [w for k, v in given.items() for w in ("-p", k, v)]
    assert run_here("assistant", *words, "--out", tmp_path / "runs") == 0
    e = json.loads((tmp_path / "runs/evidence.json").read_text(encoding="utf-8"))
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
