"""OC20 S2EF download (`K.extxyz[.xz]` with `K.txt[.xz]`) -> Systems with *total* DFT energies, eV and A.

The reference energy of the txt lines is not subtracted: the published statistics belong to total energies.
"""

from collections.abc import Iterator
from pathlib import Path

import ase.io

from jaxatoms.data.readers.checks import fail
from jaxatoms.data.readers.compressed import plain_file
from jaxatoms.data.readers.structures import system_from_atoms
from jaxatoms.types import System

VERSION = 1
_SUFFIXES = (".extxyz", ".extxyz.xz")


def read(path: Path | str) -> Iterator[System]:
    """Yields the frames of one pair of files, or of every pair below a folder in the order of their numbers.

    Forces are complete, on fixed atoms too; tags and fixed atoms come from the file.
    The group is the system id.

    Raises:
      InputError: nothing to read, a txt file that is missing or does not fit, missing tags or labels,
        bad values.

    Source: specification datasets 4.
    """
    for frames in frame_files(path):
        yield from _read_pair(frames)


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
    files = [file for file in path.rglob("*.extxyz*") if file.name.endswith(_SUFFIXES)]
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
            record = f"frame {i} ({ids[i]})"
            system = system_from_atoms(frames, record, atoms, group=ids[i])
            _check_complete(frames, record, system)
            yield system
    if i + 1 != len(ids):
        _fail_count(frames, str(i + 1), len(ids))


def _iter_atoms(frames: Path, plain: Path) -> Iterator[ase.Atoms]:
    try:
        yield from ase.io.iread(plain, index=":", format="extxyz")
    except (ValueError, KeyError, IndexError, OSError) as error:
        fail(frames, "", f"not readable as extxyz ({error})", "download the file again")


def _system_ids(frames: Path) -> list[str]:  # type: ignore[return]  # `fail` always raises
    stem = frames.name.split(".extxyz")[0]
    for suffix in (".txt", ".txt.xz"):
        ids = frames.with_name(stem + suffix)
        if ids.is_file():
            with plain_file(ids) as plain:
                # Lines are `system,frame[,reference energy]`.
                return [line.split(",")[0].strip() for line in plain.read_text().splitlines() if line.strip()]
    fail(frames, "", f"its system ids {stem}.txt[.xz] are missing", "put the txt file beside the extxyz file")


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
