"""Mutation testing: one small change in an exported cell; does the module's notebook notice?

The notebook is the source of a module and its test, so the change is made in the notebook's cell
and the whole notebook is run with it. A mutant is killed when a cell raises, when a cell shows
something else than what is stored (CI compares both), or when the run does not end. The changes
are those of mutmut (its list of operators is used as a library); the sample is one mutant at each
of N places, drawn by a hash of the seed and the cell: an edit elsewhere changes no other mutant.

    make mutants       or: python tests/mutants.py --sample 300 --seed 1 --workers 2 --only eval

Results are kept in build/mutants-SEED.json: a run that was cut off goes on, and a notebook that
changed is tried again. A mutant that survives is read: an assertion is missing, or it changes
nothing. The table, and what was read, is nbs/benchmarks/mutants.
"""

import argparse
import ast
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

import libcst as cst
from execnb.shell import CaptureShell
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "mutants-{}.json"
FOLDERS = ("base", "data", "eval", "decide")
HEAVY = ("torch", "transformers", "pandas", "pyarrow.parquet", "sklearn.linear_model", "openpyxl",
         "scipy.stats", "matplotlib.pyplot", "statsforecast.models", "pmdarima", "datasets")
MEMORY = 6 * 2**30  # bytes that a child may have more than its parent
QUIET = {"IN_TEST": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1",
         "INSIGHT_NB_PROGRESS": "quiet"}


@dataclass
class Mutant:
    key: str  # short hash of place and change
    module: str
    notebook: str
    cell: int
    line: int
    operator: str
    before: str  # the lines that differ, and after
    after: str
    source: str  # of the whole cell, changed


def digest(*words):
    return hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()


class Places(cst.CSTVisitor):
    "Every node that an operator of mutmut changes, with what it makes of it."
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self):
        self.found = {}  # (line, column, last line, last column) -> [(operator, node, new node)]

    def on_visit(self, node):
        if self.left_alone(node):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for new in operator(node):
                    self.add(operator.__name__, node, new)
        return True

    @staticmethod
    def left_alone(node):
        "As in mutmut: types, decorators, docstrings, len and isinstance."
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString):
            return True
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name):
            return node.func.value in {"len", "isinstance"}
        return isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom)

    def add(self, operator, node, new):
        at = self.get_metadata(PositionProvider, node, None)
        if at:
            place = at.start.line, at.start.column, at.end.line, at.end.column
            self.found.setdefault(place, []).append((operator, node, new))


def changed_lines(old, new):
    "The lines that differ, without what is the same before and after them."
    old, new = old.splitlines(), new.splitlines()
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return "\n".join(map(str.strip, old)), "\n".join(map(str.strip, new))


def changed_code(module, changes, rank):
    "(operator, code) of one change at a place, drawn by its rank: the first that is other code."
    before = ast.dump(ast.parse(module.code))
    for turn in range(len(changes)):
        operator, node, new = changes[(int(rank, 16) + turn) % len(changes)]
        code = module.deep_replace(node, new).code
        try:
            if ast.dump(ast.parse(code)) != before:
                return operator, code
        except SyntaxError:
            continue


def code_cells(notebook):
    "(index, source, stored outputs) of the cells that CI runs."
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    for i, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not re.search(r"^#\|\s*slow", source, re.M):
            yield i, source, [plain(o) for o in cell["outputs"]]


def all_places():
    "(notebook, cell, source, parsed source, place, changes) of all exported cells."
    for folder in FOLDERS:
        for path in sorted((ROOT / "nbs" / folder).rglob("[0-9]*.ipynb")):
            notebook = str(path.relative_to(ROOT))
            for i, source, _ in code_cells(notebook):
                if re.search(r"^#\|\s*export", source, re.M):
                    wrapper, places = MetadataWrapper(cst.parse_module(source)), Places()
                    wrapper.visit(places)
                    for place, changes in places.found.items():
                        yield notebook, i, source, wrapper.module, place, changes


def sample(n, seed, only=""):
    "One mutant at each of n places, the same for the same seed and cells; and how many there are."
    ranked = [(digest(seed, p[2], p[4]), p) for p in all_places()]
    ranked.sort(key=lambda pair: pair[0])
    found = []
    for rank, (notebook, i, source, parsed, place, changes) in ranked:
        changed = changed_code(parsed, changes, rank)
        if changed:
            module = re.sub(r"\b\d\d_", "", notebook[4:-6]).replace("/", ".")
            lines = changed_lines(source, changed[1])
            found.append(Mutant(digest(rank, *changed)[:8], module, notebook, i, place[0],
                                changed[0], *lines, changed[1]))
        if len(found) == n:
            break
    return len(ranked), [m for m in found if m.module.startswith(only)]


def plain(output):
    "What of an output is compared: text, and pictures by their hash."
    text = {"stream": "".join(output.get("text", ""))}
    for kind, value in output.get("data", {}).items():
        value = "".join(value) if isinstance(value, list) else str(value)
        picture = kind.startswith("image/") and not kind.endswith("svg+xml")
        text[kind] = digest(value.strip()) if picture else value.rstrip()
    return {k: v for k, v in text.items() if v}


def difference(outputs, stored):
    if outputs == stored:
        return ""
    texts = [[{k: v for k, v in o.items() if not k.startswith("image/")} for o in side]
             for side in (outputs, stored)]
    return "picture" if texts[0] == texts[1] else "output"


