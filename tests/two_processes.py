"""The training run of test_processes.py: each process runs this file with the folder for its
results."""
import os
import sys
import numpy as np
from safetensors.torch import save_file
from insight_nb.data.dataset import TokenDataset
from insight_nb.data.tokens import tokenize
from insight_nb.models.backbone import Backbone
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.base.tensors import FakeEncoder, FakeTokenizer, set_seed
from insight_nb.train.optim import TrainConfig
from insight_nb.train.checkpoint import Checkpoint
from insight_nb.train.trainer import Trainer

r = np.random.default_rng(0)
y = r.integers(0, 2, 245) # the last batch is an odd one
texts = ["".join(r.choice(list("abm" if c else "yzm"), r.integers(3, 12))) for c in y]
rows = TokenDataset(tokenize(texts, FakeTokenizer(), max_length=16), labels=y)
set_seed(0)
model = Model(Backbone(FakeEncoder(width=8, vocab=5000), FakeTokenizer(), "fake", width=8),
              ClassificationTask(["late", "early"], dropout=0.))
settings = TrainConfig(epochs=2, batch_size=16, learning_rate=5e-3, head_learning_rate=5e-2)
trainer = Trainer(model, rows, rows, lambda y, answers: float((answers == y).mean()), settings,
                  device="cpu", precision="no")
trainer.fit()
# all processes write the same run: it must come out whole
Checkpoint(f"{sys.argv[1]}/run.safetensors").save(trainer)
if trainer.accelerator.is_main_process:
    save_file(trainer.model.state_dict(), f"{sys.argv[1]}/weights.safetensors")
losses = [h["loss"] for h in trainer.state.history]
# one write, so that two processes never mix their lines (print writes piece by piece)
os.write(1, f"{trainer.accelerator.num_processes} processes, losses {losses}\n".encode())
