"""Output files that grow chunk by chunk, survive a kill at any moment, and get their names only when they are whole.

While a command writes, `out.extxyz` is `.out.extxyz.part`, and `.out.extxyz.journal` says how many structures are in it
and how long it was then. Whatever stands behind that length was being written when the process died, and is cut off.
"""

import json
import os
import sqlite3
import zipfile
from pathlib import Path
from typing import Any, Protocol

import ase.db
import ase.io
import numpy as np

from jaxatoms.io import write_json
from jaxatoms.types import InputError

ZIP_BLOCK = 1 << 16  # rows copied at a time into an .npz


class Draft(Protocol):
    """One unfinished output file."""

    def size(self) -> int:
        """Where it ends."""

    def rewind(self, size: int) -> None:
        """Cut it there; 0 makes a new one."""

    def append(self, chunk: Any) -> None:
        """Add a chunk, on disk when this returns."""

    def finish(self) -> None:
        """Give the whole file its name."""


def part_of(path: Path, ending: str = "part") -> Path:
    """The hidden neighbour of `path` that holds it while it is not whole."""
    return path.with_name(f".{path.name}.{ending}")


def stamp(path: Path) -> str:
    """An input file as a journal's settings name it, so that a changed one is noticed."""
    file = path.stat()
    return f"{path.absolute()} ({file.st_size} bytes, changed {file.st_mtime_ns})"


class BytesDraft:
    """A file of bytes."""

    def __init__(self, path: Path):
        self.path, self.part = path, part_of(path)

    def size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def rewind(self, size: int) -> None:
        with open(self.part, "ab") as file:
            file.truncate(size)

    def append(self, chunk: Any) -> None:
        with open(self.part, "ab") as file:
            file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        os.replace(self.part, self.path)


class FailuresDraft(BytesDraft):
    """Structures that were left out, with the reasons, as a JSON file; without any there is no file.

    Its part stays when it is finished: the main output is finished after it, and may be interrupted then.
    """

    def __init__(self, path: Path, record: dict[str, Any]):
        super().__init__(path)
        self.record = record

    def append(self, chunk: dict[int, str]) -> None:
        """`chunk`: place in the file -> reason."""
        rows = (json.dumps({"structure": place, "reason": reason}) for place, reason in chunk.items())
        super().append("".join(f"{row}\n" for row in rows).encode())

    def read(self) -> list[dict[str, Any]]:
        """[{"structure": place in the file, "reason": text}]"""
        return [json.loads(line) for line in self.part.read_text().splitlines()]

    def finish(self) -> None:
        failures = self.read()
        if failures:
            write_json(self.path, {**self.record, "failures": failures})
        else:
            self.path.unlink(missing_ok=True)  # of an earlier command with the same --out


class TableDraft(BytesDraft):
    """Rows of named columns, written to an .npz with one array per column; memory stays bounded."""

    def __init__(self, path: Path, dtype: np.dtype):
        super().__init__(path)
        self.dtype = dtype

    def append(self, chunk: np.ndarray) -> None:
        """`chunk` is a structured array of the table's dtype."""
        super().append(np.ascontiguousarray(chunk, self.dtype).tobytes())

    def finish(self) -> None:
        whole = part_of(self.path, "whole")
        rows = np.memmap(self.part, self.dtype, "r") if self.size() else np.zeros(0, self.dtype)
        with zipfile.ZipFile(whole, "w") as archive:
            for name in self.dtype.names or ():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    _write_column(file, rows, name)
        os.replace(whole, self.path)
        self.part.unlink()


def _write_column(file, rows: np.ndarray, name: str) -> None:
    column = rows[name]
    header = {"descr": np.lib.format.dtype_to_descr(column.dtype), "fortran_order": False, "shape": column.shape}
    np.lib.format.write_array_header_2_0(file, header)
    for start in range(0, len(column), ZIP_BLOCK):
        file.write(column[start : start + ZIP_BLOCK].tobytes())


class DatabaseDraft:
    """An ASE database (SQLite); a chunk is one transaction."""

    def __init__(self, path: Path):
        self.path, self.part = path, part_of(path)

    def size(self) -> int:
        return self._open().count() if self.part.exists() else 0

    def rewind(self, size: int) -> None:
        if size == 0:
            self.part.unlink(missing_ok=True)
            return
        database = self._open()
        database.delete([row.id for row in database.select(f"id>{size}")])
        with database.managed_connection() as connection:  # so that the next row has the next number
            connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'systems'", (size,))

    def append(self, chunk: list[tuple[ase.Atoms, dict]]) -> None:
        """Rows of (structure with results, what is kept as its `data`, key-value pairs under their own name)."""
        with self._open() as database:
            for atoms, data in chunk:
                rest = {name: value for name, value in data.items() if name != "key_value_pairs"}
                database.write(atoms, key_value_pairs=data.get("key_value_pairs", {}), data=rest)

    def finish(self) -> None:
        os.replace(self.part, self.path)

    def _open(self):
        # No lock file: one left by a killed process would block the next one for ever.
        return ase.db.connect(str(self.part), type="db", use_lock_file=False)


class Journal:
    """How far the drafts of one command have got.

    Args:
      path: the command's main output; the journal lies beside it.
      drafts: by name; all advance together.
      settings: JSON values that must be the same when the command is started again.

    Raises:
      InputError: the drafts belong to other settings, are damaged, or cannot be written.
    """

    def __init__(self, path: Path, drafts: dict[str, Draft], settings: dict):
        self.path, self.drafts, self.settings = part_of(path, "journal"), drafts, settings
        self.out = path
        record = self._read()
        self.done: int = record["done"]
        try:
            for name, draft in drafts.items():
                if draft.size() < record["sizes"][name]:
                    raise InputError(f"the draft of {path} is shorter than its journal says; remove {self.path}")
                draft.rewind(record["sizes"][name])
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_write(error) from error

    def _read(self) -> dict:
        fresh = {"done": 0, "sizes": dict.fromkeys(self.drafts, 0)}
        if not self.path.exists():
            return fresh
        try:
            record = json.loads(self.path.read_text())
            before, done, sizes = record["settings"], int(record["done"]), record["sizes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} is damaged ({error}); remove it to start again") from error
        changed = [name for name in self.settings if before.get(name) != self.settings[name]]
        if changed or sizes.keys() != self.drafts.keys():
            what = f"{changed[0]} {before.get(changed[0])}" if changed else "other outputs"
            raise InputError(
                f"{self.out} was begun with {what} ({done} structures done); use the same settings to continue, "
                f"or remove {self.path} to start again"
            )
        return {"done": done, "sizes": sizes}

    def commit(self, n: int, chunks: dict[str, Any]) -> None:
        """Append one chunk of `n` structures to every draft.

        Raises:
          InputError: the disk refuses.
        """
        try:
            for name, draft in self.drafts.items():
                draft.append(chunks[name])
            self.done += n
            sizes = {name: draft.size() for name, draft in self.drafts.items()}
            new = part_of(self.out, "journal.new")
            new.write_text(json.dumps({"settings": self.settings, "done": self.done, "sizes": sizes}))
            os.replace(new, self.path)
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_write(error) from error

    def finish(self) -> None:
        """Everything is there: the outputs get their names, the journal goes."""
        try:
            for draft in self.drafts.values():
                draft.finish()
            self.path.unlink(missing_ok=True)
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> InputError:
        remedy = "free disk space and run the same command again to go on, or choose another --out"
        return InputError(f"cannot write {self.out}: {getattr(error, 'strerror', None) or error}; {remedy}")
