"""A language model as a rung: what is reported is what the server was told to give."""

import json
import re
import socket
import stat
import time
from functools import cache
from pathlib import Path

import insight_nb
import numpy as np
import pandas as pd
import pytest
from conftest import in_process, refused, rows_of
from insight_nb.base.core import InputError
from insight_nb.methods.classical import Majority, Tfidf
from insight_nb.methods.evaluation import Evaluation
from insight_nb.methods.ladder import Ladder
from insight_nb.methods.llm import CallBudget, LLMClient, ReplyCache
from insight_nb.methods.llm_rung import OUTCOMES, PromptedLLM, RecordedAnswers, compare_prompted
from insight_nb.models.backbone import load_backbone
from llm_server import LLMServer
from notebooks import NBS

NAMES = ("card", "loan", "refund", "退款")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("INSIGHT_NB_LLM_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def rows(n=400, test=200, seed=0):
    "Rows whose texts say nothing of their labels, so that only the server knows."
    y = np.random.default_rng(seed).choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    texts = [f"message number {i} 第{i}条" for i in range(n)]
    exam = Evaluation(texts[test:], y[test:], texts[:test], y[:test], NAMES, seed)
    return exam, {t: NAMES[i] for t, i in zip(texts, y)}


encoder = cache(load_backbone)


def asked(server, folder=None, budget=None, **how):
    if how.get("shots"):
        how["backbone"] = encoder()
    client = LLMClient(server.url, "m", budget or CallBudget(), ReplyCache(folder), pause=0.01)
    return PromptedLLM(client, **{"rows": None} | how)


def climb(exam, *rungs, **how):
    return Ladder(exam, [Majority(), *rungs], on_progress=lambda _: None, **how).run()


def test_what_is_reported_is_what_was_given(tmp_path):
    exam, truth = rows()
    faults = ["429", "503", "broken", "429"]
    errs = {"refuse": 0.05, "invent": 0.05, "empty": 0.05, "stumble": 0.1}
    budget = CallBudget(price_in=2.0, price_out=8.0)
    with LLMServer(truth, 0.8, **errs, faults=faults) as s:
        step = climb(exam, asked(s, tmp_path, budget)).done[-1]
        f, kinds = step.details["llm"], [s.kind(t) for t in exam.texts]
        useful = np.array([k in ("answer", "stumble") for k in kinds])
        right = np.array([s.label(t, NAMES) == truth[t] for t in exam.texts]) & useful
        sent = list(s.requests)
        inside = ("answer", "stumble", "refuse", "invent", "empty")  # their names in the server
        told = dict(zip(OUTCOMES, map(kinds.count, inside)))
        assert min(told.values()) > 3
        assert {k: f[k] for k in OUTCOMES} == told
        assert step.metrics["accuracy"].value == pytest.approx(right.mean())
        replies = 200 + told["repaired"] + told["invented"] + told["empty"]
        assert (f["replies"], len(sent), budget.sent) == (replies, replies + 4, replies + 4)
        n_in, n_out = np.sum(s.given, axis=0)
        assert (f["tokens_in"], f["tokens_out"]) == (n_in, n_out)
        assert f["money"] == pytest.approx((2 * f["tokens_in"] + 8 * f["tokens_out"]) / 1e6)
        assert step.cost["per_million"] == pytest.approx(1e6 * f["money"] / 200)

        again = climb(exam, asked(s, tmp_path, CallBudget(price_in=2.0, price_out=8.0))).done[-1]
        assert len(s.requests) == len(sent)  # the second run asks nothing
        assert again.details["llm"]["from_cache"] == replies
        assert again.metrics == step.metrics and again.details["llm"]["spent_now"] == 0
        assert again.cost["per_million"] == step.cost["per_million"]
    for file in tmp_path.rglob("*.json"):
        assert "message number" not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_budget_is_never_exceeded(tmp_path):
    exam, truth = rows()
    with LLMServer(truth, 0.9, invent=0.2, faults=["429", "503"]) as s:
        step = climb(exam, asked(s, tmp_path, CallBudget(calls=50))).done[-1]
        assert len(s.requests) == 50
        n = step.details["llm"]["asked"]
        assert 30 < n < 49 and step.metrics["accuracy"].n == n
    with LLMServer(truth, delay=0.002) as s:
        purse = CallBudget(money=0.004, price_in=1.0, price_out=4.0)
        step = climb(exam, asked(s, tmp_path / "b", purse)).done[-1]
        each = [n_in + 4 * n_out for n_in, n_out in s.given]
        assert sum(each) / 1e6 == pytest.approx(purse.spent) and purse.spent <= 0.004
        assert purse.spent > 0.003 and 0 < step.metrics["accuracy"].n < 200
    with LLMServer(truth) as s:
        poor = climb(exam, asked(s, None, CallBudget(money=1e-6, price_in=1.0, price_out=1.0)))
        assert poor.steps[-1].status == "failed" and "llm_budget" in poor.steps[-1].why
        assert not s.requests


def test_personal_data_is_masked_before_it_leaves():
    exam, truth = rows(40, 20)
    exam.texts = [f"{t} mail jo{i}@example.org, call +49 30 1234567{i % 10}"
                  for i, t in enumerate(exam.texts)]  # fmt: skip
    exam.train = [f"{t} mail me@example.org" for t in exam.train]
    with LLMServer(truth) as s:
        step = climb(exam, asked(s, shots=2)).done[-1]
        assert step.details["llm"]["masked"]["PHONE"] == 20
        sent = json.dumps(s.requests)
        assert "example.org" not in sent and "1234567" not in sent and "[EMAIL_1]" in sent
        climb(exam, asked(s, mask=False))
        assert "example.org" in json.dumps(s.requests)


def test_examples_are_training_rows():
    exam, truth = rows(60, 20)
    with LLMServer(truth, 0.8) as s:
        climb(exam, asked(s, shots=3, calibrate=10))
        for r in s.requests:
            found = re.findall(r"(?m)^Text: (.*)$", r["messages"][1]["content"])
            *shown, last = map(json.loads, found)
            assert len(shown) == 3 and set(shown) <= set(exam.train) and last not in shown
        assert len(s.requests) == 30


def test_a_random_model_is_not_better_than_chance():
    exam, truth = rows()
    with LLMServer(truth, at_random=True) as s:
        found = compare_prompted(climb(exam, asked(s)))
    checks = {c.name: c.passed for c in found.checks()}
    assert checks == {"llm_beats_majority": False, "llm_usable": True, "llm_position": True}
    assert found.over_majority.low <= 0


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_a_planted_position_bias_is_found(bias):
    exam, truth = rows()
    with LLMServer(truth, 0.9, first=bias) as s:
        found = compare_prompted(climb(exam, asked(s)))
        share = found.facts["position"]["shares"][0]
    assert found.facts["position"]["found"] == (bias > 0)
    assert share == pytest.approx(0.25 + 0.75 * bias, abs=0.1)


@pytest.mark.parametrize("logprobs", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_probabilities(logprobs):
    exam, truth = rows(60, 20)
    with LLMServer(truth, logprobs=logprobs, schema=logprobs) as s:
        step = climb(exam, asked(s)).done[-1]
        assert len(s.requests) == 20 if logprobs else 22 <= len(s.requests) <= 28
        top = step.predictions.max(1)
        assert np.allclose(step.predictions.sum(1), 1)
        assert (top > 0.8).all() and (top < 0.86).all() if logprobs else (top > 0.5).all()
        votes = climb(exam, asked(s, votes=3)).done[-1]
        assert votes.details["llm"]["replies"] == 60


@pytest.mark.slow
def test_a_sample_is_compared_on_its_rows():
    exam, truth = rows()
    with LLMServer(truth) as s:
        ladder = climb(exam, Tfidf(), asked(s, rows=60))
        assert len(s.requests) == 60
    found = compare_prompted(ladder, error_price=1.0)
    assert found.gain.n == found.step.metrics["accuracy"].n == len(found.cascade().sure) == 60
    assert found.gain.low > 0 and "is better than" in found.summary()
    assert "60 were asked" in ladder.recommend()[1] and ladder.best.name != found.step.name
    assert ladder.recommend()[0] is None  # the sample shows that the model is better
    json.dumps(found.evidence() | ladder.evidence(), allow_nan=False)


def reason(rung, exam):
    step = climb(exam, rung).steps[-1]
    assert step.status == "failed" and "\n" not in step.why
    return step.why


def test_bad_input_ends_in_one_line(monkeypatch, tmp_path):
    exam, truth = rows(40, 20)
    with LLMServer(truth, faults=["html"] * 9) as s:
        assert "not an OpenAI-compatible address" in reason(asked(s), exam)
    with LLMServer(truth, key="sesame") as s:
        assert "put a valid one into INSIGHT_NB_LLM_KEY" in reason(asked(s), exam)
        monkeypatch.setenv("INSIGHT_NB_LLM_KEY", "an-old-key")
        why = reason(asked(s), exam)
        assert "is refused" in why and "an-old-key" not in why
        monkeypatch.setenv("INSIGHT_NB_LLM_KEY", "sesame")
        rung = asked(s, tmp_path)
        step = climb(exam, rung, folder=tmp_path / "kept").done[-1]
        assert step.metrics["accuracy"].value == 1.0
        kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        assert b"sesame" not in kept + repr([rung.settings(), rung.client]).encode()
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:  # accepts, and says nothing
        client = LLMClient(f"http://127.0.0.1:{deaf.getsockname()[1]}", "m")
        with pytest.raises(InputError, match="nothing answers at"):
            client.check_reachable()
    assert time.monotonic() - began < 10
    exam.names = ("a", "a ", "b", "c")
    with LLMServer(truth) as s:
        assert "can't be told apart" in reason(asked(s, shots=1), exam)


@pytest.mark.slow
def test_answers_made_elsewhere(tmp_path):
    exam, truth = rows(60, 20)
    lines = [f"{t},{truth[t]}" for t in exam.texts[:15]]
    (tmp_path / "a.csv").write_text("\n".join(["text,answer", *lines]), encoding="utf-8")
    step = climb(exam, RecordedAnswers(str(tmp_path / "a.csv"))).done[-1]
    assert (step.metrics["accuracy"].value, step.metrics["accuracy"].n) == (1.0, 15)


@pytest.mark.slow
def test_answers_are_matched_by_row(tmp_path):
    "Two equal texts with other labels, and texts that were masked elsewhere."
    exam, truth = rows(60, 20)
    right = [truth[t] for t in exam.texts]
    exam.texts, exam.rows = ["同一句话 the same"] * 20, [f"n{i}" for i in range(20)]
    lines = ["row,text,answer", *(f"n{i},[NAME_1],{label}" for i, label in enumerate(right))]
    file = tmp_path / "a.csv"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match="match them by row: -p llm_id row"):
        RecordedAnswers(str(file))
    by_row = RecordedAnswers(str(file), by="row")
    step = climb(exam, by_row, folder=tmp_path / "kept").done[-1]
    assert (step.metrics["accuracy"].value, step.metrics["accuracy"].n) == (1.0, 20)
    file.write_text("\n".join(lines[:8]).replace("n0,", "n19,"), encoding="utf-8")
    again = RecordedAnswers(str(file), by="row")
    assert again.settings() != by_row.settings()  # other answers are not taken from the cache
    step = climb(exam, again, folder=tmp_path / "kept").done[-1]
    assert step.metrics["accuracy"].n == 7 and not step.from_cache


@pytest.mark.slow
def test_the_ladder_takes_answers_by_id(ends, tmp_path):
    found = rows_of(90)
    pd.DataFrame(found).assign(ticket=lambda f: "t" + f.index.astype(str)).to_csv("t.csv")
    given = pd.DataFrame({"ticket": [f"t{i}" for i in range(90)],
                          "answer": [r["label"] for r in found]})
    given.to_csv("a.csv", index=False)
    params = {"table": "t.csv", "rungs": "majority", "state": "state", "device": "cpu",
              "llm_answers": "a.csv", "llm_id": "ticket", "out": "run"}
    in_process(NBS / "recipes" / "ladder.ipynb", "run.ipynb", params)
    e = json.loads(Path("run/evidence.json").read_text(encoding="utf-8"))
    step = next(r for r in e["rungs"] if r["name"] == "language model's answers")
    assert step["metrics"]["accuracy"]["value"] == 1.0
    assert step["metrics"]["accuracy"]["n"] == e["data"]["rows"]["test"]

    def end(*more):
        return ends("run", "ladder", "-p", "table", "t.csv", "-p", "rungs", "majority", "-p",
                    "llm_answers", "a.csv", "-p", "llm_id", *more, "--out", "o")

    refused(end("tickets"), "has no column 'tickets'")
    pd.concat([given, given[:1]]).to_csv("a.csv", index=False)
    refused(end("ticket"), "has the ticket 't0' twice: keep one")
    given.assign(ticket=[f"t{i}" for i in range(1, 91)]).to_csv("a.csv", index=False)
    refused(end("ticket"), "answers 1 row that t.csv doesn't have, such as ticket 't90'")
    refused(ends("run", "ladder", "-p", "llm_id", "row", "--out", "o"), "llm_id needs llm_answers")


def test_nothing_is_imported_unasked():
    """Only these import the client at their top, and handover is imported where it is asked for;
    whoever else imports it there, too."""
    for file in Path(insight_nb.__file__).parent.rglob("*.py"):
        if file.name not in ("llm_rung.py", "llm_rows.py", "handover.py"):
            found = file.read_text(encoding="utf-8")
            assert not re.search(r"(?m)^from \S*\bllm(?:_rung|_rows)? import", found), file
