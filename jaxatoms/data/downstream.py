"""What is published of each downstream data set: target, unit, normalisation, reduction, references, graphs.

Data facts only; how a model is fine-tuned on them is no concern here.
Source of numbers: docs/reference/finetuning.md, Normalisation; of reductions: gemnet_oc.md, Fine-tuning heads.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from jaxatoms.data.registry import find_spec, split_targets
from jaxatoms.types import InputError


@dataclasses.dataclass(frozen=True)
class Graph:
    """Cutoff, A, and neighbours of the main graph; fewer of them in large structures where `conditional`."""

    cutoff: float
    max_neighbors: int = 30
    conditional: bool = False

    def neighbors(self, n_node: np.ndarray) -> np.ndarray:
        """[n_graph] K of each structure, by its number of atoms: 30, above 200 atoms 10, above 300 atoms 5."""
        n_node = np.asarray(n_node)
        if not self.conditional:
            return np.full(n_node.shape, self.max_neighbors)
        return np.select([n_node > 300, n_node > 200], [5, 10], self.max_neighbors)


def atoms_total(
    name: str, references: Mapping[int, float], atomic_numbers: np.ndarray, n_node: np.ndarray, strict: bool = True
) -> np.ndarray:
    """[n_graph] float64: the sum of the references of each structure's atoms; 0 without any references.

    Args:
      name: of the data set, for messages.
      references: by atomic number.
      atomic_numbers: [sum n_node].
      n_node: [n_graph].
      strict: refuse an element without a reference; otherwise the sum is NaN.

    Raises:
      InputError: an element without a reference.
    """
    graph = np.repeat(np.arange(len(n_node)), n_node)
    if not references:
        return np.zeros(len(n_node))
    table = np.full(256, np.nan)
    table[list(references)] = list(references.values())
    per_atom = table[atomic_numbers]
    if strict and np.isnan(per_atom).any():
        number = int(atomic_numbers[np.argmax(np.isnan(per_atom))])
        raise InputError(f"{name}: atomic number {number} has no atom reference; remove the structure")
    return np.bincount(graph, weights=per_atom, minlength=len(n_node))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForceData:
    """A data set that a potential is learnt of (rMD17, MD22, SPICE); eV and eV/A.

    Attributes:
      energy_mean, energy_std: eV; of the energies, where they are not trained.
      force_mean, force_std: eV/A, of the force components.
      gradient_forces: forces are minus the gradient of the energy; otherwise a head predicts them.
      n_published: structures of the whole data set.
      weights: of "energy", "forces" and "stress" in the loss; empty: forces alone, with the recipe's coefficient.
      references, span: where energies are learnt, what is subtracted first: eV per atomic number, and the compositions
        that these fix (see `LinearReference.span`; None: all).
    """

    name: str
    graph: Graph
    energy_mean: float
    energy_std: float
    force_mean: float = 0.0
    force_std: float
    gradient_forces: bool = True
    n_published: int | None = None
    unit: str = "meV/A"  # of the tables
    table_scale: float = 1000.0  # table value = error in eV/A times this
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    references: Mapping[int, float] = dataclasses.field(default_factory=dict)
    span: list[list[float]] | None = None

    @property
    def learnt(self) -> tuple[str, ...]:
        """What is part of the loss, that which the tables give first."""
        return tuple(name for name in ("forces", "energy", "stress") if name in (self.weights or ("forces",)))

    @property
    def learns_energy(self) -> bool:
        """Whether energies are part of the loss."""
        return "energy" in self.weights

    @property
    def learns_stress(self) -> bool:
        """Whether stress is part of the loss."""
        return "stress" in self.weights

    def reference(self, atomic_numbers: np.ndarray, n_node: np.ndarray) -> np.ndarray:
        """[n_graph] float64 eV: what the atoms of each structure contribute; NaN with an element without reference.

        Such a structure has no energy to be compared with; its forces count.
        """
        return atoms_total(self.name, self.references, atomic_numbers, n_node, strict=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarData:
    """A data set with one number per structure (QM9, QMOF, MatBench).

    Attributes:
      column: column of the store.
      unit: of the column.
      reduction: how the model's atom outputs are combined: "sum", "mean", "max" or "extent".
      mean, std: of the target after `references`; None: those of the train split (`normalization`).
      references, span: atomic number -> what each atom contributes, subtracted before normalising; the compositions
        that these fix (None: all).
      n_class: 0 for regression.
      class_weights: of the cross entropy.
      table_unit, table_scale: table value = error in `unit` times `table_scale`.
      n_published: structures of the whole data set.
    """

    name: str
    column: str
    graph: Graph
    unit: str
    reduction: str
    mean: float | None = None
    std: float | None = None
    references: Mapping[int, float] = dataclasses.field(default_factory=dict)
    span: list[list[float]] | None = None
    n_class: int = 0
    class_weights: tuple[float, ...] = ()
    table_unit: str = ""
    table_scale: float = 1.0
    n_published: int | None = None

    @property
    def property_name(self) -> str:
        """The column without what says of which kind it is."""
        return re.sub("^(target|atom|vector)_", "", self.column)

    def reference(self, atomic_numbers: np.ndarray, n_node: np.ndarray) -> np.ndarray:
        """[n_graph] float64, in `unit`: what the atoms of each structure contribute; see `atoms_total`.

        Energies with an element that training lacks are NaN: they cannot be compared.
        """
        return atoms_total(self.name, self.references, atomic_numbers, n_node, strict=self.column != "energy")

    def normalization(self, train_values: np.ndarray) -> tuple[float, float]:
        """(mean, std): the published ones, else those of the train split's values after references.

        Raises:
          InputError: no values, or values that do not vary.
        """
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        values = np.asarray(train_values, np.float64)
        values = values[~np.isnan(values)]
        if len(values) == 0 or not values.std() > 0:
            raise InputError(f"{self.name}: the training targets do not vary; give more varied structures")
        return float(values.mean()), float(values.std())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PropertiesData:
    """A data set of which several properties are learnt together, of structures and of atoms.

    Attributes:
      parts: the facts of each, with its mean and standard deviation. Beside the reductions of scalars there are "atom",
        one number per atom, and "dipole", a vector in e A that follows from a charge per atom.
      weights: of each in the loss, where every one is in the unit of its standard deviation.
    """

    name: str
    graph: Graph
    parts: tuple[ScalarData, ...]
    weights: tuple[float, ...]
    n_class: int = 0

    @property
    def learnt(self) -> tuple[str, ...]:
        """The names of the properties, which are their columns where two would be called the same."""
        names = [part.property_name for part in self.parts]
        pairs = zip(names, self.parts, strict=True)
        return tuple(name if names.count(name) == 1 else part.column for name, part in pairs)

    @property
    def column(self) -> str:
        """Their columns, joined by commas."""
        return ",".join(part.column for part in self.parts)

    @property
    def reductions(self) -> tuple[str, ...]:
        """How each follows from the atoms' values."""
        return tuple(part.reduction for part in self.parts)

    def part(self, name: str) -> ScalarData:
        """The facts of one property."""
        return self.parts[self.learnt.index(name)]


