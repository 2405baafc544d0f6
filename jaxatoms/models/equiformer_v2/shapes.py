"""Shapes of an EquiformerV2 checkpoint (monolithic names) and its recorded settings -> its configuration."""

import re
from collections.abc import Mapping
from typing import Any

from jaxatoms.models.equiformer_v2.config import NORMS, EquiformerV2Config
from jaxatoms.types import InputError

_RECORDED = ("max_radius", "avg_degree", "avg_num_nodes", "alpha_drop", "drop_path_rate")


def equiformer_config(
    shapes: Mapping[str, tuple[int, ...]], recorded: Mapping[str, Any], source: str = "checkpoint"
) -> EquiformerV2Config:
    """The dimensions that give these shapes; what shapes cannot tell comes from `recorded`, else the defaults.

    Args:
      shapes: by name, [out, in] as stored; buffers may be among them.
      recorded: the model's settings saved beside the weights, may be empty.

    Raises:
      InputError: an array that decides a dimension is missing.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise InputError(f"{source}: no array {name!r}; is this an EquiformerV2?")
        return shapes[name]

    ga = "blocks.0.ga."
    degrees = shape(f"{ga}proj.weight")[0]
    heads, alpha = shape(f"{ga}alpha_dot")[-2:]
    value_rows, hidden_columns = shape(f"{ga}so2_conv_2.fc_m0.weight")
    num_elements, channels = shape("sphere_embedding.weight")
    edge_channels = shape(f"{ga}source_embedding.weight")[1]
    layers = {int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in shapes) if m}
    orders = {int(m[1]) for m in (re.match(r"blocks\.0\.ga\.so2_conv_1\.so2_m_conv\.(\d+)\.", n) for n in shapes) if m}
    hidden = hidden_columns // degrees
    ffn_hidden = shape("blocks.0.ffn.so3_linear_1.weight")[1]
    plain = {key: recorded[key] for key in _RECORDED if isinstance(recorded.get(key), int | float)}
    return EquiformerV2Config(
        num_layers=len(layers),
        lmax=degrees - 1,
        mmax=len(orders),
        sphere_channels=channels,
        attn_hidden_channels=hidden,
        num_heads=heads,
        attn_alpha_channels=alpha,
        attn_value_channels=value_rows // (degrees * heads),
        ffn_hidden_channels=ffn_hidden,
        norm_type=_norm(shapes, recorded),
        grid_resolution=_grid(shapes, recorded),
        edge_channels=edge_channels,
        num_gaussians=shape(f"{ga}so2_conv_1.rad_func.net.0.weight")[1] - 2 * edge_channels,
        max_num_elements=num_elements,
        energy_hidden=_other(shapes.get("energy_block.so3_linear_1.weight"), 1, 1, ffn_hidden),
        force_hidden=_other(shapes.get("force_block.so2_conv_2.fc_m0.weight"), 1, degrees, hidden),
        **plain,
    )


def _other(shape: tuple[int, ...] | None, axis: int, divisor: int, usual: int) -> int | None:
    """The width of a head where it differs from the usual one."""
    width = usual if shape is None else shape[axis] // divisor
    return None if width == usual else width


def _norm(shapes, recorded) -> str:
    if "norm.norm_l0.weight" in shapes:
        return "layer_norm_sh"
    return recorded["norm_type"] if recorded.get("norm_type") in NORMS else "rms_norm_sh"


def _grid(shapes, recorded) -> int:
    """From the stored grids [n, n, K], else from the settings."""
    for name, shape in shapes.items():
        if name.endswith("to_grid_mat") and len(shape) == 3 and shape[0] == shape[1]:
            return shape[0]
    return recorded["grid_resolution"] if isinstance(recorded.get("grid_resolution"), int) else 18
