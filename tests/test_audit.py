"""What is wrong with the rows: found, mended if somebody says yes, and undone to the last cell."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import in_process
from insight_nb import cli
from insight_nb.base.files import read_frame
from insight_nb.base.tables import write_frame
from insight_nb.data.findings import frame_digest
from insight_nb.data.samples import synthetic
from insight_nb.jobs.audit import spoil_rows


@pytest.fixture
def call(monkeypatch, capsys):
    "Run the command line: status, what was printed, and what was said on stderr."
    monkeypatch.setattr(cli, "_papermill", in_process)

    def run(*words):
        status = cli.main([str(w) for w in words])
        return status, *capsys.readouterr()
    return run


NASTY = pd.DataFrame({
    "text": ["<b>bold</b>", "=1+1", "很慢，很慢", "很慢, 很慢!", "one\ntwo", "cafÃ©",
             "👩\u200d💻 ok", "plain", "PLAIN", "\ufeffmark"] * 3,
    "label": ["a", "b", "a", "a", "B", "b", "a", "b", "a", "b"] * 3,
    "note": ["", "x", "007", "1.0", "TRUE", "2026-11-22", "null", "NA", "-", "'"] * 3})


@pytest.mark.parametrize("end", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx"])
def test_fix_and_undo(end, call):
    write_frame(NASTY, f"t{end}")
    before = read_frame(f"t{end}")[0]
    code, said, error = call("check", f"t{end}", "--fix", "fixed", "--accept", "safe")
    assert code == 0 and "taken out" in said, error
    new = read_frame(f"fixed/table{end}")[0]
    assert len(new) < len(before) and "café" in set(new["text"]) and "B" not in set(new["label"])
    code, _, error = call("check", "fixed", "--undo", f"back{end}")
    assert code == 0, error
    assert frame_digest(read_frame(f"back{end}")[0]) == frame_digest(before)


def test_typed_columns_come_back(call):
    frame = spoil_rows(synthetic(80)).assign(
        n=np.arange(83), f=lambda d: d.n / 7, day=pd.Timestamp("2026-11-22"), yes=True)
    frame["gone"] = [None, 1.5, np.nan] * 27 + [2, 3]
    frame.to_parquet("t.parquet")
    for words in (["t.parquet", "--fix", "fixed", "--accept", "safe"],
                  ["fixed", "--undo", "back.parquet"]):
        code, _, error = call("check", *words)
        assert code == 0, error
    back, was = read_frame("back.parquet")[0], read_frame("t.parquet")[0]
    assert frame_digest(back) == frame_digest(was)


def test_nothing_is_changed_unasked(call):
    write_frame(NASTY, "t.csv")
    code, said, _ = call("check", "t.csv", "--fix", "found")
    assert code == 0 and "nothing was changed" in said
    queue = read_frame("found/findings.csv")[0]
    assert set(queue["accept"]) == {"yes", "no"} and "table.csv" not in said
    queue["accept"] = "no"
    queue.loc[queue["kind"] == "garbled texts", "accept"] = "是"
    write_frame(queue, "mine.csv")
    code, said, error = call("check", "t.csv", "--fix", "fixed", "--accept", "mine.csv")
    assert code == 0 and said.rstrip().endswith("30 of 30 rows are in fixed"), error


BAD = {
    "no such kind": (["--accept", "typos"], "accept is 'typos', which is no kind of finding"),
    "a kind without rows": (["--accept", "boilerplate"], "no rows were found of kind"),
    "no such list": (["--accept", "none.csv"], "there is no file"),
    "a folder that is there": (["--fix", "."], "exists"),
    "another sheet": (["--sheet", "May"], "2 rows|no sheet|"),
    "nothing to write": (["--accept", "safe"], "--accept does nothing without --fix"),
    "a test table without the column": (["--test", "other.csv"], "has no column 'text'")}


@pytest.mark.parametrize("name", BAD)
def test_one_line(name, call):
    words, said = BAD[name]
    write_frame(NASTY, "t.csv")
    write_frame(NASTY.rename(columns={"text": "words"}), "other.csv")
    fix = [] if "--fix" in words or name == "nothing to write" else ["--fix", "f"]
    code, _, error = call("check", "t.csv", *fix, *words)
    if name != "another sheet":  # which a CSV file has not
        assert code == 2 and said in error and error.count("\n") == 1
    code, _, error = call("check", "t.csv", "--undo", "back.csv")
    assert code == 2 and "holds no changes" in error and error.count("\n") == 1


def test_a_log_that_was_changed(call):
    write_frame(NASTY, "t.csv")
    assert call("check", "t.csv", "--fix", "f", "--accept", "safe")[0] == 0
    lines = open("f/changes.jsonl", encoding="utf-8").read().splitlines()
    for log in (lines[:-1], lines[1:], ["{}"], ["[" * 9999], [json.dumps({"source": 1})]):
        with open("f/changes.jsonl", "w", encoding="utf-8") as f:
            f.write("\n".join(log))
        code, _, error = call("check", "f", "--undo", "back.csv")
        assert code == 2 and error.count("\n") == 1, error


def test_what_was_not_done_is_said(call):
    "Two findings want one cell: the first has it, and the second is named, here and in the log."
    frame = synthetic(60)
    frame.loc[3, "text"], frame.loc[3, "label"] = "cafÃ© ann@mail.com", frame.label[3].upper()
    write_frame(frame, "t.csv")
    kinds = "personal data,garbled texts,labels written in two ways"
    code, said, error = call("check", "t.csv", "--fix", "f", "--accept", kinds)
    assert code == 0 and "Not done: garbled texts (column 'text', 1 row: 3)" in said, error
    assert "run this again on it" in said
    new = read_frame("f/table.csv")[0]
    assert new.text[3] == "café [EMAIL_1]" and new.label[3] == synthetic(60).label[3]
    with open("f/changes.jsonl", encoding="utf-8") as log:
        lines = [json.loads(line) for line in log]
    assert lines[0]["not_done"] == 1 and lines[-1]["changed_by"] == "personal data"
    assert call("check", "f", "--undo", "back.csv")[0] == 0
    assert frame_digest(read_frame("back.csv")[0]) == frame_digest(read_frame("t.csv")[0])


@pytest.mark.parametrize("name", ["none", "None", ""])
def test_a_table_without_labels(name, call):
    write_frame(NASTY[["text"]], "t.csv")
    assert call("check", "t.csv", "--label", name)[0] == 0
    code, _, error = call("check", "t.csv", "--label", "stars")
    assert code == 2 and "no column 'stars'" in error and error.count("\n") == 1


def test_the_recipe():
    frame = spoil_rows(synthetic(200, seed=3))
    frame.loc[0, "text"] = "<script>alert(1)</script>"
    write_frame(frame, "t.csv")
    given = {"table": "t.csv", "accept": "safe", "out": "r"}
    in_process(cli.recipes()["audit"], "run.ipynb", given)
    evidence = json.load(open("r/evidence.json", encoding="utf-8"))
    kinds = {f["kind"] for f in evidence["findings"]}
    assert {"garbled texts", "labels written in two ways", "exact copies",
            "labels that are probably wrong"} <= kinds
    page = open("r/report.html", encoding="utf-8").read()
    assert "<script>alert" not in page and "taken out" in page
    assert len(read_frame("r/rows/table.csv")[0]) < len(frame)
