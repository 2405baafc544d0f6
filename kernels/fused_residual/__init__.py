"""(x + act(act(x w1) w2)) / sqrt(2) over many rows, with scaled SiLU: bfloat16 products, float32 sums.

One pass over memory where XLA makes several: a block of rows stays on the chip between the two products, and so do
both weights (512 x 512 in bfloat16 are half a MiB each). The gradient keeps x alone and recomputes both
pre-activations, 8 products where 6 would do, so that no edge-sized array is saved.

NOT MEASURED on hardware: off by default. `python -m benchmarks.kernels` compares it with XLA where it is run.
It differentiates once; gradient forces need the model's own rule.
"""

from kernels.fused_residual.arguments import CASES, Case
from kernels.fused_residual.reference import residual_gradients, residual_reference
from kernels.fused_residual.tpu import fused_residual

__all__ = ["CASES", "Case", "fused_residual", "residual_gradients", "residual_reference"]
