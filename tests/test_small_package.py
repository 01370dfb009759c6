"""The small package (datasets, models, trainers) works without the applications and decide."""
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import rows_of, write_csv
from notebooks import ROOT

SOURCES = ("setup.py", "settings.ini", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE")
# Where this checkout is installed to be edited, python would find what is gone there.
ALONE = ("import sys\n"
         "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in f'{f}']\n")
MAIN = "import sys; from insight_nb.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A wheel, built and unpacked, without two of its folders."
    root = tmp_path_factory.mktemp("small")
    for name in SOURCES:
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "insight_nb", root / "insight_nb")
    shutil.copytree(ROOT / "nbs" / "recipes", root / "nbs" / "recipes")
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation",
             "-q", "-w", "wheels"]
    subprocess.run(build, cwd=root, check=True)
    with zipfile.ZipFile(next((root / "wheels").glob("*.whl"))) as wheel:
        wheel.extractall(root / "site")
    for name in ("apps", "decide"):
        shutil.rmtree(root / "site" / "insight_nb" / name)
    (root / "site" / "sitecustomize.py").write_text(ALONE)
    return root / "site"


def run(site, *words, code=MAIN):
    "The command line of the unpacked wheel, in the folder where the test works."
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_folders_are_gone(site):
    code = ("import insight_nb, importlib.util as u; print(insight_nb.__file__); "
            "print(u.find_spec('insight_nb.apps'), u.find_spec('insight_nb.decide'))")
    file, gone = run(site, code=code).splitlines()
    assert (file.startswith(str(site)), gone) == (True, "None None")


@pytest.mark.slow
def test_classify_and_predict(site, tmp_path):
    table = write_csv(tmp_path / "table.csv", rows_of(150))
    run(site, "run", "classify", "-p", "table", table, "-p", "epochs", 1, "-p", "max_length", 32,
        "--out", "a")
    assert json.loads((tmp_path / "a" / "evidence.json").read_text())["task"] == "classify"
    run(site, "predict", "a/bundle", table, "--out", "answers.csv")
    assert (tmp_path / "answers.csv").read_text(encoding="utf-8").count("\n") >= 150


def test_every_module_that_is_left_can_be_imported(site):
    found = [p.relative_to(site).with_suffix("") for p in (site / "insight_nb").rglob("*.py")]
    names = [".".join(p.parts) for p in found if not p.name.startswith("_")]
    assert len(names) > 60
    run(site, code=f"import importlib\nfor name in {names}: importlib.import_module(name)")


@pytest.mark.slow
def test_ladder(site, tmp_path):
    table = write_csv(tmp_path / "table.csv", rows_of(150))
    run(site, "run", "ladder", "-p", "table", table, "-p", "rungs", "majority,TF-IDF + linear",
        "--out", "b")
    evidence = json.loads((tmp_path / "b" / "evidence.json").read_text())
    assert evidence["task"] == "ladder"
