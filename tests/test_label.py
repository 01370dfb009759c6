"""Labeling by CSV: what is asked, filled in and asked again; nothing is lost, and the test side
stays what was drawn."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import LABELS, SECTIONS, in_process, refused, rows_of
from insight_nb.base.core import InputError
from insight_nb.jobs.labeling import LabelStore
from notebooks import NBS

N = 120
TRUTH = {row["text"]: row["label"] for row in rows_of(N)}


def run(out, **more):
    "The recipe's cells in this process; its evidence."
    given = {"table": "pool.csv", "rows": 20, "test_rows": 20, "out": out} | more
    in_process(NBS / "recipes" / "label.ipynb", "run.ipynb", given)
    return json.loads(Path(out, "evidence.json").read_text(encoding="utf-8"))


def fill(folder, name):
    frame = pd.read_csv(f"{folder}/to_label.csv", keep_default_na=False)
    assert list(frame.columns) == ["text", "label"] and set(frame.label) == {""}
    frame["label"] = [TRUTH[text] for text in frame.text]
    frame["second"] = [
        LABELS[(LABELS.index(v) + (i % 5 == 0)) % 3] for i, v in enumerate(frame.label)]
    frame.to_csv(name, index=False)
    return set(frame.text)


def test_there_and_back_by_csv():
    pd.DataFrame({"text": list(TRUTH)}).to_csv("pool.csv", index=False)
    first = run("a")
    assert set(first) >= SECTIONS and first["metrics"]["accuracy"]["value"] is None
    asked = fill("a", "one.csv")
    second = run("b", labeled=["one.csv"], second="second", store="kept.sqlite", price=1.,
                 point_value=10.)
    assert second["labeling"]["labels"] == 16 and second["labeling"]["shared_rows"] == 20
    assert second["labeling"]["disputed_rows"] == second["data"]["rows"]["disputed"] == 4
    assert .4 < second["labeling"]["kappa"]["value"] < 1
    assert 6 <= second["metrics"]["accuracy"]["n"] <= 10 and not second["labeling"]["stop"]
    assert not fill("b", "two.csv") & asked
    torn = pd.read_csv("b/disagreements.csv", keep_default_na=False)
    assert list(torn.columns) == ["text", "agreed", "label by first", "label by second"]
    assert (torn["label by first"] != torn["label by second"]).all() and len(torn) == 4
    assert "third look" in Path("b/report.html").read_text(encoding="utf-8")
    torn["agreed"] = [TRUTH[text] for text in torn.text]
    torn.to_csv("settled.csv", index=False)
    third = run("c", labeled=["two.csv", "settled.csv"], store="kept.sqlite")
    assert third["labeling"]["labels"] == 40  # the store holds the first twenty
    assert third["labeling"]["disputed_rows"] == 0 and not Path("c/disagreements.csv").exists()
    test = pd.read_csv("c/labeled_test.csv", keep_default_na=False)
    train = pd.read_csv("c/labeled_train.csv", keep_default_na=False)
    assert (len(test), len(train)) == (20, 20) and not set(test.text) & set(train.text)
    kept = pd.concat([test, train])
    assert dict(zip(kept.text, kept.label)) == {text: TRUTH[text] for text in kept.text}
    page = Path("c/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "Accuracy now" in page
    store = LabelStore("kept.sqlite")
    assert len(store.frame()) == 64
    store.close()


def test_what_is_refused(ends):
    pd.DataFrame({"text": list(TRUTH)}).to_csv("pool.csv", index=False)
    pd.DataFrame({"text": ["a", "b"], "label": ["", ""]}).to_csv("empty.csv", index=False)

    def end(*more): return ends("run", "label", "-p", "table", "pool.csv", *more, "--out", "o")

    refused(end("-p", "labeled", "empty.csv"), "no label in any of its 2 rows")
    refused(end("-p", "strategy", "margins"), "Did you mean 'margin'")
    refused(end("-p", "price", "1"), "price and point_value belong together")
    refused(end("-p", "second", "b"), "give labeled too")
    refused(end("-p", "label", "text"), "named as the text and as the label")
    refused(end("-p", "labeled", "empty.csv", "-p", "second", "b"), "no label in any")
    frame = pd.DataFrame({"text": list(TRUTH), "labels": "a"})
    frame.to_csv("pool.csv", index=False) # else all these labels would be left out
    refused(end(), "no column 'label' with labels. Did you mean 'labels'?")
    frame.rename(columns={"text": "label"}).to_csv("pool.csv", index=False)
    refused(end("-p", "text", "label", "-p", "label", "none"), "name another one for the labels")


@pytest.mark.parametrize("name", ["none", "None", "", "topic"])
def test_a_table_without_labels(name):
    frame = pd.DataFrame({"text": list(TRUTH)[:60]})
    frame.to_csv("pool.csv", index=False)
    in_process(NBS / "recipes" / "label.ipynb", "run.ipynb",
               {"table": "pool.csv", "label": name, "rows": 4, "test_rows": 10, "out": "o"})
    asked = pd.read_csv("o/to_label.csv", keep_default_na=False)
    assert list(asked) == ["text", "topic" if name == "topic" else "label"] and len(asked) == 4


def test_force_does_not_lose_labels(tmp_path, monkeypatch):
    from insight_nb.cli import check_output_dir

    out = tmp_path / "run"
    out.mkdir()
    (out / "labels.sqlite").write_bytes(b"")
    (out / "evidence.json").write_text("{}")
    left = ["labels.sqlite", "evidence.json"]
    monkeypatch.setattr("insight_nb.cli._left_by_run", lambda out: left)
    with pytest.raises(InputError, match="labels of people, which --force would lose"):
        check_output_dir(out, True)
    (out / "labels.sqlite").unlink()
    check_output_dir(out, True)
