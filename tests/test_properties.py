"""What holds for any input: what is written is read back, splits are whole, labels come out as they
went in, a row's answer is its own, and a document that is none ends in one line.

Few examples, the same each time; INSIGHT_NB_EXAMPLES=50 tries 50 times as many, others each time.
"""

import json
import os
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from insight_nb.apps.assistant.dialogue import read_flows
from insight_nb.base.core import InputError
from insight_nb.base.files import read_chunks, read_frame
from insight_nb.base.iob import (
    char_to_word_spans,
    check_spans,
    spans_to_tags,
    split_words,
    split_words_at_spans,
    tags_to_spans,
    to_iob2,
    word_to_char_spans,
)
from insight_nb.base.tables import frame_writer, write_frame
from insight_nb.base.tensors import FakeEncoder, FakeTokenizer
from insight_nb.base.text import clean_text
from insight_nb.data.dataset import TokenDataset
from insight_nb.data.labels import LabelEncoder
from insight_nb.data.split import split
from insight_nb.data.table import clean_table
from insight_nb.data.tags import open_tagged, tag_names
from insight_nb.data.targets import binarize_labels, open_label_sets, parse_label_sets
from insight_nb.data.targets import split_label_sets
from insight_nb.data.tokens import tokenize
from insight_nb.decide.launch.memo import read_assumptions, read_evidence
from insight_nb.decide.launch.policy import Payoffs, policy_from_table
from insight_nb.eval.metrics import evaluate, softmax
from insight_nb.eval.scores import auroc, label_metrics, regression_metrics
from insight_nb.eval.spans import span_counts, span_metrics
from insight_nb.models.backbone import Backbone
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.train.inference import embed, predict_logits

TIMES = int(os.environ.get("INSIGHT_NB_EXAMPLES", 0))


def few(n):
    "`n` examples, or many times as many on demand."
    return settings(max_examples=n * (TIMES or 1), deadline=None, derandomize=not TIMES,
                    database=None, suppress_health_check=list(HealthCheck))


# ---- tables: what is written is read back

ODD = ["", " ", "=1+1", "'", '"', '""', ",", ";", "\t", "|", "\n", "\r", "\r\n", "\\", "\\n",
       "a\nb", ' "x" ', "NA", "nan", "null", "None", "TRUE", "1", "1.0", "007", "1e5", "-3", "@a",
       "#N/A", "2020-01-01", "很好", "房间，干净", "👍🏽", "é", "e\u0301", "\u200b", "\xa0",
       "\u2028", "\x85", "\x0b", "\x1c", "\x7f", "\ufeff", "\ufffe", "\uffff", "_x000D_",
       "<b>&amp;</b>", "[1]", "{}", "x" * 300, "PAR1", "%PDF-1", "ARROW1", "#", "\x1b[31m"]
CHARS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.one_of(st.sampled_from(ODD), st.text(CHARS, max_size=12), st.text("\"',;\t\r\n a=|"))
NAME = TEXT.map(str.strip).filter(lambda s: s and s[0] != "\ufeff" and "_x000D_" not in s)
CELL = st.one_of(TEXT, TEXT, TEXT, st.none())


@st.composite
def tables(draw, cell=CELL):
    names = draw(st.lists(NAME, min_size=1, max_size=4, unique=True))
    rows = draw(st.lists(st.tuples(*[cell] * len(names)), min_size=1, max_size=6))
    return with_words(pd.DataFrame(rows, columns=names, dtype=object))


def with_words(frame):
    "And a plain text: a file of control characters alone is binary, a row of nothing is no row."
    return frame.assign(**{"plain column": "a plain text of some words"})


def cells(frame, kept=lambda v: v):
    return [[kept(v) for v in row] for row in frame.itertuples(index=False, name=None)]


def empty(v):
    return "" if v is None else v


def in_excel(v):  # a sheet has no empty text, and its XML not all characters
    return None if v in ("", None) else clean_for_xml(v).replace("_x000D_", "\r")


def clean_for_xml(v):
    return "".join("\ufffd" if c < " " and c not in "\t\n\r" or c in "\ufffe\uffff" else c
                   for c in v)


KEEPS = {"csv": empty, "tsv": empty, "csv.gz": empty, "json": lambda v: v, "jsonl": lambda v: v,
         "parquet": lambda v: v, "xlsx": in_excel}


