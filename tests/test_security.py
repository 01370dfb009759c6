"""Files as an attacker makes them: one line, nothing run or written elsewhere, little memory."""

import base64
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import refused, tiny_encoder
from insight_nb import load
from insight_nb.apps.assistant.dialogue import Transcript
from insight_nb.apps.monitor.stream import Stream
from insight_nb.apps.risk.estimators import RiskClassifier
from insight_nb.apps.risk.risk_bundle import save_risk
from insight_nb.base.core import InputError
from insight_nb.base.files import read_frame
from insight_nb.base.tables import write_frame
from insight_nb.decide.launch.memo import read_json, read_yaml
from insight_nb.jobs.rungs import save_rung
from insight_nb.methods.classical import Tfidf
from insight_nb.models.backbone import load_backbone
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.ship.bundle import load_bundle, read_info, save_bundle, write_manifest
from insight_nb.ship.feedback import FeedbackStore

PROGRAM = "open({!r}, 'w').close()\nclass Evil: pass\n"
PACKAGE = Path(__file__).parent.parent / "insight_nb"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    "Three small sound ones: with an encoder, with words, of a table."
    folder = tmp_path_factory.mktemp("sound")
    model = Model(tiny_encoder(folder / "t"), ClassificationTask(("a", "b")))
    save_bundle(folder / "texts", model, 32)
    y = np.arange(40) % 2
    save_rung(folder / "words", Tfidf().fit(["good soup", "bad bed"] * 20, y, ["a", "b"]))
    ages = pd.DataFrame({"age": np.arange(200.)})
    late = (ages["age"] > 99).astype(int)
    save_risk(folder / "table", RiskClassifier().fit(ages, late), "late", ("no", "yes"))
    return folder


@pytest.fixture
def forge(bundles, tmp_path):
    "Change a bundle, and seal it again, as its maker can."
    def call(name, change):
        folder = tmp_path / "b"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bundles / name, folder)
        change(folder)
        known = read_info(folder)
        write_manifest(folder, {k: v for k, v in known.items() if k not in ("seal", "files")})
        return folder
    return call


def one_line(call, *given):
    with pytest.raises(InputError) as e:
        call(*given)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


def safetensors(header, data=bytes(64), size=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def part(shape, *offsets): return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


WEIGHTS = {
    "a header of any length": safetensors({}, size=2**62),
    "a header of 100 MB": safetensors(b"{" + b" " * 99_999_998 + b"}"),
    "half a million tensors": safetensors({f"t{i}": part([0], 0, 0) for i in range(500_000)}, b""),
    "tensors that overlap": safetensors({"a": part([8], 0, 32), "b": part([8], 16, 48)}),
    "offsets below nothing": safetensors({"a": part([-8], -32, 0)}),
    "a tensor without end": safetensors({"a": part([10**9, 10**9], 0, 64)}),
    "a name twice": safetensors(b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},'
                                b'"a":{"dtype":"F32","shape":[8],"data_offsets":[32,64]}}'),
    "deep": safetensors(b'{"a":' * 50_000), "nothing": b"",
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch executed'\ntR."}
FILES = {"texts": ("encoder/model.safetensors", "head.safetensors"),
         "words": ("learned.safetensors",), "table": ("model.safetensors",)}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_weights(weights, forge):
    for name, files in FILES.items():
        for file in files:
            bad = forge(name, lambda folder: (folder / file).write_bytes(weights))
            tracemalloc.start()
            one_line(load, bad)
            assert tracemalloc.get_traced_memory()[1] < 50e6
            tracemalloc.stop()
    assert not Path("executed").exists()


@pytest.mark.parametrize("files", [
    {"../evil.txt": "0"}, {"/etc/passwd": "0"}, {"a/../../evil.txt": "0"}, {"..": "0"},
    {"\x00": "0"}, {"a" * 5000: "0"}])
def test_names_of_files(files, bundles, tmp_path):
    shutil.copytree(bundles / "words", tmp_path / "b")
    Path("evil.txt").touch()
    info = read_info(tmp_path / "b")
    from insight_nb.ship.bundle import _seal
    info["files"] = info["files"] | files
    info["seal"] = _seal(info)
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(info))
    one_line(load, tmp_path / "b")


