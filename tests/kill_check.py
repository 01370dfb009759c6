"""Is a run that was killed the run that was not? On demand: half an hour on two cores.

    python tests/kill_check.py [KILLS] [RECIPE ...]

Each recipe runs once undisturbed. Then, KILLS times, it is killed (SIGKILL, with its kernel) at a
random moment and taken up with --resume: bundle and evidence must be the same to the last byte,
but for times, and nothing half-written may stand under a final name.
"""
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from compare_runs import COMMAND, content, files_of

OPTIONS = {"classify": ["-p", "rows", "600", "-p", "epochs", "4"],
           "tag": ["-p", "epochs", "3"]}
ENV = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1",
       "INSIGHT_NB_CHECKPOINT_SECONDS": "0.5", "INSIGHT_NB_PROGRESS": "quiet"}
KEPT = {"bundle", "evidence.json", "notebook.ipynb", "report.html"}


def start(recipe, out, *more):
    command = [*COMMAND, "run", recipe, *OPTIONS[recipe], "--out", str(out), *more]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def finish(process):
    error = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}: {error}")


def kill(process):
    "Kill a run with all of its processes, and say how many there were."
    parent = psutil.Process(process.pid)
    all_of_them = [*parent.children(recursive=True), parent]
    for one in all_of_them:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            one.send_signal(signal.SIGKILL)
    process.wait()
    return len(all_of_them)


def differences(one: Path, other: Path):
    names = files_of(one) ^ files_of(other)
    found = [f"{name} is only in one" for name in sorted(names)]
    for name in sorted(files_of(one) & files_of(other)):
        a, b = content(one / name), content(other / name)
        if a == b:
            continue
        if isinstance(a, str):
            found.append(name)
        else:
            found += [f"{name}{k}: {a.get(k)!r} or {b.get(k)!r}"
                      for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    return found


def check(recipe, kills, folder):
    whole, began = folder / "whole", time.time()
    finish(start(recipe, whole))
    usual, good = time.time() - began, 0
    draw = random.Random(0)
    for number in range(kills):
        out, moment = folder / f"{recipe}-{number}", draw.uniform(.05, .98) * usual
        process = start(recipe, out)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            kill(process)
        half = out.exists() and set(os.listdir(out)) != KEPT
        if not out.exists():
            finish(start(recipe, out, "--resume"))
        wrong = differences(whole, out) + ["something half-written"] * half
        marks = (f".{out.name}.", f"{out.name}.")
        left = [p.name for p in folder.iterdir() if p.name.startswith(marks)]
        good += not wrong and not left
        print(f"{recipe}: killed after {moment:.1f} of {usual:.1f} s:",
              ", ".join(wrong + left) or "the same", flush=True)
    print(f"{recipe}: {good} of {kills} are the undisturbed run", flush=True)
    return good == kills


if __name__ == "__main__":
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder:
        done = []
        for recipe in sys.argv[2:] or OPTIONS:
            (Path(folder) / recipe).mkdir()
            done.append(check(recipe, kills, Path(folder) / recipe))
    sys.exit(0 if all(done) else 1)