def same(found, frame, kept):
    assert cells(found) == cells(frame, kept)
    assert list(found.columns) == [kept(c) for c in frame.columns]


@pytest.mark.parametrize("kind", KEEPS)
@few(50)
@given(frame=tables())
@example(frame=pd.DataFrame({"a;b;c": ["x"], "d": ["y"]}))
@example(frame=pd.DataFrame({"a,b": ["x"]}))
@example(frame=pd.DataFrame({"PAR1": ["x"], "PAR2": ["y"]}))
@example(frame=pd.DataFrame({"%PDF": ["x"]}))
@example(frame=pd.DataFrame({"text": ["a\ufffeb", "_x000D_", "a\rb", "a\r\nb"]}))
@example(frame=pd.DataFrame({"a": [""], "b": [None]}))
@example(frame=pd.DataFrame({"one\ntwo;;;": ["x"], "b": ["y"]}))
def test_what_is_written_is_read(tmp_path, kind, frame):
    path, frame = tmp_path / f"t.{kind}", with_words(frame)
    write_frame(frame, path, force=True)
    same(read_frame(path)[0], frame, KEEPS[kind])


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@few(15)
@given(frame=tables(), at=st.integers(0, 6), rows=st.integers(1, 3))
def test_pieces_are_the_whole(tmp_path, kind, frame, at, rows):
    "Written in two pieces and read in some: as if whole."
    whole, parts = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    write_frame(frame, whole, force=True)
    with frame_writer(parts, force=True) as write:
        for part in (frame[:at], frame[at:]):
            write(part)
    if kind != "parquet":
        assert whole.read_bytes() == parts.read_bytes()
    found = pd.concat(list(read_chunks(parts, rows)))
    assert list(found.index) == list(range(len(frame)))
    same(found, frame, KEEPS[kind])


# ---- splits: disjoint, complete, groups whole, time in order

ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 30),
                          st.booleans()), min_size=12, max_size=60)
HOW = st.sampled_from([{}, {"group": "who"}, {"time": "day"}])


@few(120)
@given(rows=ROWS, how=HOW, keep=st.booleans(), seed=st.integers(0, 3),
       sizes=st.sampled_from([(.2, .1), (.3, 0), (4, 3), (.5, .25)]))
def test_splits_are_disjoint_and_complete(rows, how, keep, seed, sizes):
    frame = pd.DataFrame({
        "text": [f"row {'twice' if again else i * 7919} of {label}" for i, (label, _, _, again)
                 in enumerate(rows)],
        "label": [f"label {label}" for label, *_ in rows],
        "who": [f"customer {who}" for _, who, *_ in rows],
        "day": [f"2026-01-{day + 1:02}" for *_, day, _ in rows]})
    table = clean_table(frame)
    try:
        found = split(table, *sizes, seed=seed, keep_duplicates=keep, **how)
    except InputError:
        return
    sides = found.train, found.valid, found.test
    taken = np.concatenate(sides)
    assert len(set(taken)) == len(taken) and set(taken) <= set(range(len(rows)))
    gone = found.duplicates["removed_from_train"] + found.duplicates["removed_from_valid"]
    assert len(taken) + gone == len(rows) and not (keep and gone)
    assert all((np.diff(side) > 0).all() for side in sides)
    assert set(table.labels) == {table.labels[i] for i in found.train}
    if how.get("group"):
        names = [set(frame["who"].iloc[side]) for side in sides]
        assert sum(map(len, names)) == len(set().union(*names))
    if how.get("time"):
        days = [list(frame["day"].iloc[side]) for side in sides if len(side)]
        assert all(max(a) <= min(b) for a, b in zip(days, days[1:]))
    if not keep:
        texts = [set(frame["text"].iloc[side]) for side in sides]
        assert not texts[0] & (texts[1] | texts[2]) and not texts[1] & texts[2]
    again = split(table, *sizes, seed=seed, keep_duplicates=keep, **how)
    assert all(np.array_equal(a, b) for a, b in zip(sides, (again.train, again.valid, again.test)))


# ---- labels in, labels out

LABEL = st.one_of(st.sampled_from(ODD), st.text(CHARS, max_size=8),
                  st.integers(-5, 20).map(str), st.floats(-9, 9).map(str))


