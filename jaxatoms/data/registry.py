"""Names of data sets -> how to read them, their graph settings, published constants and files.

A data set is named `NAME` (its files lie under `<data root>/NAME/`), `NAME@PATH` (PATH read as NAME),
`file:PATH` (anything ASE reads) or `demo:NAME` (inside this package). A new data set is one row of `_ROWS`.
"""

import dataclasses
import difflib
from pathlib import Path

from jaxatoms.data.readers import ani1x, ase_file, demo, oc20, transition1x
from jaxatoms.types import InputError

READERS = {"ani1x": ani1x, "transition1x": transition1x, "oc20": oc20, "ase_file": ase_file, "demo": demo}
MOLECULE_CUTOFF = 8.0  # A; specification pretraining 3
PERIODIC_CUTOFF = 12.0  # A
_DEMO_FOLDER = Path(__file__).parent / "demo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What is known of a data set before it is read.

    Energies in eV, lengths in A. `None` as a standard deviation means: compute it from the train split.

    Source: specification pretraining 3 (table of constants) and datasets 2-4.
    """

    name: str
    reader: str  # key of READERS
    files: tuple[str, ...] = ()  # patterns below the data set's folder; the first that matches is the source
    is_folder: bool = False  # the reader takes a folder of files
    periodic: bool | None = None  # None: decided by the records
    max_neighbors: int = 30
    energy_std: float | None = None  # eV, of the energy after the linear reference
    force_std: float | None = None  # eV/A, of the force components
    energy_scale: float = 1.0  # loss scales of the efficient-pretraining recipe
    force_scale: float = 10.0
    jmp_energy_scale: float = 1.0  # loss scales of JMP
    jmp_force_scale: float = 10.0
    split_rule: str = "group"  # "group", or "official" where the file carries its own split

    def __post_init__(self):
        if self.reader not in READERS:
            raise ValueError(f"{self.name}: reader must be one of {', '.join(READERS)}, got {self.reader!r}")
        if self.split_rule not in ("group", "official"):
            raise ValueError(
                f"{self.name}: split_rule must be 'group' or 'official', got {self.split_rule!r}"
            )

    @property
    def cutoff(self) -> float:
        """A; that of molecules while `periodic` is undecided."""
        return PERIODIC_CUTOFF if self.periodic else MOLECULE_CUTOFF


_ROWS = (
    DatasetSpec(
        name="ani1x",
        reader="ani1x",
        files=("ani1x-release.h5", "*.h5"),
        periodic=False,
        energy_std=2.8700712783472118,
        force_std=2.131422996520996,
        jmp_force_scale=15.0,
    ),
    DatasetSpec(
        name="transition1x",
        reader="transition1x",
        files=("Transition1x.h5", "*.h5"),
        periodic=False,
        energy_std=1.787466168382901,
        force_std=0.3591422140598297,
        jmp_force_scale=14.0,
        split_rule="official",
    ),
    DatasetSpec(
        name="oc20",
        reader="oc20",
        files=("s2ef_train_2M", "s2ef_train_200K", "."),
        is_folder=True,
        periodic=True,
        energy_std=24.901469505465872,
        force_std=0.5111534595489502,
        jmp_force_scale=73.0,
    ),
    DatasetSpec(name="file", reader="ase_file"),
    DatasetSpec(name="demo:organic", reader="demo", periodic=False),
    DatasetSpec(name="demo:reaction", reader="demo", periodic=False),
    DatasetSpec(name="demo:slab", reader="demo", periodic=True),
    DatasetSpec(name="demo:oxide", reader="demo", periodic=True),
    DatasetSpec(name="demo:aspirin", reader="demo", periodic=False),
    DatasetSpec(name="demo:peptide", reader="demo", periodic=False),
    DatasetSpec(name="demo:gap", reader="demo"),
)
DATASETS = {row.name: row for row in _ROWS}


def resolve(name: str, data_root: Path | str | None = None) -> tuple[DatasetSpec, Path]:
    """The specification of a named data set and the file or folder to read.

    Args:
      name: `NAME`, `NAME@PATH`, `file:PATH` or `demo:NAME`.
      data_root: folder that holds one folder per data set; needed for a bare `NAME` only.

    Raises:
      InputError: unknown name (with the nearest known one), or nothing to read at the place named.

    Example:
      >>> spec, path = resolve("ani1x@/data/ani1x-release.h5")
    """
    base, _, place = name.partition(":" if name.startswith("file:") else "@")
    spec = find_spec(base)
    if spec.reader == "demo":
        return spec, _existing(_DEMO_FOLDER / f"{base.removeprefix('demo:')}.h5", name, "reinstall jaxatoms")
    if not place and spec.name == "file":
        raise InputError(f"dataset {name!r} names no file; write file:PATH")
    if not place and "@" in name:
        raise InputError(f"dataset {name!r} names no file; write {base}@PATH")
    folder = Path(place).expanduser() if place else _default_folder(spec, data_root)
    return spec, _source_file(spec, folder, name)


def find_spec(base: str) -> DatasetSpec:
    """The row of a name without its path.

    Raises:
      InputError: unknown name, with the nearest known one.
    """
    if base in DATASETS:
        return DATASETS[base]
    close = difflib.get_close_matches(base, DATASETS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(DATASETS)}"
    raise InputError(f"unknown upstream dataset '{base}'; {hint}")


def _default_folder(spec: DatasetSpec, data_root: Path | str | None) -> Path:
    remedy = f"pass --data-root, set JAXATOMS_DATA, or name the file as {spec.name}@PATH"
    if data_root is None:
        raise InputError(f"dataset '{spec.name}' needs a data root; {remedy}")
    root = _existing(Path(data_root).expanduser(), spec.name, remedy)
    return _existing(root / spec.name, spec.name, remedy)


def _existing(path: Path, name: str, remedy: str) -> Path:
    if not path.exists():
        raise InputError(f"dataset '{name}': {path} does not exist; {remedy}")
    return path


def _source_file(spec: DatasetSpec, place: Path, name: str) -> Path:
    _existing(place, name, "check the path after '@' or ':'")
    if place.is_file() or not spec.files:
        return place
    for pattern in spec.files:
        # A pattern for a reader of folders names one folder, "." the place itself.
        found = [place / pattern] if spec.is_folder else sorted(place.glob(pattern))
        found = [path for path in found if path.exists()]
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
