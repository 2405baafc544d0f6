"""ASE calculator of a checkpoint: energies, forces and, for models whose forces are a gradient, stress.

    atoms.calc = JaxAtomsCalculator("runs/aspirin")            # a run, a converted or a step directory
    atoms.calc = JaxAtomsCalculator("runs/jmp_s", head="ani1x", dtype="float64")

Neighbours come from a list with a skin, arrays have fixed shapes with room to spare: a long molecular dynamics run
compiles once (`n_compiled` counts). Units are ASE's: eV, eV/A, eV/A^3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from flax import nnx

from jaxatoms import inference
from jaxatoms.graphs.batch import BatchBudget, BudgetOverflow, GraphBatch
from jaxatoms.graphs.skin import SkinList
from jaxatoms.types import InputError, SystemBatch

SPARE = 0.25  # room in every size for neighbours to come


class JaxAtomsCalculator(Calculator):
    """Energies (eV), forces (eV/A) and stress (eV/A^3, Voigt) of a checkpoint's model.

    Args:
      checkpoint: run folder (its best-validation checkpoint), RUN@last, converted folder or a step folder.
      head: task whose head is used; needed where the checkpoint has several.
      dtype: "float32" or "float64", of positions, parameters and all arithmetic.
      skin: A; candidate neighbours are searched again when an atom has moved by half of it.
      cutoff, max_neighbors: override those of the head's training.
      raw_weights: the raw weights instead of their moving average.

    Attributes:
      n_compiled: shapes compiled so far; constant during a run unless atoms, cell or density change much.
      n_search: neighbour searches so far.

    Raises:
      InputError: no such checkpoint or head; in calculations, an element that the head was not trained on.

    Stress is the derivative of the energy with respect to strain, so it exists only for models whose forces are the
    gradient of the energy; others refuse it as `PropertyNotImplementedError`.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012

    def __init__(
        self,
        checkpoint: str,
        head: str | None = None,
        *,
        dtype: str = "float32",
        skin: float = 1.0,
        cutoff: float | None = None,
        max_neighbors: int | None = None,
        raw_weights: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, got {dtype!r}")
        self._model = inference.restore_model(str(checkpoint), raw_weights=raw_weights)
        self._task, self._record = inference.choose_task(self._model, head)
        self._dtype = np.dtype(dtype)
        self._limit = max_neighbors or self._record["max_neighbors"]
        self._skin = SkinList(cutoff or self._record["cutoff"], skin)
        self._budget: BatchBudget | None = None
        if self._model.kind == "direct":
            self.implemented_properties = ["forces"]
        if self._model.has_gradient_forces:
            self.implemented_properties = [*type(self).implemented_properties, "stress"]
        with self._precision():
            graphdef, self._state = inference.cast(self._model.module, self._dtype)
        self._run = jax.jit(self._with_strain if self._model.has_gradient_forces else self._direct, static_argnums=0)
        self._graphdef = graphdef

    @property
    def n_compiled(self) -> int:
        """Shapes compiled so far."""
        return inference.count_compilations(self._run)

    @property
    def n_search(self) -> int:
        """Neighbour searches so far."""
        return self._skin.n_search

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        """Fill `results`; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        refused = [name for name in properties if name not in self.implemented_properties]
        if refused:
            raise PropertyNotImplementedError(
                f"{refused[0]} is not available from {self._model.path}"
                + (": its forces are not a gradient" if refused[0] == "stress" else "")
            )
        systems = self._system()
        batch = self._batch(systems)
        with self._precision():
            out = jax.tree.map(np.asarray, self._run(self._graphdef, self._state, batch))
        self._store(out, systems)

    # --- input --------------------------------------------------------------------------------------------

    def _system(self) -> SystemBatch:
        atoms, n = self.atoms, len(self.atoms)
        if n == 0:
            raise InputError("a structure without atoms has no energy; add atoms")
        inference.check_elements(self._record, atoms.numbers, self._model.path)
        if not np.isfinite(atoms.positions).all():
            raise InputError("positions hold NaN or infinity; the simulation has failed before")
        tags = atoms.get_tags() if atoms.has("tags") and np.any(atoms.get_tags()) else np.full(n, 2)
        return SystemBatch(
            n_node=np.array([n], np.int32),
            atomic_numbers=atoms.numbers.astype(np.uint8),
            positions=atoms.positions,
            forces=np.full((n, 3), np.nan, np.float32),
            tags=np.clip(tags, 0, 2).astype(np.uint8),
            fixed=np.zeros(n, bool),
            energy=np.full(1, np.nan),
            cell=np.asarray(atoms.cell, np.float64)[None] * atoms.pbc[None, :, None],
            pbc=atoms.pbc[None],
        )

    def _batch(self, systems: SystemBatch) -> GraphBatch:
        """The padded batch, in the shapes of the last one while it fits them."""
        edges, distance = self._skin.edges(systems.positions, systems.cell[0], systems.pbc[0])
        graphs = inference.graph_cuts(self._model.config, edges, distance, systems, self._limit)
        if self._budget is None or not self._same_atoms(systems):
            self._budget = inference.budget_of(self._model.config, [(systems, graphs)], SPARE)
        try:
            padded = inference.unlabelled(systems, graphs, self._budget)
        except BudgetOverflow:
            self._budget = inference.budget_of(self._model.config, [(systems, graphs)], 2 * SPARE)
            padded = inference.unlabelled(systems, graphs, self._budget)
        exact = {name: getattr(padded, name).astype(self._dtype) for name in ("positions", "cell")}
        exact["positions"][: len(systems.positions)] = systems.positions
        exact["cell"][:1] = systems.cell
        return padded._replace(**exact)

    def _same_atoms(self, systems: SystemBatch) -> bool:
        assert self._budget is not None
        return self._budget.n_per_graph == len(systems.positions)

    # --- model --------------------------------------------------------------------------------------------

    def _precision(self):
        return jax.enable_x64(bool(self._dtype == np.float64))

    def _direct(self, graphdef, state, batch: GraphBatch) -> dict[str, jax.Array]:
        out = nnx.merge(graphdef, state)(batch)
        if out.energy is None:  # fine-tuned for forces alone, without an axis of tasks
            return {"forces": out.forces}
        return {"energy": out.energy[0, self._task], "forces": out.forces[..., self._task]}

    def _with_strain(self, graphdef, state, batch: GraphBatch) -> dict[str, jax.Array]:
        """Energy, forces and the derivative with respect to a symmetric strain of positions and cell."""
        model = nnx.merge(graphdef, state)

        def energy(positions, strain):
            deformation = jnp.eye(3, dtype=strain.dtype) + (strain + strain.T) / 2
            cell = jnp.matmul(batch.cell, deformation, precision="highest")
            moved = jnp.matmul(positions, deformation, precision="highest")
            return model.energy(batch._replace(cell=cell), moved)[0]

        none = jnp.zeros((3, 3), batch.positions.dtype)
        value, (gradient, virial) = jax.value_and_grad(energy, argnums=(0, 1))(batch.positions, none)
        return {"energy": value, "forces": -gradient, "virial": virial}

    def _store(self, out: dict[str, np.ndarray], systems: SystemBatch):
        gradient, n = self._model.has_gradient_forces, len(systems.positions)
        if not all(np.isfinite(array).all() for array in out.values()):
            raise InputError(f"{self._model.path} gives energies or forces that are not finite; check the structure")
        self.results = {"forces": inference.physical_forces(out["forces"][:n], self._record, gradient=gradient)}
        if "energy" in out:
            energy = float(inference.physical_energy(out["energy"][None], self._record, systems)[0])
            self.results |= {"energy": energy, "free_energy": energy}
        if gradient and self.atoms.cell.rank == 3:
            virial = np.asarray(out["virial"], np.float64) * self._record["energy_std"]
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial / self.atoms.get_volume())