@few(100)
@given(names=st.lists(LABEL, min_size=1, max_size=8, unique=True), data=st.data())
def test_labels_come_out_as_they_went_in(names, data):
    rows = data.draw(st.lists(st.sampled_from(names), max_size=20))
    labels = LabelEncoder.fit(names)
    assert labels == LabelEncoder.fit(names[::-1]) and set(labels.names) == set(names)
    assert labels.inverse_transform(labels.transform(rows)) == rows
    assert labels.counts(rows).sum() == len(rows)


WORD = st.one_of(st.sampled_from(["toxic", "很好", "a b", "x|y", "1", "x,y", "é", "0"]),
                 st.text(st.characters(categories=["L", "N", "S"]), min_size=1, max_size=6))
WORD = WORD.filter(lambda s: s.strip() == s == clean_text(s) and ";" not in s and s[:1] != "[")
SETS = st.lists(st.lists(WORD, unique=True, max_size=4), min_size=2, max_size=8)


@few(80)
@given(sets=SETS, written=st.sampled_from(["list", "json", "cell", "columns"]))
def test_several_labels_come_out_as_they_went_in(sets, written):
    names = sorted({n for row in sets for n in row})
    assume(len(names) > 1)
    frame = pd.DataFrame({"text": [f"some words {i}" for i in range(len(sets))]})
    if written == "columns":
        assume(not any("," in n for n in names) and not {"text", "label"} & set(names))
        frame = frame.assign(**{n: [int(n in row) for row in sets] for n in names})
        label = ",".join(names)
        table = open_label_sets(frame, label=label)[0]
    else:
        how = {"list": list, "json": json.dumps, "cell": ";".join}[written]
        frame["label"] = pd.Series([how(row) for row in sets], dtype=object)
        table, label = open_label_sets(frame, separator=";")[0], "label"
    found = split_label_sets(table, label)
    assert [set(row) for row in found] == [set(row) for row in sets]
    labels = LabelEncoder.fit(names)
    matrix = binarize_labels(found, labels)
    assert [set(labels.inverse_transform(np.flatnonzero(row))) for row in matrix] == [
        set(row) for row in sets]
    assert [set(r) for r in parse_label_sets([json.dumps(row) for row in sets])] == [
        set(row) for row in sets]


KIND = st.sampled_from(["PER", "ORG", "e_mail", "B-X", "I", "O", "地点", "a b"])


@st.composite
def spans_of(draw, n):
    "Spans that don't overlap, among n places."
    ends = sorted(draw(st.sets(st.integers(0, n), max_size=8)))
    pairs = zip(ends[::2], ends[1::2])
    return [(a, b, draw(KIND)) for a, b in pairs]


@few(120)
@given(n=st.integers(0, 12), data=st.data())
def test_spans_come_out_of_tags(n, data):
    spans = data.draw(spans_of(n))
    tags = spans_to_tags(spans, n)
    assert tags_to_spans(tags) == spans and len(tags) == n
    again, _, repaired = to_iob2([tags])
    assert again == [tags] or not any(t[:1] == "B" for t in tags), (again, tags)
    assert not repaired


PROSE = st.text(st.one_of(st.sampled_from("ab c.-'’, 很好你\n\t@/&1"), CHARS), min_size=1,
                max_size=30)


@few(120)
@given(text=PROSE, data=st.data())
def test_spans_of_characters_come_out_of_tagged_words(text, data):
    given_spans = data.draw(spans_of(len(text)))
    try:
        spans = check_spans(text, given_spans)
    except InputError:
        return
    words = split_words_at_spans(split_words(text, fine=True), spans)
    assert all(0 <= a < b <= len(text) for a, b in words)
    assert all(b <= c for (_, b), (c, _) in zip(words, words[1:]))
    tags = spans_to_tags(char_to_word_spans(words, spans), len(words))
    assert word_to_char_spans(words, tags_to_spans(tags)) == spans


