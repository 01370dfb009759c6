"""Does it work in other people's environments? On demand, each in a new one under build/.

    python tests/environments.py colab      the versions of Google Colab: nothing installed changes;
                                            classify, predict and a ladder on 500 rows
    python tests/environments.py pandas3    the notebooks of data and base with pandas 3
"""
import json
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build"
COLAB = ROOT / "tests" / "constraints-colab.txt"


def sh(*command, **how):
    print("$", *(str(c).replace(f"{ROOT}/", "") for c in command), flush=True)
    return subprocess.run([str(c) for c in command], check=True, cwd=ROOT, **how)


def environment(name):
    "A new environment: the path of its programs."
    venv.create(BUILD / name, with_pip=True, clear=True)
    programs = BUILD / name / "bin"
    sh(programs / "pip", "install", "-q", "uv")
    return programs


def installed(programs) -> dict:  # package -> version
    found = subprocess.run([programs / "pip", "list", "--format", "json"], check=True, text=True,
                           capture_output=True)
    return {p["name"]: p["version"] for p in json.loads(found.stdout)}


def install(programs, what):
    "Install as a user does, and return what it changed of what was there."
    before, began = installed(programs), time.time()
    sh(programs / "pip", "install", "-q", what)
    print(f"  {time.time() - began:.0f} s", flush=True)
    after = installed(programs)
    return {name: (version, after.get(name)) for name, version in before.items()
            if after.get(name) != version}


def colab():
    programs = environment("colab")
    names = [line.split("==")[0] for line in COLAB.read_text().splitlines()
             if line and not line.startswith("#")]
    sh(programs / "uv", "pip", "install", "-q", "--python", programs / "python", "-c", COLAB,
       "-c", ROOT / "constraints.txt", "torch", *names)
    for extra in ("", "[samples]", "[apps]"):
        changed = install(programs, f"{ROOT}{extra}")
        assert not changed, f"insight_nb{extra} changes what Colab has: {changed}"
    run = programs / "insight-nb"
    out = BUILD / "colab-runs"
    sh(run, "run", "classify", "-p", "rows", "500", "--out", out / "classify", "--force")
    table = BUILD / "colab-texts.csv"
    table.write_text("text\nI love it\n很好\n", encoding="utf-8")
    sh(run, "predict", out / "classify" / "bundle", table)
    sh(run, "run", "ladder", "-p", "rows", "500", "--out", out / "ladder", "--force")


def pandas3():
    programs = environment("pandas3")
    sh(programs / "uv", "pip", "install", "-q", "--python", programs / "python",
       "-c", ROOT / "constraints.txt", "-e", f"{ROOT}[samples,films]", "pandas>=3,<4",
       "nbdev>=3.3.26,<4", "python-crfsuite", "polars", "bm25s")
    version = installed(programs)["pandas"]
    assert version.startswith("3."), version
    for folder in ("base", "data"):
        sh(programs / "nbdev-test", ROOT / "nbs" / folder)
    print(f"pandas {version}: the notebooks of base and data pass")


if __name__ == "__main__":
    known = {f.__name__: f for f in (colab, pandas3)}
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        sys.exit(__doc__)
    known[sys.argv[1]]()
