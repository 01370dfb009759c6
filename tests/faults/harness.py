"""A fault is planted by a patch into a run that is otherwise as users make it; then the same fixed
list of questions is asked, whatever was planted."""
import csv
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from insight_nb.base.core import InputError
from insight_nb.cli import recipes
from insight_nb.data import split as splits
from notebooks import Notebook, _python


@dataclass(frozen=True)
class Fault:
    "A small change to a run."
    name: str
    what: str  # one sentence: what is wrong now
    kind: str  # of the run, a name in RUNS
    plant: Callable  # called with pytest's MonkeyPatch
    seen: str  # who sees it: "guard: NAME" or "error" (the product), or "test: NAME"
    words: str  # a part of what it says


def registrar(faults, of=None):
    "A decorator that keeps functions of a MonkeyPatch as faults in a list."
    def fault(name, what, *rest):  # kind (unless all are `of` one), seen, words
        kind, seen, words = rest if of is None else (of, *rest)

        def keep(plant):
            faults.append(Fault(name, what, kind, plant, seen, words))
            return plant
        return keep
    return fault


def around(patch, place, name, change):
    "Replace a function or method by one that gets the old one first."
    old = getattr(place, name)
    patch.setattr(place, name, lambda *a, **k: change(old, *a, **k))


def ungroup(patch):
    "A split by groups takes each row for a group of its own."
    around(patch, splits, "_by_group", lambda old, ids, groups, *a: old(
        ids, list(range(len(ids))), *a))


@dataclass
class Found:
    "What turned red."
    seen: str
    words: str


@dataclass
class Outcome:
    "What a run left."
    folder: Path
    names: dict = field(default_factory=dict)  # of the recipe's cells
    frame: object = None  # the table, as it was given
    found: list = field(default_factory=list)  # of `Found`

    @property
    def report(self): return self.names["report"]


def write_table(path, frame):
    frame.to_csv(path, index=False, quoting=csv.QUOTE_MINIMAL)
    return str(path)


def run_recipe(name, given) -> dict:
    "The recipe's cells, run here; all their names."
    names = {"display": lambda *_: None}
    for cell in Notebook(recipes()[name]).code:
        exec(compile(_python(cell.source), name, "exec"), names)
        if "parameters" in cell.tags:
            names.update(given)
    return names


def error_of(e) -> Found:
    "What a user would read."
    return Found("error", f"{type(e).__name__}: {e}"[:300])


def ask(checks, outcome):
    "Each check is a function that raises an AssertionError with words."
    for check in checks:
        try:
            check(outcome)
        except AssertionError as e:
            outcome.found.append(Found(f"test: {check.__name__}", str(e)[:300]))
        except InputError as e:
            outcome.found.append(error_of(e))
        except Exception as e:  # a crash is loud as well
            outcome.found.append(Found(f"test: {check.__name__}", f"{type(e).__name__}: {e}"[:300]))


def guard_lines(report) -> list:
    return [Found(f"guard: {c.name}", c.detail) for c in report.guard if c.passed is False]


def findings(run, plant=None) -> list:  # of RUNS; of a `Fault`
    "What turns red in a run."
    getattr(run, "prepare", lambda: None)()  # what it begins with is sound
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("INSIGHT_NB_CACHE", str(Path(folder, "cache")))
        if plant:
            plant(patch)
        return run(Path(folder))


def judge(fault: Fault, found) -> tuple:  # by whom it is seen, and the words
    "Raise an AssertionError unless the fault was seen by the one that it names, with its words."
    assert found, f"nobody has seen {fault.name}"
    said = [f.words for f in found if f.seen == fault.seen]
    everything = [(f.seen, f.words) for f in found]
    assert said, f"{fault.name} was not seen by {fault.seen}, but by {everything}"
    assert any(fault.words in s for s in said), (fault.name, said)
    return fault.seen, next(s for s in said if fault.words in s)
