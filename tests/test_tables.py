"""Tables as people keep them: each is opened right, or one line says what to do."""

import json

import openpyxl
import pandas as pd
import pytest
from insight_nb.base.core import InputError
from insight_nb.base.files import read_frame
from insight_nb.data.labels import check_labels
from insight_nb.data.table import clean_table
from insight_nb.data.targets import parse_numbers

ROWS = [["很慢, 真的", "bad"], ["gut", "good"]]
WEST = [["Grüße aus Köln, schön", "gut"], ["Straße zu laut", "schlecht"],
        ["déçu, très tard", "mal"]]
TAIWAN = [["服務態度很差，不推薦", "壞"], ["送貨太慢了", "壞"], ["很好吃", "好"]]
JAPAN = [["配送が遅すぎます", "悪い"], ["とても良い", "良い"]]
KOREA = [["배송이 너무 늦어요", "나쁨"], ["좋았어요", "좋음"]]
RUSSIA = [["очень медленно", "плохо"], ["отличный сервис", "хорошо"]]


def csv(rows, sep=",", end="\n", header=("text", "label")):
    def cell(v): return f'"{v}"' if sep in v or "\n" in v else v
    return "".join(sep.join(map(cell, r)) + end for r in [header, *rows])


# name of the file, its bytes, its rows, a word of the notes ("" where nothing was guessed)
TEXT = {
    "plain": ("a.csv", csv(ROWS).encode(), ROWS, ""),
    "byte order mark": ("a.csv", csv(ROWS).encode("utf-8-sig"), ROWS, ""),
    "cp1252 with semicolons": ("a.csv", csv(WEST, ";").encode("cp1252"), WEST, "cp1252"),
    "Macintosh": ("a.csv", csv(WEST, ";").encode("mac_roman"), WEST, "mac_roman"),
    "DOS": ("a.csv", csv(WEST, ";").encode("cp850"), WEST, "cp850"),
    "UTF-16": ("a.csv", csv(ROWS, "\t").encode("utf-16"), ROWS, ""),
    "UTF-16 without a mark": ("a.csv", csv([["a", "b"]] * 9).encode("utf-16-be"), [["a", "b"]] * 9,
                              "utf-16-be"),
    "Big5": ("a.csv", csv(TAIWAN).encode("big5"), TAIWAN, "big5"),
    "GB18030": ("a.csv", csv(ROWS * 3).encode("gb18030"), ROWS * 3, "gb18030"),
    "GB18030 after a thousand rows of ASCII": (
        "a.csv", csv([["plain", "x"]] * 1000 + ROWS).encode("gb18030"),
        [["plain", "x"]] * 1000 + ROWS, "gb18030"),
    "Shift-JIS": ("a.csv", csv(JAPAN).encode("cp932"), JAPAN, "cp932"),
    "EUC-JP": ("a.csv", csv(JAPAN).encode("euc_jp"), JAPAN, "euc_jp"),
    "Korean": ("a.csv", csv(KOREA).encode("cp949"), KOREA, "cp949"),
    "Russian": ("a.csv", csv(RUSSIA).encode("cp1251"), RUSSIA, "cp1251"),
    "KOI8": ("a.csv", csv(RUSSIA).encode("koi8_r"), RUSSIA, "koi8_r"),
    "CR only": ("a.csv", csv(ROWS, end="\r").encode(), ROWS, ""),
    "CR within a text, as pandas writes it": (
        "a.csv", pd.DataFrame([["one\rtwo", "x"], ["好\r\r.", "y"]],
                              columns=["text", "label"]).to_csv(index=False).encode(),
        [["one\rtwo", "x"], ["好\r\r.", "y"]], "carriage returns within a line"),
    "U+2028 in a text": ("a.csv", csv([["one\u2028two", "x"]]).encode(),
                         [["one\u2028two", "x"]], ""),
    "U+2028 in JSON lines": ("a.jsonl", '{"text": "one\u2028two", "label": "x"}\n'.encode(),
                             [["one\u2028two", "x"]], ""),
    "a line break in a cell": ("a.csv", csv([["one\r\ntwo", "x"]]).encode(), [["one\r\ntwo", "x"]],
                               ""),
    "the delimiter said": ("a.csv", ("sep=;\r\n" + csv(ROWS, ";", "\r\n")).encode(), ROWS, ";"),
    "tabs in .csv": ("a.csv", csv(ROWS, "\t").encode(), ROWS, ""),
    "bars": ("a.csv", csv(ROWS, "|").encode(), ROWS, "|"),
    "blank lines above": ("a.csv", ("\n\n" + csv(ROWS)).encode(), ROWS, ""),
    "NA as text and as label": ("a.csv", csv([["NA", "null"], ["nan", "NA"]]).encode(),
                                [["NA", "null"], ["nan", "NA"]], ""),
    "leading zeros": ("a.csv", csv([["a", "007"], ["b", "07"]]).encode(),
                      [["a", "007"], ["b", "07"]], ""),
    "dates as text": ("a.csv", csv([["a", "03/04/2026"]]).encode(), [["a", "03/04/2026"]], ""),
    "JSON with the rows inside": (
        "a.json", json.dumps({"n": 1, "data": {"rows": [{"text": "好", "label": "x"}]}}).encode(),
        [["好", "x"]], "data.rows"),
    "a column that is no cell": (
        "a.json", json.dumps([{"text": "a", "label": {"de": "x"}}]).encode(),
        [["a", {"de": "x"}]], "")}


