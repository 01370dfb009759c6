"""One name, one thing; every class is in the glossary; every module is behind some door."""
import re
from collections import defaultdict

from insight_nb.lessons.kit.exercises import LESSONS
from notebooks import APART, GLOSSARY, Notebook, every, library

# Modules that no recipe, command or lesson uses yet, and what will: the benchmark or the plan.


def public_names():
    "name -> the modules that offer it."
    found = defaultdict(set)
    for nb in library():
        for owner, name in nb.public:
            if owner is None:
                found[name].add(nb.module)
    return found


def test_no_public_name_stands_in_two_modules():
    assert {n: sorted(m) for n, m in public_names().items() if len(m) > 1} == {}


def test_no_function_and_class_differ_in_case_only():
    by_lower = defaultdict(set)
    for name in public_names():
        if not name.isupper(): # a constant is no function
            by_lower[name.lower()].add(name)
    # `check` of the course looks at an answer, a `Check` is a line of a report
    assert [sorted(names) for names in by_lower.values() if len(names) > 1] == [["Check", "check"]]


def public_classes():
    return {node for nb in library() for node in nb.classes if node[0] != "_"}


def test_every_public_class_is_in_the_glossary():
    text = "\n".join(cell.source for cell in Notebook(GLOSSARY).cells)
    missing = [name for name in public_classes() if not re.search(rf"`{name}`", text)]
    assert sorted(missing) == [], "add a line to nbs/base/00_glossary.ipynb"
    assert "Nonesuch" not in public_classes() and len(public_classes()) > 50


def reached():
    "The modules that recipes, lessons and the command line import, and what these import."
    by_name = {nb.module: nb for nb in library()}
    todo = {m for nb in every() if nb.folder in APART - {"benchmarks"} for m in nb.imported}
    # the course opens the exercises of a lesson by its number
    todo |= {"cli"} | {f"lessons.solutions.{name}" for name in LESSONS.values()}
    found = set()
    while todo:
        module = todo.pop()
        if module in by_name and module not in found:
            found.add(module)
            todo |= by_name[module].imported_by_code
    return found


def test_every_module_has_a_door():
    "Reached by a recipe, a command or a lesson."
    closed = {nb.module for nb in library() if nb.default_exp} - reached()
    assert closed == set()
