"""The course: exercises hold in every variant, mutants of their solutions are seen, lessons have
their parts, and the Chinese twin of a lesson has the same code.
"""

import ast
import copy
import inspect
import io
import itertools
import re
import signal
import subprocess
import sys
import textwrap
import tokenize
from contextlib import contextmanager
from importlib import import_module

import pytest
from insight_nb.cli import main, make_parser
from insight_nb.lessons.kit.exercises import (
    LESSONS, all_exercises, find_exercise, lesson_exercises, prove_exercise)
from insight_nb.lessons.kit.progress import CourseProgress, read_progress
from notebooks import NBS, Notebook, _python
from readability import LINE, of_notebook

FOLDER = NBS / "lessons"
PATHS = {number: FOLDER / f"{number}_{name}.ipynb" for number, name in LESSONS.items()}
TWINS = {p.name: p for p in sorted((FOLDER / "zh").glob("*.ipynb"))}
IDS = [id for ids in all_exercises().values() for id in ids]
PARTS = ["## What goes wrong in practice", "## Summary", "## Exercises", "## Where it lives"]
CHINESE = r"[\u4e00-\u9fff]"
PARTS_ZH = ["## 实践中容易出错的地方", "## 小结", "## 练习", "## 代码在哪里"]


# Exercises


@pytest.mark.parametrize("id", IDS)
def test_solution_is_right_and_mistakes_get_their_hints(id):
    exercise = find_exercise(id)
    prove_exercise(exercise, 25)
    assert len(exercise.mistakes) >= 3 and exercise.steps


@pytest.mark.parametrize("id", IDS)
def test_each_mistake_has_a_hint_of_its_own_in_both_languages(id):
    exercise = find_exercise(id)
    hints = [m.hint for m in exercise.mistakes]
    # mistakes of one kind may share a hint, in both languages
    assert len({en for en, _ in hints}) == len({zh for _, zh in hints}) == len(set(hints)) >= 3
    for en, zh in [exercise.question, *exercise.steps, *hints]:
        assert not re.search(CHINESE, en) and re.search(CHINESE, zh), (en, zh)


def test_there_are_enough():
    assert len(IDS) >= 70
    assert len(IDS) == len(set(IDS))
    assert sum(len(find_exercise(id).mistakes) for id in IDS) >= 210
    assert all(4 <= len(lesson_exercises(number)) <= 6 for number in LESSONS)


SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
         ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Add,
         ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq,
         ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
         ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
EDGES = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
NAMES = {"min": "max", "max": "min", "sum": "len", "sorted": "list", "mean": "sum", "any": "all",
         "all": "any", "argmax": "argmin", "exp": "log", "log": "exp", "sqrt": "square",
         "append": "insert", "abs": "float", "floor": "ceil", "round": "float", "len": "sum"}


def operators(node):
    "The same node with another operator."
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        yield type(node)(**dict(ast.iter_fields(node)) | {"op": SWAPS[type(node.op)]()})
    if isinstance(node, ast.Compare):
        for table in (SWAPS, EDGES):
            if type(node.ops[0]) in table:
                ops = [table[type(node.ops[0])](), *node.ops[1:]]
                yield ast.Compare(node.left, ops, node.comparators)


def constants(node):
    "Another number, word or name."
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, str)):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + "x")
    if isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id], node.ctx)
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)


# what stands in the place of a whole node: a part of it, or nothing
LESS = {ast.BinOp: lambda n: [n.left, n.right, ast.BinOp(n.right, n.op, n.left)],
        ast.UnaryOp: lambda n: [n.operand],
        ast.IfExp: lambda n: [n.body, n.orelse],
        ast.Call: lambda n: n.args[:1],
        ast.Return: lambda n: [ast.Return(ast.Constant(0))] if n.value else [],
        ast.AugAssign: lambda n: [ast.Pass()],
        ast.Expr: lambda n: [ast.Pass()],
        ast.comprehension: lambda n: [ast.comprehension(n.target, n.iter, [], 0)] if n.ifs else []}


