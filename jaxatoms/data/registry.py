"""Names of data sets -> how to read them, their graph settings, published constants and files.

A data set is named `NAME` or `FAMILY:VARIANT` (its files lie under `<data root>/NAME/` or `<data root>/FAMILY/`),
`NAME@PATH` (PATH read as NAME), `file:PATH[#energy_key,forces_key,stress_key]` (anything ASE reads: a file, a folder, a
pattern such as `runs/*/vasprun.xml`, or several with commas between) or `demo:NAME` (inside this package). A new data
set is one reader and one row of `_ROWS`, or a call of `register`.
"""

import dataclasses
import difflib
import glob
from pathlib import Path

from jaxatoms.data import remote
from jaxatoms.data.readers import (
    ani1x,
    ase_file,
    demo,
    matbench,
    npz_trajectory,
    oc20,
    oc22,
    omat24,
    qm9,
    qmof,
    spice,
    transition1x,
)
from jaxatoms.data.readers.protocol import Reader
from jaxatoms.data.remote import Remote
from jaxatoms.types import InputError

READERS: dict[str, Reader] = {
    "ani1x": ani1x,
    "transition1x": transition1x,
    "oc20": oc20,
    "oc22": oc22,
    "omat24": omat24,
    "npz_trajectory": npz_trajectory,
    "spice": spice,
    "qm9": qm9,
    "qmof": qmof,
    "matbench": matbench,
    "ase_file": ase_file,
    "demo": demo,
}
CLASSES = ("group", "composition", "reaction", "catalyst")
MOLECULE_CUTOFF = 8.0  # A; docs/reference/pretraining.md, Normalisation
PERIODIC_CUTOFF = 12.0  # A
_DEMO_FOLDER = Path(__file__).parent / "demo"
RMD17_MOLECULES = (
    "aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene", "paracetamol", "salicylic",
    "toluene", "uracil",
)  # fmt: skip
MD22_MOLECULES = (
    "Ac-Ala3-NHMe", "DHA", "stachyose", "AT-AT", "AT-AT-CG-CG", "buckyball-catcher", "double-walled_nanotube",
)  # fmt: skip
SPICE_SUBSETS = ("solvated_amino_acids", "dipeptides")
MATBENCH_TASKS = (
    "jdft2d", "phonons", "dielectric", "log_gvrh", "log_kvrh", "perovskites", "mp_gap", "mp_is_metal", "mp_e_form",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What is known of a data set before it is read.

    Energies in eV, lengths in A. `None` as a standard deviation means: compute it from the train split.

    Source: docs/reference/pretraining.md, Normalisation, and docs/reference/datasets.md, ANI-1x to OC22.
    """

    name: str
    reader: str  # key of READERS
    title: str = ""  # in tables; default `name`
    remote: Remote | None = None  # where its files are downloaded from; None: it is part of the package, or the user's
    classes: str = "group"  # what class-balanced sampling draws evenly: group, composition, reaction or catalyst
    mapping: str = ""  # file with the catalyst of every system, where classes are those
    paper_millions: int | None = None  # structures as the paper's temperature mixing counts them
    files: tuple[str, ...] = ()  # patterns below the data set's folder; the first that matches is the source
    is_folder: bool = False  # the reader takes a folder of files
    periodic: bool | None = None  # None: decided by the records
    max_neighbors: int = 30
    energy_std: float | None = None  # eV, of the energy after the linear reference
    force_std: float | None = None  # eV/A, of the force components
    raw_energy_mean: float | None = None  # eV, of total energies; for checks only
    raw_energy_std: float | None = None
    energy_scale: float = 1.0  # loss scales of the efficient-pretraining recipe
    force_scale: float = 10.0
    jmp_force_scale: float = 10.0  # loss scale of JMP, whose scale of energies is 1
    split_rule: str = "group"  # see `splits.make_split`
    held_out: int | None = None  # records in each of val and test of the whole data set; None: a tenth
    validation: tuple[str, ...] = ()  # names of the folder, beside the source, of an official validation set
    target: str = ""  # column of the store that a scalar data set is about
    store_name: str = ""  # names that share a store (targets of one file) share this; default `name`
    options: tuple[tuple[str, str], ...] = ()  # keyword arguments of the reader

    def __post_init__(self):
        if self.classes not in CLASSES:
            raise ValueError(f"{self.name}: classes must be {', '.join(CLASSES)}, got {self.classes!r}")
        if self.split_rule not in ("group", "official", "record"):
            raise ValueError(f"{self.name}: split_rule must be group, official or record, got {self.split_rule!r}")

    @property
    def family(self) -> str:
        """The name without its variant: "rmd17" of "rmd17:aspirin"."""
        return self.name.partition(":")[0]

    @property
    def cutoff(self) -> float:
        """A; that of molecules while `periodic` is undecided."""
        return PERIODIC_CUTOFF if self.periodic else MOLECULE_CUTOFF


_ROWS = (
    DatasetSpec(
        name="ani1x",
        title="ANI-1x",
        reader="ani1x",
        remote=remote.ANI1X,
        paper_millions=2,  # though its train split has 4
        files=("ani1x-release.h5", "*.h5"),
        periodic=False,
        energy_std=2.8700712783472118,
        raw_energy_mean=-10700.8,
        raw_energy_std=3739.1,
        force_std=2.131422996520996,
        jmp_force_scale=15.0,
        held_out=495_600,
    ),
    DatasetSpec(
        name="transition1x",
        title="Transition-1x",
        reader="transition1x",
        remote=remote.TRANSITION1X,
        classes="reaction",
        paper_millions=10,
        files=("Transition1x.h5", "*.h5"),
        periodic=False,
        energy_std=1.787466168382901,
        raw_energy_mean=-8254.2,
        raw_energy_std=1067.8,
        force_std=0.3591422140598297,
        jmp_force_scale=14.0,
        split_rule="official",
    ),
    DatasetSpec(
        name="oc20",
        title="OC20",
        reader="oc20",
        remote=remote.OC20,
        classes="catalyst",
        mapping="oc20_data_mapping.pkl",
        paper_millions=100,
        files=("s2ef_train_2M", "s2ef_train_200K", "2M/train", "train", "."),
        is_folder=True,
        periodic=True,
        split_rule="official",
        validation=("s2ef_val_id", "val_id", "all/val_id"),
        energy_std=24.901469505465872,
        raw_energy_mean=-359.8,
        raw_energy_std=231.9,
        force_std=0.5111534595489502,
        jmp_force_scale=73.0,
    ),
    DatasetSpec(
        name="oc22",
        title="OC22",
        reader="oc22",
        remote=remote.OC22,
        classes="catalyst",
        mapping="oc22_metadata.pkl",
        paper_millions=8,
        files=("s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total/train", "s2ef-total/train", "train", "."),
        is_folder=True,
        periodic=True,
        split_rule="official",
        validation=("val_id",),
        energy_std=25.229595396538468,
        raw_energy_mean=-495.6,
        raw_energy_std=212.5,
        force_std=0.25678861141204834,
        jmp_force_scale=80.0,
    ),
    DatasetSpec(
        name="omat24",
        reader="omat24",
        remote=remote.OMAT24,
        classes="composition",
        files=("rattled-300-subsampled", "train/rattled-300-subsampled", "."),
        is_folder=True,
        periodic=True,
        energy_std=7.783477783203125,
        raw_energy_std=30.74026854956568,
        force_std=4.445453643798828,
        energy_scale=20.0,
        force_scale=20.0,
    ),
    DatasetSpec(name="file", reader="ase_file"),
    *(
        DatasetSpec(
            name=f"demo:{name}",
            reader="demo",
            periodic=periodic,
            target="target_gap" if name == "gap" else "",
            # Every oxide has a metal of its own: held out by formula, its reference energy would be unknown.
            split_rule="record" if name == "oxide" else "group",
        )
        for name, periodic in (
            ("organic", False),
            ("reaction", False),
            ("slab", True),
            ("oxide", True),
            ("aspirin", False),
            ("peptide", False),
            ("gap", None),
        )
    ),
    *(
        DatasetSpec(
            name=f"rmd17:{molecule}",
            remote=remote.RMD17,
            reader="npz_trajectory",
            files=tuple(f"{folder}rmd17_{molecule}.npz" for folder in ("", "npz_data/", "rmd17/npz_data/")),
            periodic=False,
        )
        for molecule in RMD17_MOLECULES
    ),
    *(
        DatasetSpec(
            name=f"md22:{molecule}",
            remote=remote.md22(molecule),
            reader="npz_trajectory",
            files=(f"md22_{molecule}.npz", f"md22_{molecule.replace('double-walled', 'dw')}.npz"),
            periodic=False,
        )
        for molecule in MD22_MOLECULES
    ),
    *(
        DatasetSpec(
            name=f"spice:{subset}",
            remote=remote.spice(subset),
            reader="spice",
            files=(f"{subset}.h5", f"{subset}.hdf5"),
            periodic=False,
            options=(("subset", subset),),
        )
        for subset in SPICE_SUBSETS
    ),
    *(
        DatasetSpec(
            name=f"qm9:{target}",
            remote=remote.QM9,
            reader="qm9",
            files=("qm9_v3.pt", "raw/qm9_v3.pt", "dsgdb9nsd.xyz.tar.bz2", "*.xyz.tar.*"),
            periodic=False,
            target=f"target_{target}",
            store_name="qm9",
        )
        for target in qm9.TARGETS
    ),
    DatasetSpec(
        name="qmof",
        reader="qmof",
        remote=remote.QMOF,
        files=("qmof_database", "qmof_database.zip", "."),
        is_folder=True,
        periodic=True,
        target="target_outputs.pbe.bandgap",
    ),
    *(
        DatasetSpec(
            name=f"matbench:{task}/{fold}",
            remote=remote.matbench(task),
            reader="matbench",
            files=(f"matbench_{task}.json.gz", f"{task}.json.gz"),
            periodic=True,
            target="target_y",
            store_name=f"matbench:{task}",
        )
        for task in MATBENCH_TASKS
        for fold in range(5)
    ),
)
DATASETS = {row.name: row for row in _ROWS}
_ALIASES = {
    f"qm9:{alias}": f"qm9:{target}"
    for alias, target in (
        ("gap", "delta_eps"), ("homo", "eps_HOMO"), ("lumo", "eps_LUMO"), ("HOMO", "eps_HOMO"), ("LUMO", "eps_LUMO"),
        ("U0", "U_0"), ("R2", "R_2_Abs"), ("zpve", "ZPVE"), ("Cv", "c_v"),
    )
} | {"qmof:bandgap": "qmof", "qmof:y": "qmof"}  # fmt: skip


def split_targets(name: str) -> list[str]:
    """The names that `FAMILY:a,b@PATH` stands for, of targets that lie in one file; [] where it names one alone.

    Raises:
      InputError: a target that the data set does not have, or one twice.

    Example:
      >>> split_targets("qm9:mu,gap@/data")
      ['qm9:mu@/data', 'qm9:gap@/data']
    """
    base, at, place = name.partition("@")
    first, *more = base.split(",")
    family = first.partition(":")[0]
    if not more or family == "file":
        return []
    names = [first, *(f"{family}:{target.strip()}" for target in more)]
    specs = [find_spec(one) for one in names]
    if len({spec.name for spec in specs}) < len(specs):
        raise InputError(f"{name} names a target twice; name each once")
    return [f"{one}{at}{place}" for one in names]


def is_further_target(name: str, word: str) -> bool:
    """Whether `word` is another target in the file that `name` is read from, as alpha is after qm9:mu."""
    first, other = name.partition("@")[0].split(",")[0], f"{name.partition(':')[0]}:{word.partition('@')[0]}"
    known = [DATASETS.get(_ALIASES.get(one, one)) for one in (first, other)]
    if "@" in name or known[0] is None or known[1] is None:
        return False
    return known[0].store_name == known[1].store_name is not None and known[0].target != known[1].target


def register(spec: DatasetSpec, reader: Reader | None = None):
    """Make a data set known by its name; docs/how-to/dataset.md follows one from its file to a trained model.

    Args:
      reader: registered as `spec.reader`; None: that is a known one.

    Raises:
      ValueError: the name of the data set or of the reader is taken.
    """
    if spec.name in DATASETS or (reader is not None and READERS.get(spec.reader, reader) is not reader):
        raise ValueError(f"{spec.name} or its reader {spec.reader} is known already")
    if reader is not None:
        READERS[spec.reader] = reader
    DATASETS[spec.name] = spec


def resolve(name: str, data_root: Path | str | None = None) -> tuple[DatasetSpec, Path]:
    """The specification of a named data set and the file or folder to read.

    Args:
      name: `NAME`, `NAME@PATH`, `file:PATH[#energy_key,forces_key,stress_key]` or `demo:NAME`.
      data_root: folder that holds one folder per data set; needed for a bare `NAME` only.

    Raises:
      InputError: unknown name (with the nearest known one), or nothing to read at the place named.

    Example:
      >>> spec, path = resolve("ani1x@/data/ani1x-release.h5")
    """
    name = next(iter(split_targets(name)), name)  # several targets of one file
    base, _, place = name.partition(":" if name.startswith("file:") else "@")
    spec = find_spec(base)
    if spec.reader == "demo":
        return spec, _existing(_DEMO_FOLDER / f"{base.removeprefix('demo:')}.h5", name, "reinstall jaxatoms")
    if not place and spec.name == "file":
        raise InputError(f"dataset {name!r} names no file; write file:PATH")
    if not place and "@" in name:
        raise InputError(f"dataset {name!r} names no file; write {base}@PATH")
    if spec.name == "file":
        place, spec = _take_label_keys(place, spec)
    folder = Path(place).expanduser() if place else _default_folder(spec, data_root)
    return spec, _source_file(spec, folder, name)


def find_spec(base: str) -> DatasetSpec:
    """The row of a name without its path.

    Raises:
      InputError: unknown name, with the nearest known one.
    """
    base = _ALIASES.get(base, base)
    if base in DATASETS:
        return DATASETS[base]
    if base.startswith("qmof:"):  # any scalar that the file holds
        return dataclasses.replace(DATASETS["qmof"], name=base, store_name="qmof", target=f"target_{base[5:]}")
    raise InputError(f"unknown dataset '{base}'; {_hint(base)}")


def _hint(base: str) -> str:
    variants = [name for name in DATASETS if name.startswith((f"{base}:", f"{base}/"))]
    close = difflib.get_close_matches(base, DATASETS, n=1)
    if variants:
        return f"write one of its {len(variants)} variants, such as '{variants[0]}'"
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(families())}"


def families() -> list[str]:
    """Every known name, variants gathered: "rmd17:<10 names>"."""
    count: dict[str, int] = {}
    for row in DATASETS.values():
        count[row.family] = count.get(row.family, 0) + (":" in row.name)
    return [f"{family}:<{n} names>" if n else family for family, n in count.items()]


def _take_label_keys(place: str, spec: DatasetSpec) -> tuple[str, DatasetSpec]:
    """Splits `PATH#energy_key,forces_key,stress_key`; a file whose own name holds a '#' is taken as it is."""
    path, _, keys = place.rpartition("#")
    if not path or Path(place).expanduser().exists():
        return place, spec
    labels = [key.strip() for key in keys.split(",")]
    if len(labels) > 3 or not any(labels):
        raise InputError(f"dataset 'file:{place}': '#{keys}' names no labels; write #energy_key,forces_key,stress_key")
    named = zip(("energy_key", "forces_key", "stress_key"), labels, strict=False)
    return path, dataclasses.replace(spec, options=tuple((name, key) for name, key in named if key))


def _default_folder(spec: DatasetSpec, data_root: Path | str | None) -> Path:
    remedy = f"pass --data-root, set JAXATOMS_DATA, or name the file as {spec.name}@PATH"
    if data_root is None:
        raise InputError(f"dataset '{spec.name}' needs a data root; {remedy}")
    root = _existing(Path(data_root).expanduser(), spec.name, remedy)
    return _existing(root / spec.family, spec.name, remedy)


def _existing(path: Path, name: str, remedy: str) -> Path:
    if not path.exists():
        raise InputError(f"dataset '{name}': {path} does not exist; {remedy}")
    return path


def _source_file(spec: DatasetSpec, place: Path, name: str) -> Path:
    if spec.name == "file" and (glob.has_magic(str(place)) or "," in str(place)):
        ase_file.source_files(place)
        return place
    _existing(place, name, "check the path after '@' or ':'")
    if place.is_file() or not spec.files:
        return place
    for pattern in spec.files:
        # A pattern for a reader of folders names one folder, "." the place itself.
        found = [place / pattern] if spec.is_folder else sorted(place.glob(pattern))
        found = [path for path in found if path.exists() and not path.name.startswith("._")]
        if len(found) > 1:
            listed = ", ".join(path.name for path in found[:3])
            raise InputError(
                f"dataset '{name}': {place} holds several files ({listed}); choose one as {spec.name}@PATH"
            )
        if found:
            return found[0]
    raise InputError(
        f"dataset '{name}': {place} holds no {spec.files[0]}; put it there or write {spec.name}@PATH"
    )
