"""Do two trees of this project give the same results? Every recipe on its sample, seed 0.

    python tests/compare_runs.py run OUT [RECIPE ...]    run the recipes
    python tests/compare_runs.py compare OLD NEW         compare two such folders

What must differ is left out: times, memory, versions, and the names of parameters.
Everything else must be equal: numbers to the last digit, bundles and predictions to the last byte.
"""
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from insight_nb.cli import main; raise SystemExit(main())"]
RECIPES = ("classify tag regress multilabel pair ladder decide assistant monitor recommend risk "
           "diagnose distill audit label weak evaluate").split()
TEXTS = ["text,second", "The parcel came late and broken.,I want my money back",
         "很好的服务，下次还来,谢谢", "<b>so good</b> 😀,yes", "Anna Smith lives in Paris.,where?"]
# Of these keys the values depend on the machine, the moment or the package's own names.
MACHINE = re.compile(
    r"seconds|_ms|memory|cpu_share|versions|per_second|minutes|price|per_million|cost\.(fit|ask)"
    r"|parameters_given|settings|seal|\.source$|\.path$|\bstate\b|trained_on|saved_at")


def run(out: Path, recipes):
    out.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    (out / "texts.csv").write_text("\n".join(TEXTS) + "\n")
    for recipe in recipes:
        start, folder = time.time(), out / recipe
        command = [*COMMAND, "run", recipe, "--out", str(folder)]
        if recipe == "ladder":
            command += ["-p", "state", str(out / "state")]
        code = subprocess.run([*command, "--force"], env=env, capture_output=True).returncode
        print(f"{recipe:10} exit {code}, {time.time() - start:.0f} s", flush=True)
        if (folder / "bundle" / "bundle.json").exists():
            command = [*COMMAND, "predict", str(folder / "bundle"),
                       str(out / "texts.csv"), "--out", str(folder / "predictions.csv")]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            print(f"{'':10} predict exit {done.returncode} {done.stderr.strip()[:90]}", flush=True)


def leaves(value, at=""):
    "Every number and text of a nested value, with its place."
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{at}[{number}]")
    else:
        yield at, value


def content(path: Path):
    "What is compared of a file: the leaves of a JSON file, the hash of another."
    if path.suffix == ".json" and not path.name.startswith(("tokenizer", "config")):
        return {at: v for at, v in leaves(json.loads(path.read_text())) if not MACHINE.search(at)}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(folder: Path):
    skip = {".html", ".ipynb", ".sqlite", ".db", ".md"}
    return {str(p.relative_to(folder)) for p in folder.rglob("*")
            if p.is_file() and p.suffix not in skip}


def compare(old: Path, new: Path) -> int:
    different = 0
    for recipe in RECIPES:
        a, b = files_of(old / recipe), files_of(new / recipe)
        problems = [f"{name} is only in one tree" for name in sorted(a ^ b)]
        values = 0
        for name in sorted(a & b):
            before = content(old / recipe / name)
            after = content(new / recipe / name)
            if isinstance(before, str):
                values += 1
                problems += [f"{name}: other bytes"] if before != after else []
                continue
            values += len(before)
            for at in sorted(before.keys() | after.keys()):
                if before.get(at) != after.get(at):
                    problems.append(f"{name}{at}: {before.get(at)!r} -> {after.get(at)!r}")
        different += len(problems)
        if not problems and a:
            state = "equal"
        elif a:
            state = f"{len(problems)} differ"
        else:
            state = "did not run"
        print(f"{recipe:10} {len(a & b):3} files, {values:5} values: {state}")
        for problem in problems[:20]:
            print("     ", problem[:240])
    return different


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("run", "compare"):
        sys.exit(__doc__)
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), sys.argv[3:] or RECIPES)
    else:
        sys.exit(1 if compare(Path(sys.argv[2]), Path(sys.argv[3])) else 0)
