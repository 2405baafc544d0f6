"""Forward pass of EquiformerV2 31M in PyTorch (fairchem-core 1.10.0, MIT licence), on the structures of our benchmark.

Runs in a second environment (README.md beside this file), imports nothing of jaxatoms, prints one JSON line:

    PEER/bin/python benchmarks/peers/fairchem_equiformer.py benchmarks/workloads.npz --case mol20

Backbone and both heads in evaluation mode, without gradients. The library builds its graph inside the forward pass;
`graph_s` is the time of that part, so that it can be taken off.
"""

import argparse  # noqa: I001 - fairchem_gemnet_oc comes before fairchem
import json
import logging
import os
import resource
import time
import warnings

import numpy as np
import torch
from fairchem_gemnet_oc import load_batch  # puts stand-ins of the compiled packages in place

import fairchem.core.models.base as fairchem_base
import torch_cluster
from fairchem.core.models.equiformer_v2.equiformer_v2_deprecated import EquiformerV2

M31 = {
    "num_layers": 8,
    "sphere_channels": 128,
    "attn_hidden_channels": 64,
    "num_heads": 8,
    "attn_alpha_channels": 64,
    "attn_value_channels": 16,
    "ffn_hidden_channels": 128,
    "norm_type": "layer_norm_sh",
    "lmax_list": [4],
    "mmax_list": [2],
    "grid_resolution": 18,
    "edge_channels": 128,
    "use_atom_edge_embedding": True,
    "distance_function": "gaussian",
    "num_distance_basis": 512,
    "attn_activation": "silu",
    "use_s2_act_attn": False,
    "ffn_activation": "silu",
    "use_gate_act": False,
    "use_grid_mlp": True,
    "alpha_drop": 0.1,
    "drop_path_rate": 0.1,
    "proj_drop": 0.0,
    "weight_init": "uniform",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads")
    parser.add_argument("--case", default="mol20")
    parser.add_argument("--cutoff", type=float, default=12.0)
    parser.add_argument("--max-neighbors", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--reps", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with np.load(args.workloads) as data:
        prefix = f"{args.case}/"
        arrays = {key.removeprefix(prefix): data[key] for key in data.files if key.startswith(prefix)}
    batch = load_batch(arrays, torch.device("cpu"))
    fairchem_base.radius_graph = torch_cluster.radius_graph  # torch_geometric's own wrapper wants pyg-lib
    periodic = bool(arrays["pbc"].any())
    model = EquiformerV2(use_pbc=periodic, regress_forces=True, otf_graph=True, max_neighbors=args.max_neighbors,
                         max_radius=args.cutoff, max_num_elements=90, **M31).eval()  # fmt: skip
    edges = model.generate_graph(batch.clone()).edge_index.shape[1]
    graph, forward, cpu = [], [], []
    with torch.no_grad():
        for _ in range(args.reps + 1):
            began = time.perf_counter()
            model.generate_graph(batch.clone())
            graph.append(time.perf_counter() - began)
            began, cpu_began = time.perf_counter(), time.process_time()
            model(batch.clone())
            cpu.append(time.process_time() - cpu_began)
            forward.append(time.perf_counter() - began)
    n_node = len(batch.pos)
    step = float(np.median(forward[1:]) - np.median(graph[1:]))
    print(json.dumps({
        "who": "fairchem-core", "case": args.case, "atoms": n_node, "edges": edges, "forward_s": step,
        "cpu_s": float(np.median(cpu[1:])),
        "graph_s": float(np.median(graph[1:])), "atoms_per_s": n_node / step,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "threads": args.threads,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
