"""A run that was cut off leaves nothing under its final name; --resume ends it like any other."""
import os
import signal
import subprocess
import sys
import time

import pytest
from compare_runs import COMMAND, content, files_of
from conftest import rows_of, run_here, tiny_encoder, write_csv
from insight_nb.cli import checkpoint_file, main

# a small encoder, whose checkpoints are small, and so many steps that a signal comes in time
QUICK = ["-p", "backbone", "tiny", "-p", "epochs", "3", "-p", "max_length", "24",
         "-p", "batch_size", "4"]
ENV = {**os.environ, "INSIGHT_NB_CHECKPOINT_SECONDS": "0", "INSIGHT_NB_PROGRESS": "quiet"}


def start(table, out, *more):
    command = [*COMMAND, "run", "classify", "-p", "table", table, *QUICK, "--out", str(out), *more]
    return subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True)


def run(table, out, *more):
    return run_here("classify", "-p", "table", table, *QUICK, "--out", out, *more)


def test_a_run_that_the_system_ended_goes_on(tmp_path, capsys):
    tiny_encoder("tiny")
    table = write_csv(tmp_path / "rows.csv", rows_of(400))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(table, whole) == 0
    assert not checkpoint_file(whole).exists()

    process = start(table, cut)
    while not checkpoint_file(cut).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "To go on: insight-nb run classify -p" in process.stderr.read()
    assert run(table, cut) == 2 # what was trained is not lost to a word forgotten
    assert "--resume" in capsys.readouterr().err and checkpoint_file(cut).exists()
    assert checkpoint_file(cut).exists() and not cut.exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".cut.")] == []

    assert run(table, cut, "--resume") == 0
    assert not checkpoint_file(cut).exists()
    assert files_of(whole) == files_of(cut)
    different = [n for n in files_of(whole) if content(whole / n) != content(cut / n)]
    assert different == []


@pytest.mark.slow
def test_a_checkpoint_of_other_rows_or_settings_is_refused(tmp_path, capsys):
    tiny_encoder("tiny")
    table = write_csv(tmp_path / "rows.csv", rows_of(400))
    other = write_csv(tmp_path / "other.csv", rows_of(403))
    process = start(table, tmp_path / "a")
    while not checkpoint_file(tmp_path / "a").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(.02)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    again = ["classify", *QUICK, "--out", str(tmp_path / "a"), "--resume"]
    for given, word in ((["-p", "table", other], "another set of rows"),
                        (["-p", "table", table, "-p", "smoothing", "0.1"], "another loss"),
                        (["-p", "table", table, "-p", "method", "bitfit"], "another method")):
        assert run_here(*again, *given) == 2
        said = capsys.readouterr().err
        assert word in said and said.count("\n") <= 2, said
        assert checkpoint_file(tmp_path / "a").exists() and not (tmp_path / "a").exists()


@pytest.mark.parametrize("given, word", [
    (["run", "classify", "--resume"], "--out"),
    (["run", "risk", "--resume", "--out", "a"], "keeps no checkpoint"),
    (["run", "classify", "-p", "checkpoint", "x", "--out", "a"], "--resume --out FOLDER"),
])
def test_what_cannot_be_resumed_is_said(given, word, capsys):
    assert main(given) == 2
    assert word in capsys.readouterr().err


def test_sigterm_ends_a_training_in_python_with_143(tmp_path):
    code = f"""
import signal
from insight_nb.base.tensors import FakeEncoder, FakeTokenizer
from insight_nb.data.dataset import TokenDataset
from insight_nb.data.tokens import tokenize
from insight_nb.models.backbone import Backbone
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.train.checkpoint import Checkpoint
from insight_nb.train.optim import TrainConfig
from insight_nb.train.trainer import Trainer
rows = TokenDataset(tokenize(["abm", "yzm"] * 120, FakeTokenizer(), max_length=16),
                    labels=[0, 1] * 120)
model = Model(Backbone(FakeEncoder(width=8, vocab=5000), FakeTokenizer(), "fake", width=8),
              ClassificationTask(["late", "early"]))
class Taken:
    def on_step_end(self, trainer):
        if trainer.state.global_step == 5:
            signal.raise_signal(signal.SIGTERM)
Trainer(model, rows, config=TrainConfig(epochs=2), device="cpu", precision="no",
        callbacks=[Taken(), Checkpoint({str(tmp_path / "c")!r}, seconds=1e9)]).fit()
"""
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=here, text=True,
                          capture_output=True)
    assert done.returncode == 143, done.stderr
    assert (tmp_path / "c").exists()
