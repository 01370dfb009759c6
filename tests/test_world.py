"""What the world does to a run: another run, a signal, a closed terminal, a full disk, a name."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_here
from insight_nb.cli import main

COMMAND = Path(sys.executable).with_name("insight-nb")
PARAMETERS = '''word: str = "banana"  # the word to count
seconds: float = 0.0  # how long it takes
size: int = 0  # bytes to write
out: str | None = None  # set by the command line'''
BODY = '''import json, time
from pathlib import Path
import numpy
from insight_nb.base.core import ScratchFolder
scratch = ScratchFolder()
(scratch.path / "weights").write_bytes(b"0" * 1000)
Path(out, "word.txt").write_text(word + "0" * size)
Path("started").touch()
print(word, out)
time.sleep(seconds)'''


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    "A small recipe, and a folder of its own for temporary files."
    def cell(source, kind="code", tags=()):
        made = {"cell_type": kind, "id": f"c{len(source)}", "metadata": {"tags": list(tags)},
                "source": source}
        return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})

    cells = [cell("# Toy\n\n> Writes a word.", "markdown"), cell(PARAMETERS, tags=["parameters"]),
             cell(BODY), cell("out")]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    Path("toy.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))


def start(*words, **how):
    return subprocess.Popen([COMMAND, *words], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **how)


def run(*words, **how):
    process = start(*words, **how)
    said, wrong = process.communicate(timeout=120)
    return process.returncode, said, wrong


def wait_for(file):
    until = time.monotonic() + 60
    while not Path(file).exists():
        assert time.monotonic() < until, f"no {file}"
        time.sleep(.05)


def names(folder="."):
    return sorted(p.name for p in Path(folder).iterdir())


@pytest.mark.slow
def test_two_runs_into_one_folder():
    first = start("run", "toy.ipynb", "--out", "a", "-p", "seconds", "4", "-p", "word", "first")
    wait_for("started")
    status, _, wrong = run("run", "toy.ipynb", "--out", "a")
    assert (status, wrong.count("\n")) == (2, 1)
    assert "a is being written by another process, number " in wrong
    assert first.wait(60) == 0
    assert Path("a/word.txt").read_text() == "first"
    assert main(["run", "toy.ipynb", "--out", "a"]) == 2
    assert Path("a/word.txt").read_text() == "first"


@pytest.mark.parametrize("number", [
    "SIGKILL", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGHUP", "SIGTERM"))])
def test_what_an_ended_run_leaves_is_removed(number, tmp_path):
    process = start("run", "toy.ipynb", "--out", "a", "-p", "seconds", "60",
                    preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    wait_for("started")
    process.send_signal(getattr(signal, number))
    status = process.wait(60)
    if number == "SIGKILL":
        assert status == -9 and any(".a.insight_nb_" in n for n in names())
        time.sleep(3)  # its kernel sees that it is alone, and ends
    else:
        assert status == 143 and not any("insight_nb_" in n for n in names())
    assert run("run", "toy.ipynb", "--out", "b")[0] == 0  # another name
    assert [n for n in names() if "insight_nb_" in n] == []
    assert [n for n in names("temp") if n.startswith(".scratch")] == []
    assert not Path("a").exists()


def test_nohup_is_heeded():
    process = start("run", "toy.ipynb", "--out", "a", "-p", "seconds", "2",
                    preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for("started")
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_no_module_of_the_current_folder_is_run():
    spy = "open('executed', 'w').close()\n"
    for module in ("numpy.py", "random.py", "yaml.py", "json.py"):
        Path(module).write_text(spy)
    Path("insight_nb").mkdir()
    Path("insight_nb/__init__.py").write_text(spy)
    assert run("run", "toy.ipynb", "--out", "a")[0] == 0
    assert not Path("executed").exists()


@pytest.mark.parametrize("out", [
    """备忘 é it's "two"\nlines""", pytest.param("a{b}%20&<i>", marks=pytest.mark.slow)])
def test_the_notebook_names_the_final_folder(out):
    status, said, wrong = run("run", "toy.ipynb", "--out", out, "-p", "word", "x\x1b]0;owned\x07")
    assert (status, wrong) == (0, "")
    assert "\x1b" not in said and "x�]0;owned�" in said  # nothing is done to a terminal
    text = Path(out, "notebook.ipynb").read_text(encoding="utf-8")
    assert "insight_nb_" not in text
    cells = json.loads(text)["cells"]
    shown = cells[-1]["outputs"][0]["data"]["text/plain"]
    assert eval("".join(shown)) == str(Path(out).absolute())


def test_a_file_may_grow_no_larger():
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    status, _, wrong = run("run", "toy.ipynb", "--out", "a", "-p", "size", "200000",
                           preexec_fn=limit)
    assert (status, wrong.count("\n")) == (2, 1) and "File too large" in wrong
    assert names() == ["temp", "toy.ipynb"] or names() == ["started", "temp", "toy.ipynb"]


def test_a_link_stays_a_link():
    assert run_here("toy.ipynb", "--out", "real") == 0
    Path("link").symlink_to("real")
    again = ["toy.ipynb", "--out", "link", "-p", "word", "again"]
    assert run_here(*again) == 2 and Path("real/word.txt").read_text() == "banana"
    assert run_here(*again, "--force") == 0
    assert Path("link").is_symlink() and Path("real/word.txt").read_text() == "again"


def test_an_empty_name(capsys):
    assert main(["run", "toy.ipynb", "--out", ""]) == 2
    said = capsys.readouterr().err.strip()
    assert said == "insight-nb: --out is empty: name a folder, or leave --out away."


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_output_in_another_encoding(encoding, trained):
    Path("t.csv").write_text("text,label\n好,很好\nGrüße 👍,b\n" * 3, encoding="utf-8")
    other = os.environ | {"PYTHONIOENCODING": encoding}
    status, said, wrong = run("check", "t.csv", env=other, encoding=encoding)
    assert status == 0, wrong
    done = subprocess.run([COMMAND, "predict", trained / "bundle", "t.csv"], env=other,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Grüße 👍" in done.stdout.decode("utf-8")  # a pipe gets UTF-8
