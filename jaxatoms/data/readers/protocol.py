"""What a reader of a data set offers: a module or an object with these names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from jaxatoms.types import System


class Reader(Protocol):
    """Files of a data set -> `System`s in eV and A, one after another; it subtracts and drops nothing.

    Attributes:
      VERSION: counted up whenever what it yields changes: converted data of another version are converted again.

    A reader of large sets may also offer `parts(path) -> list[tuple]`, pieces that several processes convert, and
    `read_part(part) -> Iterator[System]`; together they yield what `read` does, in its order.
    """

    VERSION: int

    def read(self, path: Path | str) -> Iterator[System]:
        """Yields every structure; further keyword arguments come from `DatasetSpec.options`.

        Raises:
          InputError: naming file, record and remedy.
        """
        ...