@few(60)
@given(rows=st.lists(PROSE, min_size=1, max_size=4), data=st.data())
def test_tagged_texts_come_out_as_they_went_in(rows, data):
    marked = [data.draw(spans_of(len(t))) for t in rows]
    frame = pd.DataFrame({"text": rows, "label": [
        [{"start": a, "end": b, "label": kind} for a, b, kind in s] for s in marked]})
    try:
        found = open_tagged(frame)
    except InputError:
        return
    assert [found.texts[i] for i in range(len(found))] == [rows[i] for i in found.rows]
    for i, row in enumerate(found.rows):
        assert found.spans(i) == check_spans(rows[row], marked[row])
    if found.entity_types():
        assert set(tag_names(found)) >= {t for tags in found.tags for t in tags}


# ---- a row's answer is its own

@cache
def model():
    import torch
    torch.manual_seed(0)
    backbone = Backbone(FakeEncoder(width=8, vocab=1000), FakeTokenizer(), "fake", width=8)
    return Model(backbone, ClassificationTask(["early", "late", "never"])).eval()


def logits(texts, budget=4096):
    rows = TokenDataset(tokenize(texts, FakeTokenizer(), 24), pad_id=0)
    return predict_logits(model(), rows, token_budget=budget)


@few(40)
@given(texts=st.lists(st.text(CHARS, min_size=1, max_size=40), min_size=1, max_size=12),
       budget=st.integers(1, 200), data=st.data())
def test_an_answer_does_not_depend_on_other_rows(texts, budget, data):
    order = data.draw(st.permutations(range(len(texts))))
    own = np.concatenate([logits([t]) for t in texts])
    np.testing.assert_allclose(logits(texts, budget), own, atol=1e-5)
    np.testing.assert_allclose(logits([texts[i] for i in order], budget), own[order], atol=1e-5)
    vectors = embed(texts, model().backbone, 24)
    alone = np.concatenate([embed([t], model().backbone, 24) for t in texts])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


# ---- metrics: the order of rows says nothing, and a value is in its range

@few(40)
@given(n=st.integers(2, 60), k=st.integers(2, 4), seed=st.integers(0, 10**6),
       grouped=st.booleans())
def test_metrics_do_not_depend_on_the_order_of_rows(n, k, seed, grouped):
    rng = np.random.default_rng(seed)
    y, probs, at = rng.integers(0, k, n), softmax(rng.normal(size=(n, k))), rng.permutation(n)
    groups = rng.integers(0, 5, n) if grouped else None
    x, wide = rng.normal(size=(2, n)), rng.random((2, n, k)) < .5
    tags = [[["O", "B-X", "I-X", "B-Y"][i] for i in row] for row in rng.integers(0, 4, (2 * n, 5))]

    def found(rows):
        g = None if groups is None else groups[rows]
        yield from evaluate(y[rows], probs[rows], [f"c{i}" for i in range(k)], g).items()
        yield from regression_metrics(x[0][rows], x[1][rows], groups=g).items()
        yield from label_metrics(wide[0][rows], wide[1][rows], g).items()
        pairs = [[tags[i + j] for i in rows] for j in (0, n)]
        yield from span_metrics(span_counts(*pairs)[""], g).items()
        if 0 < (y == 0).sum() < n:
            yield "auroc", auroc(y[rows] == 0, probs[rows, 0], g)

    for (name, a), (_, b) in zip(found(np.arange(n)), found(at)):
        values = [[m.value, m.low, m.high, m.n] for m in (a, b)]
        np.testing.assert_allclose(*values, atol=1e-9, rtol=1e-7, err_msg=name)
        assert not a.low > a.value and not a.value > a.high, name


# ---- a document in, a value or one line out

LEAF = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from([10**400, -1, 0.5]),
                 st.floats(), st.text(max_size=8))
KEYS = st.one_of(st.text(max_size=6), st.sampled_from([
    "task", "metrics", "accuracy", "value", "low", "high", "n", "calibration", "reliability",
    "rows", "low_edge", "high_edge", "guard", "curves", "data", "sha256", "model", "method",
    "volume", "gain", "loss", "source", "mean", "sd", "wait", "settles", "correlations", "periods",
    "say", "slots", "name", "ask", "pattern", "values", "groups", "test", "check", "passed"]))
TREE = st.recursive(LEAF, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)), max_leaves=12)
METRIC = {"value": .8, "low": .7, "high": .9, "n": 100}
TABLE = [{"low_edge": 0., "high_edge": .5, "rows": 20, "accuracy": .6,
          "confidence": .4},
         {"low_edge": .5, "high_edge": 1., "rows": 80, "accuracy": .85,
          "confidence": .8}]
