"""What the rules need to know about a notebook: its cells, their code, what it exports and imports."""
import ast
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
NAME = re.compile(r"(\d\d)_([a-z_]+(?:\.[a-z_]+)?)\.ipynb")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_python = TransformerManager().transform_cell # magics and shell lines -> Python


@dataclass
class Cell:
    kind: str # markdown or code
    source: str
    tags: list
    outputs: list

    @cached_property
    def directives(self): return re.findall(r"^#\|\s*(\w+)", self.source, re.M)
    @cached_property
    def tree(self): return ast.parse(_python(self.source)) if self.kind == "code" else ast.Module([], [])
    @property
    def exported(self): return self.kind == "code" and "export" in self.directives
    @property
    def lines(self): return [l for l in self.source.splitlines() if l.strip() and not l.startswith("#|")]
    def walk(self, *types): return (n for n in ast.walk(self.tree) if isinstance(n, types))


class Notebook:
    def __init__(self, path):
        self.path, self.bytes = Path(path), Path(path).stat().st_size
        found = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        self.cells = [Cell(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", []), c.get("outputs", [])) for c in found]
        self.code = [c for c in self.cells if c.kind == "code"]
        self.exported = [c for c in self.code if c.exported]
        self.examples = [c for c in self.code if not c.exported]
        name = NAME.fullmatch(self.path.name)
        self.number, self.module = (int(name[1]), name[2]) if name else (None, None)

    @cached_property
    def default_exp(self): return next(iter(re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in self.code), re.M)), None)

    @cached_property
    def imported(self) -> set:
        "The modules of this package that any cell imports, without the package's name."
        names = {n.module for c in self.code for n in c.walk(ast.ImportFrom) if n.module}
        names |= {a.name for c in self.code for n in c.walk(ast.Import) for a in n.names}
        return {n.removeprefix("insight_nb.") for n in names if n.startswith("insight_nb.")}

    @cached_property
    def public(self) -> list:
        "What this notebook offers, as (class or None, name): functions, classes, constants and methods, patched ones too."
        found = []
        for node in [n for c in self.exported for n in c.tree.body]:
            if isinstance(node, DEFINITIONS):
                patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
                found.append((ast.unparse(node.args.args[0].annotation) if patched else None, node.name))
            if isinstance(node, ast.ClassDef):
                found += [(None, node.name)] + [(node.name, m.name) for m in node.body if isinstance(m, DEFINITIONS)]
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found += [(None, n.id) for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        return [(owner, name) for owner, name in found if not name.startswith("_") and not (owner or "").startswith("_")]

    @cached_property
    def called(self) -> set:
        "The attributes that the exported cells mention: a method that another one calls is run with it."
        return {n.attr for c in self.exported for n in c.walk(ast.Attribute)}

    @cached_property
    def events(self) -> set:
        "The words that exported cells pass to a call: `self.tell(\"start\")` runs the method start of each callback."
        return {a.value for c in self.exported for n in c.walk(ast.Call) for a in n.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}

    @cached_property
    def used(self) -> set:
        "The names that the cells which are not exported mention."
        run = [c for c in self.examples if not re.search(r"^#\|\s*eval:\s*false", c.source, re.M)]
        return {n.id for c in run for n in c.walk(ast.Name)} | {n.attr for c in run for n in c.walk(ast.Attribute)}


def library() -> list[Notebook]: return [Notebook(p) for p in sorted(NBS.glob("[0-9]*.ipynb"))]
def every() -> list[Notebook]: return [Notebook(p) for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
