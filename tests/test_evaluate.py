"""A saved bundle on new rows: what the recipe leaves, what it notices, and how bad input ends."""
import json
import shutil
from pathlib import Path

import pandas as pd
from conftest import LABELS, SECTIONS, in_process, refused, rows_of, write_csv
from insight_nb.base.core import hash_folder
from insight_nb.jobs.rungs import save_rung
from insight_nb.jobs.update import store_replay
from insight_nb.methods.classical import Tfidf
from insight_nb.ship.bundle import SCHEMA, write_manifest
from notebooks import NBS
from test_recipes import GUARD

ROWS = rows_of(240)


def run(out, **given):
    "The recipe's cells in this process; its evidence and its page."
    in_process(NBS / "recipes" / "evaluate.ipynb", "run.ipynb",
               {"device": "cpu", "robustness": False, "out": out} | given)
    return (json.loads(Path(out, "evidence.json").read_text(encoding="utf-8")),
            Path(out, "report.html").read_text(encoding="utf-8"))


def checks(e): return {g["check"]: g["passed"] for g in e["guard"]}


def test_a_whole_run(trained):
    bundle, table = trained / "bundle", write_csv("new.csv", ROWS[150:200])
    before = hash_folder(bundle)
    e, page = run("a", bundle=str(bundle), table=table, robustness=True)
    assert set(e) >= SECTIONS and e["task"] == "classify" and checks(e).keys() >= GUARD
    assert e["metrics"]["accuracy"]["n"] == e["data"]["rows"]["test"] == 50
    was = json.loads((trained / "evidence.json").read_text(encoding="utf-8"))["metrics"]
    for name, m in e["evaluated"]["changed"].items():
        assert m["then"]["value"] == was[name]["value"] and m["now"] == e["metrics"][name]
        assert m["difference"]["low"] <= m["difference"]["value"] <= m["difference"]["high"]
    assert set(e["evaluated"]["changed"]) == {"accuracy", "macro_f1", "mcc", "log_loss"}
    assert e["robustness"]["changes"]["typos"]["changed_rows"] > 10
    assert e["calibration"]["n"] == 50 and checks(e)["reload_equal"] and e["data"]["sha256"]
    assert all(w in page for w in ("Then and now", "Robustness", "Calibration", "很好"))
    assert "<script>alert" not in page and "<b>good" not in page
    assert hash_folder(bundle) == before and not Path("a/bundle").exists()


def test_rows_that_it_has_learned_from(trained):
    shutil.copytree(trained / "bundle", "bundle")
    store_replay("bundle", *zip(*((r["text"], r["label"]) for r in ROWS[:12])))
    rows = [r | {"shop": i // 5, "label": r["label"].upper()} for i, r in enumerate(ROWS[:30])]
    e, page = run("a", bundle="bundle", table=write_csv("new.csv", rows), group="shop")
    assert checks(e)["split_duplicates"] is False and e["evaluated"]["kept_rows_found_here"] == 12
    assert "12 of the 12 rows that the bundle keeps have a copy here" in page
    assert e["metrics"]["accuracy"]["groups"] == 6
    assert any("is '<b>good</b>' in the bundle" in note for note in e["data"]["notes"])


def test_chinese_rows_of_an_english_encoder(trained):
    said = ["冷淡", "热情"]
    rows = [{"text": f"第{i}间客房宽敞，{said[i % 2]}{i * 7}", "label": LABELS[i % 2]}
            for i in range(40)]
    e, _ = run("a", bundle=str(trained / "bundle"), table=write_csv("new.csv", rows), rows=30)
    assert checks(e)["language"] is False and e["metrics"]["accuracy"]["n"] == 30
    assert e["evaluated"]["changed"]["accuracy"]["difference"]["value"] < 0


def test_what_is_refused(trained, ends):
    good = write_csv("good.csv", ROWS[150:190])
    frame = pd.DataFrame(ROWS[150:190])
    frame.assign(label="odd").to_csv("odd.csv", index=False)
    frame.assign(label=LABELS[0]).to_csv("one.csv", index=False)
    frame.rename(columns={"label": "stars"}).to_csv("named.csv", index=False)
    Path("empty.csv").write_text("text,label\n")
    (Path("x") / "risk").mkdir(parents=True)
    write_manifest("x/risk", {"schema": SCHEMA, "task": "risk"})
    rung = Tfidf().fit([r["text"] for r in ROWS[:60]], [i % 3 for i in range(60)], LABELS)
    save_rung("x/words", rung)

    def end(bundle, table, *more):
        return ends("run", "evaluate", "-p", "bundle", bundle, "-p", "table", table, *more,
                    "--out", "o")

    own = trained / "bundle"
    refused(end("nowhere", good), "nowhere", "no such folder")
    refused(end("x/risk", good), "for the task 'risk'", "its own recipe measures it")
    refused(end("x/words", good), "holds TF-IDF + linear", "classify, pair, multilabel")
    refused(end(own, "odd.csv"), "'odd'", "40 rows with labels that the bundle does not know")
    refused(end(own, "one.csv"), "in all 40 rows", "two or more labels")
    refused(end(own, "named.csv"), "'label'")
    refused(end(own, "empty.csv"))
    refused(end(own, "gone.csv"), "gone.csv")
    refused(end(own, good, "-p", "group", "shop"), "no column 'shop' to group by")
    refused(end(own, good, "-p", "rows", "0"), "rows is 0")
    refused(ends("run", "evaluate", "-p", "bundle", own, "--out", "o"), "give both bundle")
    for given in ({"text": "note"}, {"label": "text"}):
        words = [w for k, v in given.items() for w in ("-p", k, v)]
        refused(end(own, good, *words), *given.values())
