"""Slides of the lessons, for who teaches: build/slides/index.html. A heading begins a slide; one
that would be too long goes on below, and so does what answers a question. They need no network:
reveal.js comes with sphinx-revealjs, and formulas are drawn by matplotlib.
"""

import base64
import html
import io
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import nbformat
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from nbconvert import SlidesExporter
from notebooks import NBS, ROOT, Notebook

OUT = ROOT / "build" / "slides"
REVEAL = Path(find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs"
ROOM = 14  # lines of a slide, about
LEFT_OUT = ("## Exercises", "## 练习", "## Where it lives", "## 代码在哪里")


QUESTIONS = ("**Before you read on", "**先想一想")
CODE_OR_FORMULA = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$(?P<wide>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.DOTALL)


def drawn(formula):
    "A formula as an image in the line; its text stays as the image's description."
    made, said = io.BytesIO(), " ".join(formula.split())
    depth = math_to_image(f"${said}$", made, FontProperties(size=16), dpi=72, format="svg")
    wide, high = (float(x) / 16 for x in re.search(
        rb'width="([\d.]+)pt" height="([\d.]+)pt"', made.getvalue()).groups())
    code = base64.b64encode(made.getvalue()).decode()
    style = (f"margin: 0; width: {wide:.2f}em; height: {high:.2f}em; "
             f"vertical-align: {-depth / 16:.2f}em")
    return (f'<img alt="{html.escape(said)}" style="{style}" '
            f'src="data:image/svg+xml;base64,{code}">')


def place_of(target, language):
    "Where a link leads within the slides; nothing for pages that are not among them."
    found = re.fullmatch(r"/lessons/(zh/)?(\d\d_\w+)\.ipynb", target)
    if not found:
        return None
    other = "zh" if found[1] else "en"
    return f"{'' if other == language else f'../{other}/'}{found[2]}.html"


def adapted(text, language):
    "Markdown with its formulas drawn, and links that work without the site."
    def link(m):
        to = place_of(m[2], language)
        return f"[{m[1]}]({to})" if to else m[1]
    def formula(m):
        if m["wide"]:
            return f"<p>{drawn(m['wide'])}</p>"
        return drawn(m["inline"]) if m["inline"] else m[0]
    return CODE_OR_FORMULA.sub(formula, re.sub(r"\[([^\]]+)\]\((/[^)\s]+)\)", link, text))


def weight(cell):
    "How much room a cell takes, in lines."
    lines = sum(1 + len(line) // 90 for line in "".join(cell["source"]).splitlines())
    for out in cell.get("outputs", []):
        text = out.get("text") or out.get("data", {}).get("text/plain", "")
        lines += 10 if "image/svg+xml" in out.get("data", {}) else "".join(text).count("\n") + 1
    return lines


def arranged(path):
    "The cells with their kinds of slides; exercises and what is for Colab are left out."
    book, full, left_out, asked = nbformat.read(path, 4), 0, False, False
    kept, language = [], "zh" if path.parent.name == "zh" else "en"
    for cell in book.cells:
        heading = cell.cell_type == "markdown" and cell.source.startswith("#")
        if heading:
            left_out = cell.source.startswith(LEFT_OUT)
        if left_out or "google.colab" in cell.source:
            continue
        kind, full = "-", full + weight(cell)
        if heading:
            kind, full = "slide", weight(cell)
        elif full > ROOM or asked:
            kind, full = "subslide", weight(cell)
        cell.metadata["slideshow"] = {"slide_type": kind}
        asked = any(q in cell.source for q in QUESTIONS)
        if cell.cell_type == "markdown":
            cell.source = adapted(cell.source, language)
        kept.append(cell)
    book.cells = kept
    return book


# in the place of what nbconvert writes, which loads require.js and others from the network
STARTED = """<script src="../reveal/dist/reveal.js"></script>
<style>.reveal .slides section {max-height: 95vh; overflow-y: auto}</style>
<script>Reveal.initialize({hash: true, transition: "none", width: 960, height: 700})</script>"""


def write_slides(path, folder):
    "One HTML file beside the folder of reveal.js."
    exporter = SlidesExporter(reveal_url_prefix="../reveal", exclude_input_prompt=True,
                              exclude_output_prompt=True)
    page, _ = exporter.from_notebook_node(arranged(path))
    page = re.sub(r'<script[^>]*src="http[^"]*"[^>]*>\s*</script>', "", page)
    page, n = re.subn(r"<script>\s*require\(.*?</script>", lambda m: STARTED, page, flags=re.S)
    assert n == 1, "nbconvert starts reveal.js in another way now"
    file = folder / f"{path.stem}.html"
    file.write_text(page, encoding="utf-8")
    return file


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    items = []
    for language, folder in (("en", NBS / "lessons"), ("zh", NBS / "lessons" / "zh")):
        (OUT / language).mkdir(parents=True)
        for path in sorted(folder.glob("[0-9]*.ipynb")):
            file = write_slides(path, OUT / language)
            title = Notebook(path).cells[0].source.split("\n")[0].lstrip("# ")
            items.append(f'<li><a href="{language}/{file.name}">{html.escape(title)}</a></li>')
    for part in ("dist", "plugin"):
        shutil.copytree(REVEAL / part, OUT / "reveal" / part)
    (OUT / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><title>Slides of the course</title>'
        f"<ul>{''.join(items)}</ul>", encoding="utf-8")
    print(f"{len(items)} lessons: {(OUT / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
