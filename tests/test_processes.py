"Two processes share each batch, and end with the weights of one."
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

JOB = """
import sys
import numpy as np
from safetensors.torch import save_file
from insight_nb.data.dataset import Dataset, tokenise
from insight_nb.models.backbone import Backbone
from insight_nb.models.tasks import Classify, Model
from insight_nb.tensors import FakeEncoder, FakeTokenizer, seed_all
from insight_nb.train.optim import Settings
from insight_nb.train.trainer import Trainer

r = np.random.default_rng(0)
y = r.integers(0, 2, 245) # the last batch is an odd one
texts = ["".join(r.choice(list("abm" if c else "yzm"), r.integers(3, 12))) for c in y]
rows = Dataset(tokenise(texts, FakeTokenizer(), max_length=16), labels=y)
seed_all(0)
model = Model(Backbone(FakeEncoder(width=8, vocab=5000), FakeTokenizer(), "fake", width=8), Classify(["late", "early"], dropout=0.))
settings = Settings(epochs=2, batch_size=16, learning_rate=5e-3, head_learning_rate=5e-2)
trainer = Trainer(model, rows, rows, lambda y, answers: float((answers == y).mean()), settings, device="cpu", precision="no")
trainer.fit()
trainer.save(f"{sys.argv[1]}/run") # all processes write the same run: it must come out whole
if trainer.acc.is_main_process: save_file(trainer.model.state_dict(), f"{sys.argv[1]}/weights.safetensors")
print(trainer.acc.num_processes, "processes, losses", [h["loss"] for h in trainer.history])
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def train(folder, launcher):
    folder.mkdir()
    (folder / "job.py").write_text(JOB)
    done = subprocess.run([*launcher, str(folder / "job.py"), str(folder)], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in folder.iterdir()) == ["job.py", "run", "weights.safetensors"]
    return load_file(folder / "weights.safetensors"), done.stdout


def test_two_processes_give_the_result_of_one(tmp_path):
    one, said = train(tmp_path / "one", [sys.executable])
    assert "1 processes" in said
    # accelerate's name for "several processes" is multi_gpu; without a GPU they run on the CPU
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    two, said = train(tmp_path / "two", launch)
    assert said.count("2 processes") == 2
    for name in one: np.testing.assert_allclose(two[name], one[name], rtol=0, atol=2e-6, err_msg=name)
    assert any(not np.array_equal(one[name], np.zeros_like(one[name])) for name in one)