def run_cells(pipe, notebook, changed, scratch, skip):
    "In a child: the notebook with its cell changed; sends how it ended."
    os.setsid()
    os.chdir(scratch)
    os.environ["TMPDIR"], tempfile.tempdir = str(scratch), None
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    shell, differ = CaptureShell(ROOT / notebook), []
    for i, source, stored in code_cells(notebook):
        outputs = [plain(o) for o in shell.run(changed.get(i, source))]
        if shell.exc:
            kind = "assertion" if isinstance(shell.exc, AssertionError) else "error"
            pipe.send((kind, i, f"{type(shell.exc).__name__}: {shell.exc}"[:200]))
            os._exit(0)
        kind = i not in skip and difference(outputs, stored)
        if kind and changed:
            pipe.send((kind, i, str(outputs)[:200]))
            os._exit(0)
        differ += [i] if kind else []
    pipe.send(("survived", None, "") if changed else ("same", differ, ""))
    os._exit(0)


class Runs:
    "Children, some at a time; each in a folder and a process group of its own."
    context = multiprocessing.get_context("fork")

    def __init__(self, workers):
        self.workers, self.running = workers, {}

    def start(self, name, limit, notebook, changed, skip):
        scratch = Path(tempfile.mkdtemp(prefix="mutant_"))
        here, there = self.context.Pipe(duplex=False)
        child = self.context.Process(target=run_cells,
                                     args=(there, notebook, changed, scratch, skip))
        child.start()
        there.close()
        self.running[child.sentinel] = name, child, here, scratch, time.monotonic(), limit

    def ended(self):
        "(name, result, seconds) of those that are done or have run for too long."
        done = wait(list(self.running), timeout=.5)
        for sentinel, (name, child, pipe, scratch, begun, limit) in list(self.running.items()):
            seconds = time.monotonic() - begun
            if sentinel not in done and seconds < limit:
                continue
            result = ("timeout", None, f"{limit:.0f} s")
            if pipe.poll():
                result = pipe.recv()
            elif sentinel in done:
                result = ("died", None, f"exit status {child.exitcode}")
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.join()
            shutil.rmtree(scratch, ignore_errors=True)
            del self.running[sentinel]
            yield name, result, seconds

    def all(self, jobs):
        "jobs: (name, limit, notebook, changed cells, cells not to compare)."
        jobs = list(jobs)
        while jobs or self.running:
            while jobs and len(self.running) < self.workers:
                self.start(*jobs.pop(0))
            yield from self.ended()


def run(n, seed, workers, only):
    "Tries the sample's mutants; returns their records, those of an earlier run with them."
    results, (places, mutants) = Path(str(RESULTS).format(seed)), sample(n, seed, only)
    old = json.loads(results.read_text())["mutants"] if results.is_file() else {}
    state = {m.notebook: digest(*(source for _, source, _ in code_cells(m.notebook)))
             for m in mutants}
    known = {m.key: old[m.key] for m in mutants
             if m.key in old and old[m.key]["state"] == state[m.notebook]}
    left = [m for m in mutants if m.key not in known]
    print(f"{places} places, {len(mutants)} mutants, {len(left)} to run", flush=True)
    base, runs = {}, Runs(workers)
    for name in HEAVY:
        importlib.import_module(name)
    todo = sorted({m.notebook for m in left})
    for name, result, seconds in runs.all((b, 600, b, {}, ()) for b in todo):
        if result[0] != "same":
            raise SystemExit(f"{name} fails without a change: {result}")
        if result[1]:
            print(f"{name}: cells {result[1]} are not shown as stored, and not compared")
        base[name] = result[1], 20 + 5 * seconds
    by_key = {m.key: m for m in left}
    jobs = [(m.key, base[m.notebook][1], m.notebook, {m.cell: m.source}, base[m.notebook][0])
            for m in left]
    for i, (key, (result, cell, detail), seconds) in enumerate(runs.all(jobs), 1):
        mutant = by_key[key]
        known[key] = asdict(mutant) | {"result": result, "by": cell, "detail": detail,
                                       "state": state[mutant.notebook]}
        del known[key]["source"]
        results.parent.mkdir(exist_ok=True)
        kept = {k: v for k, v in old.items() if k not in known} if only else {}
        document = {"places": places, "mutants": kept | known}
        results.write_text(json.dumps(document, indent=1, ensure_ascii=False))
        print(f"{i}/{len(jobs)} {key} {result} {seconds:.1f} s {mutant.module}", flush=True)
    return list(known.values())


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("sample", 300), ("seed", 1), ("workers", 2)):
        options.add_argument(f"--{name}", type=int, default=value)
    options.add_argument("--only", default="", help="modules that begin so, such as eval.metrics")
    given = options.parse_args()
    os.environ.update(QUIET)
    records = run(given.sample, given.seed, given.workers, given.only)
    alive = sorted((r for r in records if r["result"] == "survived"), key=lambda r: r["module"])
    for r in alive:
        print(f"\n{r['key']} {r['module']} cell {r['cell']} line {r['line']} {r['operator']}\n"
              f"- {r['before']}\n+ {r['after']}")
    print(f"\n{len(records) - len(alive)} of {len(records)} killed")


if __name__ == "__main__":
    main()
