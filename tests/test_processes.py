"Two processes share each batch, and end with the weights of one."

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import rows_of, tiny_encoder, write_csv
from insight_nb.cli import main
from insight_nb.train.processes import GROUP, free_port
from safetensors.numpy import load_file

JOB = Path(__file__).with_name("two_processes.py")


def start(folder, encoder, *ports, **more):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, str(JOB), str(folder), str(encoder), *ports],
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"} | more)


def end(process):
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong[-2000:]
    return said


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_encoder(folder)
    return folder


def test_two_processes_give_the_result_of_one(tmp_path, encoder):
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ports = [str(free_port()) for _ in range(4)]
    both = [start(tmp_path / "two", encoder, *ports, RANK=str(i), LOCAL_RANK=str(i), **group)
            for i in range(2)]
    first, second = map(end, both)
    assert first.count("2 processes, 0 differ") == 4 and second.count("a follower") == 4
    assert end(start(tmp_path / "one", encoder)).count("1 processes, None differ") == 4
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 10 # three of them are checkpoints
    for file in [name for name in files[0] if "run" not in name]:
        one, two = (load_file(tmp_path / n / file) for n in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-5,
                                       err_msg=f"{file} {name}")


def test_a_recipe_in_two_processes(tmp_path, encoder):
    table = write_csv(tmp_path / "t.csv", rows_of(90))
    words = ["run", "classify", "-p", "table", table, "-p", "backbone", str(encoder), "-p",
             "anyway", "true", "-p", "epochs", "1", "-p", "processes", "2", "--out"]
    before = {name: os.environ.get(name) for name in GROUP}
    assert main([*words, str(tmp_path / "a")]) == 0
    assert {name: os.environ.get(name) for name in GROUP} == before
    evidence = json.loads((tmp_path / "a" / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["cost"]["processes"] == 2
    guard = {g["check"]: g["passed"] for g in evidence["guard"]}
    assert guard["processes_agree"] and guard["reload_equal"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "t.csv"]  # followers leave nothing


@pytest.mark.parametrize("given, there, said", [
    (["classify", "-p", "processes", "0"], {}, "processes is 0"),
    (["classify"], {"ACCELERATE_USE_FSDP": "true"}, "FSDP is not for encoders"),
    (["audit"], {"WORLD_SIZE": "2"}, "audit works in one process"),
])
def test_what_can_t_work_is_refused(ends, monkeypatch, given, there, said):
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    done = ends("run", *given)
    assert done.status == 2 and said in done.lines[-1] and done.same
