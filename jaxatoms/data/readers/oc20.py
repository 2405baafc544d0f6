"""OC20 S2EF (`K.extxyz[.xz]` with `K.txt[.xz]`, or LMDB shards) -> Systems with *total* DFT energies, eV and A.

The reference energy of the txt lines is not subtracted: the published statistics belong to total energies. Shards
must have been made without `--ref-energy`; `experiments.data check` shows it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import ase.io

from jaxatoms.data.readers import oc_lmdb
from jaxatoms.data.readers.checks import fail, is_hidden
from jaxatoms.data.readers.compressed import plain_file
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.types import System

VERSION = 2
_SUFFIXES = (".extxyz", ".extxyz.xz")


def read(path: Path | str) -> Iterator[System]:
    """Yields the frames of one pair of files, of every pair below a folder by their numbers, or of its LMDB shards.

    Forces are complete, on fixed atoms too; tags and fixed atoms come from the file.
    The group is the system id, `random<sid>`; `extra` holds `sid` and `fid`, -1 where the file does not say.

    Raises:
      InputError: nothing to read, a txt file that is missing or does not fit, missing tags or labels,
        bad values.

    Source: docs/reference/datasets.md, OC20.
    """
    for part in parts(path):
        yield from read_part(part)


def parts(path: Path | str) -> list[tuple]:
    """What a conversion may do apart: (frame file,) or (shard, first, stop).

    Raises:
      InputError: nothing to read.
    """
    path = Path(path)
    if _holds_shards(path):
        return oc_lmdb.parts(path)
    return [(str(file),) for file in frame_files(path)]


def _holds_shards(path: Path) -> bool:
    return path.suffix == ".lmdb" or (path.is_dir() and any(path.rglob(oc_lmdb.PATTERN)))


def source_files(path: Path | str) -> list[Path]:
    """A frame file and its ids; a folder or a shard stands for itself."""
    path = Path(path)
    return [path] if path.is_dir() or _holds_shards(path) else [path, *_id_files(path)]


def read_part(part: tuple) -> Iterator[System]:
    """Yields one piece of `parts`."""
    return oc_lmdb.read_part(part, group="random") if len(part) > 1 else _read_pair(Path(part[0]))


def frame_files(path: Path | str) -> list[Path]:
    """The extxyz files that `read` visits, in order.

    Raises:
      InputError: no such file or folder, or none below the folder.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        fail(path, "", "no such file or folder", "name a folder holding K.extxyz.xz and K.txt.xz")
    files = [file for file in path.rglob("*.extxyz*") if file.name.endswith(_SUFFIXES) and not is_hidden(file, path)]
    if not files:
        fail(path, "", "holds no .extxyz or .extxyz.xz files", "unpack the OC20 S2EF archive there")
    return sorted(files, key=_number)


def _number(file: Path) -> tuple:
    stem = file.name.split(".")[0]
    return file.parent, int(stem) if stem.isdecimal() else -1, file.name


def _read_pair(frames: Path) -> Iterator[System]:
    ids = _system_ids(frames)
    i = -1
    with plain_file(frames) as plain:
        for i, atoms in enumerate(_iter_atoms(frames, plain)):
            if i >= len(ids):
                _fail_count(frames, f"more than {len(ids)}", len(ids))
            name, frame = ids[i]
            record = f"frame {i} ({name})"
            system = system_from_atoms(frames, record, atoms, group=name)
            _check_complete(frames, record, system)
            yield system._replace(extra={"sid": _number_in(name), "fid": _number_in(frame)})
    if i + 1 != len(ids):
        _fail_count(frames, str(i + 1), len(ids))


def _iter_atoms(frames: Path, plain: Path) -> Iterator[ase.Atoms]:
    try:
        yield from ase.io.iread(plain, index=":", format="extxyz")
    except (ValueError, KeyError, IndexError, OSError) as error:
        fail(frames, "", f"not readable as extxyz ({error})", "download the file again")


def _number_in(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else -1


def _system_ids(frames: Path) -> list[tuple[str, str]]:
    for ids in _id_files(frames):
        with plain_file(ids) as plain:
            # Lines are `system,frame[,reference energy]`.
            lines = [line.split(",") for line in plain.read_text().splitlines() if line.strip()]
        return [(line[0].strip(), line[1].strip() if len(line) > 1 else "") for line in lines]
    fail(frames, "", f"its system ids {_stem(frames)}.txt[.xz] are missing", "put the txt file beside the extxyz file")


def _id_files(frames: Path) -> list[Path]:
    return [ids for suffix in (".txt", ".txt.xz") if (ids := frames.with_name(_stem(frames) + suffix)).is_file()]


def _stem(frames: Path) -> str:
    return frames.name.split(".extxyz")[0]


def _check_complete(frames: Path, record: str, system: System) -> None:
    for name in ("forces", "tags"):
        if getattr(system, name) is None:
            fail(
                frames, record, f"lacks {name}", "expected the OC20 S2EF columns pos, tags, move_mask, forces"
            )
    if system.energy != system.energy:
        fail(frames, record, "lacks an energy", "expected `energy=` in the comment line")


def _fail_count(frames: Path, n_frame: str, n_id: int) -> None:
    fail(frames, "", f"has {n_frame} frames but its txt file {n_id} lines", "download both files again")
