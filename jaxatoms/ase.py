"""ASE calculator of a checkpoint: energies, forces and, for models whose forces are a gradient, stress.

    atoms.calc = JaxAtomsCalculator("runs/aspirin")            # a run, a converted or a step directory
    atoms.calc = JaxAtomsCalculator("runs/jmp_s", head="ani1x", dtype="float64")
    atoms.calc = EnsembleCalculator(["runs/a", "runs/b", "runs/c"])  # means and standard deviations

Neighbours come from a list with a skin; batch shapes lie on a coarse grid and are used again: a long molecular dynamics
run compiles once, a scan of strains or sizes a few times (`n_compiled` counts). Units are ASE's: eV, eV/A, eV/A^3.
"""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from flax import nnx

from jaxatoms.data import packing
from jaxatoms.data.concatenate import MOLECULE_TAG
from jaxatoms.data.tags import surface_tags
from jaxatoms.data.task_record import TaskRecord
from jaxatoms.graphs.batch import GraphBatch, check_atoms
from jaxatoms.graphs.shells import n_parted, parted_limits
from jaxatoms.graphs.skin import SkinList
from jaxatoms.inference import model as inference
from jaxatoms.inference.compiled import CompiledShapes
from jaxatoms.inference.ensemble import check_alike, combine
from jaxatoms.inference.prediction import Prediction
from jaxatoms.inference.uncertainty import fitted_uncertainty
from jaxatoms.models.common.strain import strained
from jaxatoms.types import Edges, InputError, SystemBatch, naming


