"""Tables to try things on, and one small trained bundle for all tests that need one."""

import csv
import gc
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from insight_nb import cli
from insight_nb.base.core import lock_path
from insight_nb.cli import main
from notebooks import Notebook, _python


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect():
    """What earlier files left in memory is not looked through again: a run that measures its memory
    collects garbage each time, and after a thousand tests that takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# the sections that every report writes into evidence.json
SECTIONS = {
    "data",
    "model",
    "baseline",
    "metrics",
    "calibration",
    "cost",
    "guard",
    "seed",
    "versions",
}
LABELS = ["<b>good</b>", "=1+1", "很好"]  # labels are users' text too
WORDS = {
    LABELS[0]: "lovely warm friendly clean bright",
    LABELS[1]: "broken dirty late rude cold",
    LABELS[2]: "房间 干净 早餐 服务 安静",
}


def rows_of(n, labels=LABELS):
    "`n` texts, all different, a third of them of each label."
    said = [(labels[i % len(labels)], WORDS[LABELS[i % 3]].split()) for i in range(n)]
    return [
        {
            "text": f"{words[i % 5]} {words[(i * 7 + i // 5) % 5]} stay number {i * 7919 % 10007} "
            f"<script>alert({i})</script>",
            "label": label,
        }
        for i, (label, words) in enumerate(said)
    ]


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Each test works in a folder of its own, whose cache it shares with nobody."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSIGHT_NB_CACHE", str(tmp_path.parent / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def train(table, out):
    "`insight-nb run classify` with a real kernel: small, but whole."
    return main(
        [
            "run",
            "classify",
            "-p",
            "table",
            str(table),
            "-p",
            "epochs",
            "1",
            "-p",
            "max_length",
            "32",
            "--out",
            str(out),
        ]
    )


def tiny_encoder(folder, layers=1):
    "An encoder of some kilobytes, with a whole tokenizer, as a folder."
    from insight_nb.models.backbone import load_backbone
    from transformers import BertConfig, BertModel
    tokenizer = load_backbone().tokenizer
    BertModel(BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=8,
                         num_hidden_layers=layers, num_attention_heads=2,
                         intermediate_size=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_backbone(str(folder))


def damage(file, how):
    "Cut it, empty it, replace it, or turn a bit of it."
    whole = bytearray(Path(file).read_bytes())
    if how == "half":
        whole = whole[:len(whole) // 2]
    elif how == "empty":
        whole = b""
    elif how == "other":
        whole = b"of another version" * 99
    else:  # a bit, at a place that is drawn
        at = np.random.default_rng(how).integers(len(whole))
        whole[at] ^= 1 << how % 8
    Path(file).write_bytes(whole)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    "The folder that a run leaves. Where tests run side by side, the first that wants it makes it."
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "trained"
    folder.mkdir(exist_ok=True)
    os.environ["INSIGHT_NB_CACHE"] = str(folder / "cache")
    with lock_path(folder / "made", wait=300):
        if not (folder / "run").exists():
            assert train(write_csv(folder / "table.csv", rows_of(150)), folder / "run") == 0
    return folder / "run"


def in_process(path, notebook, given):
    "Run a recipe's cells here, and report an error as papermill would."
    names = {"display": lambda *_: None}
    shutil.copy(path, notebook)
    try:
        for cell in Notebook(path).code:
            exec(compile(_python(cell.source), "recipe", "exec"), names)
            if "parameters" in cell.tags:
                names.update(given)
    except Exception as e:
        raise type("Stopped", (Exception,), {"ename": type(e).__name__, "evalue": str(e)}) from e


LISTENER = """
import contextlib, io, json, sys, traceback
say = sys.stdout
for line in sys.stdin:
    asked, out, wrong = json.loads(line), io.StringIO(), ""
    sys.argv = ["-c", *asked["words"]]
    with contextlib.redirect_stdout(out):
        try:
            exec(asked["code"], {"__name__": "__main__"})
        except BaseException:
            wrong = traceback.format_exc()
    print(json.dumps([out.getvalue(), wrong]), file=say, flush=True)
"""


@pytest.fixture(scope="session")
def other_process():
    """Another Python, which runs scripts one after the other and so imports once: a function of a
    script and its arguments that returns what it printed."""
    process = subprocess.Popen([sys.executable, "-c", LISTENER], cwd="/", text=True,
                               env=os.environ | {"HF_HUB_OFFLINE": "1"}, encoding="utf-8",
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(code, *words):
        asked = {"code": code, "words": [str(w) for w in words]}
        print(json.dumps(asked), file=process.stdin, flush=True)
        said, wrong = json.loads(process.stdout.readline())
        assert not wrong, wrong
        return said

    yield ask
    process.stdin.close()
    process.wait(60)


def run_here(*words):
    "`insight-nb run`, whose recipe runs in this process: a kernel would import all anew."
    with mock.patch.object(cli, "_papermill", in_process):
        return main(["run", *map(str, words)])


@pytest.fixture
def ends(monkeypatch, capsys):
    """Run the command line; return its status, the lines on stderr, and whether the folder is as it
    was."""
    monkeypatch.setattr(cli, "_papermill", in_process)

    # the folder for all runs may stay
    def files():
        return {p: p.stat().st_size for p in Path().rglob("*") if str(p) != "runs"}

    def run(*words):
        before = files()
        status = cli.main([str(w) for w in words])
        return types.SimpleNamespace(
            status=status, lines=capsys.readouterr().err.splitlines(), same=before == files()
        )

    return run


def refused(end, *words):
    "Status 2, one line with these words in it, nothing left behind."
    assert (end.status, len(end.lines), end.same) == (2, 1, True), end
    assert end.lines[0].startswith("insight-nb: ") and "Traceback" not in end.lines[0]
    assert all(w in end.lines[0] for w in words), end.lines[0]
