"""Training step of GemNetOC in PyTorch (fairchem-core 1.10.0, MIT licence), on the structures of our own benchmark.

Runs in a second environment (README.md beside this file), imports nothing of jaxatoms, prints one JSON line:

    PEER/bin/python benchmarks/peers/fairchem_gemnet_oc.py benchmarks/workloads.npz --case mol20

The step is ours: forward, energy L1 + 10 x force L2, backward, clipping, AdamW, moving average. This library builds
its graphs inside the forward pass; `graph_s` is the time of that part (with the triplet and quadruplet indices, which
our own step computes too), so that it can be taken off.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch_extensions
import torch_geometric.data

sys.path.append(str(Path(__file__).resolve().parents[1]))
import turns

EXTENSIONS = torch_extensions.install()  # before fairchem imports them

import fairchem.core.models.base as fairchem_base  # noqa: E402
import torch_cluster  # noqa: E402
from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC  # noqa: E402

SMALL = {
    "num_spherical": 7,
    "num_radial": 128,
    "num_blocks": 4,
    "emb_size_atom": 256,
    "emb_size_edge": 512,
    "emb_size_trip_in": 64,
    "emb_size_trip_out": 64,
    "emb_size_quad_in": 32,
    "emb_size_quad_out": 32,
    "emb_size_aint_in": 64,
    "emb_size_aint_out": 64,
    "emb_size_rbf": 16,
    "emb_size_cbf": 16,
    "emb_size_sbf": 32,
    "num_before_skip": 2,
    "num_after_skip": 2,
    "num_concat": 1,
    "num_atom": 3,
    "num_output_afteratom": 3,
    "num_atom_emb_layers": 2,
    "num_global_out_layers": 2,
    "num_elements": 120,
}
FIXED = {
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "cbf": {"name": "spherical_harmonics"},
    "sbf": {"name": "legendre_outer"},
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "qint_tags": [1, 2],
    "activation": "silu",
    "output_init": "HeOrthogonal",
    "otf_graph": True,
    "regress_forces": True,
    "scale_file": None,
}
AMP = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16}
EMA_DECAY = 0.99


def load_batch(arrays, device):
    """The structures as a torch_geometric batch."""
    parts, last = [], np.cumsum(arrays["natoms"])
    for i, (n, end) in enumerate(zip(arrays["natoms"], last, strict=True)):
        atoms = slice(end - n, end)
        part = torch_geometric.data.Data(
            pos=torch.tensor(arrays["positions"][atoms], dtype=torch.float32),
            atomic_numbers=torch.tensor(arrays["atomic_numbers"][atoms], dtype=torch.long),
            tags=torch.tensor(arrays["tags"][atoms], dtype=torch.long),
            cell=torch.tensor(arrays["cell"][i], dtype=torch.float32)[None],
            pbc=torch.tensor([[bool(arrays["pbc"][i])] * 3]),
            natoms=int(n),
        )
        parts.append(part)
    return torch_geometric.data.Batch.from_data_list(parts).to(device)


def build_model(arrays, dimensions, direct, device):
    """GemNetOC with the cutoff and the neighbour limits of the structures, unfitted scale factors."""
    cutoff, limits = float(arrays["cutoff"][0]), [int(k) for k in arrays["max_neighbors"][0]]
    fairchem_base.radius_graph = torch_cluster.radius_graph  # torch_geometric's own wrapper wants pyg-lib
    model = GemNetOC(
        use_pbc=bool(arrays["pbc"].any()),
        direct_forces=direct,
        **dict.fromkeys(("cutoff", "cutoff_qint", "cutoff_aeaint", "cutoff_aint"), cutoff),
        **dict(zip(("max_neighbors", "max_neighbors_aeaint", "max_neighbors_qint", "max_neighbors_aint"), limits)),
        **dimensions,
        **FIXED,
    )
    return model.to(device).train()


def make_step(model, batch, amp):
    """step() -> loss: one update of the model on `batch` with random targets."""
    generator, device = torch.Generator().manual_seed(0), batch.pos.device
    energy = torch.randn(len(batch.natoms), generator=generator).to(device)
    forces = torch.randn(len(batch.pos), 3, generator=generator).to(device)
    weight = 1 / (batch.natoms[batch.batch] * len(batch.natoms))  # the mean over structures of the mean over atoms
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    # The fused update is the fastest of the three that torch offers.
    optimizer = torch.optim.AdamW(parameters, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            out = model(batch.clone())
        norms = (out["forces"].float() - forces + 1e-6).norm(dim=1)
        loss = (out["energy"].float().view(-1) - energy).abs().mean() + 10 * (norms * weight).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - EMA_DECAY)
        return loss.detach()

    return step


def timed(run, device):
    """(result, seconds, seconds of processor time)"""
    began, cpu_began = time.perf_counter(), time.process_time()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - began, time.process_time() - cpu_began


def measure(args) -> dict:
    """Everything the JSON line holds."""
    turns.set_up()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    torch.manual_seed(0)
    with np.load(args.workloads) as data:
        prefix = f"{args.case}/"
        arrays = {key.removeprefix(prefix): data[key] for key in data.files if key.startswith(prefix)}
    dimensions = SMALL | {key: value for key, value in json.loads(args.dimensions).items() if key in SMALL}
    batch = load_batch(arrays, device)
    model = build_model(arrays, dimensions, args.forces == "direct", device)
    step = make_step(model, batch, AMP[args.precision])
    turns.wait_to_measure()
    for _ in range(args.warmup):
        step()
    losses, times, cpu_times = zip(*[timed(step, device) for _ in range(args.reps)])
    runs = [timed(lambda: model.get_graphs_and_indices(batch.clone()), device) for _ in range(min(args.reps, 3))]
    (main, a2a, a2ee2a, qint, *_), graph_s = runs[0][0], float(np.median([seconds for _, seconds, _ in runs]))
    edges = {"main": main, "a2ee2a": a2ee2a, "qint": qint, "a2a": a2a}
    step_s, n_node, n_graph = float(np.median(times)), len(batch.pos), len(batch.natoms)
    return {
        "who": "fairchem-core",
        "case": args.case,
        "forces": args.forces,
        "precision": args.precision,
        "atoms": n_node,
        "structures": n_graph,
        "edges": {name: graph["edge_index"].shape[1] for name, graph in edges.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_s": step_s,
        "step_s_all": [round(t, 4) for t in times],
        "cpu_s": float(np.median(cpu_times)),
        "graph_s": graph_s,
        "atoms_per_s": n_node / step_s,
        "structures_per_s": n_graph / step_s,
        "peak_gib": peak_gib(device),
        "loss": float(losses[-1]),
        "threads": args.threads,
        "extensions": EXTENSIONS,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "versions": {name: importlib.metadata.version(name) for name in ("fairchem-core", "torch", "numpy")},
    }


def peak_gib(device) -> dict:
    """Peak memory of this process, and on a GPU of torch's allocator, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    return peak | ({"device": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", help="npz file of structures, as benchmarks/workloads.npz")
    parser.add_argument("--case", default="mol20")
    parser.add_argument("--forces", choices=("direct", "gradient"), default="direct")
    parser.add_argument("--precision", choices=tuple(AMP), default="float32", help="bfloat16 = autocast")
    parser.add_argument("--dimensions", default="{}", help="JSON of dimensions that differ from variant S")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--reps", type=int, default=5)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(json.dumps(measure(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