def changed(node):
    "Other nodes that may stand in the place of one."
    yield from operators(node)
    yield from constants(node)
    yield from LESS.get(type(node), lambda n: [])(node)


class Change(ast.NodeTransformer):
    "Put another node in the place of the n-th."

    def __init__(self, at, new):
        self.at, self.new, self.seen = at, new, -1

    def visit(self, node):
        self.seen += 1
        if self.seen == self.at:
            return self.new
        return self.generic_visit(node)


def walk(tree):
    "In the order in which a NodeTransformer visits."
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from walk(child)


def mutants(solve):
    "Functions, each with one small change of the solution's source; one is another argument."
    source = textwrap.dedent(inspect.getsource(solve))
    tree = ast.parse(source).body[0]
    tree.decorator_list, tree.args.defaults = [], []
    whole, given = {ast.unparse(tree)}, [a.arg for a in tree.args.args]
    for at, node in enumerate(list(walk(tree))):
        others = []
        if isinstance(node, ast.Name) and node.id in given[1:] and isinstance(node.ctx, ast.Load):
            others = [ast.Name(given[given.index(node.id) - 1], node.ctx)]
        for new in itertools.chain(changed(node), others):
            copy = ast.parse(ast.unparse(tree)).body[0]
            made = ast.fix_missing_locations(Change(at, new).visit(copy))
            if ast.unparse(made) in whole:
                continue
            whole.add(ast.unparse(made))
            space = dict(solve.__globals__)
            exec(compile(ast.Module([made], []), "mutant", "exec"), space)
            yield space[tree.name]


class TooLong(BaseException):
    "A change made a loop endless."


def stop(*_):
    raise TooLong


@contextmanager
def limited(seconds):
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer(function, values):
    "What a function says, or the kind of its error."
    try:
        return function(**copy.deepcopy(values))
    except Exception as e:
        return type(e)


def is_seen(exercise, mutant, seeds):
    "Is a mutant judged wrong in one of some variants, as a learner of each would give it?"
    for seed in seeds:
        given = mutant
        if exercise.answer_is == "value":
            given = answer(mutant, exercise.variant(seed))
        if not exercise.judge(given, seed).right:
            return True
    return False


def is_wrong(exercise, mutant, seeds=range(8)):
    try:
        with limited(3):
            return is_seen(exercise, mutant, seeds)
    except TooLong:
        return True


def is_choice(exercise):
    return hasattr(exercise, "options")


@pytest.mark.parametrize("id", [i for i in IDS if is_choice(find_exercise(i))])
def test_other_letters_are_wrong(id):
    "Five wrong answers to a choice: the other letters in some variants, and what is no letter."
    exercise, wrong = find_exercise(id), 0
    for seed in range(3):
        right = exercise.solve(**exercise.variant(seed))
        others = [x for x in "abcdefgh"[: len(exercise.options) + 1] if x != right]
        verdicts = [exercise.judge(x, seed) for x in [*others, "", 3, [right]]]
        assert not any(v.right for v in verdicts)
        wrong += len(verdicts)
    assert wrong >= 5


@pytest.mark.parametrize("id", [i for i in IDS if not is_choice(find_exercise(i))])
def test_mutants_are_wrong(id):
    """At least five small changes of a solution are judged wrong. One that is not in 8 variants is
    not in 60 others, either: it is the same program."""
    exercise, wrong = find_exercise(id), 0
    for mutant in itertools.islice(mutants(exercise.solve), 40):
        if is_wrong(exercise, mutant):
            wrong += 1
        else:
            assert not is_wrong(exercise, mutant, range(8, 68)), "8 variants do not see it"
    assert wrong >= 5, f"only {wrong} mutants are seen"


# Lessons