Facts = ForceData | ScalarData | PropertiesData


def downstream(name: str) -> Facts:
    """The facts of a downstream data set, by the name it is opened with (a path after '@' is ignored).

    `FAMILY:a,b` are several targets of one data set, such as `qm9:mu,alpha`; their statistics are those published.

    Raises:
      InputError: unknown name, or a data set that is no downstream set.

    Example:
      >>> downstream("qm9:U_0").references[1]
      -16.43
    """
    if several := split_targets(name):
        parts = tuple(downstream(one) for one in several)
        return PropertiesData(name=name, graph=parts[0].graph, parts=parts, weights=(1.0,) * len(parts))  # type: ignore
    spec = find_spec(name.partition("@")[0])
    variant = spec.name.partition(":")[2]
    if spec.family not in _MAKERS:
        raise InputError(f"'{spec.name}' is no downstream data set; known are {', '.join(_MAKERS)}")
    return _MAKERS[spec.family](spec.name, variant)


def _rmd17(name: str, molecule: str) -> ForceData:
    mean, std, force_std = _RMD17[molecule]
    n = 99_988 if molecule == "azobenzene" else 100_000
    return ForceData(
        name=name, graph=Graph(7.0, 100), energy_mean=mean, energy_std=std, force_std=force_std, n_published=n
    )


