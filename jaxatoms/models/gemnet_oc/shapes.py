"""Shapes of a GemNet-OC checkpoint (JMP's names) -> its configuration."""

import re
from collections.abc import Mapping

from jaxatoms.models.gemnet_oc.config import GemNetOCConfig
from jaxatoms.types import InputError

Shapes = Mapping[str, tuple[int, ...]]


def gemnet_config(shapes: Shapes, source: str = "checkpoint") -> GemNetOCConfig:
    """The dimensions that give these shapes ([out, in], as stored).

    Raises:
      InputError: an array that decides a dimension is missing, or one is there that such a network does not have.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise InputError(f"{source}: no array {name!r}; is this a GemNet-OC with quadruplets?")
        return shapes[name]

    def count(pattern: str) -> int:
        found = [int(m[1]) for m in (re.match(pattern, name) for name in shapes) if m]
        return max(found, default=-1) + 1

    bases, block = "backbone.bases.", "backbone.int_blocks.0."
    num_elements, emb_atom = shape("embedding.atom_embedding.weight")
    num_radial, num_spherical, emb_cbf = shape(f"{bases}mlp_cbf_tint.weight")
    down, out = "down_projection.linear.weight", "bilinear.linear.weight"
    escaped = re.escape(block)
    emb_edge = shape(f"{block}dense_ca.linear.weight")[0]
    has_first = _has_first_layer(shapes, f"{block}atom_update.layers.0.linear.weight", emb_edge == emb_atom, source)
    return GemNetOCConfig(
        num_blocks=count(r"backbone\.int_blocks\.(\d+)\."),
        emb_size_atom=emb_atom,
        emb_size_edge=emb_edge,
        emb_size_trip_in=shape(f"{block}trip_interaction.{down}")[0],
        emb_size_trip_out=shape(f"{block}trip_interaction.mlp_cbf.{out}")[0],
        emb_size_quad_in=shape(f"{block}quad_interaction.{down}")[0],
        emb_size_quad_out=shape(f"{block}quad_interaction.mlp_sbf.{out}")[0],
        emb_size_aint_in=shape(f"{block}atom_interaction.{down}")[0],
        emb_size_aint_out=shape(f"{block}atom_interaction.{out}")[0],
        emb_size_rbf=shape(f"{bases}mlp_rbf_h.linear.weight")[0],
        emb_size_cbf=emb_cbf,
        emb_size_sbf=shape(f"{bases}mlp_sbf_qint.weight")[2],
        num_spherical=num_spherical,
        num_radial=num_radial,
        num_before_skip=count(escaped + r"layers_before_skip\.(\d+)\."),
        num_after_skip=count(escaped + r"layers_after_skip\.(\d+)\."),
        num_concat=count(escaped + r"residual_m\.(\d+)\."),
        num_atom=count(escaped + r"atom_update\.layers\.(\d+)\.") - has_first,
        num_output_afteratom=count(r"backbone\.out_blocks\.0\.seq_energy2\.(\d+)\."),
        num_atom_emb_layers=count(escaped + r"atom_emb_layers\.(\d+)\."),
        num_global_out_layers=count(r"backbone\.out_mlp_E\.out_mlp\.(\d+)\.") - 1,
        num_elements=num_elements,
        direct_forces="backbone.out_mlp_F.out_mlp.0.linear.weight" in shapes,
    )


def _has_first_layer(shapes: Shapes, name: str, equal_widths: bool, source: str) -> bool:
    """Whether sums over edges pass a dense layer, which is so unless atoms and edges have one width.

    Raises:
      InputError: the file has the layer although the widths are equal, or lacks it although they are not.
    """
    if equal_widths == (name in shapes):
        problem = "has the array" if equal_widths else "lacks the array"
        raise InputError(
            f"{source}: {problem} {name!r}, which GemNet-OC has exactly where atoms and edges have different widths; "
            "if an earlier version of jaxatoms exported this file, pretrain again"
        )
    return not equal_widths
