"""What is true of the package: it comes from its notebooks byte for byte, it is light to import,
and it agrees with itself."""

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import insight_nb
import pytest
from notebooks import NBS, ROOT, library
from readme import differences

BIN = Path(sys.executable).parent
NO_TORCH = [
    "cli",
    "base.core",
    "data.table",
    "data.split",
    "data.labels",
    "data.audit",
    "eval.metrics",
    "eval.report",
    "eval.calibrate",
    "eval.errors",
    "apps.monitor.control_charts",
    "models.images",
]


def python(code, *, cwd=ROOT):
    "What a fresh interpreter prints."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The notebooks are the source


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The notebooks, the package and nbdev's settings, elsewhere."
    root = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "insight_nb"):
        shutil.copytree(
            ROOT / name,
            root / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for name in ("pyproject.toml", "settings.ini", "setup.py", "README.md"):
        shutil.copy(ROOT / name, root)
    return root


def contents(root):
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def export_and_clean(root):
    "The files that differ after an export and a clean."
    before = contents(root)
    for tool in ("nbdev-export", "nbdev-clean"):
        subprocess.run([BIN / tool], cwd=root, check=True, capture_output=True)
    after = contents(root)
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


def test_export_and_clean_change_what_was_planted_and_nothing_else(copy):
    sound = contents(copy)
    nb = copy / "nbs" / "base/01_core.ipynb"
    module = copy / "insight_nb" / "base" / "core.py"
    nb.write_text(nb.read_text().replace('"execution_count": null', '"execution_count": 7', 1))
    module.write_text(module.read_text() + "# written by hand\n")
    assert export_and_clean(copy) == ["insight_nb/base/core.py", "nbs/base/01_core.ipynb"]
    assert contents(copy) == sound  # as if nothing had been planted


def test_readme_says_what_the_index_says(copy):
    assert differences(ROOT) == []
    (copy / "README.md").write_text("something else")
    assert differences(copy) == ["README.md"]


def test_every_module_has_its_notebook():
    modules = {
        str(p.relative_to(ROOT / "insight_nb"))
        for p in (ROOT / "insight_nb").rglob("*.py")
        if not p.name.startswith("_")
    }
    assert modules == {f"{nb.module.replace('.', '/')}.py" for nb in library()}


# Light to import

LOADED = (
    "import sys, time; before = set(sys.modules); start = time.perf_counter(); import {}; "
    "took = time.perf_counter() - start; new = set(sys.modules) - before; "
)


def test_the_root_imports_nothing_but_what_must_come_before_torch():
    took = [python(LOADED.format("insight_nb") + "print(took, *new)").split() for _ in range(3)]
    light = {"insight_nb", "insight_nb.base", "insight_nb.base.threads"}
    assert all(set(t[1:]) == light for t in took)
    assert min(float(t[0]) for t in took) < 0.1
    assert "json" in python(LOADED.format("json") + "print(*new)")  # it would show


FIRST_HEAVY = """
import importlib, sys
for name in {}:
    importlib.import_module(name)
    if {{"torch", "transformers"}} & set(sys.modules):
        print(name)
        break
"""


def heavy(module, *unwanted):
    return python(LOADED.format(module) + f"print(*new & {set(unwanted)})")


def test_no_torch():
    "One Python imports them one after the other; the first that brings torch along is named."
    modules = NO_TORCH + [n.module for n in library() if n.module.startswith("decide.")]
    assert len(modules) > 20
    assert python(FIRST_HEAVY.format([f"insight_nb.{m}" for m in modules])) == ""
    found = python(FIRST_HEAVY.format(["json", "insight_nb.base.tensors", "insight_nb.base.core"]))
    assert found == "insight_nb.base.tensors"


def test_nothing_loads_the_trainer_of_transformers():
    modules = ", ".join(f"insight_nb.{nb.module}" for nb in library())
    assert heavy(modules, "transformers.trainer", "sentence_transformers") == ""


def test_help_is_fast():
    def seconds():
        start = os.times().elapsed
        subprocess.run([BIN / "insight-nb", "--help"], check=True, capture_output=True)
        return os.times().elapsed - start

    assert min(seconds() for _ in range(3)) < 0.5


# It agrees with itself


def test_versions_agree():
    stated = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()[-1]
    shown = subprocess.run(
        [BIN / "insight-nb", "--version"], capture_output=True, text=True
    ).stdout.strip()
    assert {
        insight_nb.__version__,
        version("insight_nb"),
        stated,
        shown.removeprefix("insight-nb "),
    } == {insight_nb.__version__}


def test_requirements_have_no_spaces_inside():
    ini = ConfigParser(delimiters="=", interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    lists = [v for k, v in ini["DEFAULT"].items() if k.endswith("requirements")]
    # setup.py splits on white space
    assert all(re.match(r"[A-Za-z0-9]", word) for text in lists for word in text.split())


def test_the_house():
    "CI runs what README offers; the license is whole; every make target says what it does."
    readme, make, ci = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile", ".ci/run")
    )
    assert all(f"make {target}" in readme for target in ("demo", "test", "check"))
    assert (
        os.access(ROOT / ".ci" / "run", os.X_OK)
        and re.findall(r"^exec (.+)$", ci, re.M) == ["make check"]
        and "$(MAKE) test" in make
    )
    targets = re.findall(r"^([a-z]+):(?! export)(.*)$", make, re.M)
    assert {t for t, _ in targets} >= {
        "demo",
        "test",
        "lab",
        "slow",
        "export",
        "check",
        "clean",
    } and all("##" in rest for _, rest in targets)
    license = (ROOT / "LICENSE").read_text()
    assert (
        "Version 2.0, January 2004" in license
        and "END OF TERMS AND CONDITIONS" in license
        and len(license) > 11_000
    )


def test_the_wheel_holds_the_recipes():
    "setup.py maps nbs/recipes into the package, where the command line looks for them."
    setup = (ROOT / "setup.py").read_text()
    assert '"nbs/recipes"' in setup and '"*.ipynb"' in setup
    assert list((NBS / "recipes").glob("*.ipynb"))
    assert '"examples/*"' in setup and {
        p.name for p in (NBS.parent / "insight_nb" / "decide" / "launch" / "examples").iterdir()
    } == {"evidence.json", "assumptions.yaml", "offer.yaml"}
