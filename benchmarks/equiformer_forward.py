"""Forward pass of EquiformerV2 31M (both heads): atoms/s and peak memory, beside the PyTorch reference if asked.

    python -m benchmarks.equiformer_forward --case mol20 --peer PEER_PYTHON --out benchmarks/results/x.jsonl

Graphs: 20 nearest within 12 A, built on the host and not timed on either side. Peak memory is that of the process, ours
with compilation. Timings are wall times; `cpu_s` is processor time, which other jobs on the machine disturb less.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks import turns
from benchmarks.workloads import load_structures, to_systems
from jaxatoms.data.packing import exact_budget, whole_size
from jaxatoms.graphs.nearest_graphs import NEAREST_GRAPH
from jaxatoms.inference.model import unlabelled
from jaxatoms.models.equiformer_v2.config import M31
from jaxatoms.models.equiformer_v2.model import EquiformerV2Model
from jaxatoms.tools.provenance import peak_memory_gib, provenance
from jaxatoms.types import SystemBatch

PEER = Path(__file__).parent / "peers" / "fairchem_equiformer.py"
WORKLOADS = Path(__file__).parent / "workloads.npz"
CUTOFF, NEIGHBORS = 12.0, 20


def random_model() -> EquiformerV2Model:
    """31M with weights drawn by NumPy: the initialisers would have to be compiled."""
    model = nnx.eval_shape(lambda: EquiformerV2Model(M31, ("sum",), nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        fan_in = variable.shape[-2] if len(variable.shape) > 1 else 1
        variable.set_value(jax.numpy.asarray(rng.normal(size=variable.shape) * fan_in**-0.5, jax.numpy.float32))
    return model


def systems_of(case: str) -> SystemBatch:
    """The structures of a workload."""
    return to_systems(load_structures(case))


def measure(case: str, reps: int) -> dict:
    """Everything the JSON line holds."""
    turns.set_up()
    systems = systems_of(case)
    graphs = NEAREST_GRAPH.build_batch(systems, CUTOFF, NEIGHBORS)
    batch = jax.device_put(unlabelled(systems, graphs, exact_budget([whole_size(systems, graphs)])))
    graphdef, state = nnx.split(random_model())
    run = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
    began = time.perf_counter()
    compiled = run.lower(state, batch).compile()
    compile_s = time.perf_counter() - began
    temporary = compiled.memory_analysis()
    turns.wait_to_measure()
    walls, cpus = [], []
    for _ in range(reps + 1):
        began, cpu_began = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(state, batch))
        walls.append(time.perf_counter() - began)
        cpus.append(time.process_time() - cpu_began)
    n_node, forward_s = int(systems.n_node.sum()), float(np.median(walls[1:]))
    return {
        "who": "jaxatoms", "case": case, "atoms": n_node, "edges": len(graphs.main.senders), "forward_s": forward_s,
        "cpu_s": float(np.median(cpus[1:])), "compile_s": compile_s, "atoms_per_s": n_node / forward_s,
        "peak_gib": peak_memory_gib()["host"], "temporary_gib": temporary.temp_size_in_bytes / 2**30,
        "load": os.getloadavg()[0], "provenance": provenance(),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="mol20")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--peer", help="Python with fairchem-core, see peers/README.md")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [measure(args.case, args.reps)]
    if args.peer:
        command = [args.peer, str(PEER), str(WORKLOADS), "--case", args.case, "--reps", str(args.reps)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
        (ours, theirs), names = lines, ("forward_s", "cpu_s", "peak_gib")
        lines.append({"who": "ratio"} | {name: ours[name] / theirs[name] for name in names})
    for line in lines:
        line = {"benchmark": "equiformer_forward"} | line
        print(json.dumps(line), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
