# Everything runs in .venv, which is made on first use from python3 and a package index alone.
PYTHON ?= python3
BIN := .venv/bin
export JAX_PLATFORMS ?=

.PHONY: demo test test-slow lint check check-gpu check-tpu dist format bench docs notebooks clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: .venv/installed  ## select, pretrain, fine-tune and compare on the shipped data
	$(BIN)/python -m experiments.demo

test: .venv/installed  ## the behaviour of the whole library, on CPU
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

test-slow: .venv/installed  ## what is slow by nature: variants S and L, several processes, the tutorials (CONTRIBUTING.md)
	$(BIN)/python -m pytest -n 2 --dist loadscope -m slow

lint: .venv/installed  ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/mypy jaxatoms experiments
	$(BIN)/python -m pytest tests/test_imports.py

check: lint test  ## what a commit has to pass

format: .venv/installed  ## what ruff mends by itself
	$(BIN)/ruff check --fix .

dist: .venv/installed  ## wheel and sdist, installed into an empty environment and tried from another folder
	$(BIN)/python -m pip install --quiet build
	rm -rf dist .venv-dist
	$(BIN)/python -m build --outdir dist . > /dev/null
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet dist/*.whl
	cd / && $(CURDIR)/.venv-dist/bin/python -P $(CURDIR)/scripts/try_installed.py

TPU ?= v5e:4x4
check-tpu: .venv/installed  ## compile kernels, S and L for a TPU topology (libtpu, no TPU; an hour or two on 2 cores); make check-tpu TPU=v6e:4x4
	$(BIN)/python -m pip install --quiet libtpu
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.kernels --compile-for $(TPU)
	for model in gemnet_oc_s gemnet_oc_l; do for data in organic slab; do \
	  JAX_PLATFORMS=cpu $(BIN)/python -m experiments.pretrain --upstream demo:$$data --n all --model $$model \
	  --batch-edges 57344 --precision bfloat16 --scales shipped --compile-for $(TPU) || exit 1; done; done

GPU ?= h200
check-gpu: .venv/installed  ## compile S and L for an NVIDIA GPU: both forces, molecules and slabs, three precisions, EquiformerV2 and CSI (no GPU; an hour on 2 cores); make check-gpu GPU=a100
	$(PYTHON) -m venv .venv-gpu  # of its own: with the plugin, every start of JAX looks for a GPU
	version=$$($(BIN)/python -c "import jaxlib; print(jaxlib.__version__)") && .venv-gpu/bin/python -m pip install --quiet \
	  --editable '.[test,gpu-compile]' jax==$$version jax-cuda12-plugin==$$version jax-cuda12-pjrt==$$version
	JAX_PLATFORMS=cpu .venv-gpu/bin/python -m pytest tests/kernels/test_compiled_gpu.py tests/runs/test_compile_for.py
	for precision in float32 tf32 bfloat16; do for data in mol20 slab2; do \
	  .venv-gpu/bin/python -m benchmarks.program_size --models gemnet_oc_s gemnet_oc_l --forces direct gradient --parts step \
	  --workload $$data --precision $$precision --gpu $(GPU) || exit 1; done; done
	.venv-gpu/bin/python -m benchmarks.program_size --models equiformer_v2_31m gemnet_oc_s --forces direct --parts features csi \
	  --precision bfloat16 --gpu $(GPU)
	case $(GPU) in h100|h200) .venv-gpu/bin/python -m benchmarks.program_size --models gemnet_oc_s --forces direct --parts step \
	  --copies 5 --precision bfloat16 --gpu $(GPU) --kernels mosaic_gpu;; esac
	for data in organic slab; do .venv-gpu/bin/python -m experiments.pretrain --upstream demo:$$data --n all \
	  --model gemnet_oc_s --batch-edges 57344 --precision bfloat16 --scales shipped --compile-for $(GPU):8 || exit 1; done

docs: .venv/installed  ## the documentation as a web site in site/; a broken link or reference is an error
	$(BIN)/python -m pip install --quiet --requirement docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: .venv/installed  ## the tutorials as Jupyter notebooks in notebooks/
	$(BIN)/python -m scripts.make_notebooks

bench: .venv/installed  ## training throughput on the named workloads
	$(BIN)/python -m benchmarks.train_throughput --out benchmarks/results/train_throughput.jsonl

clean:
	rm -rf .venv .venv-dist .venv-gpu dist site .pytest_cache .ruff_cache .mypy_cache build *.egg-info
