"Two processes share each batch, and end with the weights of one."

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

JOB = Path(__file__).with_name("two_processes.py")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def train(folder, launcher):
    folder.mkdir()
    done = subprocess.run(
        [*launcher, str(JOB), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in folder.iterdir()) == ["run.safetensors", "weights.safetensors"]
    return load_file(folder / "weights.safetensors"), done.stdout


def test_two_processes_give_the_result_of_one(tmp_path):
    one, said = train(tmp_path / "one", [sys.executable])
    assert "1 processes" in said
    # accelerate's name for "several processes" is multi_gpu; without a GPU they run on the CPU
    launch = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        free_port(),
    ]
    two, said = train(tmp_path / "two", launch)
    assert said.count("2 processes") == 2
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=2e-6, err_msg=name)
    assert any(not np.array_equal(one[name], np.zeros_like(one[name])) for name in one)