@pytest.mark.parametrize("link", ["encoder", "encoder/model.safetensors", "more", "lost"])
def test_links(link, bundles, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(bundles / "texts", folder)
    target = tmp_path / "elsewhere"
    if (folder / link).exists():
        shutil.move(folder / link, target)
    elif link == "more":
        target.mkdir()
    (folder / link).symlink_to(target)
    said = one_line(load, folder)
    assert "link" in said or "outside" in said


def in_config(file, **more):
    def change(folder):
        path = folder / "encoder" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        for where in (folder, folder / "encoder"):
            (where / "evil.py").write_text(PROGRAM.format(str(Path("executed").absolute())))
    return change


MAP = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2}
CONFIGS = [
    ({"auto_map": MAP}, None), ({"auto_map": MAP, "model_type": "evil"}, "fit"),
    ({"auto_map": MAP, "trust_remote_code": True}, None), ({"model_type": ["bert"]}, "fit"),
    ({"hidden_act": "__import__('os').system('touch executed')"}, "fit"),
    ({"attn_implementation": "own/kernel"}, "a program from the hub"),
    ({"_attn_implementation": "kernels-community/a"}, "a program from the hub"),
    ({"vocab_size": 10**9}, "MB of weights"), ({"hidden_size": 10**6}, "MB of weights"),
    ({"max_position_embeddings": 10**9}, "MB of weights"), ({"num_attention_heads": 0}, "fit"),
    ({"num_hidden_layers": 10**6}, "1,000,000 layers"), ({"hidden_size": "8"}, "fit")]


@pytest.mark.parametrize("more, said", CONFIGS, ids=[" ".join(m) for m, _ in CONFIGS])
def test_config(more, said, forge):
    bad = forge("texts", in_config("config.json", **more))
    if said:
        assert said in one_line(load, bad)
    else:  # nothing of it is heeded
        assert load_bundle(bad, device="cpu").labels.names == ("a", "b")
    assert not Path("executed").exists()


@pytest.mark.parametrize("more", [{"auto_map": MAP}, {"tokenizer_class": "Evil", "auto_map": MAP},
                                  {"tokenizer_class": "os.system"}, {"vocab_file": "/etc/passwd"}])
def test_tokenizer_config(more, forge):
    load(forge("texts", in_config("tokenizer_config.json", **more)))
    assert not Path("executed").exists()


def in_tokenizer(**more):
    def change(folder):
        path = folder / "encoder" / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return change


@pytest.mark.slow
def test_a_pattern_of_a_tokenizer_that_never_ends(forge):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
             "invert": False}
    bad = forge("texts", in_tokenizer(pre_tokenizer=split))
    program = ("import sys, resource; from insight_nb import load;"
               "resource.setrlimit(resource.RLIMIT_CPU, (40, 40));"
               "print(len(load(sys.argv[1]).predict(['a' * 40 + '!'])))")
    done = subprocess.run([sys.executable, "-c", program, bad], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr[-500:]


@pytest.mark.parametrize("change", [
    lambda how: how | {"token_pattern": "(a+)+$"}, lambda how: how | {"input": "filename"},
    lambda how: how | {"stop_words": ["x"] * 9}, lambda how: how | {"analyzer": {"a": 1}}])
def test_options_of_a_vectorizer(change, forge):
    def edit(folder):
        facts = json.loads((folder / "learned.json").read_text())
        first = facts["features"]["parts"][0]
        first["how"] = change(first["how"])
        (folder / "learned.json").write_text(json.dumps(facts))
    bad = forge("words", edit)
    assert "no method of the ladder" in one_line(load, bad)


def test_nothing_unpickles():
    words = (r"\bpickle\b|joblib|torch\.load\(|allow_pickle=True|(?<![\w.])(?:eval|exec)\("
             r"|os\.system|shell=True|trust_remote_code=True|weights_only=False")
    for file in PACKAGE.rglob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        for line in lines:
            assert not re.search(words, line.split("#")[0]), (file.name, line)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_a_folder_of_pickles_is_no_encoder(name, bundles, tmp_path):
    shutil.copytree(bundles / "t", tmp_path / "p")
    (tmp_path / "p" / "model.safetensors").unlink()
    (tmp_path / "p" / name).write_bytes(WEIGHTS["a pickle"])
    assert "safetensors" in one_line(load_backbone, str(tmp_path / "p"))
    assert not Path("executed").exists()


START = ('<?xml version="1.0"?>{}<worksheet xmlns="http://schemas.openxmlformats.org/'
         'spreadsheetml/2006/main"><sheetData>')
ENTITIES = ('<!DOCTYPE l [<!ENTITY a "' + "x" * 100 + '">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi")) + "]>")
ROW = '<row r="{0}"><c r="{1}{0}"><v>1</v></c></row>'
SHEETS = {
    "spaces": (" " * 300_000_000, ""), "a row far away": (ROW.format(10**12, "A"), ""),
    "wide rows": ("".join(ROW.format(i + 1, "XFD") for i in range(20_000)), ""),
    "entities": ('<row r="1"><c r="A1" t="inlineStr"><is><t>&i;</t></is></c></row>', ENTITIES),
    "a file": ('<row r="1"><c r="A1" t="inlineStr"><is><t>&x;</t></is></c></row>',
               '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
    "deep": ("<a>" * 200_000, "")}


ASK = """import glob, resource
from insight_nb.base.core import InputError
from insight_nb.base.files import read_frame
for file in sorted(glob.glob("*.xlsx")):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        said = read_frame(file)[0]
    except InputError as e:
        said = e
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said)
"""


@pytest.mark.slow
def test_workbooks(tmp_path):
    sound = tmp_path / "sound"
    pd.DataFrame({"text": ["a"]}).to_excel(sound, index=False, engine="openpyxl")
    for name, (rows, head) in SHEETS.items():
        with zipfile.ZipFile(sound) as old, zipfile.ZipFile(
                f"{name}.xlsx", "w", zipfile.ZIP_DEFLATED) as new:
            for file in old.namelist():
                sheet = START.format(head) + rows + "</sheetData></worksheet>"
                new.writestr(file, sheet if file.endswith("sheet1.xml") else old.read(file))
        assert Path(f"{name}.xlsx").stat().st_size < 1_000_000
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines), done.stderr) == (0, len(SHEETS), "")
    for name, line in zip(sorted(SHEETS), lines):
        memory, said = line.split(" ", 1)
        assert said.startswith(f"{name}.xlsx ") and int(memory) < 300_000, line  # kB


def test_formulas_come_back_as_they_came(tmp_path):
    cells = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-1+1", "=HYPERLINK(\"http://x\")", "\t=1"]
    frame = pd.DataFrame({"=1": cells})
    write_frame(frame, "t.xlsx")
    with zipfile.ZipFile("t.xlsx") as z:
        assert "<f>" not in z.read("xl/worksheets/sheet1.xml").decode()
    assert write_frame(frame, "t.csv") == 7 and read_frame("t.csv")[0]["=1"].tolist() == cells
    write_frame(frame, "s.csv", spreadsheet=True)
    lines = Path("s.csv").read_text(encoding="utf-8-sig").splitlines()
    assert all(line.lstrip('"').startswith("'") for line in lines)


YAMLS = {
    "deep": "a: " + "[" * 100_000, "deep maps": "{a: " * 100_000, "an object":
    "a: !!python/object/apply:os.system ['touch executed']", "a list as name": "? [a]\n: 1",
    "a long number": "a: " + "9" * 100_000, "a date": "a: 2001-99-99", "aliases":
    'a: &a ["x"]\nb: *a', "binary": "a: !!binary " + base64.b64encode(b"\x80").decode() + "\n[",
    "no text": "\x00", "twice": "a: 1\na: 2", "a merge": "<<: {a: 1}\n<<: {b: 1}"}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_yaml(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    one_line(read_yaml, tmp_path / "a.yaml")
    assert not Path("executed").exists()


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"schema": 1, "metrics": ' + "{" * 9, "9" * 10_000, '{"schema": 1e999}',
    '{"schema": 1, "metrics": []}', "\x00", "NaN"])
