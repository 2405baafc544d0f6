"""What a precision policy costs on golden files: `PYTHONPATH=.:tests python tests/parity/policy_errors.py bfloat16`.

Largest error relative to the largest value of the PyTorch float64 run, a Markdown row for each file; of the gradients
of all parameters the median and the worst. The tests hold float32 and float64 to their bounds, this only prints.
"""

import functools
import sys
from pathlib import Path

import numpy as np
from fixtures import golden

from jaxatoms.models.common.precision import Precision

sys.path.insert(0, str(Path(__file__).parent))
import test_golden

FILES = ("tiny", "tiny_gradient", "small_S")
COLUMNS = {
    "x_E": ("feature/node",),
    "energy": ("output/energy",),
    "forces": ("output/forces",),
    "loss": ("train/loss",),
}


def row(name: str) -> str:
    """One file under the policy that `golden.model` makes."""
    case = test_golden.Case(name, np.float32, gradients=name != "small_S")
    case.values = {key: np.asarray(value, np.float32) for key, value in case.values.items()}
    blocks = [max(case.errors((f"block{i}/m",)).values(), default=np.nan) for i in range(2)]
    cells = [", ".join(f"{error:.1e}" for error in blocks)]
    cells += [f"{max(case.errors(prefixes).values(), default=np.nan):.1e}" for prefixes in COLUMNS.values()]
    keys = {name: f"train/grad/{name}" for name in case.grads}
    errors = [golden.error(case.grads[name], case.gold, key) for name, key in keys.items() if key in case.gold]
    cells.append(f"{np.median(errors):.1e}, {max(errors):.1e}" if errors else "")
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    golden.model = functools.partial(golden.model, precision=Precision(matmul=sys.argv[1]))
    print(f"| {sys.argv[1]} | edge states after each block | {' | '.join(COLUMNS)} | gradients |")
    for file in FILES:
        print(row(file), flush=True)
