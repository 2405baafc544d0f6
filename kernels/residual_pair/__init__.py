"""(x + act(act(x w1) w2)) / sqrt(2) over many rows, with scaled SiLU: bfloat16 products, float32 sums.

`reference` is the function and its gradient in plain JAX, `tpu` and `gpu` are kernels for TPUs and for NVIDIA Hopper
GPUs, and `arguments` names the calls that occur. In a kernel a block of rows stays on the chip between the two
products, where XLA writes and reads what lies between them.

NOT MEASURED on hardware: off by default. `python -m benchmarks.kernels` compares them with XLA where it is run. They
differentiate once; gradient forces need the model's own rule.
"""
