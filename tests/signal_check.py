"""What a signal leaves of a run that was to replace another. On demand: `make kills`.

    python tests/signal_check.py [RECIPE=TIMES ...]

A first run leaves its results. Then, TIMES times, a run that is to replace them gets SIGKILL,
SIGTERM or SIGINT in turn at a random moment, as its parent alone would get it. Afterwards there
must be either the old results or the new, never a mixture; no process of the run; and after the
next run into the same folder nothing temporary, beside the results or in the temporary folder.
"""
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from compare_runs import COMMAND
from insight_nb import load
from insight_nb.base.core import hash_folder

OPTIONS = {
    "classify": {"rows": 150, "epochs": 1, "max_length": 32},
    "ladder": {"rows": 300, "rungs": "majority,TF-IDF + linear,frozen + linear"},
    "tag": {"rows": 100, "epochs": 1}, "regress": {"rows": 100, "epochs": 1},
    "multilabel": {"rows": 100, "epochs": 1}, "pair": {"rows": 100, "epochs": 1},
    "assistant": {"rows": 200}, "diagnose": {"rows": 200, "epochs": 1, "folds": 0},
    "risk": {"folds": 3, "repeats": 1, "compare": "false"}, "distill": {"rows": 100, "epochs": 1},
    "update": {"rows": 60, "epochs": 1, "compare": "false"}, "monitor": {}, "recommend": {},
    "decide": {}, "label": {"test_rows": 20}, "weak": {}, "evaluate": {"rows": 100}}
TIMES = {"classify": 20, "ladder": 20}  # of the others: 5
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDS = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {0, 2, 130, -2}}
TOY = {"cells": [
    {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "outputs": [],
     "execution_count": None, "source": "out: str | None = None  # where"},
    {"cell_type": "code", "id": "b", "metadata": {}, "outputs": [], "execution_count": None,
     "source": "from insight_nb.base.core import ScratchFolder\nScratchFolder().close()"}],
       "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def environment(home):
    (home / "temp").mkdir(exist_ok=True)
    return {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "CI": "1",
            "INSIGHT_NB_PROGRESS": "quiet", "TMPDIR": str(home / "temp"),
            "INSIGHT_NB_CACHE": str(home / "cache")}


def start(recipe, out, home, options, *more):
    given = [word for name, value in options.items() for word in ("-p", name, str(value))]
    command = [*COMMAND, "run", recipe, *given, "--out", str(out), *more]
    return subprocess.Popen(command, env=environment(home), cwd=home, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def interrupt(process, number, moment):
    "Send a signal; what came of it: the status, the processes that outlive it, and the words."
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        said = process.communicate(timeout=300)[1]
        _, alive = psutil.wait_procs(family, timeout=20)  # a kernel looks for its parent
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        return process.returncode, [" ".join(p.cmdline()[:4]) for p in alive if p.is_running()
                                    ] or [f"process {p.pid}" for p in alive], said
    return process.returncode, [], process.communicate()[1]


def state(out, old, began):
    "Whether a folder is the old run, or the new one; else what is wrong with it."
    if hash_folder(out) == old:
        return "old"
    files = [p for p in out.glob("*") if p.is_file()]  # a bundle from a cache keeps its times
    if not files or any(p.stat().st_mtime < began for p in files):
        return "A MIXTURE" if files else "NOTHING"
    told = json.loads((out / "notebook.ipynb").read_text())["metadata"]["insight_nb"]["left"]
    if set(told) - set(os.listdir(out)):
        return "NOT WHOLE"
    if (out / "bundle").exists():
        load(out / "bundle")
    return "new"


def leftovers(home, before):
    "What is there that a run has not put there for good."
    names = [p.name for p in home.iterdir() if p.name not in before
             and not p.name.endswith((".checkpoint.safetensors", ".failed.ipynb"))]
    return sorted(names) + sorted(f"temp/{n}" for n in os.listdir(home / "temp"))


def check(recipe, times, home):
    (home / "toy.ipynb").write_text(json.dumps(TOY))
    out, draw, began = home / "out", random.Random(0), time.time()
    first = start(recipe, home / "whole", home, OPTIONS[recipe])
    wrong = first.communicate()[1]
    if first.returncode:
        raise SystemExit(f"{recipe}: the first run ended with {first.returncode}: {wrong}")
    usual, old, good, became = time.time() - began, hash_folder(home / "whole"), 0, []
    before = {*os.listdir(home), "out", "cache", "runs"}
    for i in range(times):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(home / "whole", out)
        for left in home.glob("out.*"):
            left.unlink()
        moment, number, began = draw.uniform(.02, 1.05) * usual, SIGNALS[i % 3], time.time()
        process = start(recipe, out, home, OPTIONS[recipe], "--force")
        status, alive, said = interrupt(process, number, moment)
        found = state(out, old, began)
        after = start("toy.ipynb", home / f"next-{i}", home, {})
        said_after = after.communicate()[1]
        shutil.rmtree(home / f"next-{i}", ignore_errors=True)
        faults = [] if found in ("old", "new") else [found]
        faults += [f"still running: {p}" for p in alive]
        if status not in ENDS[number] | {0} or "Traceback" in said:
            faults.append(f"status {status}: {said[-300:]}")
        if after.returncode:
            faults.append(f"the next run: {said_after[-300:]}")
        faults += [f"left: {n}" for n in leftovers(home, before)]
        became.append(found)
        good += not faults
        print(f"{recipe}: {number.name} after {moment:.1f} of {usual:.1f} s: status {status}, "
              f"{found} results; {'; '.join(faults) or 'fine'}", flush=True)
    print(f"{recipe}: {good} of {times} as promised, {became.count('old')} times the old results, "
          f"{became.count('new')} times the new", flush=True)
    return good == times


if __name__ == "__main__":
    asked = [word.partition("=") for word in sys.argv[1:]] or [(r, "", "") for r in OPTIONS]
    done = []
    for recipe, _, times in asked:
        with tempfile.TemporaryDirectory() as folder:
            done.append(check(recipe, int(times or TIMES.get(recipe, 5)), Path(folder)))
    sys.exit(0 if all(done) else 1)
