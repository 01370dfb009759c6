"""Bad input ends as promised: status 2, one line that says what and where, no traceback, nothing
half-written. Recipes run in this process, without a kernel, so that a case costs milliseconds;
nbs/90_cli.ipynb shows the same with real kernels, and test_recipes.py trains with one.
"""

import csv
import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import refused, rows_of, write_csv
from insight_nb import cli
from insight_nb.cli import main
from insight_nb.base.files import read_chunks, read_frame


def text(content, name="bad.csv"):
    def write():
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def table(rows, name="bad.csv"):
    return lambda: write_csv(name, rows)


def folder():
    Path("bad").mkdir()
    return "bad"


def excel():
    pd.DataFrame({"text": []}).to_excel("bad.xlsx")
    return "bad.xlsx"


good = rows_of(60)
TABLES = {  # what is wrong -> (a maker of the table's name, words that the message must hold)
    "missing file": (lambda: "nowhere.csv", ["nowhere.csv"]),
    "a directory": (folder, ["bad"]),
    "an empty file": (text(""), ["bad.csv"]),
    "a header only": (text("text,label\n"), ["bad.csv"]),
    "only blank lines": (text("\n\n \n"), ["bad.csv"]),
    "an empty sheet": (excel, ["bad.xlsx"]),
    "a missing column": (table([{"texts": "a", "label": "b"}] * 9), ["text", "texts"]),
    "a missing label": (table([{"text": "a", "lable": "b"}] * 9), ["lable"]),
    "a binary file": (text(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40), ["bad.csv"]),
    "a ragged CSV": (text("text,label\na,b\nc,d,e\n" * 9), ["bad.csv", "3"]),
    "duplicate columns": (text("text,label,text\na,b,c\n" * 9), ["text"]),
    "no labels at all": (table([{**r, "label": ""} for r in good]), ["label"]),
    "no texts at all": (table([{**r, "text": " "} for r in good]), ["text"]),
    "texts are numbers": (table([{**r, "text": i} for i, r in enumerate(good)]), ["text"]),
    "broken JSON": (text('[{"text": "a", "label": ', "bad.json"), ["bad.json"]),
    "broken JSONL": (text('{"text": "a", "label": "b"}\n{"te', "bad.jsonl"), ["bad.jsonl", "2"]),
    "not Parquet": (text("PAR0", "bad.parquet"), ["bad.parquet"]),
    "not gzip": (text("text,label\n", "bad.csv.gz"), ["bad.csv.gz"]),
    "an unknown kind of file": (text("a", "bad.docx"), ["bad.docx"]),
    "an unknown sample": (lambda: "sample:tweet", ["tweets"]),
}
LABELS = {
    "one class": (table([{**r, "label": "a"} for r in good]), ["a"]),
    "a class with one row": (table([*good, {"text": "a lonely text", "label": "rare"}]), ["rare"]),
    "a label for each row": (
        table([{**good[0], "text": f"text number {i}", "label": i} for i in range(5000)]),
        ["id", "regression"],
    ),
}


@pytest.mark.parametrize("make, words", (TABLES | LABELS).values(), ids=TABLES | LABELS)
def test_check_refuses(ends, make, words):
    refused(ends("check", make()), *words)


@pytest.mark.parametrize("make, words", (TABLES | LABELS).values(), ids=TABLES | LABELS)
def test_run_refuses(ends, make, words):
    name = make()
    refused(ends("run", "classify", "-p", "table", name, "--out", "out"), *words)


def test_the_promise_would_not_hold_for_a_good_table(ends):
    with pytest.raises(AssertionError):
        refused(ends("check", write_csv("good.csv", good)))


