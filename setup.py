"""Reads settings.ini, where the package's metadata lives."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters="=", interpolation=None)
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
name = cfg["lib_name"]
version = re.search(r'^__version__ = "(.+)"',
                    (here / name / "__init__.py").read_text(encoding="utf-8"), re.M)[1]

setup(
    name=name,
    version=version,
    description=cfg["description"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    url=cfg["git_url"],
    python_requires=f">={cfg['min_python']}",
    # The recipes are notebooks beside the others; an installed package carries them as
    # insight_nb/recipes.
    packages=[*find_packages(include=[name, f"{name}.*"]), f"{name}.recipes"],
    package_dir={f"{name}.recipes": "nbs/recipes"},
    package_data={f"{name}.recipes": ["*.ipynb"], f"{name}.decide.launch": ["examples/*"],
                  f"{name}.decide.strategy": ["examples/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={
        k.removesuffix("_requirements"): v.split() for k, v in cfg.items()
        if k.endswith("_requirements")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{name}={name}._modidx:d"]},
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown")