def _md22(name: str, molecule: str) -> ForceData:
    mean, std, force_std, n, gradient = _MD22[molecule]
    return ForceData(
        name=name, graph=Graph(12.0), energy_mean=mean, energy_std=std, force_std=force_std, gradient_forces=gradient,
        n_published=n,
    )  # fmt: skip


def _spice(name: str, subset: str) -> ForceData:
    mean, std, force_mean, force_std, n = _SPICE[subset]
    return ForceData(
        name=name, graph=Graph(12.0), energy_mean=mean, energy_std=std, force_mean=force_mean, force_std=force_std,
        n_published=n,
    )  # fmt: skip


def _qm9(name: str, target: str) -> ScalarData:
    unit = _QM9_UNITS.get(target, "eV")
    mean, std = _QM9.get(target, (None, None))
    in_milli = unit == "eV"
    return ScalarData(
        name=name,
        column=f"target_{target}",
        graph=Graph(8.0),
        unit=unit,
        reduction="extent" if target == "R_2_Abs" else "sum",
        mean=mean,
        std=std,
        references=dict(zip((1, 6, 7, 8, 9), _QM9_REFERENCES.get(target, ()), strict=False)),
        table_unit="meV" if in_milli else unit,
        table_scale=1000.0 if in_milli else 1.0,
        n_published=130_831,
    )


def _qmof(name: str, column: str) -> ScalarData:
    is_gap = not column
    return ScalarData(
        name=name,
        column=f"target_{column or 'outputs.pbe.bandgap'}",
        graph=Graph(19.0, conditional=True),
        unit="eV" if is_gap else "",
        reduction="mean",
        mean=2.1866251527 if is_gap else None,
        std=1.175752521125648 if is_gap else None,
        table_unit="eV" if is_gap else "",
        n_published=20_375,
    )


def _matbench(name: str, variant: str) -> ScalarData:
    task, fold = variant.split("/")
    unit, n = _MATBENCH[task]
    mean, std = _PHONONS[int(fold)] if task == "phonons" else (None, None)
    is_class = task == "mp_is_metal"
    return ScalarData(
        name=name,
        column="target_y",
        graph=Graph(12.0, conditional=True),
        unit=unit,
        reduction={"phonons": "max", "mp_is_metal": "sum"}.get(task, "mean"),
        mean=mean,
        std=std,
        n_class=2 if is_class else 0,
        class_weights=(1.0, 1.34219693) if is_class else (),
        table_unit=unit,
        n_published=n,
    )