WORDS = {
    "no command": [],
    "an unknown command": ["rnu"],
    "an unknown recipe": ["run", "clasify"],
    "a missing notebook": ["run", "gone.ipynb"],
    "no recipe": ["run"],
    "an unknown option": ["run", "classify", "--forc"],
    "an unknown parameter": ["run", "classify", "-p", "tabel", "a.csv"],
    "a value of the wrong type": ["run", "classify", "-p", "rows", "many"],
    "a parameter twice": ["run", "classify", "-p", "seed", "1", "-p", "seed", "2"],
    "half a parameter": ["run", "classify", "-p", "rows"],
    "out as a parameter": ["run", "classify", "-p", "out", "x"],
    "no table": ["check"],
    "an unknown method": ["run", "classify", "-p", "table", "good.csv", "-p", "method", "ful"],
    "no bundle": ["predict", "gone", "good.csv"],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_wrong_words(ends, words):
    write_csv("good.csv", good)
    refused(ends(*words))


def test_wrong_words_are_answered_with_the_nearest(ends):
    refused(ends("run", "clasify"), "classify")
    refused(ends("run", "classify", "-p", "tabel", "a.csv"), "'table'")
    refused(ends("rnu", "classify"), "Did you mean 'run'?")
    refused(ends("foo"), "'run', 'predict', 'export', 'serve', 'feedback', 'compare', "
            "'check', 'mask', 'backbones', 'pull', 'samples'")
    refused(ends("run", "classify", "--outt", "x"), "Did you mean '--out'?")
    refused(ends("run", "classify", "-p", "rows", "many"), "rows", "whole number", "many")


@pytest.mark.parametrize(
    "words",
    [["run", "classify", "-p", "table", "good.csv"], ["check", "good.csv", "--json"]],
    ids=["run", "check"],
)
def test_where_the_results_go(ends, monkeypatch, words):
    "A place that is taken, that can't be written, and a disk that fills up at the last moment."
    write_csv("good.csv", good)
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("keep me")
    words = words if "--json" in words else [*words, "--out"]
    refused(
        ends(*words, "taken"),
        "taken",
        "exists" if "run" in words else "taken is a folder: name a file.",
    )
    refused(ends(*words, "new/" + "a" * 300), "too long")
    if "check" in words:
        refused(ends(*words, "taken", "--force"), "taken is a folder: name a file.")
    if "check" in words:
        refused(ends(*words, "good.csv"), "say --force to replace it")
    refused(ends(*words, "good.csv/out"), "good.csv")
    if "run" in words:
        refused(ends(*words, "taken", "--force"), "not the folder of an earlier run")
    if "run" in words:
        refused(ends(*words, ".", "--force"), "not the folder of an earlier run")
    Path("taken/notebook.ipynb").write_text('{"metadata": {"insight_nb": {}}}')
    if "run" in words:
        refused(ends(*words, "taken", "--force"), "holds 'mine.txt'")
    assert Path("taken/mine.txt").read_text() == "keep me"


def test_a_full_disk(ends, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_csv("good.csv", good)
    monkeypatch.setattr("os.replace", full)
    refused(ends("check", "good.csv", "--json", "out.json"), "No space left")


# Bad input of the other recipes: each ends before anything is trained


def jsonl(*rows):
    return text("\n".join(map(json.dumps, rows)), "bad.jsonl")


tags = [
    {"text": f"{name} {r['text']}", "label": [{"start": 0, "end": 3, "label": "PER"}]}
    for name, r in zip(["Ann", "Bob", "Eve", "Kim", "Tom"] * 12, good)
]
pairs = [
    {"text": f"question {i}", "second": f"answer {i * 7}", "label": ("yes", "no")[i % 2]}
    for i in range(60)
]
numbers = [{"text": f"{r['text']}", "label": i % 7} for i, r in enumerate(good)]
sets = [{"text": r["text"], "label": ("a;b", "b", "a;c")[i % 3]} for i, r in enumerate(good)]
# what is wrong -> recipe, a maker of the table's name, parameters, words that the message must hold
OTHERS = {
    "a word without its tag": (
        "tag",
        text("Ann\tB-PER\nleft\n", "bad.conll"),
        {},
        ["bad.conll", "line 2", "1 column"],
    ),
    "no tags": ("tag", text("Ann\nleft\n", "bad.conll"), {}, ["bad.conll", "line 1", "one column"]),
    "nothing tagged": (
        "tag",
        jsonl(*[{**r, "label": []} for r in tags]),
        {},
        ["bad.jsonl", "no span"],
    ),
    "words and tags of different length": (
        "tag",
        jsonl({"text": ["Ann", "left"], "label": ["B-PER"]}),
        {},
        ["row 0", "2 words", "1 tag"],
    ),
    "a span outside the text": (
        "tag",
        jsonl(*tags, {"text": "Ann", "label": [[0, 9, "PER"]]}),
        {},
        ["row 60", "0 to 9"],
    ),
    "spans that overlap": (
        "tag",
        jsonl(*tags, {"text": "Ann Lee", "label": [[0, 3, "PER"], [2, 7, "LOC"]]}),
        {},
        ["row 60", "overlaps"],
    ),
    "windows that overlap too much": (
        "tag",
        jsonl(*tags),
        {"max_length": 16, "overlap": 12},
        ["overlap by 12"],
    ),
    "a target that is text": (
        "regress",
        table([*numbers, {"text": "odd", "label": "many"}]),
        {},
        ["row 60", "'many'"],
    ),
    "a target that is NaN": (
        "regress",
        table([*numbers, {"text": "odd", "label": "-nan"}]),
        {},
        ["row 60", "'-nan'"],
    ),
    "a target without end": (
        "regress",
        jsonl(*numbers, {"text": "odd", "label": float("inf")}),
        {},
        ["row 60", "'inf'"],
    ),
    "a constant target": (
        "regress",
        table([{**r, "label": 3} for r in numbers]),
        {},
        ["3", "nothing to learn"],
    ),
    "classes weighted in a regression": (
        "regress",
        table(numbers),
        {"class_weights": "balanced"},
        ["class_weights"],
    ),
    "negative weights": (
        "regress",
        table([{**r, "sure": -1} for r in numbers]),
        {"weight": "sure"},
        ["'sure'", "-1"],
    ),
    "several labels as classes": ("classify", table(sets), {}, ["several labels", "multilabel"]),
    "classes as several labels": (
        "multilabel",
        table([{**r, "label": "a"} for r in good]),
        {},
        ["1 label"],
    ),
    "a broken list of labels": (
        "multilabel",
        table([*sets, {"text": "odd", "label": "[a"}]),
        {},
        ["row 60", "JSON"],
    ),
    "pairs with one side empty": (
        "pair",
        table([{**r, "second": " "} for r in pairs]),
        {},
        ["empty text in the second text"],
    ),
    "no second column": (
        "pair",
        table([{"text": r["text"], "scond": "a", "label": "b"} for r in pairs]),
        {},
        ["'second'", "'scond'"],
    ),
    "a column twice": ("pair", table(pairs), {"second": "text"}, ["two columns"]),
    "too much smoothing": ("pair", table(pairs), {"smoothing": 1.5}, ["smoothing is 1.5"]),
    "no column of weights": (
        "pair",
        table([{**r, "sure": 1} for r in pairs]),
        {"weight": "shure"},
        ["'shure'", "'sure'"],
    ),
}


@pytest.mark.parametrize("recipe, make, given, words", OTHERS.values(), ids=OTHERS)
def test_other_recipes_refuse(ends, recipe, make, given, words):
    given = [w for k, v in given.items() for w in ("-p", k, v)]
    refused(ends("run", recipe, "-p", "table", make(), *given, "--out", "out"), *words)


def test_unknown_tags_in_the_test_table(ends):
    Path("train.conll").write_text("".join(f"Ann{i}\tB-PER\nleft\tO\n\n" for i in range(40)))
    Path("test.conll").write_text("Rome\tB-LOC\n\n")
    refused(
        ends(
            "run", "tag", "-p", "table", "train.conll", "-p", "test", "test.conll", "--out", "out"
        ),
        "'LOC'",
        "no training row",
    )


METHODS = {
    "a rank above the width": ["lora", "rank", 400],
    "a rank for a method that has none": ["bitfit", "rank", 4],
    "a rank of nothing": ["adalora", "rank", 0],
    "a prefix of less than nothing": ["prefix", "rank", -3],
    "a bottleneck wider than the layer": ["bottleneck", "rank", 10_000],
}


@pytest.mark.parametrize("recipe", ["classify", "tag", "regress", "multilabel", "pair"])
@pytest.mark.parametrize("method, name, value", METHODS.values(), ids=METHODS)
def test_methods_that_cannot_work(ends, recipe, method, name, value):
    refused(
        ends("run", recipe, "-p", "method", method, "-p", name, value, "--out", "out"),
        str(value) if method != "bitfit" else "takes no rank",
    )


# Odd, but not bad: these texts are worked on

ODD = {
    "a text of 1 MB": "long " * 200_000,
    "a null byte": "a\0b",
    "a lone surrogate": "a\ud800b",
    "HTML": "<script>alert(1)</script>",
    "a formula": '=HYPERLINK("x")',
    "emoji": "👩\u200d💻 房间很好",
    "line breaks": "one\r\ntwo\nthree",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_check_takes_odd_texts(ends, odd):
    Path("odd.jsonl").write_text(
        "\n".join(json.dumps(r) for r in [*good, {"text": odd, "label": good[0]["label"]}])
    )
    assert ends("check", "odd.jsonl", "--json", "found.json").status == 0
    json.loads(Path("found.json").read_text(encoding="utf-8"))


# Prediction


def test_predict_keeps_every_row(ends, trained):
    texts = [*ODD.values(), "", "  ", "=1+1"]
    Path("new.jsonl").write_text(
        "\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(texts))
    )
    assert (
        ends(
            "predict", trained / "bundle", "new.jsonl", "--out", "out.jsonl", "--probabilities"
        ).status
        == 0
    )
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in rows] == list(range(len(texts)))
    assert [bool(r["error"]) for r in rows] == [not t.strip() for t in texts]
    assert all(r["error"] or 0 <= r["probability"] <= 1 for r in rows)
    words = ["predict", trained / "bundle", "new.jsonl", "--out", "out.csv"]
    plain = ends(*words)
    assert plain.status == 0 and "--spreadsheet makes them harmless" in plain.lines[-1]
    held = Path("out.csv").read_text(encoding="utf-8")
    assert "\n7," in held and ",=1+1," in held  # what came in
    assert ends(*words, "--force", "--spreadsheet").status == 0
    held = Path("out.csv").read_bytes()
    assert held.startswith(b"\xef\xbb\xbf") and b",'=1+1," in held and b",=" not in held
    assert "give the columns of answers a prefix" in ends(
        "predict", trained / "bundle", "out.csv", "--out", "b.csv").lines[-1]
    again = ends("predict", trained / "bundle", "out.csv", "--out", "b.csv", "--prefix", "new_")
    assert again.status == 0
    assert list(read_frame("b.csv")[0].columns[-3:]) == [
        "new_prediction", "new_probability", "new_error"]


@pytest.fixture
def in_pieces(monkeypatch):
    "Call it, and tables are predicted 7 rows at a time."
    return lambda: monkeypatch.setattr(
        "insight_nb.base.files.read_chunks", lambda source: read_chunks(source, rows=7)
    )


def write_odd(name):
    """40 odd rows with a byte order mark and CRLF, packed; 9 in a row have no text, so that pieces
    of 7 have none."""
    texts = [t for t in [*ODD.values(), "-5 stars", 'a "b", c', "很" * 9] if len(t) < 99]
    rows = [
        (i, ("", " ", "\u3000")[i % 3] if 12 <= i < 21 else texts[i % len(texts)], f"=1+{i}")
        for i in range(40)
    ]
    with gzip.open(name, "wt", encoding="utf-8-sig", errors="surrogatepass", newline="") as f:
        csv.writer(f).writerows([("id", "text", "sum"), *rows])


def predictions(file):
    "What is in it: all cells but the answers; which rows have an answer; the probabilities."
    frame = read_frame(file)[0]
    answers = [c for c in frame if c.startswith("pr")]
    assert len(answers) == 5
    return (
        frame.drop(columns=answers).values.tolist(),
        frame["prediction"].astype(bool).tolist(),
        frame[answers[1:]].apply(pd.to_numeric).to_numpy(float),
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz", ".jsonl", ".json", ".parquet", ".xlsx"])
def test_predict_in_pieces_and_at_once(ends, trained, in_pieces, suffix):
    write_odd("new.csv.gz")
    words = ["predict", trained / "bundle", "new.csv.gz", "--probabilities", "--out"]
    assert ends(*words, f"one{suffix}").status == 0
    in_pieces()
    assert ends(*words, f"many{suffix}").status == 0
    (cells, answered, numbers), (one, _, want) = (
        predictions(f"many{suffix}"),
        predictions(f"one{suffix}"),
    )
    assert (
        cells == one
        and [int(r[0]) for r in cells] == list(range(40))
        and answered == [not 12 <= i < 21 for i in range(40)]
    )
    np.testing.assert_allclose(numbers, want, atol=0.01)


def test_predict_finds_the_last_line_before_it_starts(ends):
    Path("new.csv").write_text(
        "text,id\r\n" + "很好,1\r\n" * 50_000 + "well, well,2\r\n", encoding="utf-8-sig"
    )
    refused(
        ends("predict", "bundle", "new.csv", "--out", "out.csv"),
        "new.csv, line 50002 has 3 cells where the header has 2",
    )
    Path("new.jsonl").write_text('{"text": "a"}\n' * 50_000 + '{"text": \n')
    refused(
        ends("predict", "bundle", "new.jsonl", "--out", "out.csv"),
        "new.jsonl, line 50001 is not JSON",
    )


def test_predict_is_interrupted_between_pieces(ends, trained, in_pieces, monkeypatch):
    from insight_nb.ship.predict import predict_frame

    def ctrl_c(bundle, frame, *args):
        if frame.index[0] == 14:
            raise KeyboardInterrupt
        return predict_frame(bundle, frame, *args)

    monkeypatch.setattr("insight_nb.ship.predict.predict_frame", ctrl_c)
    in_pieces()
    write_odd("new.csv.gz")
    end = ends("predict", trained / "bundle", "new.csv.gz", "--out", "out.csv")
    assert (end.status, end.lines, end.same) == (
        130,
        ["insight-nb: Interrupted. Nothing was left under the final name."],
        True,
    )


def test_predict_writes_no_file_over_a_folder(ends):
    write_csv("new.csv", good)
    Path("taken.csv").mkdir()
    Path("taken.csv/mine.txt").write_text("keep me")
    refused(
        ends("predict", "bundle", "new.csv", "--out", "taken.csv", "--force"),
        "taken.csv is a folder: name a file.",
    )


def test_predict_refuses(ends, trained):
    write_csv("new.csv", [{"txt": "a"}])
    refused(ends("predict", trained / "bundle", "new.csv", "--out", "out.csv"), "text", "txt")
    refused(
        ends("predict", trained / "bundle", "new.csv", "--text", "txt", "--out", "out.docx"), "docx"
    )
    refused(
        ends("predict", trained / "bundle", "new.csv", "--text", "txt", "--out", "new.csv"),
        "new.csv",
        "exists",
    )
    refused(ends("predict", trained / "bundle", "gone.csv", "--out", "out.csv"), "gone.csv")
    refused(ends("predict", "new.csv", "new.csv", "--text", "txt"), "new.csv")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "bundle.json"])
def test_a_bundle_with_one_byte_flipped(ends, trained, name):
    shutil.copytree(trained / "bundle", "bundle")
    file = next(Path("bundle").rglob(name))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    write_csv("new.csv", good)
    refused(ends("predict", "bundle", "new.csv", "--out", "out.csv"))


def test_a_bundle_from_the_future_and_half_a_bundle(ends, trained):
    shutil.copytree(trained / "bundle", "bundle")
    info = json.loads(Path("bundle/bundle.json").read_text())
    Path("bundle/bundle.json").write_text(json.dumps(info | {"schema": 999}))
    write_csv("new.csv", good)
    refused(ends("predict", "bundle", "new.csv", "--out", "out.csv"), "999")
    weights = next(Path("bundle").rglob("*.safetensors"))
    weights.unlink()
    Path("bundle/bundle.json").write_text(json.dumps(info))
    refused(ends("predict", "bundle", "new.csv", "--out", "out.csv"))
    weights.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(ends("predict", "bundle", "new.csv", "--out", "out.csv"))


def test_samples_lists_them(ends, capsys):
    assert cli.main(["samples"]) == 0
    assert "tweets" in capsys.readouterr().out


def test_the_first_minute_of_a_chinese_user(ends, capsys):
    said = ["房间很好，早餐不错", "服务太差，房间很脏"]
    rows = [{"text": f"{said[i % 2]}，第{i}次", "label": "好差"[i % 2]} for i in range(60)]
    write_csv("zh.csv", rows)
    assert main(["check", "zh.csv"]) == 0
    assert "was not made for the language of these texts" in capsys.readouterr().out
    assert main(["check", "zh.csv", "--backbone", "none"]) == 0
    assert "was not made" not in capsys.readouterr().out
    refused(ends("run", "classify", "-p", "table", "zh.csv"), "can't read these texts",
            "insight-nb pull BAAI/bge-small-zh-v1.5", "TF-IDF and a linear model", "-p anyway true")


def test_the_module_is_a_command_too():
    "Where the command isn't on the path; nothing done with status 0 would be a silent fault."
    ended = subprocess.run(
        [sys.executable, "-m", "insight_nb.cli", "run", "nonesuch"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])})
    assert ended.returncode == 2 and "no recipe 'nonesuch'" in ended.stderr
