"""nbs/index.ipynb -> README.md. With --check: say whether the two are equal, and write nothing."""
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import hide_, hide_line, rm_export, strip_ansi
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
IMAGES = "nbs/site/images" # as README.md, at the root, links to them
# of one output's forms
BEST_FIRST = [
    "image/svg+xml", "text/markdown", "image/png", "image/jpeg", "text/html", "text/plain"]


def render(index: Path) -> dict[str, bytes]:
    "The files that the index gives, by their path from the root: README.md and its images."
    processed = NBProcessor(index, procs=[strip_ansi, hide_line, rm_export, hide_],
                            rm_directives=True)
    processed.process()
    cells = [{k: v for k, v in c.items() if not k.endswith("_")}
             | {"source": c.source.strip("\n"), "metadata": {}} for c in processed.nb.cells]
    exporter = MarkdownExporter(config=Config(NbConvertBase={"display_data_priority": BEST_FIRST}))
    notebook = nbformat.from_dict(
        processed.nb | {"cells": cells, "metadata": {"language_info": {"name": "python"}}})
    text, resources = exporter.from_notebook_node(
        notebook, {"output_files_dir": IMAGES, "unique_key": "readme"})
    text = "\n".join(line.rstrip() for line in text.splitlines())
    text = text.replace("```python\n\n```\n", "") # cells of which every line is hidden
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    for folder in ("site", "recipes", "base", "lessons"): # README.md lies a folder higher
        text = text.replace(f"]({folder}/", f"](nbs/{folder}/")
    return {"README.md": (text.strip() + "\n").encode()} | resources["outputs"]


def differences(root: Path) -> list[str]:
    "What in `root` is not as its index says: files to write, images that nothing shows any more."
    files = render(root / "nbs" / "index.ipynb")
    wrong = [
        name for name, content in files.items()
        if not (root / name).is_file() or (root / name).read_bytes() != content]
    return wrong + [
        str(p.relative_to(root))
        for p in (root / IMAGES).glob("readme_*") if str(p.relative_to(root)) not in files]


if __name__ == "__main__":
    wrong = differences(ROOT)
    if "--check" in sys.argv:
        sys.exit(
            f"Not as nbs/index.ipynb says: {', '.join(wrong)}. Do: make export" if wrong else 0)
    files = render(ROOT / "nbs" / "index.ipynb")
    for name in wrong:
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(files[name]) if name in files else (ROOT / name).unlink()