class _TagsAndStd(Calculator):
    """What ASE's calculators do not know: tags are an input, and results may have standard deviations."""

    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 - no model reads them

    def check_state(self, atoms, tol=1e-15):
        """What has changed since the last calculation: ASE's list, and "tags", which some models read."""
        changes = super().check_state(atoms, tol=tol)
        if self.atoms is not None and not np.array_equal(self.atoms.get_tags(), atoms.get_tags()):
            changes = [*changes, "tags"]
        return changes

    def export_properties(self):
        """The results that ASE has a name for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})


class JaxAtomsCalculator(_TagsAndStd):
    """Energies (eV), forces (eV/A) and stress (eV/A^3, Voigt) of a checkpoint's model.

    Args:
      checkpoint: run folder (its best-validation checkpoint), RUN@last, converted folder or a step folder.
      head: task whose head is used; needed where the checkpoint has several.
      dtype: "float32" or "float64", of positions, parameters and all arithmetic.
      skin: A; candidate neighbours are searched again when an atom has moved by half of it.
      cutoff, max_neighbors: override those of the head's training.
      raw_weights: the raw weights instead of their moving average.
      precision: of matrix products, "float32", "tf32" or "bfloat16"; default: that of the training, and float32 with
        float64.
      uncertainty: give `energy_std` (eV) where experiments.uncertainty fitted it for the averaged weights.
      refuse_open_zero: raise an InputError, instead of a warning, for structures whose composition the training data do
        not fix the zero of the energy of.

    Attributes:
      n_compiled: shapes compiled so far; constant during a run unless atoms, cell or density change much.
      n_search: neighbour searches so far.

    Raises:
      InputError: no such checkpoint or head, or an uncertainty that was fitted for other weights; in calculations, an
        element that the head was not trained on.

    Stress is the derivative of the energy with respect to strain, so it exists only for models whose forces are the
    gradient of the energy, and only for periodic structures; otherwise it is a `PropertyNotImplementedError`.
    A pickled calculator reads its checkpoint again, at the same path, where it is unpickled.
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
        precision: str | None = None,
        uncertainty: bool = True,
        refuse_open_zero: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, got {dtype!r}")
        if dtype == "float64":
            if precision not in (None, "float32"):
                raise InputError(f"precision={precision!r} multiplies in less than float64; leave it or dtype out")
            precision = "float32"  # of the networks that were trained in less, too
        self._model = inference.restore_model(str(checkpoint), raw_weights=raw_weights, precision=precision)
        self._task, self._record = inference.choose_task(self._model, head)
        self._dtype = np.dtype(dtype)
        self._limit = max_neighbors or self._record.max_neighbors
        self._skin = SkinList(cutoff or self._record.cutoff, skin)
        self._settings = dict(checkpoint=str(Path(self._model.path).absolute()), head=head, dtype=dtype, skin=skin,
                              cutoff=cutoff, max_neighbors=max_neighbors, raw_weights=raw_weights,
                              precision=precision, uncertainty=uncertainty,
                              refuse_open_zero=refuse_open_zero)  # fmt: skip
        self._warned = False
        self._warned_of_zero = False
        self._fitted = fitted_uncertainty(self._model, self._task) if uncertainty else None
        self.implemented_properties = _properties(self._model, self._record)
        self.implemented_properties += [] if self._fitted is None else ["energy_std"]
        with self._precision():
            graphdef, self._state = inference.cast(self._model.module, self._dtype)
        function = self._with_strain if self._model.has_gradient_forces else self._direct
        if self._fitted is not None:
            function = functools.partial(self._with_features, function)
        self._run = CompiledShapes(functools.partial(function, graphdef))

    def __reduce__(self):
        return _rebuild, (type(self), self._settings, self.atoms, self.results)

    @property
    def n_compiled(self) -> int:
        """Shapes compiled so far."""
        return self._run.n_compiled

    @property
    def n_search(self) -> int:
        """Neighbour searches so far."""
        return self._skin.n_search

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        """Fill `results`; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        for name in properties:
            self._check_available(name)
        with naming(lambda _: self.atoms.get_chemical_formula()):
            systems = self._system()
            edges, distance = self._skin.edges(systems.positions, systems.cell[0], systems.pbc[0])
        if not self._warned and {"numbers", "cell", "pbc"} & set(system_changes):
            self._warn_of_parted_shells(edges, distance)
        spec = self._model.architecture.graphs
        graphs = spec.cut(edges, distance, systems.n_node, systems.tags, spec.limits_of(self._limit, 1))
        budget = self._run.budget_for(packing.exact_budget([packing.whole_size(systems, graphs)]))
        batch = inference.unlabelled(systems, graphs, budget, self._dtype, self._task)
        with self._precision():
            out = jax.tree.map(np.asarray, self._run(budget, self._state, batch))
        self._store(out, systems)

    # --- input --------------------------------------------------------------------------------------------

    def _check_available(self, name: str):
        """Refuse, as ASE expects it, a property that model or structure does not have."""
        if name not in self.implemented_properties:
            why = ": its forces are not a gradient" if name == "stress" else ""
            raise PropertyNotImplementedError(f"{name} is not available from {self._model.path}{why}")
        if name == "stress" and not self._has_stress():
            raise PropertyNotImplementedError("stress needs a structure that is periodic, with a cell of some volume")

    def _has_stress(self) -> bool:
        return self._model.has_gradient_forces and bool(self.atoms.pbc.any()) and self.atoms.cell.rank == 3

    def _system(self) -> SystemBatch:
        atoms, n = self.atoms, len(self.atoms)
        if n == 0:
            raise InputError("a structure without atoms has no energy; add atoms")
        check_atoms(np.array([n]))
        self._record.check_elements(atoms.numbers, self._model.path)
        if not np.isfinite(atoms.positions).all():
            raise InputError("positions hold NaN or infinity; the simulation has failed before")
        tags = surface_tags(atoms.get_chemical_formula(), atoms.get_tags(), atoms.positions, atoms.cell.array)
        return SystemBatch(
            n_node=np.array([n], np.int32),
            atomic_numbers=atoms.numbers.astype(np.uint8),
            positions=atoms.positions,
            forces=np.full((n, 3), np.nan, np.float32),
            tags=np.full(n, MOLECULE_TAG, np.uint8) if tags is None else tags,
            fixed=np.zeros(n, bool),
            energy=np.full(1, np.nan),
            cell=np.asarray(atoms.cell, np.float64)[None] * atoms.pbc[None, :, None],
            pbc=atoms.pbc[None],
        )

    def _warn_of_parted_shells(self, edges: Edges, distance: np.ndarray):
        parted = parted_limits(edges, distance, len(self.atoms))
        graphs = self._model.architecture.graphs
        count = n_parted(parted, graphs.limits(self._limit))
        if count:
            self._warned = True
            whole = inference.whole_shells(graphs, parted, self._limit)
            warnings.warn(
                f"the limit of {self._limit} neighbours falls inside a shell of equal distances at {count} of "
                f"{len(self.atoms)} atoms, so that the order of atoms and the choice of the cell decide which count; "
                f"{whole} (docs/prediction.md; said once per calculator)",
                stacklevel=2,
            )

    def _say_open_zero(self):
        formula, refused = self.atoms.get_chemical_formula(), self._settings["refuse_open_zero"]
        what = f"the training data of {self._model.path} do not fix the zero of the energy of {formula}"
        if refused:
            raise InputError(f"{what}; leave it out, or choose a checkpoint that learnt such energies")
        if not self._warned_of_zero:
            self._warned_of_zero = True
            warnings.warn(
                f"{what}: differences between energies of this composition are right, the energies themselves are not "
                "(said once per calculator)",
                stacklevel=3,
            )

    # --- model --------------------------------------------------------------------------------------------

    def _precision(self):
        return jax.enable_x64(bool(self._dtype == np.float64))

    def _direct(self, graphdef, state, batch: GraphBatch) -> dict[str, jax.Array]:
        out = nnx.merge(graphdef, state)(batch)
        if out.energy is None:  # fine-tuned for forces alone
            return {"forces": out.forces}
        if out.energy.ndim == 1:  # fine-tuned, without an axis of tasks
            return {"energy": out.energy[0], "forces": out.forces}
        return {"energy": out.energy[0, self._task], "forces": out.forces[..., self._task]}

    def _with_strain(self, graphdef, state, batch: GraphBatch) -> dict[str, jax.Array]:
        """Energy, forces and the derivative with respect to a symmetric strain of positions and cell."""
        model = nnx.merge(graphdef, state)

        def energy(positions, strain):
            return model.energy(*strained(batch, positions, strain))[0]

        value, (gradient, virial) = jax.value_and_grad(energy, argnums=(0, 1))(
            batch.positions, jnp.zeros_like(batch.cell)
        )
        return {"energy": value, "forces": -gradient, "virial": virial[0]}

    def _with_features(self, function, graphdef, state, batch: GraphBatch) -> dict[str, jax.Array]:
        """What the function gives, and the features of the last layer."""
        last = nnx.merge(graphdef, state).energy_features(batch)[0]
        return {**function(graphdef, state, batch), "features": last}

    def _store(self, out: dict[str, np.ndarray], systems: SystemBatch):
        gradient, n = self._model.has_gradient_forces, len(systems.positions)
        if not all(np.isfinite(array).all() for array in out.values()):
            raise InputError(f"{self._model.path} gives energies or forces that are not finite; check the structure")
        forces = self._record.forces(out["forces"][:n], gradient=gradient)
        self._knows_energy = bool(self._record.knows_energy(systems).all())
        self.results = {"forces": forces} if "forces" in self.implemented_properties else {}
        if "energy" in out and "energy" in self.implemented_properties:
            if not self._knows_energy:
                self._say_open_zero()
            energy = float(self._record.energies(out["energy"][None], systems)[0])
            self.results |= {"energy": energy, "free_energy": energy}
        if self._fitted is not None and self._knows_energy:
            self.results["energy_std"] = float(self._fitted.std(out["features"][None])[0])
        if self._has_stress():
            virial = np.asarray(out["virial"], np.float64) * self._record.energy_std
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial / self.atoms.get_volume())
        for array in self.results.values():
            np.asarray(array).setflags(write=False)  # ASE hands out copies; the kept ones must not change


class EnsembleCalculator(_TagsAndStd):
    """Means of the energies, forces and stress of several checkpoints, with standard deviations as an uncertainty.

    Results also hold `energy_std` (eV) and `forces_std` ([n_node] eV/A: of each force as a vector), sample standard
    deviations of the members.

    Args:
      checkpoints: two or more, each as `JaxAtomsCalculator` takes one; of one kind and target.
      head: task whose head is used; needed where the checkpoints have several.
      options: further ones of `JaxAtomsCalculator`, for every member.

    Attributes:
      members: the calculators.

    Raises:
      InputError: fewer than two checkpoints, or checkpoints that do not predict the same.
    """

    def __init__(self, checkpoints: Sequence[str], head: str | None = None, **options: Any):
        super().__init__()
        if isinstance(checkpoints, str) or len(checkpoints) < 2:
            raise InputError(f"an ensemble needs a list of two or more checkpoints, got {checkpoints!r}")
        self.members = [JaxAtomsCalculator(path, head, uncertainty=False, **options) for path in checkpoints]
        check_alike([member._model for member in self.members], [member._task for member in self.members])
        known = self.members[0].implemented_properties
        self.implemented_properties = [*known, *(f"{name}_std" for name in ("energy", "forces") if name in known)]

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        """Fill `results`; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        for member in self.members:
            for name in properties:
                member.get_property(name.removesuffix("_std"), self.atoms)
        names = ("energy", "forces", "stress")
        found = combine([Prediction(**{n: member.results.get(n) for n in names}) for member in self.members])
        results = {name: getattr(found, name) for name in (*names, "energy_std", "forces_std")}
        results["free_energy"] = found.energy
        if not all(member._knows_energy for member in self.members):
            results["energy_std"] = None  # each has a constant of its own
        self.results = {name: value for name, value in results.items() if value is not None}


def _properties(model: inference.LoadedModel, record: TaskRecord) -> list[str]:
    """What a head was trained to predict, and what follows from it."""
    if model.has_gradient_forces:
        return ["energy", "free_energy", "forces", "stress"]
    learnt = record.labels
    return [*(("energy", "free_energy") if "energy" in learnt else ()), *(("forces",) if "forces" in learnt else ())]


def _rebuild(kind: type, settings: dict, atoms, results: dict) -> JaxAtomsCalculator:
    """A pickled calculator."""
    calculator = kind(**settings)
    calculator.atoms, calculator.results = atoms, results
    return calculator
