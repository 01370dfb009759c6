"""Every recipe that reads texts, on Chinese rows with an encoder of Chinese characters: it runs to
its end, and its page shows what the rows say."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_here, write_csv
from insight_nb.cli import main
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

PLACES = ["房间", "早餐", "前台", "电梯", "浴室", "停车场"]
GOOD = ["很干净", "非常好", "让人满意", "方便", "安静"]
BAD = ["太脏了", "很差", "让人失望", "坏了", "吵得睡不着"]
LEADS, ASKS = ["", "请问", "你好，"], ["在哪里", "几点开", "怎么走", "可以用吗", "要钱吗"]
TAIL = ["，下次还来。", "！", "，一共３晚。", "，2026年5月1日入住。", "……"]


def reviews(n, seed=0):
    "Texts, what they are about, and whether they praise it."
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        place, good = PLACES[rng.integers(6)], bool(i % 2)
        word = (GOOD if good else BAD)[rng.integers(5)]
        text = f"{place}{word}{TAIL[rng.integers(5)]}{'' if i % 9 else '<b>' + str(i) + '</b>'}"
        rows.append({"text": f"{i}号：{text}", "label": "好评" if good else "差评",
                     "place": place, "stars": 4.5 if good else 1.5,
                     "second": f"{place}怎么样", "places": f"{place}；{PLACES[i % 6]}"})
    return rows


def spans(row):
    at = row["text"].index(row["place"])
    return json.dumps([{"start": at, "end": at + len(row["place"]), "label": "设施"}])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    "A tiny encoder whose tokens are characters."
    folder = tmp_path_factory.mktemp("zh") / "encoder"
    said = [str(v) for row in reviews(400) for v in row.values()]
    letters = sorted({c for text in (*said, *LEADS, *ASKS) for c in text})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split("", "isolated")])
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **names)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1,
                         num_attention_heads=2, intermediate_size=32,
                         max_position_embeddings=64)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(recipe, out, **given):
    words = [w for name, value in given.items() for w in ("-p", name, value)]
    assert run_here(recipe, *words, "--out", out) == 0
    page = (Path(out) / "report.html").read_text(encoding="utf-8")
    assert "\ufffd" not in page and not re.search(r"<b>\d+</b>", page)
    return page


TRAINED = {
    "classify": {}, "multilabel": {"label": "places"}, "regress": {"label": "stars"},
    "pair": {}, "tag": {"label": "spans"}}


@pytest.mark.parametrize("recipe", TRAINED)
def test_a_model_is_trained(recipe, encoder):
    rows = [row | {"spans": spans(row)} for row in reviews(160)]
    how = {"table": write_csv("zh.csv", rows), "backbone": encoder, "epochs": 2,
           "learning_rate": 0.01} | TRAINED[recipe]
    page = run(recipe, "a", **how)
    told = json.loads(Path("a/evidence.json").read_text(encoding="utf-8"))
    guard = {c["check"]: c["passed"] for c in told["guard"]}
    assert guard["language"], told["guard"]
    named = {"classify": "好评", "multilabel": "停车场", "pair": "好评", "tag": "设施"}
    assert named.get(recipe, "") in page
    write_csv("new.csv", [{k: row[k] for k in ("text", "second")} for row in reviews(9, 1)])
    assert main(["predict", "a/bundle", "new.csv", "--out", "said.csv"]) == 0
    assert pd.read_csv("said.csv")["error"].isna().all()


def test_from_a_bundle_on(encoder):
    rows = reviews(160)
    write_csv("zh.csv", rows)
    run("classify", "a", table="zh.csv", backbone=encoder, epochs=3, learning_rate=0.01)
    write_csv("test.csv", reviews(80, 1))
    assert "好评" in run("evaluate", "e", bundle="a/bundle", table="test.csv")
    later = [row | {"label": "一般"} if i % 4 == 0 else row for i, row in enumerate(reviews(80, 2))]
    write_csv("later.csv", later)
    page = run("update", "u", bundle="a/bundle", table="later.csv", old="zh.csv",
               old_test="test.csv", epochs=1, compare="false")
    assert "一般" in page
    assert "好评" in run("distill", "d", bundle="a/bundle", table="test.csv", student="tfidf")
    write_csv("days.csv", [row | {"date": f"2026-{1 + i // 28:02d}-{1 + i % 28:02d}"}
                           for i, row in enumerate(reviews(160, 3))])
    assert "好评" in run("monitor", "m", table="days.csv", bundle="a/bundle")


def test_rows_are_found_labeled_and_compared(encoder):
    rows = reviews(160)
    write_csv("zh.csv", rows)
    rungs = "majority,TF-IDF + linear,frozen + linear"
    page = run("ladder", "l", table="zh.csv", rungs=rungs, backbone=encoder)
    assert "好评" in page and "TF-IDF" in page
    rows[7]["label"] = "差评"
    write_csv("noisy.csv", rows)
    assert "好评" in run("audit", "q", table="noisy.csv", backbone=encoder)
    write_csv("pool.csv", [{"text": row["text"]} for row in reviews(120)])
    run("label", "b", table="pool.csv", rows=10, encoder=encoder, names="好评,差评")
    assert pd.read_csv("b/to_label.csv")["text"].str.contains("号：").all()
    write_csv("rules.csv", [{"pattern": "很干净|非常好|满意", "label": "好评", "kind": "keyword"},
                            {"pattern": "太脏|很差|失望", "label": "差评", "kind": "keyword"}])
    assert "好评" in run("weak", "w", table="zh.csv", functions="rules.csv")


def test_questions_are_answered(encoder):
    asks = [{"text": f"{lead}{place}{ask}", "label": place, "answer": f"{place}在一楼。"}
            for place in PLACES for lead in LEADS for ask in ASKS]
    write_csv("asks.csv", asks)
    assert "停车场" in run("assistant", "a", table="asks.csv", answer="answer", encoder=encoder)


def test_things_are_recommended(encoder):
    rng = np.random.default_rng(0)
    visits = [{"user": f"用户{u}", "item": f"物{rng.integers(12) + 12 * (u % 2)}", "time": t}
              for t in range(20) for u in range(24)]
    write_csv("visits.csv", visits)
    write_csv("items.csv", [{"item": f"物{i}", "text": f"{PLACES[i % 6]}{GOOD[i % 5]}"}
                            for i in range(24)])
    run("recommend", "r", table="visits.csv", items="items.csv", encoder=encoder)
