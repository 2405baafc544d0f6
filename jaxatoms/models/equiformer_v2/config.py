"""Dimensions of EquiformerV2 and the presets 31M, 83M and 153M."""

import dataclasses

EDGE_DIRECTIONS = ("target_to_source", "source_to_target")
NORMS = ("layer_norm_sh", "rms_norm_sh", "layer_norm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EquiformerV2Config:
    """EquiformerV2 dimensions; the defaults are the 31M model trained on OC20 All+MD.

    Source: released configuration `equiformer_v2_N@8_L@4_M@2_31M.yml`; the 600 Gaussians are fixed in its code.
    """

    num_layers: int = 8
    lmax: int = 4
    mmax: int = 2
    sphere_channels: int = 128
    attn_hidden_channels: int = 64
    num_heads: int = 8
    attn_alpha_channels: int = 64  # per head
    attn_value_channels: int = 16  # per head
    ffn_hidden_channels: int = 128
    norm_type: str = "layer_norm_sh"
    grid_resolution: int = 18  # points per direction of both spheres
    edge_channels: int = 128
    num_gaussians: int = 600
    basis_width: float = 2.0  # in spacings of the Gaussians
    max_radius: float = 12.0  # A; range of the Gaussians, whatever the cutoff of the graph
    max_num_elements: int = 90  # tables are indexed by Z itself: row 0 is unused, Z < max_num_elements
    avg_degree: float = 23.395238876342773
    avg_num_nodes: float = 77.81317
    alpha_drop: float = 0.1  # training only
    drop_path_rate: float = 0.1  # training only
    energy_hidden: int | None = None  # of the energy head; None: ffn_hidden_channels
    force_hidden: int | None = None  # of the force head; None: attn_hidden_channels
    edge_direction: str = "target_to_source"  # as the released weights were trained; see the docs
    tile_edges: int = 512  # edges whose sphere samples exist at one time
    tile_nodes: int = 128
    remat: bool = False  # recompute each block in the backward pass

    def __post_init__(self):
        if not 0 <= self.mmax <= self.lmax:
            raise ValueError(f"need 0 <= mmax <= lmax, got mmax={self.mmax}, lmax={self.lmax}")
        if self.grid_resolution % 2 or self.grid_resolution < 2 * (self.lmax + 1):
            raise ValueError(
                f"grid_resolution must be even and at least {2 * (self.lmax + 1)}, got {self.grid_resolution}"
            )
        if self.edge_direction not in EDGE_DIRECTIONS:
            raise ValueError(f"edge_direction must be {' or '.join(EDGE_DIRECTIONS)}, got {self.edge_direction!r}")
        if self.norm_type not in NORMS:
            raise ValueError(f"norm_type must be one of {', '.join(NORMS)}, got {self.norm_type!r}")

    @property
    def num_coefficients(self) -> int:
        """(lmax + 1)**2 coefficients of a node's channel."""
        return (self.lmax + 1) ** 2

    @property
    def feature_width(self) -> int:
        """Width of the flattened node embedding, 3200 for 31M."""
        return self.num_coefficients * self.sphere_channels

    @property
    def source_to_target(self) -> bool:
        """Whether edge vectors point from the sender to the receiver."""
        return self.edge_direction == "source_to_target"


M31 = EquiformerV2Config()
M83 = EquiformerV2Config(num_layers=12, lmax=6, drop_path_rate=0.05, max_num_elements=100)
M153 = EquiformerV2Config(num_layers=20, lmax=6, mmax=3)
TINY = EquiformerV2Config(
    num_layers=2,
    sphere_channels=16,
    attn_hidden_channels=8,
    num_heads=4,
    attn_alpha_channels=8,
    attn_value_channels=4,
    ffn_hidden_channels=16,
    edge_channels=16,
    lmax=2,
    num_gaussians=64,
)
PRESETS = {"equiformer_v2_31m": M31, "equiformer_v2_83m": M83, "equiformer_v2_153m": M153, "equiformer_v2_tiny": TINY}
