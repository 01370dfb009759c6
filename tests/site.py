"""The site, build/site/index.html, from the notebooks as they are stored. Any warning or broken
link ends it."""
import ast
import html
import io
import json
import re
import shutil
import sys
import warnings
from configparser import ConfigParser
from html.parser import HTMLParser
from importlib import import_module
from urllib.parse import unquote, urlsplit

from nbdev.showdoc import show_doc
from notebooks import NBS, ROOT, every, library
from sphinx.application import Sphinx

BUILD = ROOT / "build"
SOURCE, SITE = BUILD / "pages", BUILD / "site"
ini = ConfigParser(delimiters="=", interpolation=None)
ini.read(ROOT / "settings.ini", encoding="utf-8")
REPOSITORY = ini["DEFAULT"]["git_url"]
OWNER = REPOSITORY.removeprefix("https://github.com/")
COLAB = f"https://colab.research.google.com/github/{OWNER}/blob/main/nbs"
# Parameters that can't be described are a fault of the site, too.
warnings.filterwarnings("error", message="docments unavailable")
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)


def markdown(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


# API pages: the signature and the docments of each public name, under the cell that defines it

def definitions(cell):
    "The public functions, classes and patched methods that a cell defines, as dotted names."
    for node in cell.tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name[0] == "_":
            continue
        patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
        owner = ast.unparse(node.args.args[0].annotation) if patched else ""
        yield f"{owner}.{node.name}" if owner else node.name


def documented(module, name):
    "The docs of one name, as Markdown; none for a property, which has no signature."
    found = module
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, property) or not callable(found):
        return None
    text = show_doc(found, title_level=4)._repr_markdown_()
    text = re.sub(r"^---\n+", "", text)
    # no heading: a cell has its own
    text = re.sub(r"^#+ (.+)$", r"**\1**", text, count=1, flags=re.M)
    text = re.sub(r"^\[source\]\(.*?\)\{.*?\}\n+", "", text, flags=re.M)
    # a docstring of two lines: both are the summary
    text = re.sub(r"^\*([^*\n]+)\*\n(?=\S)([^\n]+)", r"*\1 \2*", text, flags=re.M)
    return markdown(text)


# A page for each notebook

def page_of(nb):
    "A notebook as the site shows it: no directives, docs of its names, a link to Colab."
    raw = json.loads(nb.path.read_text(encoding="utf-8"))
    exports = nb.module in {n.module for n in LIBRARY}
    module = import_module(f"insight_nb.{nb.module}") if exports else None
    cells = []
    for stored, cell in zip(raw["cells"], nb.cells, strict=True):
        if {"default_exp", "hide"} & set(cell.directives):
            continue
        source = "\n".join(line for line in cell.source.splitlines()
                           if not line.endswith("#|hide_line"))
        source = DIRECTIVE.sub("", source).strip("\n")
        if not source and not stored.get("outputs"):
            continue
        cells.append(stored | {"source": relink(source) if cell.kind == "markdown" else source})
        if module and cell.exported:
            cells += filter(None, (documented(module, name) for name in definitions(cell)))
    path = nb.path.relative_to(NBS)
    if path.parts[0] in ("recipes", "lessons") and not exports:
        cells.insert(1, markdown(f"[Open in Colab]({COLAB}/{path.as_posix()})"))
    for cell in cells:
        cell.pop("id", None)
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return {"cells": cells, "metadata": {"language_info": language}, "nbformat": 4,
            "nbformat_minor": 4}


def relink(text):
    "Names of notebooks in prose become links to their pages."
    return re.sub(r"`nbs/([\w/]+)\.ipynb`", r"[\1](/\1.ipynb)", text)


MENU = """```{toctree}
:hidden:
:caption: Use it

recipes/index
lessons/index
site/teaching
site/readme_zh
site/applications
site/decision
```

```{toctree}
:hidden:
:caption: How it works

base/00_glossary
base/index
data/index
models/index
eval/index
train/index
methods/index
ship/index
jobs/index
apps/index
decide/index
90_cli
```

```{toctree}
:hidden:
:caption: Build on it

site/extend
site/speed
benchmarks/index
```
"""


# A drawing of each folder: its modules in the order of the floors inside it

def levels(folder):
    "module -> (how many imports deep it stands in its folder, what it imports there)"
    inside = {nb.module: nb for nb in LIBRARY if nb.folder == folder}
    found = {}
    for name, nb in inside.items(): # numbers run upwards, so what is imported comes first
        below = sorted(nb.imported & set(inside))
        found[name] = max([found[b][0] + 1 for b in below], default=0), below
    return found


