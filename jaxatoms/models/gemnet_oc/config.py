"""Dimensions of GemNet-OC and the presets S, L and tiny."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemNetOCConfig:
    """GemNet-OC dimensions; the defaults are variant S (JMP's `base`, the paper's GemNet-OC-S)."""

    num_blocks: int = 4
    emb_size_atom: int = 256
    emb_size_edge: int = 512
    emb_size_trip_in: int = 64
    emb_size_trip_out: int = 64
    emb_size_quad_in: int = 32
    emb_size_quad_out: int = 32
    emb_size_aint_in: int = 64
    emb_size_aint_out: int = 64
    emb_size_rbf: int = 16
    emb_size_cbf: int = 16
    emb_size_sbf: int = 32
    num_spherical: int = 7
    num_radial: int = 128
    num_before_skip: int = 2
    num_after_skip: int = 2
    num_concat: int = 1
    num_atom: int = 3
    num_output_afteratom: int = 3
    num_atom_emb_layers: int = 2
    num_global_out_layers: int = 2
    num_elements: int = 120
    rbf_cutoff: float = 12.0  # A; the radial basis is scaled by this, whatever the cutoff of the graphs
    direct_forces: bool = True  # builds the edge ("F") branch that direct force heads read
    smooth_quadruplets: bool = False  # fade quadruplets out where three of their atoms are nearly in line
    remat: bool = False  # recompute each block in the backward pass: less memory, one more forward

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < (0 if field.name.startswith("num_") else 1):
                raise ValueError(f"{field.name} must not be {value}")
        if not 2 <= self.num_spherical <= 7:
            raise ValueError(f"num_spherical must be 2..7, got {self.num_spherical}")

    @property
    def edge_sum_dense(self) -> bool:
        """Whether sums over edges pass a dense layer from edge to atom width: not where both are equal."""
        return self.emb_size_edge != self.emb_size_atom


SMALL = GemNetOCConfig()
LARGE = GemNetOCConfig(
    num_blocks=6,
    emb_size_edge=1024,
    emb_size_trip_out=128,
    emb_size_quad_in=64,
    emb_size_rbf=32,
    emb_size_sbf=64,
    num_concat=4,
)
TINY = GemNetOCConfig(
    num_blocks=2,
    emb_size_atom=64,
    emb_size_edge=64,
    emb_size_trip_in=16,
    emb_size_trip_out=16,
    emb_size_quad_in=8,
    emb_size_quad_out=8,
    emb_size_aint_in=16,
    emb_size_aint_out=16,
    emb_size_rbf=8,
    emb_size_cbf=8,
    emb_size_sbf=8,
    num_spherical=5,
    num_before_skip=1,
    num_after_skip=1,
    num_atom=1,
    num_output_afteratom=1,
    num_atom_emb_layers=1,
    num_global_out_layers=1,
)
NANO = dataclasses.replace(TINY, num_blocks=1, emb_size_atom=32, num_spherical=4, num_atom_emb_layers=0)
PRESETS = {"gemnet_oc_s": SMALL, "gemnet_oc_l": LARGE, "gemnet_oc_tiny": TINY, "gemnet_oc_nano": NANO}
