"""Does a checkpoint conserve energy? NVE from 300 K: drift and largest step of the energy, and near which angles.

    python -m benchmarks.dynamics --checkpoint runs/ft --structure aspirin.xyz --step 0.125 --steps 1600
    python -m benchmarks.dynamics ... --without-quadruplets     # the same network, their sums set to zero

In float64 with a cutoff of 12 A, where the radial functions end, and so many neighbours that none is ever cut.
"""

import argparse
import itertools
import json
from pathlib import Path

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from benchmarks.records import about, append
from jaxatoms.ase import JaxAtomsCalculator

SHARE = 0.01  # of the steps, those with the largest change of the energy


def without_quadruplets(calculator: JaxAtomsCalculator) -> None:
    """Set the map after the quadruplet sums to zero: still an energy with its gradient."""

    def cut(path, leaf):
        name = jax.tree_util.keystr(path)
        return jnp.zeros_like(leaf) if "quad_interaction" in name and "mlp_sbf" in name else leaf

    calculator._state = jax.tree_util.tree_map_with_path(cut, calculator._state)


def smallest_sine(positions: np.ndarray) -> float:
    """The smallest sine of an angle between three atoms, positions [n, 3]."""
    triples = [(c, a, b) for c, b in itertools.combinations(range(len(positions)), 2)
               for a in range(len(positions)) if a not in (b, c)]  # fmt: skip
    c, a, b = np.array(triples).T
    u, v = positions[c] - positions[a], positions[b] - positions[a]
    lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    return float((np.linalg.norm(np.cross(u, v), axis=1) / lengths).min())


def run(atoms: ase.Atoms, step_fs: float, steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Total energy per atom (eV) and smallest sine at every step, of atoms with a calculator."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.RandomState(seed))
    Stationary(atoms)
    energy, sine = [], []

    def note():
        energy.append(atoms.get_total_energy() / len(atoms))
        sine.append(smallest_sine(atoms.get_positions()))

    dynamics = VelocityVerlet(atoms, step_fs * units.fs)
    dynamics.attach(note)
    dynamics.run(steps)
    return {"energy": np.array(energy), "sine": np.array(sine)}


def figures(trace: dict[str, np.ndarray], step_fs: float) -> dict:
    """Drift (slope of a straight line), scatter, and the angles where the energy changed most in one step."""
    energy, sine = trace["energy"], trace["sine"][1:]
    change = np.abs(np.diff(energy))
    largest = np.argsort(-change)[: max(1, round(SHARE * len(change)))]
    return {
        "drift_ev_per_atom_and_ps": float(np.polyfit(np.arange(len(energy)) * step_fs / 1000, energy, 1)[0]),
        "scatter_mev_per_atom": float(1e3 * energy.std()),
        "median_step_uev_per_atom": float(1e6 * np.median(change)),
        "largest_step_uev_per_atom": float(1e6 * change.max()),
        "median_smallest_sine": float(np.median(sine)),
        "median_smallest_sine_at_largest_steps": float(np.median(sine[largest])),
    }


def main() -> None:
    """Run, print and append the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="run folder with gradient forces")
    parser.add_argument("--structure", required=True, help="file that ASE reads; its first structure")
    parser.add_argument("--step", type=float, default=0.25, help="fs")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0, help="of the velocities")
    parser.add_argument("--without-quadruplets", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl")
    args = parser.parse_args()
    atoms = ase.io.read(args.structure, index=0)
    atoms.calc = JaxAtomsCalculator(args.checkpoint, dtype="float64", cutoff=12.0, max_neighbors=100)
    if args.without_quadruplets:
        without_quadruplets(atoms.calc)
    result = figures(run(atoms, args.step, args.steps, args.seed), args.step)
    print(json.dumps(result, indent=1))
    cut = ", without quadruplets" * args.without_quadruplets
    what = f"{Path(args.structure).stem}, {args.steps} x {args.step} fs{cut}"
    append([about("dynamics") | {"what": what, "figures": result}], args.out)


if __name__ == "__main__":
    main()
