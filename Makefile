# On an empty machine these need python3 (3.10 or later) and make, and nothing else.
PYTHON ?= python3
BIN := .venv/bin
MAKEFLAGS += --no-print-directory

.PHONY: run test lab readme bench pocket

run: .venv/ready        # the main job, in the pocket world: runs/quickstart/report.html
	$(BIN)/facecontrol quickstart --out runs/quickstart

test: .venv/ready       # every notebook, then tests/; ends with `N passed, N failed`
	@$(BIN)/python tests/run.py

lab: .venv/ready        # the course, to read and to change
	$(BIN)/jupyter lab nbs

readme: .venv/ready     # README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

bench: .venv/ready      # speeds, with their peers beside them; control.py, the recipes' race, takes many hours and is run by itself
	@for script in $(filter-out benchmarks/control.py, $(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done
	$(BIN)/python benchmarks/build.py --kills 20

pocket: .venv/ready     # train the pocket models again (hours), each after those it needs; their pages keep the pictures
	FACECONTROL_POCKET=full $(BIN)/jupyter execute --inplace --timeout=-1 $(patsubst %,nbs/pocket/%.ipynb,detector vae clip unet blip)

# SPIGA goes in alone: what it asks for includes a torchaudio that breaks torch.
.venv/ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "facecontrol needs Python 3.10 or later, got " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --use-pep517 -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --no-deps spiga==0.0.6
	@touch $@