def drawing(folder):
    "An SVG of a folder's modules; an arrow runs from a module to what it imports."
    rows = {}
    for name, (level, _) in levels(folder).items():
        rows.setdefault(level, []).append(name)
    width = 190 * max(map(len, rows.values()))
    height = 84 * len(rows)
    place = {}
    for level, names in rows.items():
        for i, name in enumerate(names):
            x = width * (i + .5) / len(names)
            place[name] = x, height - 84 * level - 50
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'width="{width}" role="img" aria-label="the modules of {folder}">'
           '<style>text{font:15px sans-serif;text-anchor:middle;fill:#222}'
           'rect{fill:#fff;stroke:#4c78a8;stroke-width:1.5}path{stroke:#888;fill:none}</style>'
           '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
           'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#888"/></marker>'
           "</defs>"]
    for name, (_, below) in levels(folder).items():
        for other in below:
            (x, y), (u, v) = place[name], place[other]
            out.append(
                f'<path marker-end="url(#a)" d="M{x:.0f} {y + 17:.0f}L{u:.0f} {v - 19:.0f}"/>')
    for name, (x, y) in place.items():
        short = html.escape(name.rpartition(".")[2])
        out.append(f'<rect x="{x - 85:.0f}" y="{y - 17:.0f}" width="170" height="34" rx="6"/>'
                   f'<text x="{x:.0f}" y="{y + 5:.0f}">{short}</text>')
    return "".join([*out, "</svg>"])


# Sphinx

SETTINGS = {
    "project": "insight_nb", "html_title": "insight_nb",
    "copyright": ini["DEFAULT"]["author"],
    "extensions": ["myst_nb"], "nb_execution_mode": "off", "html_theme": "furo",
    "myst_enable_extensions": [], "myst_heading_anchors": 3, "html_copy_source": False,
    "html_static_path": [str(SOURCE / "site" / "static")], "html_css_files": ["site.css"],
    "nb_mime_priority_overrides": [
        ("html", "text/html", 0), ("html", "image/svg+xml", 5)
    ], "pygments_style": "friendly", "html_theme_options": {
        "source_repository": REPOSITORY, "source_branch": "main", "source_directory": "nbs/"}}


def write_pages():
    "The sources of all pages, under the paths that they have in nbs/."
    shutil.rmtree(SOURCE, ignore_errors=True)
    for nb in every():
        page, path = page_of(nb), SOURCE / nb.path.relative_to(NBS)
        if path.name == "index.ipynb":
            page["cells"].append(markdown(MENU))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(page), encoding="utf-8")
    for path in [*NBS.rglob("*.md"), *NBS.rglob("static/*"), *NBS.rglob("*.svg")]:
        if ".ipynb_checkpoints" in path.parts:
            continue
        copy = SOURCE / path.relative_to(NBS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for folder in sorted({nb.folder for nb in LIBRARY} - {""}):
        file = SOURCE / folder.replace(".", "/") / "modules.svg"
        file.write_text(drawing(folder), encoding="utf-8")


class Links(HTMLParser):
    "What a page links to, what it loads, and its own anchors."

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name")}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("canonical", "search", "index"):
            return
        else:
            self.loads += [found[k] for k in ("src", "href") if found.get(k) and tag != "a"]


def faults(site):
    "Links that lead nowhere, and files that a page would load from elsewhere."
    pages = {p: Links(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}
    for page, found in pages.items():
        name = page.relative_to(site)
        for link in found.links + found.loads:
            url = urlsplit(link)
            if url.scheme in ("data", "mailto") or link.startswith("#"):
                target = page
            elif url.scheme or url.netloc:
                if link in found.loads:
                    yield f"{name} loads {link}"
                continue
            else:
                target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                yield f"{name} links to {link}, which is not there"
            elif url.fragment and target in pages and url.scheme != "data":
                if unquote(url.fragment) not in pages[target].anchors:
                    yield f"{name} links to {link}: there is no such place"


def build():
    "All of it. Returns what is wrong."
    write_pages()
    warnings = io.StringIO()
    app = Sphinx(SOURCE, None, SITE, BUILD / "doctrees", "html", confoverrides=SETTINGS,
                 status=None, warning=warnings, freshenv=True, parallel=2)
    app.build(force_all=True)
    return warnings.getvalue().splitlines() + list(faults(SITE))


LIBRARY = library()

if __name__ == "__main__":
    wrong = build()
    pages = len(list(SITE.rglob("*.html")))
    print(*wrong, f"{pages} pages in {SITE.relative_to(ROOT)}, {len(wrong)} faults", sep="\n")
    sys.exit(1 if wrong else 0)
