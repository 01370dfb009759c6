"""The recipes on their samples, their outputs stored in nbs/recipes for the site.

    python tests/sample_runs.py [RECIPE ...]
"""
import json
import re
import sys
import tempfile
from pathlib import Path

from insight_nb.cli import main, recipes

WIDGET = "application/vnd.jupyter.widget-view+json"


def clean(output, folder, name):
    "An output without widgets, and with the folder of the run under its usual name."
    if "data" in output:
        output["data"].pop(WIDGET, None)
    text = json.dumps(output, ensure_ascii=False)
    folder = re.escape(str(folder.parent)) + r"/\.?[\w.]*?" + name + r"[\w.]*"
    output = json.loads(re.sub(folder, f"runs/{name}", text))
    if "execution_count" in output:
        output["execution_count"] = None
    return output


def outputs(executed, folder, name):
    "The outputs of each code cell of a run, without the cell of given parameters."
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            if "injected-parameters" not in cell["metadata"].get("tags", []):
                yield [clean(o, folder, name) for o in cell["outputs"]
                       if o.get("name") != "stderr"]


def store(name, folder):
    "Put the outputs of the run in `folder` into the recipe."
    path = recipes()[name]
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    found = list(outputs(folder / "notebook.ipynb", folder, name))
    for cell, made in zip(code, found, strict=True):
        cell["outputs"] = [o for o in made if o.get("data") != {}]
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or recipes():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / name
            if main(["run", name, "--out", str(out)]) == 0:
                store(name, out)
