"""From a table to a decision, and around again, each step by the command line."""

import json
import re
import signal
import subprocess
import sys

import httpx
import pandas as pd
from conftest import rows_of, run_here, tiny_encoder, write_csv
from insight_nb.cli import main

COMMAND = [sys.executable, "-c",
           "from insight_nb.cli import main; raise SystemExit(main())"]


def done(*words):
    assert main([str(w) for w in words]) == 0, words


def test_train_export_serve_feedback_update_decide(tmp_path, capsys):
    tiny_encoder("tiny")
    rows = rows_of(400)
    train = write_csv("train.csv", rows[:240])
    new, asked = write_csv("new.csv", rows[240:320]), rows[320:]
    small = ("-p", "backbone", "tiny", "-p", "max_length", "24", "-p", "epochs", "2")
    assert run_here("classify", "-p", "table", train, *small, "--out", "first") == 0
    done("export", "first/bundle", "--to", "onnx", "--out", "first.onnx.d", "--table", new,
         "--label", "label")
    proof = json.loads((tmp_path / "first.onnx.d" / "certificate.json").read_text())
    assert proof["equal_answers"] == 1

    words = ["serve", "first/bundle", "--port", "0", "--feedback", "answers.db", "--review", "0.6",
             "--device", "cpu"]
    service = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True)
    try:
        at = re.search(r"http://\S+", service.stdout.readline())[0]
        texts = [r["text"] for r in asked]
        answers = httpx.post(f"{at}/predict", json={"texts": texts}).json()["predictions"]
        drawn = [{"id": a["id"], "label": r["label"]} for a, r in zip(answers, asked)
                 if a["review"]]
        assert len(drawn) >= 30
        told = httpx.post(f"{at}/feedback", json={"feedback": drawn}).json()
        assert told["kept"] == len(drawn)
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) in (0, 143) # what it held is answered
    wrong = [r for a, r in zip(answers, asked) if not a["review"]]
    done("feedback", "import", "answers.db", write_csv("corrections.csv", wrong))
    done("feedback", "show", "answers.db")
    assert re.search(r"[01]\.\d{3} \[0\.\d{3}, [01]\.\d{3}\] right", capsys.readouterr().out)

    words = ["-p", "bundle", "first/bundle", "-p", "table", new, "-p", "old", train,
             "-p", "feedback", "answers.db", "-p", "compare", "false", "-p", "epochs", "1"]
    assert run_here("update", *words, "--out", "second") == 0
    evidence = json.loads((tmp_path / "second" / "evidence.json").read_text(encoding="utf-8"))
    guard = {c["check"]: c["passed"] for c in evidence["guard"]}
    assert guard["fair_test"] and guard["reload_equal"] and guard["old_head_rows"]
    done("predict", "second/bundle", new, "--out", "again.csv")
    assert (pd.read_csv("again.csv")["error"].fillna("") == "").all()
    assert run_here("decide", "-p", "evidence", "second/evidence.json", "--out", "memo") == 0
    assert (tmp_path / "memo" / "memo.md").read_text(encoding="utf-8")
