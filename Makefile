PYTHON ?= python3
BIN := .venv/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_COMPILE_BYTECODE ?= 1
# Slow tests with a target of their own; `make slow` runs all others.
FAULTS = tests/faults
PRIVACY = tests/test_privacy.py
RAY = tests/test_ray.py
WORLD = $(addprefix tests/test_,disk.py surroundings.py world.py security.py markup.py browser.py)
FILES = git ls-files -co --exclude-standard -- nbs insight_nb README.md | sort | xargs sha256sum

.PHONY: help demo test lab slow faults privacy mutants kills world ray audit docs slides course export check colab pandas3 clean
help:               ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## /make \1	/p' Makefile

.venv/ok: settings.ini setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[samples,films,apps,decide,dev,docs]'
	touch $@

demo: .venv/ok      ## install, then the main job on a real sample: a report and a model in runs/demo
	$(BIN)/insight-nb run classify --out runs/demo --force

# The same threads, backend and network everywhere, so that outputs are the same everywhere. One
# thread for each process: notebooks and tests run side by side, and threads that wait keep a core.
test slow faults privacy: export OMP_NUM_THREADS ?= 1
test slow: export INSIGHT_NB_COURSE := off
test slow faults: export MPLBACKEND := agg
test slow faults: export HF_HUB_OFFLINE := 1
test slow faults: export INSIGHT_NB_PROGRESS := quiet
test: .venv/ok      ## install, then every notebook (but for cells marked slow), then the rules of the whole and the recipes on small tables
	$(BIN)/nbdev-test --timing $(SAVE) --skip-folder-re '^([_.]|recipes|benchmarks|zh|more)' --path-re '^(?!.*lessons/[0-9])'
	$(if $(SAVE),$(BIN)/nbdev-clean)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile
slow: .venv/ok      ## on demand: the slow cells, the course, and the slow tests that no target below runs
	$(BIN)/nbdev-test --timing --flags slow --skip-folder-re '^([_.]|recipes|benchmarks)'
	$(BIN)/python -m pytest -q -m slow $(addprefix --ignore=,$(FAULTS) $(PRIVACY) $(WORLD) $(RAY))
faults: .venv/ok    ## on demand: faults planted into runs, each of which must be seen (some minutes)
	$(BIN)/python -m pytest -q -m slow $(FAULTS)
privacy: .venv/ok   ## on demand: no file that a masked run or service leaves holds a planted value (a minute)
	$(BIN)/python -m pytest -q -m slow $(PRIVACY)
mutants: .venv/ok   ## on demand: 300 small changes to base, data, eval and decide; does each notebook notice?
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[mutants]'
	nice $(BIN)/python tests/mutants.py

docs: .venv/ok      ## the site, from the notebooks as they are stored: build/site/index.html
	$(BIN)/python tests/site.py
slides: .venv/ok    ## slides of the lessons, for who teaches: build/slides/index.html
	$(BIN)/python tests/slides.py
lab: .venv/ok       ## the notebooks in the browser
	$(BIN)/jupyter lab nbs/index.ipynb
course: .venv/ok    ## the course in the browser, from its first lesson on
	$(BIN)/jupyter lab nbs/lessons/00_start.ipynb
export: .venv/ok    ## notebooks -> package, cleaned notebooks, README
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python tests/readme.py
check: .venv/ok     ## what CI runs: lint and test; export, clean and a rerun with saved outputs may change no byte
	$(BIN)/ruff check -q
	$(FILES) > .venv/before
	$(MAKE) export
	$(MAKE) test SAVE=--save
	@$(FILES) | diff .venv/before - || { echo "These files differ from what the notebooks give: run make export, look, and commit."; exit 1; }
colab:              ## on demand: the versions of Google Colab, in an environment of its own
	$(PYTHON) tests/environments.py colab
pandas3:            ## on demand: the notebooks of base and data with pandas 3
	$(PYTHON) tests/environments.py pandas3
kills: .venv/ok     ## on demand, an hour: signals at random moments of every recipe, and runs that are taken up again
	$(BIN)/python tests/signal_check.py
	$(BIN)/python tests/kill_check.py
world: .venv/ok     ## on demand, a quarter of an hour: small disks, odd surroundings, markup in every field of every recipe
	$(BIN)/python -m pytest -q -m slow $(WORLD)
ray: .venv/ok       ## on demand: search and scoring on Ray, with workers that are killed (some minutes)
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[ray]'
	$(BIN)/nbdev-test --timing --flags ray nbs/train/10_cluster.ipynb
	$(BIN)/nbdev-test --timing --flags ray nbs/train/11_ray_search.ipynb
	$(BIN)/python -m pytest -q -m slow $(RAY)
audit: .venv/ok     ## on demand: known holes of the installed packages (asks pypi.org), and what bandit finds in the package
	$(BIN)/uv tool run bandit -q -c pyproject.toml -r insight_nb
	$(BIN)/uv pip list --python $(BIN)/python --exclude-editable --format freeze | sed 's/+cpu//' > .venv/installed.txt
	$(BIN)/uv tool run pip-audit --progress-spinner off --no-deps --disable-pip -r .venv/installed.txt
clean:              ## remove what was installed and built
	rm -rf .venv build dist *.egg-info