def test_evidence(text, tmp_path):
    (tmp_path / "evidence.json").write_text(text)
    one_line(read_json, tmp_path / "evidence.json")


STORES = [
    "create trigger t after insert on answers begin delete from answers; end",
    "create view corrections as with recursive r(x) as (select 1 union all select x from r) "
    "select x as id, x as at, x as label, x as source from r",
    "create virtual table more using fts5(a)"]


@pytest.mark.parametrize("program", STORES)
def test_a_store_with_programs(program, tmp_path):
    for store in (FeedbackStore, Transcript, Stream):
        path = tmp_path / f"{store.__name__}.db"
        store(path).db.close()
        with sqlite3.connect(path) as db:
            for table in ("answers", "corrections"):
                db.execute(f"create table if not exists {table}(n integer)")
            if "view" in program:
                db.execute("drop table corrections")
            db.execute(program)
        db.close()
        assert "triggers, views" in one_line(store, path)


@pytest.mark.parametrize("label", ["../../evil", "/tmp/evil", "a/b", "..", "con", "x\x00y",
                                   "é" * 300])
def test_labels_are_no_file_names(label, tmp_path):
    "A bundle is written with labels of any kind, and nothing beside it."
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    rung = Tfidf().fit(["good soup", "bad bed"] * 20, np.arange(40) % 2, [label, "b"])
    save_rung(folder / "out", rung)
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
    assert {f.parts[:3] for f in files} == {("deep", "er", "out")}
    assert load(folder / "out").predict(["good soup"]).tolist() == [label]


def test_a_link_that_points_out_of_the_results(ends, tmp_path, monkeypatch):
    "A run's folder may be a link; what it holds may lead nowhere else."
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    refused(ends("run", "decide", "--out", "out"), "exists already")
    refused(ends("run", "decide", "--out", "out", "--force"), "is not the folder of an earlier run")
    assert os.listdir("precious") == ["file"]
