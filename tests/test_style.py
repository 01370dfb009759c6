"""How a line may look: 100 columns, one thought. Each rule has a planted fault that it must find.
"""
import ast
import re
from collections import Counter
from functools import cache
from statistics import median

import pytest
from notebooks import NBS, ROOT, _python, every, library

WIDTH = 100


# Rules: a function from source to the numbers of the lines that break it

def long_lines(source, tree):
    "No line is over 100 columns."
    return [i for i, line in enumerate(source.splitlines(), 1) if len(line) > WIDTH]


def nested_conditionals(source, tree):
    "No conditional expression stands inside another: use if and elif."
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            inside = [n for part in (node.test, node.body, node.orelse) for n in ast.walk(part)]
            if any(isinstance(n, ast.IfExp) for n in inside):
                yield node.lineno


def is_sequence(node):
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, (ast.List, ast.ListComp, ast.Tuple, ast.JoinedStr))


def is_truth(node):
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return is_bool_call(node) or isinstance(node, (ast.Compare, ast.BoolOp))


def is_bool_call(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "bool"


def switches(tree):
    "The parameters whose default is True or False."
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            pairs = zip(named[::-1], node.defaults[::-1])
            for arg, default in [*pairs, *zip(node.kwonlyargs, node.kw_defaults)]:
                if isinstance(default, ast.Constant) and isinstance(default.value, bool):
                    yield arg.arg


def multiplied_booleans(source, tree):
    "A boolean does not multiply a list or a string: say if."
    names = set(switches(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            pairs = (node.left, node.right), (node.right, node.left)
            if any(is_sequence(a) and is_truth(b) for a, b in pairs):
                yield node.lineno
            elif any(is_bool_call(b) or getattr(b, "id", "") in names for _, b in pairs):
                yield node.lineno


def named_lambdas(source, tree):
    "A function with a name is defined with def."
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            if isinstance(node.targets[0], ast.Name):
                yield node.lineno


def joined_calls(source, tree):
    "Calls are not joined by commas to save a line."
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple):
            if sum(isinstance(e, ast.Call) for e in node.value.elts) > 1:
                yield node.lineno


def crowded_statements(source, tree):
    "One statement in a line; only `def f(x): return y` may stand in one."
    for node in ast.walk(tree):
        inner = [getattr(node, name, None) for name in ("body", "orelse", "finalbody")]
        for body in [b for b in inner if isinstance(b, list) and b]:
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)):
                starts = [n.lineno for n in body]
                yield from (line for line, n in Counter(starts).items() if n > 1)
            elif any(n.lineno == node.lineno for n in body):
                yield node.lineno
            else:
                yield from (line for line, n in Counter(n.lineno for n in body).items() if n > 1)


RULES = [long_lines, nested_conditionals, multiplied_booleans, named_lambdas, joined_calls,
         crowded_statements]
FAULTS = {
    long_lines: "x = '" + "a" * 100 + "'",
    nested_conditionals: "x = 1 if a else 2 if b else 3",
    multiplied_booleans: "def f(b=True): return 'text' * (a > 1), x * bool(a), x * b",
    named_lambdas: "f = lambda x: x",
    joined_calls: "print(1), print(2)",
    crowded_statements: "if a: b = 1"}


def parsed(source): return _python(source).splitlines(), ast.parse(_python(source))


@cache
def code():
    "(place, source, its lines as Python, its tree) of every code cell and every test file."
    return [(place, source, *parsed(source)) for place, source in sources()]


def sources():
    for nb in every():
        for i, cell in enumerate(nb.cells):
            if cell.kind == "code":
                yield f"{nb.path.relative_to(NBS)}[{i}]", cell.source
    for path in [*sorted((ROOT / "tests").rglob("*.py")), ROOT / "setup.py"]:
        yield path.name, path.read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_style(rule):
    wrong = []
    for place, source, lines, tree in code():
        for number in rule(source, tree):
            wrong.append(f"{place}: {lines[number - 1].strip()[:90]}")
    assert not wrong, f"{rule.__doc__} {len(wrong)} places:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_style_finds_the_planted_fault(rule):
    assert list(rule(FAULTS[rule], ast.parse(FAULTS[rule])))
    good = "def f(x): return x\nif f(1):\n    y = [0] * f(3)\n    z = 'a' if y else 'b'"
    assert not list(rule(good, ast.parse(good)))


def test_each_way_to_multiply_a_boolean_is_found():
    lines = ["def f(x, b=True, *, c=False):", "    x = 'text' * (x > 1)", "    x = x * bool(x)",
             "    x = b * x", "    x = x * c", "    x = [v for v in x] * (not x)", "    x = x * 2"]
    source = "\n".join(lines)
    assert list(multiplied_booleans(source, ast.parse(source))) == [2, 3, 4, 5, 6]


# Budgets of the exported code

def quantile(values, share): return sorted(values)[int(len(values) * share)]


def expressions(cell):
    "How many expressions begin in each line of code of a cell."
    begun = Counter(n.lineno for n in cell.walk(ast.expr))
    for number, line in enumerate(cell.source.splitlines(), 1):
        if line.strip() and not line.strip().startswith("#"):
            yield begun[number]


def test_lines_are_light():
    "Expressions that begin in a line: at most 14 in nine lines of ten."
    found = [n for nb in library() for cell in nb.exported for n in expressions(cell)]
    assert quantile(found, .9) <= 14
    crowded = sum(n > 25 for n in found) / len(found)
    assert crowded <= .005, f"{crowded:.2%} of the lines hold more than 25 expressions"


def test_cells_are_short():
    """Exported cells: half have at most 12 lines, nine of ten at most 30, all at most 45. Exercises
    are texts in two languages: for them the last limit alone counts."""
    texts = [nb for nb in library() if nb.folder == "lessons.solutions"]
    assert [nb.path.name for nb in texts for c in nb.exported if len(c.lines) > 45] == []
    sizes = [(len(cell.lines), nb.path.name, cell.lines[0])
             for nb in library() if nb not in texts for cell in nb.exported]
    lines = [n for n, _, _ in sizes]
    assert median(lines) <= 12
    assert quantile(lines, .9) <= 30
    assert [each for each in sizes if each[0] > 45] == []


def shown(nb):
    "The number of the first cell that shows the reader a number or a figure."
    for i, cell in enumerate(nb.cells):
        text = repr(cell.outputs)
        if cell.outputs and (re.search(r"\d", text) or "image/" in text):
            return i
    return None


# Notebooks whose first value comes after cell 10, for want of a small first example: a list to
# make shorter.
LATER = {"apps.monitor.stream", "apps.risk.estimators", "decide.strategy.demand",
         "methods.classical"}


def test_a_notebook_shows_something_early():
    "A first number or figure by cell 10."
    late = {nb.module for nb in library() if (shown(nb) or 99) > 10}
    assert late == LATER
