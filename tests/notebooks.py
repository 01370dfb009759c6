"""What the rules need to know about a notebook: cells, code, exports, imports."""

import ast
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import insight_nb
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
NAME = re.compile(r"(\d\d)_([a-z_]+)\.ipynb")
# folders that export nothing
APART = {"recipes", "lessons", "lessons.more", "lessons.zh", "benchmarks"}
GLOSSARY = NBS / "base" / "00_glossary.ipynb"  # exports nothing, too
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_python = TransformerManager().transform_cell  # magics and shell lines -> Python


@dataclass
class Cell:
    kind: str  # markdown or code
    source: str
    tags: list
    outputs: list

    @cached_property
    def directives(self):
        return re.findall(r"^#\|\s*(\w+)", self.source, re.M)

    @cached_property
    def tree(self):
        return ast.parse(_python(self.source)) if self.kind == "code" else ast.Module([], [])

    @property
    def exported(self):
        return self.kind == "code" and "export" in self.directives

    @property
    def lines(self):
        return [
            line for line in self.source.splitlines() if line.strip() and not line.startswith("#|")
        ]

    def walk(self, *types):
        return (n for n in ast.walk(self.tree) if isinstance(n, types))


DOOR = vars(insight_nb)["_WHERE"]  # lazy name -> module


def imported_by(cells) -> set:
    "The modules of this package that some cells import, without the package's name."
    names = set()
    for cell in cells:
        for node in cell.walk(ast.ImportFrom):
            # `from insight_nb.eval import guard` imports a module, not a name
            parts = [f"{node.module}.{a.name}" for a in node.names]
            if node.module == "insight_nb":  # the lazy names of the package itself
                parts = [f"insight_nb.{DOOR.get(a.name, a.name)}" for a in node.names]
            names |= {p if module_file(p) else node.module for p in parts}
        for node in cell.walk(ast.Import):
            names |= {a.name for a in node.names}
    return {n.removeprefix("insight_nb.") for n in names if (n or "").startswith("insight_nb.")}


def module_file(dotted):
    return (ROOT / f"{dotted.replace('.', '/')}.py").is_file()


class Notebook:
    def __init__(self, path):
        self.path, self.bytes = Path(path), Path(path).stat().st_size
        found = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        self.cells = [
            Cell(
                c["cell_type"],
                "".join(c["source"]),
                c["metadata"].get("tags", []),
                c.get("outputs", []),
            )
            for c in found
        ]
        self.code = [c for c in self.cells if c.kind == "code"]
        self.exported = [c for c in self.code if c.exported]
        self.examples = [c for c in self.code if not c.exported]
        name = NAME.fullmatch(self.path.name)
        self.number, self.name = (int(name[1]), name[2]) if name else (None, None)

    @cached_property
    def folder(self) -> str:
        "The folder under nbs/, with dots: apps.risk; empty for nbs/ itself."
        inside = self.path.is_relative_to(NBS)
        return ".".join(self.path.relative_to(NBS).parts[:-1]) if inside else ""

    @property
    def module(self):
        return ".".join(filter(None, [self.folder, self.name])) if self.name else None

    @cached_property
    def default_exp(self):
        return next(
            iter(
                re.findall(
                    r"^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in self.code), re.M
                )
            ),
            None,
        )

    @cached_property
    def imported(self) -> set:
        "The modules of this package that any cell imports, without the package's name."
        return imported_by(self.code)

    @cached_property
    def imported_by_code(self) -> set:
        "The modules of this package that the exported cells import."
        return imported_by(self.exported)

    @cached_property
    def public(self) -> list:
        """What this notebook offers, as (class or None, name): functions, classes, constants and
        methods, patched ones too."""
        found = []
        for node in [n for c in self.exported for n in c.tree.body]:
            if isinstance(node, DEFINITIONS):
                patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
                found.append(
                    (ast.unparse(node.args.args[0].annotation) if patched else None, node.name)
                )
            if isinstance(node, ast.ClassDef):
                found += [(None, node.name)] + [
                    (node.name, m.name) for m in node.body if isinstance(m, DEFINITIONS)
                ]
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found += [
                    (None, n.id) for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)
                ]
        return [
            (owner, name)
            for owner, name in found
            if not name.startswith("_") and not (owner or "").startswith("_")
        ]

    @cached_property
    def classes(self) -> set:
        "The names of the classes that the exported cells define."
        return {n.name for c in self.exported for n in c.tree.body if isinstance(n, ast.ClassDef)}

    @cached_property
    def called(self) -> set:
        """The attributes that the exported cells mention: a method that another one calls is run
        with it."""
        return {n.attr for c in self.exported for n in c.walk(ast.Attribute)}

    @cached_property
    def events(self) -> set:
        """The words that exported cells pass to a call: `self.notify("on_step_end")` runs this
        method of each callback."""
        return {
            a.value
            for c in self.exported
            for n in c.walk(ast.Call)
            for a in n.args
            if isinstance(a, ast.Constant) and isinstance(a.value, str)
        }

    @cached_property
    def used(self) -> set:
        "The names that the cells which are not exported mention."
        run = [c for c in self.examples if not re.search(r"^#\|\s*eval:\s*false", c.source, re.M)]
        return {n.id for c in run for n in c.walk(ast.Name)} | {
            n.attr for c in run for n in c.walk(ast.Attribute)
        }


@cache
def every() -> list[Notebook]:
    "All notebooks of the project, each read and parsed once."
    paths = sorted(NBS.rglob("*.ipynb"))
    return [Notebook(p) for p in paths if ".ipynb_checkpoints" not in p.parts]


def library() -> list[Notebook]:
    "The numbered notebooks, which export modules."
    return [
        nb
        for nb in every()
        if nb.number is not None and nb.folder not in APART and nb.path != GLOSSARY
    ]
