"""The trainings of test_processes.py: each process runs this file with the folder for its results,
and the name of an estimator."""
import os
import sys
import insight_nb.train.trainer as trainer
import torch
from insight_nb import SpanTagger, TextClassifier
from insight_nb.train.checkpoint import Checkpoint
from insight_nb.train.processes import FollowerDone
from safetensors.torch import save_file


class NoDropout:
    "Each process draws dropout for its own rows: without it, both must give the same."
    def on_train_begin(self, t):
        for part in t.model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.


trainer.default_precision = lambda device="cpu": "no" # 16 bits round what is shared out otherwise
words = "bright clean warm lovely kind", "broken dirty late rude cold", "房间 干净 早餐 服务 安静"


def train(kind, folder, encoder):
    y = [i * 7 % 3 for i in range(101)] # the last batch is an odd one
    X = [f"{words[c].split()[i % 5]} {words[c].split()[i // 5 % 5]} stay {i}"
         for i, c in enumerate(y)]
    how = {"backbone": encoder, "epochs": 2, "batch_size": 16, "max_length": 16, "device": "cpu"}
    if kind == "tag":
        model, X = SpanTagger(**how), [text.split() for text in X]
        y = [["B-GOOD" if c == 0 else "O", "O", "O", "B-NUMBER"] for c in y]
    else:
        model = TextClassifier(method=kind, rank=4 if kind == "lora" else None, **how)
    checkpoint = Checkpoint(f"{folder}/{kind}.run.safetensors") # all processes ask for it
    model.callbacks = [NoDropout(), checkpoint]
    try:
        model.fit(X, y, valid=20)
    except FollowerDone:
        return "a follower"
    save_file(model.bundle_.model.state_dict(), f"{folder}/{kind}.safetensors")
    return f"{model.trainer_.processes} processes, {model.setup_.differing} differ"


folder, encoder, *ports = sys.argv[1:]
group = dict(os.environ)
for i, kind in enumerate(("full", "lora", "tag")):
    if ports: # each training is a group of its own
        os.environ.update(group, MASTER_PORT=ports[i])
    # one write, so that two processes never mix their lines
    os.write(1, f"{kind}: {train(kind, folder, encoder)}\n".encode())
