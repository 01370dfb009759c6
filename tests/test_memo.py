"""From evidence to a memo in one command: nothing that can't be traced, nothing dropped in silence,
and a rule that pays on projects whose truth is known."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import in_process, refused
from insight_nb.base.core import InputError
from insight_nb.cli import main, recipes
from insight_nb.decide.launch.memo import EXAMPLES, read_yaml, recommend_action
from notebooks import NBS, Notebook

RULES = (
    "volume: {low: 1000, high: 4000, source: 工单 <b>系统</b>}\ngain: 2\nloss: 3\nbuild: "
    "100\nlabel_price: 0.5\n"
)


def written(text, name="a.yaml"):
    Path(name).write_text(text, encoding="utf-8")
    return name


def shown(notebook):
    "All that the notebook's outputs say, and its cells."
    cells = [
        c
        for c in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    ]
    texts = [
        o.get("text") or v
        for c in cells
        for o in c["outputs"]
        for v in [*o.get("data", {}).values(), ""]
    ]
    return "\n".join("".join(t) if not isinstance(t, dict) else json.dumps(t) for t in texts)


def decided(**given):
    "The recipe's cells in this process; its decision."
    in_process(recipes()["decide"], "run.ipynb", given | {"out": "memo"})
    return json.loads(Path("memo/decision.json").read_text(encoding="utf-8"))


def numbers(text):
    return set(re.findall(r"\d[\d,]*(?:\.\d+)?", text))


def test_from_the_main_job_to_a_memo_in_one_command(trained):
    written(RULES)
    assert (
        main(
            [
                "run",
                "decide",
                "-p",
                "evidence",
                str(trained / "evidence.json"),
                "-p",
                "assumptions",
                "a.yaml",
                "--out",
                "memo",
            ]
        )
        == 0
    )
    assert {p.name for p in Path("memo").iterdir()} == {
        "memo.md",
        "memo.html",
        "notebook.ipynb",
        "decision.json",
    }
    d = json.loads(Path("memo/decision.json").read_text(encoding="utf-8"))
    page = Path("memo/memo.html").read_text(encoding="utf-8")
    assert (
        d["recommendation"] in ("launch", "wait", "collect", "stop")
        and d["example"] == ""
        and d["npv"]["low"] < d["npv"]["value"] < d["npv"]["high"]
        and 0 <= d["p_loss"] <= 1
    )
    assert (
        set(d) >= {"irr", "threshold", "labels", "tornado", "measured", "assumed"}
        and isinstance(d["irr"], list)
        and isinstance(d["tornado"], list)
        and d["labels"]["evaluate"]["price"] == 0.5
    )
    assert all(n["origin"] for n in d["measured"] + d["assumed"]) and {
        n["origin"].split(":")[0] for n in d["measured"]
    } == {"run/evidence.json"}
    assert "<b>系统</b>" not in page and "工单 &lt;b&gt;系统" in page and "<script" not in page
    # each number of the page stands in the notebook, or in a file that it names
    memo, known = (
        Path("memo/memo.md").read_text(encoding="utf-8"),
        shown("memo/notebook.ipynb") + RULES,
    )
    assert len(numbers(memo)) > 40 and numbers(memo) - numbers(known) == set()
    # the notebook runs again from its own folder
    subprocess.run(
        [
            sys.executable,
            "-m",
            "jupyter",
            "nbconvert",
            "--to",
            "notebook",
            "--execute",
            "notebook.ipynb",
            "--output",
            "again.ipynb",
        ],
        cwd="memo",
        check=True,
        capture_output=True,
    )
    assert json.loads(Path("memo/decision.json").read_text(encoding="utf-8")) == d
    # again.ipynb is not of a run, and not lost
    assert main(["run", "decide", "--out", "memo", "--force"]) == 2


def test_the_example_says_that_it_is_one():
    d, memo = decided(), Path("memo/memo.md").read_text(encoding="utf-8")
    assert (
        d["example"] == "evidence and assumptions"
        and d["said"].startswith("EXAMPLE")
        and "EXAMPLE" in memo.splitlines()[2]
    )
    assert decided(assumptions=written(RULES))["example"] == "evidence"


def test_same_seed_same_bytes():
    for name in "ab":
        Path(name).mkdir()
        recommend_action(seed=3).save(name)
    assert all(
        Path("a", f).read_bytes() == Path("b", f).read_bytes()
        for f in ("memo.md", "memo.html", "decision.json")
    )


def test_several_candidates_are_compared():
    e = json.loads((EXAMPLES / "evidence.json").read_text())
    for name, up in (("worse", -0.1), ("better", 0.1)):
        table = [
            r | {"accuracy": min(max(r["accuracy"] + up, 0.01), 0.99)}
            for r in e["calibration"]["reliability"]
        ]
        right = sum(r["rows"] * r["accuracy"] for r in table) / 4000
        Path(f"{name}.json").write_text(
            json.dumps(
                e
                | {
                    "calibration": {"reliability": table},
                    "metrics": {
                        "accuracy": {
                            "value": right,
                            "low": right - 0.01,
                            "high": right + 0.01,
                            "n": 4000,
                            "method": "Wilson 95 %",
                        }
                    },
                }
            )
        )
    d = decided(evidence=["worse.json", "better.json"], assumptions=written(RULES))
    assert (
        d["measured"][0]["origin"].split(":")[0].endswith("better.json")
        and "worse.json" in Path("memo/memo.md").read_text()
    )


# Bad input


def evidence(**other):
    Path("e.json").write_text(
        json.dumps(json.loads((EXAMPLES / "evidence.json").read_text()) | other)
    )
    return "e.json"


SHARE = {"value": 0.9, "low": 0.9, "high": 0.9, "n": 1, "method": ""}
BAD = {  # the assumptions, the evidence, words that the message must hold
    "a negative volume": ("volume: -5\ngain: 2", {}, ["a.yaml", "volume is -5"]),
    "a rate over 1": (RULES + "rate: 8", {}, ["rate is 8", "0.08 for 8 %"]),
    "a share over 1": (RULES + "decay: 3", {}, ["decay is 3", "from 0 to 1"]),
    "volumes that may be negative": ("volume: {mean: 10, sd: 90}\ngain: 2", {}, ["volume is -"]),
    "an unknown name": (RULES + "volum: 3", {}, ["line 6", "'volum'", "'volume'"]),
    "a name twice": (RULES + "gain: 3", {}, ["line 6", "'gain' stands there twice"]),
    "words for a number": ("volume: many\ngain: 1", {}, ["'many'"]),
    "a number with commas": ("volume: 40,000\ngain: 1", {}, ["40,000", "without commas"]),
    "yes for a number": ("volume: yes\ngain: 1", {}, ["True"]),
    "a date": ("volume: 2026-01-01\ngain: 1", {}, ["2026-01-01"]),
    "no gain": ("volume: 3", {}, ["has no gain"]),
    "a gain below 0": ("volume: 3\ngain: -1", {}, ["gain is -1", "nothing to launch"]),
    "not YAML": ("volume: [", {}, ["is no YAML"]),
    "a program": ("volume: !!python/object/apply:os.system [ls]\ngain: 1", {}, ["is no YAML"]),
    "an empty file": ("", {}, ["holds no names"]),
    "quality assumed": (RULES + "quality: 1", {}, ["what the evidence says"]),
    "correlation with what is known": (
        RULES + "correlations: [[volume, loss, 0.5]]",
        {},
        ["'loss' to correlate"],
    ),
    "a correlation over 1": (
        "volume: {low: 1, high: 2}\ngain: {low: 1, high: 2}\ncorrelations: [[volume, gain, 2]]",
        {},
        ["from -1 to 1"],
    ),
    "waiting for what is known": (RULES + "wait: {settles: [gain]}", {}, ["'gain' to be settled"]),
    "evidence of another task": (
        RULES,
        {"task": "regress", "metrics": {"mae": SHARE}},
        ["regress", "mae", "no share of right cases"],
    ),
    "no interval": (RULES, {"metrics": {"accuracy": {"value": 0.9}}}, ["accuracy has no interval"]),
    "an interval of no width": (
        RULES,
        {"metrics": {"accuracy": SHARE}},
        ["accuracy has no interval"],
    ),
    "not evidence": (RULES, {"schema": 7}, ["is no evidence of a run"]),
    "no metrics": (RULES, {"metrics": []}, ["is no evidence of a run"]),
    "a metric that isn't there": (
        RULES + "metric: acuracy",
        {},
        ["no metric 'acuracy'", "'accuracy'"],
    ),
    "a broken table": (
        RULES,
        {"calibration": {"reliability": [{"rows": 1}]}},
        ["is not as a run leaves it"],
    ),
    "a table of another run": (
        RULES,
        {"metrics": {"accuracy": {"value": 0.95, "low": 0.94, "high": 0.96, "n": 9}}},
        ["by the reliability table"],
    ),
    "volume 0": ("volume: 0\ngain: 1", {}, ["volume is 0", "nothing to launch"]),
    "no date": ("volume: 2026-13-45\ngain: 1", {}, ["is no YAML"]),
    "a list for a name": ("? [a, b]\n: 3", {}, ["is no YAML"]),
    "too many periods": (RULES + "periods: 4000", {}, ["from 1 to 600"]),
    "a pair twice": (
        "volume: {low: 1, high: 2}\ngain: {low: 1, high: "
        "2}\ncorrelations: [[volume, gain, 0.1], [gain, volume, 0.5]]",
        {},
        ["correlated twice"],
    ),
    "a metric that is no share": (RULES + "metric: macro_f1", {}, ["macro_f1 is no share"]),
    "a guard that is none": (RULES, {"guard": "all fine"}, ["is not as a run leaves it"]),
    "curves that are none": (
        RULES,
        {"curves": {"frozen + linear": {"sizes": ["x"], "scores": [1]}}},
        ["is not as a run leaves it"],
    ),
}


@pytest.mark.parametrize("assumed, other, words", BAD.values(), ids=BAD)
def test_bad_input_ends_in_a_line(ends, assumed, other, words):
    made, name = evidence(**other), written(assumed)
    refused(
        ends("run", "decide", "-p", "evidence", made, "-p", "assumptions", name, "--out", "memo"),
        *words,
    )


def test_files_that_are_not_there(ends):
    refused(
        ends("run", "decide", "-p", "evidence", "gone.json", "--out", "memo"),
        "gone.json",
        "can't be read",
    )
    refused(
        ends("run", "decide", "-p", "assumptions", "gone.yaml", "--out", "memo"),
        "gone.yaml",
        "can't be read",
    )
    made = evidence()
    refused(
        ends("run", "decide", "-p", "evidence", made, "-p", "evidence", made, "--out", "memo"),
        "given twice",
    )
    refused(ends("run", "decide", "-p", "seed", "-1", "--out", "memo"), "seed is -1")


def test_what_never_pays_is_said():
    d = recommend_action(
        [evidence()], written("volume: 10\ngain: 1\nloss: 1\nrunning: 1000\nbuild: 5\n")
    )
    assert (
        d.best.action == "stop"
        and d.asdict()["irr"] == []
        and "never turn positive" in d.asdict()["irr_said"]
        and "never comes back" in d.to_markdown()
    )


def test_red_lines_of_the_guard_stop_a_launch():
    e = json.loads((EXAMPLES / "evidence.json").read_text())["guard"]
    d = recommend_action(
        [evidence(guard=[e[0] | {"passed": False, "detail": "3 rows on two sides"}, *e[1:]])],
        written(RULES),
    )
    assert (
        d.best.action == "wait"
        and "3 rows on two sides" in d.summary()
        and d.checks()[0][0] is False
    )


def test_a_yaml_bomb_is_no_matter():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(InputError, match=r"has an alias \(\*name\), which is not read"):
        read_yaml(written("\n".join(lines)))


# The rule, on projects whose truth is known


@pytest.mark.slow
def test_the_launch_rule_pays():
    names = {"projects": 60}
    for cell in Notebook(NBS / "benchmarks" / "launch.ipynb").code:  # its assertions hold here too
        if "parameters" not in cell.tags:
            exec(compile(cell.source, "launch", "exec"), names)
    regret, perfect, _ = names["regrets"](names["narrow"])
    assert regret["the rule"].mean() <= 0.1 * perfect.mean()