@pytest.mark.parametrize("name", TEXT)
def test_text(name, tmp_path):
    file, content, rows, word = TEXT[name]
    (tmp_path / file).write_bytes(content)
    frame, _, notes = read_frame(tmp_path / file)
    assert (frame.columns.tolist(), frame.values.tolist()) == (["text", "label"], rows)
    assert word in " ".join(notes) and bool(word) == bool(notes)


def sheet(path, rows, merged=(), styles=(), more=()):
    book = openpyxl.Workbook()
    page = book.active
    for row in rows:
        page.append(row)
    for area in merged:
        page.merge_cells(area)
    for cell, style in styles:
        page[cell].number_format = style
    for title in more:
        book.create_sheet(title).append(["other"])
    book.save(path)
    return read_frame(path)


SHEETS = {
    "two sheets": ([["text", "label"], ["a", 1]], {"more": ["Notes"]}, [["a", 1]], "of 2"),
    "title rows": ([["May", None], [None], ["text", "label"], ["a", 1]], {}, [["a", 1]],
                   "the header is in row 3; above it: May"),
    "a title drawn wide": ([["May"], ["text", "label"], ["a", 1]], {"merged": ["A1:B1"]},
                           [["a", 1]], "the header is in row 2"),
    "merged labels": ([["text", "label"], ["a", "x"], ["b", None], ["c", None]],
                      {"merged": ["B2:B4"]}, [["a", "x"], ["b", "x"], ["c", "x"]],
                      "merged cells filled with their value: 2"),
    "zeros that are shown": ([["text", "label"], ["a", 7], ["b", 42]],
                             {"styles": [("B2", "00000"), ("B3", "00000")]},
                             [["a", "00007"], ["b", "00042"]], "zeros that they are shown with"),
    "a formula": ([["text", "label"], ["a", "=1+1"]], {}, [["a", None]], "never calculated"),
    "booleans": ([["text", "label"], ["a", True], ["b", False]], {}, [["a", True], ["b", False]],
                 ""),
    "blank lines above": ([[], ["text", "label"], ["a", 1]], {}, [["a", 1]], ""),
    "NA": ([["text", "label"], ["NA", "N/A"]], {}, [["NA", "N/A"]], "")}


@pytest.mark.parametrize("name", SHEETS)
def test_sheets(name, tmp_path):
    rows, how, want, word = SHEETS[name]
    frame, _, notes = sheet(tmp_path / "a.xlsx", rows, **how)
    assert (frame.columns.tolist(), frame.values.tolist()) == (["text", "label"], want)
    assert word in " ".join(notes) and bool(word) == bool(notes)


# what can't be opened without a guess: the file, a word of the line that says what to do
REFUSED = {
    "no encoding is likely": ("a.csv", b"text\n" + b"\x98\x90\x9d\x81a\x8db " * 9,
                              "save it as utf-8"),
    "a cell too many": ("a.csv", b"text,label\na,b,c\n", "line 2 has 3 cells"),
    "a cell too few": ("a.csv", b"text,label\na\n", "line 2 has 1 cell"),
    "two columns of one name": ("a.csv", b"text,text\na,b\n", "2 columns named 'text'"),
    "a quotation mark that is open": ("a.csv", b'text,label\n"a,b\nc,d\n', "starts on line 2"),
    "several lists": ("a.json", b'{"a": [{"x": 1}], "b": [{"x": 2}]}', "save the one"),
    "a list of lists": ("a.json", b'[["text", "label"], ["a", "b"]]', "not an object"),
    "a workbook by another name": ("a.csv", b"PK\x03\x04" + b"\0" * 99, "name it .xlsx"),
    "the old format": ("a.csv", b"\xd0\xcf\x11\xe0" + b"\0" * 99, "save it as .xlsx")}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    file, content, words = REFUSED[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=words) as e:
        read_frame(tmp_path / file)
    assert "\n" not in str(e.value)


def test_merged_names_are_refused(tmp_path):
    rows = [["text", "score", None], ["a", 1, 2]]
    with pytest.raises(InputError, match="2 columns named 'score'"):
        sheet(tmp_path / "a.xlsx", rows, merged=["B1:C1"])


@pytest.mark.parametrize("labels", [
    ["1", "1.0"], ["True", "true", "TRUE"], ["Spam", "spam"], ["a b", "a_b", "a-b", " A  b"],
    ["yes", "yes."], ["1,5", "1.5"], ["很好", "很好！"], ["５", "5"]])
def test_labels_that_are_one(labels):
    "Told, and merged by nobody unasked."
    values = [v.strip() for v in labels for _ in range(9)] + ["other"] * 9
    table = clean_table(pd.DataFrame({"text": [f"text {i}" for i in range(len(values))],
                                      "label": values}))
    said = [s for s in check_labels(table.labels) if "differ only" in s]
    assert len(said) == 1 and all(repr(v.strip()) in said[0] for v in labels)


def test_decimal_commas():
    assert parse_numbers(["1,5", "2,25", "-3,0"])[0].tolist() == [1.5, 2.25, -3]
