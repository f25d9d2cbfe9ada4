# Every target sets up .venv from requirements.txt first, if it is not there yet.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# Else PyTorch's idle threads spin and take the cores from OpenVINO's.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint notebooks book clean

demo: $(READY)  ## find two things in a real photo: prints the boxes, writes demo.png
	$(BIN)/vlscore localize .venv/lib/python3*/site-packages/skimage/data/astronaut.png \
		"an image of a space shuttle." "an image of a flag." --model lite0-minilm --out demo.png
	@echo "picture: demo.png"

test: $(READY) lint book  ## unit tests, the notebooks as tests, and the book builds
	$(BIN)/python -m pytest --nbval -q --cov=vlscore --cov-report=term --cov-fail-under=90

lint: $(READY)  ## ruff's checks and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(READY)  ## execute the chapters in place; a second run changes no byte
	$(BIN)/python notebooks/execute.py

book: $(READY)  ## build the book into _build/html
	$(BIN)/jupyter-book build . --toc book/_toc.yml -W -n --keep-going --all --quiet
	@test -f _build/html/index.html && echo "book: _build/html/index.html"

clean:  ## remove what make made
	rm -rf .venv _build demo.png .pytest_cache .ruff_cache .hypothesis .coverage vlscore.egg-info

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
