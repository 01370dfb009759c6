"""The ladder as a whole: what its recipe leaves, what a kill does, how bad input ends."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import SECTIONS, refused, rows_of, run_here, tiny_encoder, write_csv
from insight_nb import load
from insight_nb.cli import main
from test_recipes import GUARD

CHEAP = "majority,label names,TF-IDF + linear"
TEXTS = ["a fine room", "<b>bad</b> food", "房间很好 👍"]


def climb(table, out, *more):
    given = ["-p", "table", table, "-p", "max_length", "32"]
    return run_here("ladder", *given, "--out", out, *more)


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    "The folder that a run leaves: labels and texts are hostile, one rung is a fine-tuned encoder."
    folder = tmp_path_factory.mktemp("climbed")
    os.environ["INSIGHT_NB_CACHE"] = str(folder / "cache")
    rows = [r | {"shop": "<i>north</i>" if i % 2 else "南"} for i, r in enumerate(rows_of(240))]
    tiny_encoder(folder / "tiny")
    how = [
        "-p",
        "backbone",
        folder / "tiny",
        "-p",
        "rungs",
        f"{CHEAP},prototypes,full fine-tune",
        "-p",
        "epochs",
        "2",
        "-p",
        "slices",
        "shop",
        "-p",
        "goal",
        "0.99",
        "-p",
        "margin",
        "60",
    ]
    assert climb(write_csv(folder / "table.csv", rows), folder / "run", *how) == 0
    return folder / "run"


def test_the_evidence_is_whole(climbed):
    e = json.loads((climbed / "evidence.json").read_text(encoding="utf-8"))
    assert set(e) >= SECTIONS | {"schema", "task", "rungs", "stop_at", "stop_reason"}
    assert [r["name"] for r in e["rungs"]] == [
        *CHEAP.split(","),
        "prototypes",
        "full fine-tune",
    ] and {r["status"] for r in e["rungs"]} == {"done"}
    assert {g["check"] for g in e["guard"]} >= GUARD and not [
        g for g in e["guard"] if g["passed"] is False
    ]
    for r in e["rungs"]:
        m = r["metrics"]["accuracy"]
        assert m["low"] <= m["value"] <= m["high"] and m["n"] == e["data"]["rows"]["test"]
        assert {
            "train_seconds",
            "batch_ms_per_text",
            "predict_ms_per_text",
            "predict_ms_p50",
            "predict_ms_p95",
            "parameters",
            "megabytes",
            "memory_mb",
            "per_million",
        } <= set(r["cost"])
    for key in ("to_best", "to_cheaper"):
        found = [r["difference"][key] for r in e["rungs"] if key in r["difference"]]
        assert len(found) == 4 and all(
            d["low"] <= d["value"] <= d["high"] and d["p"] <= d["p_holm"] <= 1 for d in found
        )
    assert (
        e["stop_at"] in [r["name"] for r in e["rungs"]] and e["curves"]["TF-IDF + linear"]["needed"]
    )


def test_its_page_is_harmless_and_whole(climbed):
    page = (climbed / "report.html").read_text(encoding="utf-8")
    assert (
        "<i>north" not in page
        and "&lt;i&gt;north" in page
        and "南" in page
        and "<script src" not in page
    )
    assert all(
        w in page
        for w in (
            "Stop at",
            "full fine-tune",
            "ahead of the next cheaper",
            "rows that show it four times in five",
            "With 2 times the labels",
        )
    )


def test_killed_and_started_again_it_repeats_nothing(tmp_path):
    table = write_csv("table.csv", rows_of(300))
    words = [
        sys.executable,
        "-c",
        "from insight_nb.cli import main; raise SystemExit(main())",
        "run",
        "ladder",
        "-p",
        "table",
        table,
        "-p",
        "state",
        "state",
        "-p",
        "epochs",
        "200",
    ]
    run = subprocess.Popen(
        [*words, "-p", "rungs", f"{CHEAP},full fine-tune", "--out", "first"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(1200):
        if len(list((tmp_path / "state").glob("*.json"))) == 3 and list(
            (tmp_path / "state").glob("*.begun")
        ):
            break
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "first").exists()
    assert climb(table, "second", "-p", "state", "state", "-p", "rungs", CHEAP) == 0
    e = json.loads((tmp_path / "second" / "evidence.json").read_text(encoding="utf-8"))
    assert [(r["status"], r["kept"]) for r in e["rungs"]] == [("done", True)] * 3
    found = {c["check"]: c["passed"] for c in e["guard"]} # what was kept by the killed run
    assert found["reload_equal"] and found["label_order"] and found["row_order"]


def test_the_rung_that_it_names_is_shipped(climbed, capsys):
    "Its bundle answers on the command line and in Python, whatever the method."
    e = json.loads((climbed / "evidence.json").read_text(encoding="utf-8"))
    info = json.loads((climbed / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert e["stop_at"] == info["rung"]["name"] and "encoder" not in info["files"]
    assert info["metrics"]["accuracy"]["value"] == e["metrics"]["accuracy"]["value"]
    table = write_csv(climbed / "new.csv", [{"text": t} for t in TEXTS])
    assert main(["predict", str(climbed / "bundle"), str(table), "--probabilities"]) == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out))
    model = load(climbed / "bundle")
    shown = found["prediction"].tolist()
    assert shown == model.predict(TEXTS).tolist()
    np.testing.assert_allclose(found["probability"], model.predict_proba(TEXTS).max(1))


BAD = {  # parameters -> words of the message
    "no time": (["budget", "0"], "budget is 0"),
    "no margin": (["margin", "0"], "margin is 0"),
    "no such rung": (["rungs", "TF-IDV"], "no rung is called 'TF-IDV'"),
    "no such task": (["task", "rank"], "task is 'rank'"),
    "no such column": (["slices", "shop"], "slices names the column 'shop'"),
    "goal": (["goal", "1.5"], "goal is 1.5"),
    "no such method": (["method", "lara"], "Did you mean 'lora'?"),
    "sure": (["confidence", "95"], "confidence is 95"),
    "unlabeled": (["unlabeled", "gone.csv"], "gone.csv"),
    "answers": (["llm_answers", "gone.csv"], "gone.csv"),
    "no causal model": (["causal_model", "./nowhere"], "nowhere"),
    "weights": (["class_weights", "odd"], "class_weights is 'odd'"),
    "no such model": (["entailment_model", "./nowhere"], "nowhere"),
}


@pytest.mark.parametrize("given, words", BAD.values(), ids=BAD)
def test_bad_parameters(ends, given, words):
    table = write_csv("table.csv", rows_of(60))
    rung = "zero-shot by entailment" if given[0] == "entailment_model" else "majority"
    only = [] if given[0] == "rungs" else ["-p", "rungs", rung]
    refused(ends("run", "ladder", "-p", "table", table, *only, "-p", *given), words)


def test_a_label_with_one_row(ends):
    refused(
        ends(
            "run",
            "ladder",
            "-p",
            "table",
            write_csv("table.csv", [*rows_of(60), {"text": "so alone", "label": "once"}]),
        ),
        "a class with a single row",
        "'once'",
    )


def test_a_label_that_training_lacks(ends):
    test = write_csv("test.csv", [{"text": "what", "label": "new"}])
    refused(
        ends(
            "run", "ladder", "-p", "table", write_csv("table.csv", rows_of(60)), "-p", "test", test
        ),
        "'new'",
    )


def test_labels_that_say_nothing(tmp_path):
    rows = [r | {"label": str(i % 2)} for i, r in enumerate(rows_of(80))]
    assert (
        climb(write_csv("table.csv", rows), "out", "-p", "rungs", "majority,zero-shot by vectors")
        == 0
    )
    zero = json.loads((tmp_path / "out" / "evidence.json").read_text(encoding="utf-8"))["rungs"][1]
    assert zero["status"] == "failed" and "zero-shot needs a description" in zero["why"]


def test_spans(tmp_path):
    "Tags have a ladder of their own; a given test table may name its sides as it likes."

    # else they were near copies
    def more(i):
        return " ".join(
            "".join(chr(97 + (i * 7919 * (j + 3) >> k) % 26) for k in range(6)) for j in range(8)
        )

    rows = [
        {
            "text": f"{who} went to {where} {more(i)}",
            "label": json.dumps(
                [[0, len(who), "PER"], [len(who) + 9, len(who) + 9 + len(where), "LOC"]]
            ),
        }
        for i, (who, where) in enumerate(
            [("Ann", "Rome"), ("王小明", "北京"), ("Bob Lee", "New York"), ("<b>Eve</b>", "Oslo")]
            * 20
        )
    ]
    assert (
        climb(
            write_csv("table.csv", rows),
            "out",
            "-p",
            "task",
            "tag",
            "-p",
            "rungs",
            "majority tag of each word,CRF on features",
        )
        == 0
    )
    e = json.loads((tmp_path / "out" / "evidence.json").read_text(encoding="utf-8"))
    assert [r["status"] for r in e["rungs"]] == ["done", "done"] and e["metrics"]["entity_f1"][
        "value"
    ] > 0.9
    assert "<b>Eve" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
