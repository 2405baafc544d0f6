"""The least time that a program takes on a chip at its published peaks: a bound, and not a measurement."""

from collections.abc import Iterable, Mapping

from jaxatoms.tools.chips import Chip
from jaxatoms.tools.hlo import Operation

LAUNCH_FLOOR = 2e-6  # seconds; a kernel on an NVIDIA GPU takes 1 to 2 us however little it does


def product_seconds(products: Mapping[str, float], chip: Chip) -> float:
    """Seconds that arithmetic of products takes.

    Args:
      products: operations by the precision of the factors.

    Raises:
      KeyError: a precision without a rate in the table of chips.
    """
    return chip.cores * sum(count / chip.flops[precision] for precision, count in products.items())


def memory_seconds(n_bytes: float, chip: Chip) -> float:
    """Seconds that one device takes to move bytes of main memory."""
    return chip.cores * n_bytes / chip.bandwidth


def ring_seconds(n_bytes: float, n_device: int, chip: Chip) -> float:
    """Seconds that a sum of `n_bytes` over devices takes in a ring, where each sends them almost twice."""
    return chip.cores * 2 * (n_device - 1) / n_device * n_bytes / chip.link


def launch_seconds(operation: Operation, chip: Chip) -> float:
    """Seconds of one launch, whose arithmetic overlaps with its own traffic and with no other launch."""
    return max(memory_seconds(operation.bytes, chip), product_seconds(operation.products, chip))


def launches_seconds(launched: Iterable[Operation], chip: Chip, floor: float = 0.0) -> float:
    """Seconds of launches one after another, each of at least `floor` seconds."""
    return sum(max(launch_seconds(operation, chip), floor) for operation in launched)
