# Every target sets up .venv from requirements.txt first, if it is not there yet.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# Else PyTorch's idle threads spin and take the cores from OpenVINO's.
export OMP_WAIT_POLICY ?= passive

# make evaluate ROOT=imagenet MODEL=RN50 OUT=rn50 ARGS="--threshold 0.6 --resume"
ROOT ?= data/photos
MODEL ?= lite0-minilm
OUT ?= run
ARGS ?= --keep 128
# make sweep GRID="MODEL=scenes-rn,scenes-vit LIMIT=20,40" JOBS=2
GRID ?= MODEL=scenes-rn,scenes-vit LIMIT=20 OTHER=null
JOBS ?= 2
# make app ADDRESS=0.0.0.0 PORT=8000 ROOT=photos MODELS="open_clip:ViT-B-16-SigLIP/webli,hf:openai/clip-vit-base-patch16"
ADDRESS ?= 127.0.0.1
PORT ?= 8501

MODULES := vlscore vlscore_cli vlscore_crops vlscore_label vlscore_localize vlscore_lib
OURS := lite0-minilm,scenes-rn,scenes-vit
# What runs beside the notebooks; the last one is among it so that both halves of `make test` take equally long.
PAGES := tests/test_book.py tests/test_api.py tests/test_app.py tests/test_app_browser.py tests/labelling
# Some tests run make themselves; it must not take this make's flags for its own.
PYTEST := env -u MAKEFLAGS -u MFLAGS $(BIN)/python -m pytest -q

.PHONY: demo test test-code test-pages coverage lint evaluate models sweep bench notebooks book app mutants clean

demo: $(READY)  ## find objects in six real photos: prints the boxes, writes demo.png; about a minute
	$(BIN)/python scripts/demo.py

test: $(READY) lint book  ## unit tests, the notebooks as tests, and the book builds; two processes side by side
	@$(MAKE) --no-print-directory -j2 test-code test-pages

test-code: $(READY)
	$(PYTEST) tests $(PAGES:%=--ignore=%)

test-pages: $(READY)
	$(PYTEST) --nbval notebooks $(PAGES)

coverage: $(READY) book  ## the same tests with the coverage of the modules, at least 90 percent; slower by up to a third
	$(BIN)/python -m pytest --nbval -q $(MODULES:%=--cov=%) --cov-report=term --cov-fail-under=90

lint: $(READY)  ## ruff's checks and format, and imports that point down
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

evaluate: $(READY)  ## measure MODEL on the data set in ROOT: records and summary.json in OUT
	$(BIN)/vlscore evaluate $(ROOT) --model $(MODEL) --out $(OUT) $(ARGS)

# make models MODELS="RN50,open_clip:ViT-B-16/openai" ROOT=imagenet
models: $(READY)  ## evaluate several MODELS on the data set in ROOT, and compare them: a table and a picture
	$(BIN)/python scripts/compare_models.py $(ROOT) --models "$(or $(MODELS),$(OURS))" \
		--out $(if $(filter command line,$(origin OUT)),$(OUT),models) $(ARGS)

sweep: $(READY)  ## run chapter 04 over a GRID of parameters by papermill, into one table in sweep/
	$(BIN)/python scripts/sweep.py $(GRID) --jobs $(JOBS)

bench: $(READY)  ## time every method side by side, fidelity and commands, into data/bench*.json; more than an hour
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_ladder.py
	$(BIN)/python scripts/bench_commands.py

# make notebooks MODEL=RN50
notebooks: $(READY)  ## execute the chapters in place, a second run changes no byte; MODEL goes into each
	$(BIN)/python scripts/execute.py $(if $(filter command line,$(origin MODEL)),--model "$(MODEL)")

book: $(READY)  ## build the book into _build/html
	$(BIN)/jupyter-book build . --toc book/_toc.yml -W -n --keep-going --all --quiet
	@test -f _build/html/index.html && echo "book: _build/html/index.html"

app: $(READY)  ## serve the page: photos, words, boxes; for this machine, unless ADDRESS is given; folders below ROOT
	VLSCORE_MODELS="$(MODELS)" $(BIN)/streamlit run app.py --server.address $(ADDRESS) --server.port $(PORT) \
		$(if $(filter command line,$(origin ROOT)),-- --root "$(ROOT)")

mutants: $(READY)  ## break the modules on purpose, in a copy, and print which test notices; some minutes
	$(BIN)/python tests/mutate.py

clean:  ## remove what make made
	rm -rf .venv _build build demo.png .pytest_cache .ruff_cache .hypothesis .coverage vlscore.egg-info

$(READY): requirements.txt requirements-common.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