_RMD17 = {  # energy mean and std, eV; force std, eV/A
    "aspirin": (-17617.379355234374, 0.2673998440577667, 1.2733363),
    "azobenzene": (-15553.118351233397, 0.2866098335926971, 1.2940075),
    "benzene": (-6306.374855859375, 0.10482645661015047, 0.90774584),
    "ethanol": (-4209.534573266602, 0.18616576961275716, 1.1929188),
    "malonaldehyde": (-7254.903633896484, 0.1812291921138577, 1.302443),
    "naphthalene": (-10478.192319667969, 0.24922674853668708, 1.3102233),
    "paracetamol": (-13998.780924130859, 0.26963984094801224, 1.2707518),
    "salicylic": (-13472.110348867187, 0.2437920552529055, 1.3030343),
    "toluene": (-7373.347077485351, 0.22534282741069667, 1.246547),
    "uracil": (-11266.351949697266, 0.2227113171300836, 1.3692871),
}
_MD22 = {  # energy mean and std, eV; force std, eV/A; structures; forces by gradient
    "Ac-Ala3-NHMe": (-26913.953, 0.35547638, 1.1291506, 85_109, False),
    "DHA": (-27383.035, 0.41342595, 1.1258113, 69_753, True),
    "stachyose": (-68463.59, 0.5940788, 1.1104717, 27_272, True),
    "AT-AT": (-50080.08, 0.47309175, 1.2109985, 20_001, True),
    "AT-AT-CG-CG": (-101034.23, 0.680055, 1.2021886, 10_153, True),
    "buckyball-catcher": (-124776.7, 0.64662045, 1.0899031, 6_102, True),
    "double-walled_nanotube": (-338224.16, 3.3810701, 1.0137014, 5_032, False),
}
_SPICE = {  # energy mean and std, eV; force mean and std, eV/A; structures
    "solvated_amino_acids": (-60673.68, 3310.6692, 2.7950014e-07, 0.81945145, 1_300),
    "dipeptides": (-31213.615, 4636.815, 3.3810358e-07, 0.5386545, 33_850),
}
_QM9 = {  # mean and std after the atom references
    "U_0": (0.0028667436, 1.0965848),
    "delta_eps": (6.8585854, 1.283122),
    "mu": (2.674587, 1.5054824),
    "alpha": (75.31013, 8.164021),
    "eps_HOMO": (-6.5347567, 0.59702325),
    "eps_LUMO": (0.323833, 1.273586),
    "ZPVE": (-0.00052343, 0.04904531),
    "U": (0.0028711546, 1.0941933),
    "H": (0.0029801112, 1.0942822),
    "G": (0.000976671, 1.101572),
    "c_v": (-0.005799451, 2.2179737),
    "R_2_Abs": (0.0, 1.0),  # not normalised
}
_QM9_REFERENCES = {  # H, C, N, O, F: five printed digits, used exactly so
    "U_0": (-16.430, -1036.0, -1489.8, -2047.0, -2717.5),
    "U": (-16.419, -1036.0, -1489.8, -2047.0, -2717.5),
    "H": (-16.419, -1036.0, -1489.8, -2047.0, -2717.5),
    "G": (-16.443, -1036.1, -1489.9, -2047.1, -2717.6),
    "ZPVE": (0.31213, 0.13694, 0.13955, 0.11424, 0.093038),
    "c_v": (1.2409, 2.0350, 2.7877, 3.0860, 3.3401),
}
_QM9_UNITS = {"mu": "D", "alpha": "a0^3", "R_2_Abs": "a0^2", "c_v": "cal/mol/K", "A": "GHz", "B": "GHz", "C": "GHz"}
_PHONONS = (
    (602.9007780432183, 471.03858838413055),
    (613.7996473907606, 486.75099875453213),
    (619.3868976573087, 495.2975486965762),
    (609.7402387661577, 462.3438660855412),
    (595.4547502676089, 476.8567310885976),
)
_MATBENCH = {  # unit, structures
    "jdft2d": ("meV/atom", 636),
    "phonons": ("1/cm", 1_265),
    "dielectric": ("", 4_764),
    "log_gvrh": ("log10(GPa)", 10_987),
    "log_kvrh": ("log10(GPa)", 10_987),
    "perovskites": ("eV/cell", 18_928),
    "mp_gap": ("eV", 106_113),
    "mp_is_metal": ("", 106_113),
    "mp_e_form": ("eV/atom", 132_752),
}
_MAKERS: dict[str, Callable[[str, str], ForceData | ScalarData]] = {
    "rmd17": _rmd17,
    "md22": _md22,
    "spice": _spice,
    "qm9": _qm9,
    "qmof": _qmof,
    "matbench": _matbench,
}
PUBLISHED = tuple(_MAKERS)  # families whose split and constants are published