SOUND = {
    "evidence": {
        "schema": 1, "task": "classify", "metrics": {"accuracy": METRIC},
        "model": {"method": "lora"}, "data": {"sha256": "ab", "groups": {"test": 5}},
        "calibration": {"reliability_after": TABLE},
        "curves": {"lora": {"sizes": [10, 20], "scores": [.5, .6]}},
        "guard": [{"check": "loss_fell", "passed": True, "detail": "it fell"}]},
    "assumptions": {
        "volume": 1000, "gain": {"low": 1, "high": 2, "source": "a survey"}, "loss": 3,
        "periods": 4, "hand_over": True, "correlations": [["volume", "gain", .5]],
        "wait": {"settles": ["volume"], "periods": 1}, "target": .9},
    "flows": {"book": {"say": "done", "slots": [
        {"name": "day", "ask": "when?", "values": {"today": ["now"]}}]}}}


@st.composite
def spoilt(draw, document):
    "A sound document in which one place holds something else, or nothing."
    document = json.loads(json.dumps(document))
    at = document
    while True:
        place = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[place], (dict, list)) or not at[place] or draw(st.booleans()):
            break
        at = at[place]
    at[place] = draw(TREE)
    if isinstance(at, dict) and draw(st.integers(0, 3)) == 0:
        del at[place]
    return document


def one_line(read, *given):
    "What is read, or the line that says why not."
    try:
        return read(*given)
    except InputError as e:
        said = str(e)
        assert said and "\n" not in said and len(said) < 1000, said
        assert not any(ord(c) < 32 or ord(c) == 127 for c in said), said


def as_json(document):
    return json.dumps(document)


def policy_of(path):
    return policy_from_table(Payoffs(1, -3), path, draws=50)


READERS = {
    "evidence": [read_evidence, policy_of], "assumptions": [read_assumptions],
    "flows": [read_flows]}
BROKEN = [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b"{}", b"a: b: c", b"- *a",
          b"&a [*a]", b"? [1]\n: 2", b"? {a: 1}\n: 2", b"!!python/object/apply:os.system [ls]",
          b"a: !!binary '%%'", b"a: 2020-13-45", b"volume: 1\n? volume\n: 2", b"\x00", b"1", b"---",
          b"--- a\n--- b", b"a: !!int x", b"<<: 1", b"<<: {a: 1}", b"a: !!set {b}", b"\xef\xbb\xbf",
          b"a: 0x", b"a: 1:60:90", b"volume: !!float ''", b"volume: !!omap [a]", b"? !!null\n: 1"]


@pytest.mark.parametrize("kind", SOUND)
@few(120)
@given(data=st.data())
def test_a_spoilt_document_ends_in_one_line(tmp_path, kind, data):
    document = data.draw(st.one_of(spoilt(SOUND[kind]), TREE))
    path = tmp_path / ("t.yaml" if kind == "assumptions" else "t.json")
    path.write_text(as_json(document), encoding="utf-8")  # JSON is YAML
    for read in READERS[kind]:
        one_line(read, path)


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_document_is_read(tmp_path, kind):
    path = tmp_path / "t.json"
    path.write_text(as_json(SOUND[kind]), encoding="utf-8")
    assert all(read(path) for read in READERS[kind])


@pytest.mark.parametrize("kind", SOUND)
@few(40)
@given(content=st.one_of(st.sampled_from(BROKEN), st.binary(max_size=20),
                         st.text("{}[]:,-*&!?|> \n\"'a1.", max_size=20).map(str.encode)))
def test_what_is_no_document_ends_in_one_line(tmp_path, kind, content):
    path = tmp_path / ("t.yaml" if kind == "assumptions" else "t.json")
    path.write_bytes(content)
    for read in READERS[kind]:
        one_line(read, path)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@few(60)
@given(document=TREE, raw=st.one_of(st.none(), st.sampled_from(BROKEN), st.binary(max_size=20)))
def test_a_table_that_is_none_ends_in_one_line(tmp_path, kind, document, raw):
    path = tmp_path / f"t.{kind}"
    path.write_bytes(as_json(document).encode() if raw is None else raw)
    found = one_line(read_frame, path)
    assert found is None or len(found[0])