@pytest.mark.parametrize("number", LESSONS)
def test_lesson_has_its_parts(number):
    nb = Notebook(PATHS[number])
    text = "\n".join(c.source for c in nb.cells if c.kind == "markdown")
    assert nb.cells[0].source.startswith(f"# {number}. ")
    for part in ("**You will be able to**", "**You need**", "**Time:**", *PARTS):
        assert part in text, f"no {part!r}"
    goals = text.split("**You will be able to**")[1].split("**You need**")[0]
    assert len(re.findall(r"^- [a-z]", goals, re.M)) >= 3, "name three things, each with a verb"
    assert [text.index(p) for p in PARTS] == sorted(text.index(p) for p in PARTS)
    assert "**Before you read on" in text
    assert "google.colab" in nb.code[0].source
    assert any("ReportFigure" in c.source or "plot" in c.source for c in nb.code), "no figure"


def asked(nb, function):
    "Exercises that a lesson asks or checks, with the language."
    return [(n.args[0].value, n.args[-1].value) for c in nb.code for n in c.walk(ast.Call)
            if isinstance(n.func, ast.Name) and n.func.id == function]


@pytest.mark.parametrize("path", [*PATHS.values(), *TWINS.values()], ids=lambda p: str(p)[-24:])
def test_lesson_asks_and_checks_its_exercises(path):
    nb, lang = Notebook(path), "zh" if path.parent.name == "zh" else "en"
    want = [(e.id, lang) for e in lesson_exercises(path.name[:2])]
    assert asked(nb, "ask") == asked(nb, "check") == want


@pytest.mark.parametrize("path", [*PATHS.values(), *TWINS.values()], ids=lambda p: str(p)[-24:])
def test_stored_lessons_are_unanswered(path):
    "What is stored was made without a learner: nobody's name, numbers or answers."
    lang = "zh" if path.parent.name == "zh" else "en"
    for cell in Notebook(path).code:
        said = "".join("".join(o.get("data", {}).get("text/markdown", "")) for o in cell.outputs)
        if re.search(r"^check\(", cell.source, re.M):
            assert said.startswith("○"), cell.source
        if id := re.match(r'ask\("(\d\d\.\d)"', cell.source):
            assert said == f"**{id[1]}** {find_exercise(id[1]).ask(0, lang)}", cell.source


# Measured in the same way on 600 words each: Hugging Face's course (chapter 2, tokenizers) has
# 18.0 words a sentence, 24 % of its sentences are long, 9.6 % of its words rare; d2l
# (generalization) 19.2, 28 % and 13.1 %. The course must be easier than both.
EASY = (14, .04, .09)


@pytest.mark.parametrize("number", LESSONS)
def test_lesson_is_easy_to_read(number):
    found = of_notebook(PATHS[number])
    print(number, LINE.format(*found))
    assert all(x <= most for x, most in zip(found, EASY, strict=True)), LINE.format(*found)


# The Chinese twin

