"""The rules that every notebook keeps. Each rule is a function from a notebook to the list of what
is wrong with it, and has a planted fault in FAULTS that it must find: a rule that can't fail
says nothing.
"""

import ast
import json
import re
import subprocess
from collections import Counter

import pytest
from notebooks import NAME, NBS, ROOT, Notebook, every, library

LIBRARY = {nb.module: nb for nb in library()}
# The floors of the house, from the ground up. An import goes down, or to a lower number in its
# folder.
FLOORS = [
    ["base"],
    ["data", "models", "eval"],
    ["train"],
    ["methods", "ship"],
    ["apps", "decide", "jobs", "lessons", "cli"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
# Doors on floor 5 that may be used from beside: the command line runs jobs and shows the progress
# of a class; exercises are built with the kit.
BESIDE = {("cli", "jobs"), ("cli", "lessons.kit"), ("lessons.solutions", "lessons.kit")}
EVENTS = {word for n in library() for word in n.events}


def named_as_module(nb):
    "nbs/train/02_trainer.ipynb exports insight_nb/train/trainer.py, and says so in its first cell."
    if not NAME.fullmatch(nb.path.name):
        yield "the name is not NN_module.ipynb"
    if nb.default_exp != nb.module:
        yield f"default_exp is {nb.default_exp}, the name says {nb.module}"
    elif nb.default_exp:
        if not (ROOT / "insight_nb" / f"{nb.default_exp.replace('.', '/')}.py").is_file():
            yield "its module isn't there: make export"


def opens_with_its_purpose(nb):
    "default_exp, then `# Title` and one `> sentence`."
    if not nb.cells or "default_exp" not in nb.cells[0].directives:
        yield "the first cell is not default_exp"
    if len(nb.cells) < 2 or not re.fullmatch(r"# [^\n]+\n\n> [^\n]+", nb.cells[1].source):
        yield "the second cell is not '# Title' and '> sentence'"


def allowed(here, number, there, its_number):
    "May a module of the folder `here` import one of `there`?"
    if here == there:
        return its_number < number
    up = FLOOR[(here or "cli").split(".")[0]]
    down = FLOOR[(there or "cli").split(".")[0]]
    return down < up or (here or "cli", there) in BESIDE


def imports_go_down(nb):
    "Floors run one way: exported code imports what is lower; the same number is never reached."
    for module in nb.imported:
        if module not in LIBRARY:
            if not any(m.startswith(module + ".") for m in LIBRARY):
                yield f"imports {module}, which no notebook exports"
            continue
        there = LIBRARY[module]
        if not allowed(nb.folder, nb.number, there.folder, there.number):
            yield f"imports {module}"


def imports_exist(nb):
    "Examples may look up, but not at what isn't there."
    for module in nb.imported:
        if module not in LIBRARY and not any(m.startswith(module + ".") for m in LIBRARY):
            yield f"imports {module}, which no notebook exports"


def no_private_name_of_another(nb):
    "What starts with _ is used in its own notebook only."
    for cell in nb.code:
        for node in cell.walk(ast.ImportFrom):
            if (node.module or "").startswith("insight_nb"):
                for alias in node.names:
                    if alias.name.startswith("_"):
                        yield f"imports {alias.name} of {node.module}"


def imports_stand_alone(nb):
    "A cell that imports does nothing else."
    for cell in nb.code:
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in cell.tree.body}
        if len(kinds) == 2:
            yield f"imports and other code in one cell: {cell.lines[0]}"


def no_star(nb):
    "Every name says where it comes from."
    for cell in nb.code:
        if any(a.name == "*" for n in cell.walk(ast.ImportFrom) for a in n.names):
            yield f"star import: {cell.lines[0]}"


def small_functions(nb):
    """Functions have at most 8 arguments, but for estimators: scikit-learn wants each setting as an
    argument of __init__."""
    for cell in nb.exported:
        settings = {f for c in cell.walk(ast.ClassDef) for f in c.body
                    if any(ast.unparse(b).endswith("Estimator") for b in c.bases)}
        for f in cell.walk(ast.FunctionDef):
            if f in settings and f.name == "__init__":
                continue
            given = f.args.posonlyargs + f.args.args + f.args.kwonlyargs
            names = [a.arg for a in given if a.arg not in ("self", "cls")]
            if len(names) > 8:
                yield f"{f.name} has {len(names)} arguments"


def readable_size(nb):
    "At most 70 cells, a quarter of them prose, 200 KB."
    if len(nb.cells) > 70:
        yield f"{len(nb.cells)} cells"
    if len(nb.cells) - len(nb.code) < 0.25 * len(nb.cells):
        yield f"{len(nb.cells) - len(nb.code)} of {len(nb.cells)} cells are prose"
    if nb.bytes > 200_000:
        yield f"{nb.bytes:,} bytes"


def exercises_its_names(nb):
    """Every public function, class and constant is used in a cell of its own notebook; so is every
    method, or one that calls it."""
    for owner, name in nb.public:
        hook = owner in nb.used and (name == "forward" or name in EVENTS)
        if name not in nb.used | (nb.called if owner else set()) and not hook:
            yield f"{owner or ''} {name} is never used".strip()


PRIVATE = re.compile(
    r"0x[0-9a-f]{6,}|(?<![\w.:/])/(?:home|root|tmp|Users|var|opt|work|mnt|content|private)/\w"
    r"|[A-Z]:\\\\?Users|ipython-input-\d|<ipykernel"
)


def clean_outputs(nb):
    "No output holds a path of somebody's machine, the id of an object, or an error."
    for cell in nb.code:
        for out in cell.outputs:
            if out["output_type"] == "error":
                yield f"an error is stored: {cell.lines[0]}"
            texts = [out.get("text", "")] + [
                v for k, v in out.get("data", {}).items() if k.startswith("text/")
            ]
            if found := PRIVATE.search("\n".join("".join(t) for t in texts)):
                yield f"an output holds {found[0]!r}: {cell.lines[0]}"


def is_kept(nb):
    "Tools skip notebooks whose name starts with _ or a dot, so such drafts rot."
    if nb.path.name[0] in "_.":
        yield "a draft: finish it or delete it"


RULES = [
    named_as_module,
    opens_with_its_purpose,
    imports_go_down,
    imports_exist,
    no_private_name_of_another,
    imports_stand_alone,
    no_star,
    small_functions,
    readable_size,
    exercises_its_names,
]
EVERYWHERE = [clean_outputs, is_kept]  # recipes, lessons and the index too


@pytest.mark.parametrize("rule", RULES + EVERYWHERE, ids=lambda r: r.__name__)
def test_rule(rule):
    notebooks = library() if rule in RULES else every()
    assert notebooks
    wrong = [f"{nb.path.name}: {fault}" for nb in notebooks for fault in rule(nb)]
    assert not wrong, f"{rule.__doc__}\n" + "\n".join(wrong)


def write(folder, cells, name="50_cli.ipynb"):
    "A notebook from (source, outputs) or source; a source that starts with `md ` is prose."
    made = []
    for cell in cells:
        source, outputs = cell if isinstance(cell, tuple) else (cell, [])
        kind = "markdown" if source.startswith("md ") else "code"
        made.append(
            {"cell_type": kind, "metadata": {}, "source": source.removeprefix("md ")}
            | ({"outputs": outputs} if kind == "code" else {})
        )
    (folder / name).write_text(json.dumps({"cells": made}))
    return Notebook(folder / name)


GOOD = [
    "#| default_exp cli",
    "md # Title\n\n> One sentence.",
    "md Why.",
    "#| export\nimport os",
    "#| export\ndef double(x): return 2 * x",
    "assert double(1) == 2",
]


def said(text):
    return [{"output_type": "stream", "name": "stdout", "text": [text]}]


FAULTS = [
    (named_as_module, GOOD, "trainer.ipynb"),
    (named_as_module, GOOD, "50_trainer.ipynb"),
    (named_as_module, ["#| default_exp gone"], "50_gone.ipynb"),
    (opens_with_its_purpose, GOOD[1:]),
    (opens_with_its_purpose, [GOOD[0], "md # Title", *GOOD[2:]]),
    (imports_exist, [*GOOD, "def f():\n    import insight_nb.gone"]),
    (no_private_name_of_another, [*GOOD, "from insight_nb.base.core import _name"]),
    (imports_stand_alone, [*GOOD, "import os\nx = 1"]),
    (no_star, [*GOOD, "from os import *"]),
    (small_functions, [*GOOD, "#| export\ndef f(a, b, c, d, e, f, g, h, *, i): pass"]),
    (readable_size, GOOD[:3] + GOOD[3:] * 25),
    (readable_size, [*GOOD, "x = 1", "x = 1", "x = 1"]),
    (readable_size, [*GOOD, "#" * 200_000]),
    (exercises_its_names, GOOD[:-1]),
    (exercises_its_names, [*GOOD, "#| export\n@patch\ndef gone(self: int): pass"]),
    (exercises_its_names, [*GOOD, "#| export\nclass A:\n    def gone(self): pass", "A()"]),
    (exercises_its_names, [*GOOD, "#| export\nLIMIT = 1"]),
    (clean_outputs, [("x", said("<A object at 0x7f12ab34cd>"))]),
    (clean_outputs, [("x", said("in /home/eve/a.csv"))]),
    (clean_outputs, [("x", [{"output_type": "error"}])]),
    (
        clean_outputs,
        [("x", [{"output_type": "display_data", "data": {"text/html": "<p>C:\\Users\\eve"}}])],
    ),
    (is_kept, GOOD, "_draft.ipynb"),
]


@pytest.mark.parametrize(
    "rule, cells, name",
    [(*f, "50_cli.ipynb")[:3] for f in FAULTS],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_rule_finds_the_planted_fault(rule, cells, name, tmp_path):
    assert list(rule(write(tmp_path, cells, name)))


def test_rules_accept_a_good_notebook(tmp_path):
    assert not [fault for rule in RULES + EVERYWHERE for fault in rule(write(tmp_path, GOOD))]


def test_numbers_are_used_once():
    numbers = [(nb.folder, nb.number) for nb in library()]
    assert sorted(set(numbers)) == sorted(numbers)


def test_imports_run_one_way():
    "What `transition_mask` says of a few pairs that should and should not be."
    yes = [
        ("train", 2, "train", 1),
        ("apps.risk", 0, "eval", 9),
        ("", 90, "jobs", 0),
        ("models", 0, "base", 9),
    ]
    no = [
        ("train", 1, "train", 2),
        ("eval", 0, "data", 0),
        ("base", 1, "cli", 90),
        ("apps.risk", 6, "apps.monitor", 0),
        ("apps.risk", 0, "decide.launch", 0),
        ("decide.launch", 0, "apps.risk", 0),
        ("ship", 0, "methods", 0),
    ]
    assert [allowed(*pair) for pair in yes + no] == [True] * len(yes) + [False] * len(no)


def test_folders_are_small():
    """A folder is read in one sitting: at most 16 notebooks, and nbs/ holds at most 16 entries.
    Benchmarks and recipes are looked up one by one: at most 30 and 27. The course has 18
    lessons."""
    sizes = Counter(nb.path.parent for nb in every())
    most = {NBS / "benchmarks": 30, NBS / "recipes": 27, NBS / "lessons": 18,
            NBS / "lessons" / "solutions": 18}
    assert {str(p): n for p, n in sizes.items() if n > most.get(p, 16)} == {}
    assert len([p for p in NBS.iterdir() if p.name[0] not in "._"]) <= 16


FIXED = {
    "nbs",
    "insight_nb",
    "tests",
    "settings.ini",
    "setup.py",
    "README.md",
    "pyproject.toml",
    "Makefile",
    "constraints.txt",
    "LICENSE",
    "MANIFEST.in",
    ".gitignore",
    ".ci",
}


def strangers(paths):
    return {p.split("/")[0] for p in paths} - FIXED


def test_the_top_level_is_fixed():
    found = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    paths = found.stdout.split("\n")[:-1] if found.returncode == 0 else ["settings.ini"]
    assert paths and not strangers(paths)
    assert strangers(["nbs/a.ipynb", "tools/x.py"]) == {"tools"}


def test_links_between_notebooks_lead_somewhere():
    dead = []
    for nb in every():
        for cell in [c for c in nb.cells if c.kind == "markdown"]:
            for link in re.findall(r"\]\(/([^)#\s]+)", cell.source):
                if not (NBS / link).exists():
                    dead.append(f"{nb.path.relative_to(NBS)}: /{link}")
    assert not dead, dead


def test_no_default_is_the_surroundings():
    "A page shows the defaults of a function: none is what a machine has, such as its variables."
    def large(v): return isinstance(v, ast.Attribute) and v.attr in ("environ", "modules", "path")
    found = [f"{nb.path.name}: {f.name}" for nb in library() for cell in nb.exported
             for f in ast.walk(ast.parse(cell.source))
             if isinstance(f, ast.FunctionDef)
             for v in [*f.args.defaults, *f.args.kw_defaults] if v is not None and large(v)]
    assert found == []
