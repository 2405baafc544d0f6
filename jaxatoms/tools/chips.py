"""Published peaks of the chips that programs are compiled for, TPUs and NVIDIA GPUs, in one table."""

import dataclasses
from pathlib import Path

DESCRIPTIONS = Path(__file__).with_name("gpu_targets")
_TPU_PASSES = {"bfloat16": 1, "tf32": 3, "float32": 6}  # of the bfloat16 unit per product: jax.lax.Precision on TPU


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip; those of products are dense, without structured sparsity."""

    platform: str  # "tpu" or "gpu"
    flops: dict[str, float]  # per second, by the precision of a product's factors
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes per second
    link: float  # all interconnect links of the chip, one direction, bytes per second
    source: str  # address
    cores: int = 1  # devices per chip, as JAX counts them


def _tpu(bfloat16: float, memory: float, bandwidth: float, link: float, generation: str, cores: int = 1) -> Chip:
    flops = {precision: bfloat16 / passes for precision, passes in _TPU_PASSES.items()}
    return Chip("tpu", flops, memory, bandwidth, link, f"https://cloud.google.com/tpu/docs/{generation}", cores)


def _gpu(products: tuple[float, ...], memory: float, bandwidth: float, link: float, page: str) -> Chip:
    flops = dict(zip(("bfloat16", "tf32", "float32", "float64"), products, strict=True))
    flops["float16"] = flops["bfloat16"]
    return Chip("gpu", flops, memory, bandwidth, link, f"https://www.nvidia.com/en-us/data-center/{page}/")


CHIPS = {
    "v4": _tpu(275e12, 32e9, 1.228e12, 300e9, "v4", cores=2),
    "v5e": _tpu(197e12, 16e9, 0.819e12, 200e9, "v5e"),
    "v5p": _tpu(459e12, 95e9, 2.765e12, 600e9, "v5p"),
    "v6e": _tpu(918e12, 32e9, 1.640e12, 448e9, "v6e"),
    # SXM modules; NVIDIA prints rates with sparsity, of which half is dense, and links as the sum of both directions.
    "a100": _gpu((312e12, 156e12, 19.5e12, 19.5e12), 80e9, 2.039e12, 300e9, "a100"),
    "h100": _gpu((989e12, 494e12, 67e12, 67e12), 80e9, 3.35e12, 450e9, "h100"),
    "h200": _gpu((989e12, 494e12, 67e12, 67e12), 141e9, 4.8e12, 450e9, "h200"),
    "b200": _gpu((2250e12, 1100e12, 75e12, 37e12), 180e9, 7.7e12, 900e9, "hgx"),
}


def names(platform: str) -> list[str]:
    """The chips of a platform, "tpu" or "gpu"."""
    return [name for name, chip in CHIPS.items() if chip.platform == platform]


def description(gpu: str) -> str:
    """What XLA's compiler has to know of a GPU of the table: a `GpuTargetConfigProto` as text (`gpu_targets/`)."""
    return (DESCRIPTIONS / f"{gpu}.txtpb").read_text()