SPOKEN = {tokenize.STRING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE,
          getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def code_of(source):
    "The tokens of a cell without the contents of its strings, its comments and its line breaks."
    source = _python(source)
    lines = io.StringIO(source).readline
    return [(t.type, "" if t.type in SPOKEN else t.string) for t in tokenize.generate_tokens(lines)
            if t.type not in (tokenize.COMMENT, tokenize.NL)]


def test_twins_are_there():
    want = {PATHS[n].name for n in LESSONS if n <= "08" or n == "16"}
    assert set(TWINS) >= want


@pytest.mark.parametrize("name", TWINS)
def test_twin_has_the_same_code(name):
    "Cell by cell: the same kinds of cells, and the same code but for what stands in strings."
    one, other = Notebook(FOLDER / name), Notebook(TWINS[name])
    assert [c.kind for c in one.cells] == [c.kind for c in other.cells]
    for a, b in zip(one.code, other.code, strict=True):
        assert code_of(a.source) == code_of(b.source), b.source
    text = "\n".join(c.source for c in other.cells if c.kind == "markdown")
    assert all(part in text for part in PARTS_ZH)
    for a, b in zip(one.cells, other.cells, strict=True):
        if b.kind == "markdown":
            assert re.search(CHINESE, b.source), b.source


def test_solutions_are_light():
    "A learner who checks an answer does not wait for torch."
    for name in LESSONS.values():
        module = import_module(f"insight_nb.lessons.solutions.{name}")
        tree = ast.parse(inspect.getsource(module))
        known = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        known |= {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and not n.level}
        assert known <= {"numpy", "math", "collections", "itertools"}, name


def test_chinese_readme_follows_the_english_one():
    "Its commands name what is there: recipes, commands and options that README or --help know."
    zh = (NBS / "site" / "readme_zh.md").read_text(encoding="utf-8")
    for recipe in re.findall(r"insight-nb run ([a-z]+)|/recipes/([a-z]+)\.ipynb", zh):
        assert (NBS / "recipes" / f"{''.join(recipe)}.ipynb").is_file(), recipe
    known = make_parser().format_help()
    assert all(c in known for c in re.findall(r"insight-nb ([a-z-]+)", zh))
    targets = (NBS.parent / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{t}:" in targets for t in re.findall(r"^make (\w+)", zh, re.M))


def test_a_class_is_shown_by_the_command(tmp_path, capsys):
    "`insight-nb progress FOLDER`: a row for each learner; a folder that is none is one line."
    p = CourseProgress("小伟", tmp_path / "a.json")
    p.record(IDS[0]).solved = True
    p.save()
    assert main(["progress", str(tmp_path)]) == 0
    assert f"1 of {len(IDS)}" in capsys.readouterr().out
    assert main(["progress", str(tmp_path / "gone")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_large_class_with_broken_files(tmp_path, capsys):
    "300 learners, some files broken or of an older course, one name twice: a row for each."
    for i in range(296):
        p = CourseProgress(f"learner {i // 2 if i < 2 else i}", tmp_path / f"{i}.json")
        p.record(IDS[i % len(IDS)]).solved = p.record("99.9").solved = True
        p.save()
    (tmp_path / "half.json").write_bytes((tmp_path / "0.json").read_bytes()[:30])
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "notepad.JSON").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "5.json").read_bytes())
    (tmp_path / "folder.json").mkdir()
    assert main(["progress", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "300 learners" in said and said.count(f"1 of {len(IDS)}") == 297
    assert said.count("is not a progress file of the course") == 3
    assert "learner 0 (0.json)" in said and "learner 0 (1.json)" in said


SOLVE = """
import sys
from insight_nb.lessons.kit.exercises import check, find_exercise, hint
for id in sys.argv[1:]:
    exercise = find_exercise(id)
    hint(id)
    answer = exercise.solve
    if exercise.answer_is == "value":
        answer = answer(**exercise.variant(0))
    assert "can't be written" not in repr(check(id, answer))
"""


def test_two_kernels_lose_nothing(tmp_path, monkeypatch):
    "Both write the same file at the same time, each for its own lessons."
    monkeypatch.setenv("INSIGHT_NB_COURSE", str(tmp_path / "both.json"))
    halves = [[id for id in IDS if id[:2] in ("00", "04", "16")], [id for id in IDS if id[:2] in (
        "01", "08", "14")]]
    running = [subprocess.Popen([sys.executable, "-c", SOLVE, *ids]) for ids in halves]
    assert [p.wait(120) for p in running] == [0, 0]
    found = read_progress(tmp_path / "both.json").records
    assert sorted(found) == sorted(halves[0] + halves[1])
    assert all(r.solved and r.tries == r.hints == 1 for r in found.values())
    assert [p.name for p in tmp_path.iterdir()] == ["both.json"]


@pytest.mark.parametrize("path", [PATHS["12"], TWINS["08_rows.ipynb"]], ids=lambda p: p.stem)
def test_slides_need_no_network_and_no_site(path, tmp_path):
    "No address outside, formulas drawn, links only to other slides; an answer on the next slide."
    pytest.importorskip("sphinx_revealjs")
    from slides import QUESTIONS, arranged, write_slides
    page = write_slides(path, tmp_path).read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?:https?:|//|/)', page)
    cells = arranged(path).cells
    assert not any("$$" in c.source for c in cells if c.cell_type == "markdown")
    nexts = [b.metadata["slideshow"]["slide_type"] for a, b in itertools.pairwise(cells)
             if any(q in a.source for q in QUESTIONS)]
    assert nexts and "-" not in nexts
