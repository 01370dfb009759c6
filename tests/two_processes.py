"""The trainings of test_processes.py: each process runs this file with the folder for its results,
the name of an encoder, and what to train."""
import os
import sys
import tempfile
import insight_nb.train.trainer as trainer
import pandas as pd
import torch
from insight_nb import SpanTagger, TextClassifier
from insight_nb.data.sources import open_table
from insight_nb.jobs.students import Distillation, Ensemble
from insight_nb.jobs.update import BundleUpdate, UpdateOptions
from insight_nb.jobs.update_rows import mark_rows, plan_update
from insight_nb.train.checkpoint import Checkpoint
from insight_nb.train.processes import FollowerDone, ProcessGroup
from safetensors.torch import save_file


class NoDropout:
    "Each process draws dropout for its own rows: without it, both must give the same."
    def on_train_begin(self, t):
        for part in t.model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.

    def child(self, name): return self # as of a `Tracking`


trainer.default_precision = lambda device="cpu": "no" # 16 bits round what is shared out otherwise
words = "bright clean warm lovely kind", "broken dirty late rude cold", "房间 干净 早餐 服务 安静"
y = [i * 7 % 3 for i in range(101)] # the last batch is an odd one
X = [f"{words[c].split()[i % 5]} {words[c].split()[i // 5 % 5]} stay {i}" for i, c in enumerate(y)]


def how(encoder):
    return {"backbone": encoder, "epochs": 2, "batch_size": 16, "max_length": 16, "device": "cpu",
            "options": {"anyway": True}}


def train(kind, folder, encoder):
    texts, answers = X, y
    if kind == "tag":
        model, texts = SpanTagger(**how(encoder)), [text.split() for text in X]
        answers = [["B-GOOD" if c == 0 else "O", "O", "O", "B-NUMBER"] for c in y]
    else:
        model = TextClassifier(method=kind, rank=4 if kind == "lora" else None, **how(encoder))
    checkpoint = Checkpoint(f"{folder}/{kind}.run.safetensors") # all processes ask for it
    model.callbacks = [NoDropout(), checkpoint]
    try:
        model.fit(texts, answers, valid=20)
    except FollowerDone:
        return "a follower"
    assert "forward" not in vars(model.trainer_.model)  # as it would be left in 16 bits
    save_file(model.bundle_.model.state_dict(), f"{folder}/{kind}.safetensors")
    return f"{model.trainer_.processes} processes, {model.setup_.group.differing} differ"


def old_and_new(labels): # of the bundle: two of three
    rows = pd.DataFrame({"text": X, "label": [str(c) for c in y]})
    known, later = rows[rows.label.isin(labels)], rows[~rows.label.isin(labels)]
    marked = [mark_rows(open_table(known), "old"), mark_rows(open_table(later), "new")]
    return plan_update(labels, pd.concat(marked, ignore_index=True))


def several(folder, encoder): # a bundle, two updates of it and a student: one group of processes
    # one process would spare the word vectors that a batch lacks the penalty, and two don't
    trainer.Trainer.supports_sparse_updates = lambda self: False
    group, quiet = ProcessGroup(several=True), NoDropout()
    first = TextClassifier(**how(encoder))
    first.group, first.callbacks = group, [quiet]
    some = [i for i, c in enumerate(y) if c != 2]
    first.fit([X[i] for i in some], [str(y[i]) for i in some], valid=20)
    with tempfile.TemporaryDirectory() as own: # each process has its own copy of the bundle
        first.save(f"{own}/first")
        options = UpdateOptions(replay=5, epochs=2, batch_size=16)
        update = BundleUpdate(f"{own}/first", old_and_new(["0", "1"]), options, device="cpu")
        update.group, update.tracking = group, quiet
        runs = [update.run(strategy) for strategy in ("replay+distill+ewc", "anew")]
    job = Distillation(Ensemble([first.bundle_] * 2), "tfidf,layers:1", device="cpu")
    job.group, job.tracking = group, quiet
    rows = pd.DataFrame({"text": X, "label": [str(c) for c in y]})
    labeled = rows.iloc[some[:30]] # a teacher that has learned so little may know one label alone
    job.set_rows(open_table(rows.drop(labeled.index)[["text"]], label=None), open_table(labeled))
    student = job.train(epochs=2, batch_size=16)[1].model.models[0]
    try:
        group.end(*(run.trainer for run in runs))
    except FollowerDone:
        return "a follower"
    models = {"first": first.bundle_.model, "student": student.model}
    models |= {run.strategy: run.trainer.model for run in runs}
    for name, model in models.items():
        save_file(model.state_dict(), f"{folder}/{name}.safetensors")
    assert {run.trainer.processes for run in runs} == {group.processes}
    return f"{group.processes} processes, {group.differing} differ"


folder, encoder, kinds, *ports = sys.argv[1:]
group = dict(os.environ)
for i, kind in enumerate(kinds.split(",")):
    if ports: # each of them is a group of its own
        os.environ.update(group, MASTER_PORT=ports[i])
    said = several(folder, encoder) if kind == "several" else train(kind, folder, encoder)
    # one write, so that two processes never mix their lines
    os.write(1, f"{kind}: {said}\n".encode())
