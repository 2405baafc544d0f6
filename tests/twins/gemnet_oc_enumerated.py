"""GemNet-OC in NumPy float64 with every triplet and quadruplet listed: a test oracle, not a fast model.

It shares no code with the package. Weights go by their checkpoint names (linear weights are (out, in)) and
every dimension is read off their shapes. An edge s -> t carries the image offset o of its *source*:
r = R_t - (R_s + o C), v = r / |r|, so v points from source to target.
"""

import numpy as np

ENVELOPE_RADIUS = 12.0  # A, whatever the graph's cutoff
MIN_SINE = 1e-9  # lower bound of |p x q| in the dihedral; makes cos theta = 0 for collinear chains
NAMES = ("main", "a2a", "a2ee2a", "qint")


# ---------------------------------------------------------------------------------------------- lists


def join(left, right):
    """All pairs (i, j) with left[i] == right[j], sorted by (j, i)."""
    order = np.argsort(left, kind="stable")
    first = np.searchsorted(left[order], right, side="left")
    count = np.searchsorted(left[order], right, side="right") - first
    j = np.repeat(np.arange(len(right)), count)
    rank = np.arange(len(j)) - np.repeat(np.cumsum(count) - count, count)
    return order[first[j] + rank], j


def _same_image(source_1, offset_1, source_2, offset_2):
    return (source_1 == source_2) & np.all(offset_1 == offset_2, axis=-1)


def triplets_e2e(main):
    """(in = b->a, out = c->a), both in main and different edges; sorted by (out, in)."""
    (_, target), _ = main
    i, j = join(target, target)
    keep = i != j
    return i[keep], j[keep]


def triplets_mixed(graph_in, graph_out):
    """(in = b->a, out = c->a) from two graphs, b and c not the same atom image; sorted by (out, in)."""
    (s_in, t_in), o_in = graph_in
    (s_out, t_out), o_out = graph_out
    i, j = join(t_in, t_out)
    keep = ~_same_image(s_in[i], o_in[i], s_out[j], o_out[j])
    return i[keep], j[keep]


def quadruplets(main, qint):
    """The chains d -> b -> a <- c of four atom images, as a dictionary of edge numbers.

    `abd`: (edge_db, edge_ba) in-triplets. `cab`: (edge_ba, edge_ca) out-triplets.
    `ca, ba, db`: quadruplets sorted by (ca, ba, db). `abd_of`: the in-triplet of each quadruplet.
    """
    (s_m, t_m), o_m = main
    (s_q, t_q), o_q = qint
    # d -> b -> a: the edge d->b ends where the edge b->a starts; a sits at offset 0, so d != a
    db, ba = join(t_m, s_q)
    o_d = o_m[db] + o_q[ba]  # image of d relative to a
    keep = ~_same_image(s_m[db], o_d, t_q[ba], np.zeros_like(o_d))
    db, ba, o_d = db[keep], ba[keep], o_d[keep]
    # c -> a <- b: both edges end at a; c != b
    out_ba, out_ca = join(t_q, t_m)
    keep = ~_same_image(s_q[out_ba], o_q[out_ba], s_m[out_ca], o_m[out_ca])
    out_ba, out_ca = out_ba[keep], out_ca[keep]
    # every in-triplet with every out-triplet on the same b -> a; c != d
    k_in, k_out = join(ba, out_ba)
    ca = out_ca[k_out]
    keep = ~_same_image(s_m[ca], o_m[ca], s_m[db[k_in]], o_d[k_in])
    k_in, ca = k_in[keep], ca[keep]
    order = np.lexsort((db[k_in], ba[k_in], ca))
    k_in, ca = k_in[order], ca[order]
    return {
        "abd": (db, ba),
        "cab": (out_ba, out_ca),
        "ca": ca,
        "ba": ba[k_in],
        "db": db[k_in],
        "abd_of": k_in,
    }


# --------------------------------------------------------------------------------- geometry and bases


def edge_geometry(graph, positions, cell, batch):
    """Distance [E] and unit vector [E, 3] from source to target."""
    (source, target), offset = graph
    shift = np.einsum("ek,ekx->ex", offset.astype(np.float64), cell[batch[target]])
    r = positions[target] - positions[source] - shift
    distance = np.sqrt(np.sum(r * r, axis=-1))
    return distance, r / distance[:, None]


def radial_basis(distance, n_radial, centres=None):
    """Polynomial envelope (exponent 5) times Gaussians of distance / 12 A: [E, n_radial]."""
    x = distance / ENVELOPE_RADIUS
    if centres is None:
        centres = np.linspace(0.0, 1.0, n_radial)
    envelope = np.where(x < 1.0, 1.0 - 21.0 * x**5 + 35.0 * x**6 - 15.0 * x**7, 0.0)
    width = 0.5 * (n_radial - 1) ** 2
    return envelope[:, None] * np.exp(-width * (x[:, None] - centres) ** 2)


def circular_basis(z, n_spherical):
    """sqrt((2l+1)/4pi) P_l(z), l = 0 .. n_spherical-1: [n, n_spherical]."""
    z = np.clip(z, -1.0, 1.0)
    legendre = [np.ones_like(z), z]
    for degree in range(2, n_spherical):
        high, low = legendre[-1], legendre[-2]
        legendre.append(((2 * degree - 1) * z * high - (degree - 1) * low) / degree)
    norm = np.sqrt((2 * np.arange(n_spherical) + 1) / (4.0 * np.pi))
    return np.stack(legendre[:n_spherical], axis=-1) * norm


def dihedral(v_ca, v_ba, v_db):
    """X = p . q and Y = max(|p x q|, 1e-9), the legs of the angle between the planes c-a-b and a-b-d."""
    p = np.cross(v_ca, v_ba)
    q = np.cross(v_db, v_ba)
    x = np.sum(p * q, axis=-1)
    y = np.sqrt(np.sum(np.cross(p, q) ** 2, axis=-1))
    return x, np.maximum(y, MIN_SINE)


def smooth_factor(v_ca, v_ba, v_db):
    """Of each quadruplet: a C2 step of sin^2(angle) / 0.25^2 for either angle with the middle edge (not published)."""
    factor = np.ones(len(v_ba))
    for v in (v_ca, v_db):
        u = np.minimum(np.sum(np.cross(v, v_ba) ** 2, axis=-1) / 0.0625, 1.0)
        factor *= 6 * u**5 - 15 * u**4 + 10 * u**3
    return factor


def _dot(a, b):
    return np.clip(np.sum(a * b, axis=-1), -1.0, 1.0)


# ------------------------------------------------------------------------------------------ arithmetic


def silu(x):
    """Scaled SiLU, x sigmoid(x) / 0.6, with the sigmoid in a form that cannot overflow."""
    return x * 0.5 * (1.0 + np.tanh(0.5 * x)) / 0.6


def segment_sum(values, segment, n_segment):
    """Row k of the result is the sum of the rows of `values` with segment == k."""
    total = np.zeros((n_segment, *values.shape[1:]))
    np.add.at(total, segment, values)
    return total


def segment_outer(left, right, segment, n_segment):
    """sum over rows r with segment[r] == k of left[r] (x) right[r]: [n_segment, n_left, n_right]."""
    order = np.argsort(segment, kind="stable")
    ends = np.searchsorted(segment[order], np.arange(n_segment + 1))
    total = np.zeros((n_segment, left.shape[1], right.shape[1]))
    for k in range(n_segment):
        rows = order[ends[k] : ends[k + 1]]
        if len(rows):
            total[k] = left[rows].T @ right[rows]
    return total


class _Weights:
    """Weights below a name prefix, in float64."""

    def __init__(self, params, prefix=""):
        self.params, self.prefix = params, prefix

    def at(self, name):
        return _Weights(self.params, f"{self.prefix}{name}.")

    def has(self, name):
        return self.prefix + name in self.params

    def get(self, name):
        return np.asarray(self.params[self.prefix + name], dtype=np.float64)

    def count(self, name):
        """Number of entries 0, 1, ... of a module list."""
        start = f"{self.prefix}{name}."
        return 1 + max((int(k[len(start) :].split(".")[0]) for k in self.params if k.startswith(start)), default=-1)

    def linear(self, name, x):
        return x @ self.get(f"{name}.linear.weight").T

    def dense(self, name, x):
        return silu(self.linear(name, x))

    def residual(self, name, x):
        y = self.dense(f"{name}.dense_mlp.1", self.dense(f"{name}.dense_mlp.0", x))
        return (x + y) / np.sqrt(2.0)

    def residuals(self, name, x, start=0):
        for r in range(start, self.count(name)):
            x = self.residual(f"{name}.{r}", x)
        return x

    def scale(self, name, x):
        gamma = float(self.get(f"{name}.scale_factor"))
        return x if gamma == 0.0 else gamma * x

    def basis(self, name, rad):
        """3-D weights: memory of shape (R, S, I) re-read as (R, I, S). Result [E, I, S]."""
        w = self.get(f"{name}.weight")
        n_radial, n_spherical, n_basis = w.shape
        flat = w.reshape(n_radial, n_basis * n_spherical)
        return (rad @ flat).reshape(len(rad), n_basis, n_spherical)

    def head(self, x):
        """Linear layers 0, 2, 4, ... with the activation between them; bias where there is one."""
        last = self.count_plain() - 1
        for layer in range(0, last + 1, 2):
            x = x @ self.get(f"{layer}.weight").T
            if self.has(f"{layer}.bias"):
                x = x + self.get(f"{layer}.bias")
            if layer != last:
                x = silu(x)
        return x

    def count_plain(self):
        n = len(self.prefix)
        return 1 + max(int(k[n:].split(".")[0]) for k in self.params if k.startswith(self.prefix))


# --------------------------------------------------------------------------------------- interactions


def _up(w, y, swap):
    return (w.dense("up_projection_ca", y) + w.dense("up_projection_ac", y[swap])) / np.sqrt(2.0)


def _triplet_sum(w, x, pairs, circular, projection):
    """Steps 5 and 6 of the triplet interaction on the output edges: [n_out, I, n_in]."""
    edge_in, edge_out = pairs
    s = segment_outer(circular, x[edge_in], edge_out, len(projection))
    return projection @ s


def _bilinear(w, name, scale, z):
    return w.scale(scale, w.linear(f"{name}.bilinear", z.reshape(len(z), -1)))


def _gated(w, x, gate):
    return w.scale("scale_rbf", x * w.linear("mlp_rbf", gate))


def _edge_triplets(w, x, gate, pairs, circular, projection, swap):
    """e2e and a2e; `x` is already on the edges of the gate."""
    x = w.dense("down_projection", _gated(w, x, gate))
    z = _triplet_sum(w, x, pairs, circular, projection)
    return _up(w, _bilinear(w, "mlp_cbf", "scale_cbf_sum", z), swap)


def _atom_triplets(w, x, gate, pairs, circular, projection, target, n_atom):
    """e2a: the sums of all output edges of an atom are added before the bilinear layer."""
    x = w.dense("down_projection", _gated(w, x, gate))
    z = segment_sum(_triplet_sum(w, x, pairs, circular, projection), target, n_atom)
    return w.dense("up_projection_ca", _bilinear(w, "mlp_cbf", "scale_cbf_sum", z))


def _quadruplet(w, m, b):
    x = _gated(w, w.dense("dense_db", m), b["g_quad"])
    x = w.dense("down_projection", x)
    edge_db, _ = b["quads"]["abd"]
    x = w.scale("scale_cbf", x[edge_db] * w.linear("mlp_cbf", b["cir"]))  # per in-triplet
    s = segment_outer(b["y_sbf"], x[b["quads"]["abd_of"]], b["quads"]["ca"], len(m))
    return _up(w, _bilinear(w, "mlp_sbf", "scale_sbf_sum", b["w_sbf"] @ s), b["swap"])


def _pair(w, h, b):
    source, target = b["a2a"]
    x = w.dense("down_projection", h)
    z = segment_outer(b["q_aa"], x[source], target, len(h))
    y = w.scale("scale_rbf_sum", w.linear("bilinear", z.reshape(len(z), -1)))
    return w.dense("up_projection", y)


def _gather_edges(w, m, gate, target, n_atom):
    return w.scale("scale_sum", segment_sum(m * w.linear("dense_rbf", gate), target, n_atom))


def _atom_layers(w, x):
    """The dense layer from edge to atom width is not there where both are equal."""
    if not w.has("layers.0.linear.weight"):
        return w.residuals("layers", x)
    return w.residuals("layers", w.dense("layers.0", x), start=1)


def _block(w, h, m, b, out, name):
    source, target = b["main"]
    n_atom = len(h)
    trip, a2e, e2a = (w.at(k + "_interaction") for k in ("trip", "atom_edge", "edge_atom"))
    x_trip = _edge_triplets(
        trip, trip.dense("dense_ba", m), b["g_trip"], b["e2e"], b["y_e2e"], b["w_trip"], b["swap"]
    )
    x_quad = _quadruplet(w.at("quad_interaction"), m, b)
    x_a2e = _edge_triplets(
        a2e, a2e.dense("dense_ba", h)[b["a2ee2a"][0]], b["g_ae"], b["a2e"], b["y_a2e"], b["w_ae"], b["swap"]
    )
    x_e2a = _atom_triplets(
        e2a, e2a.dense("dense_ba", m), b["g_ea"], b["e2a"], b["y_e2a"], b["w_ea"], b["a2ee2a"][1], n_atom
    )
    x_a2a = _pair(w.at("atom_interaction"), h, b)
    x = (w.dense("dense_ca", m) + x_trip + x_quad + x_a2e) / 2.0
    h = (h + x_e2a + x_a2a) / np.sqrt(3.0)
    x = w.residuals("layers_before_skip", x)
    m = w.residuals("layers_after_skip", (m + x) / np.sqrt(2.0))
    h = w.residuals("atom_emb_layers", h)
    update = w.at("atom_update")
    h_update = _atom_layers(update, _gather_edges(update, m, b["g_h"], target, n_atom))
    h = (h + h_update) / np.sqrt(2.0)
    y = w.dense("concat_layer.dense", np.concatenate([h[source], h[target], m], axis=-1))
    m = (m + w.residuals("residual_m", y)) / np.sqrt(2.0)
    parts = {
        "trip_interaction": x_trip,
        "quad_interaction": x_quad,
        "atom_edge_interaction": x_a2e,
        "edge_atom_interaction": x_e2a,
        "atom_interaction": x_a2a,
        "atom_update": h_update,
        "h": h,
        "m": m,
    }
    out.update({f"{name}/{k}": v for k, v in parts.items()})
    return h, m


def _output(w, h, m, b):
    x_e = _atom_layers(w, _gather_edges(w, m, b["g_out"], b["main"][1], len(h)))
    x_e = w.residuals("seq_energy2", (x_e + h) / np.sqrt(2.0))
    if not w.has("dense_rbf_F.linear.weight"):
        return x_e, None
    x_f = w.residuals("seq_forces", m) * w.linear("dense_rbf_F", b["g_out"])
    return x_e, w.scale("scale_rbf_F", x_f)


def _final(w, parts):
    return w.residuals("out_mlp", w.dense("out_mlp.0", np.concatenate(parts, axis=-1)), start=1)


# --------------------------------------------------------------------------------------------- forward


def _bases(w, graphs, positions, cell, batch, centres, out, smooth):
    """What all blocks use (docs/reference/gemnet_oc.md, Bases); fills the golden keys of the geometry in `out`."""
    geometry = {name: edge_geometry(graphs[name], positions, cell, batch) for name in NAMES}
    n_radial = w.get("mlp_rbf_h.linear.weight").shape[1]
    n_spherical = w.get("mlp_cbf_tint.weight").shape[1]
    rad = {name: radial_basis(geometry[name][0], n_radial, centres) for name in NAMES}
    v = {name: geometry[name][1] for name in NAMES}
    b = {name: graphs[name][0] for name in NAMES}
    b["swap"] = graphs["id_swap"]
    b["rad_main"] = rad["main"]

    b["g_trip"] = w.linear("mlp_rbf_tint", rad["main"])
    b["g_quad"] = w.linear("mlp_rbf_qint", rad["main"])
    b["g_ea"] = w.linear("mlp_rbf_eaint", rad["main"])
    b["g_ae"] = w.linear("mlp_rbf_aeint", rad["a2ee2a"])
    b["g_h"] = w.linear("mlp_rbf_h", rad["main"])
    b["g_out"] = w.linear("mlp_rbf_out", rad["main"])
    b["q_aa"] = rad["a2a"] @ w.get("mlp_rbf_aint.weight").T
    b["w_trip"] = w.basis("mlp_cbf_tint", rad["main"])
    b["w_ae"] = w.basis("mlp_cbf_aeint", rad["main"])
    b["w_ea"] = w.basis("mlp_cbf_eaint", rad["a2ee2a"])
    b["w_sbf"] = w.basis("mlp_sbf_qint", rad["main"])

    b["e2e"] = triplets_e2e(graphs["main"])
    b["a2e"] = triplets_mixed(graphs["a2ee2a"], graphs["main"])
    b["e2a"] = triplets_mixed(graphs["main"], graphs["a2ee2a"])
    for use, g_in, g_out in (("e2e", "main", "main"), ("a2e", "a2ee2a", "main"), ("e2a", "main", "a2ee2a")):
        edge_in, edge_out = b[use]
        cos = _dot(v[g_out][edge_out], v[g_in][edge_in])
        b["y_" + use] = circular_basis(cos, n_spherical)
        out.update({f"trip/{use}/in": edge_in, f"trip/{use}/out": edge_out, f"trip/{use}/cos": cos})
        out[f"trip/{use}/circular"] = b["y_" + use]

    quads = b["quads"] = quadruplets(graphs["main"], graphs["qint"])
    db, ba = quads["abd"]
    cos_abd = _dot(v["qint"][ba], v["main"][db])
    w_cir = w.basis("mlp_cbf_qint", rad["qint"])[ba]
    b["cir"] = np.einsum("nis,ns->ni", w_cir, circular_basis(cos_abd, n_spherical))
    v_ca, v_ba, v_db = v["main"][quads["ca"]], v["qint"][quads["ba"]], v["main"][quads["db"]]
    cos_cab = _dot(v_ca, v_ba)
    x, y = dihedral(v_ca, v_ba, v_db)
    first = circular_basis(cos_cab, n_spherical)
    second = circular_basis(x / np.sqrt(x * x + y * y), n_spherical)
    b["y_sbf"] = (first[:, :, None] * second[:, None, :]).reshape(len(x), n_spherical**2)
    if smooth:
        b["y_sbf"] *= smooth_factor(v_ca, v_ba, v_db)[:, None]

    out.update({"quad/abd/edge_db": db, "quad/abd/edge_ba": ba, "quad/abd/cos": cos_abd, "quad/abd/cbf": b["cir"]})
    out["quad/cab/edge_ba"], out["quad/cab/edge_ca"] = quads["cab"]
    out.update({f"quad/edge_{k}": quads[k] for k in ("ca", "ba", "db")})
    out.update({"quad/cos_cab": cos_cab, "quad/dihedral": np.arctan2(y, x), "quad/spherical": b["y_sbf"]})
    out["basis/radial_main_raw"] = rad["main"]
    gates = {"e2e": "trip", "qint": "quad", "a2e": "ae", "e2a": "ea", "atom_update": "h", "output": "out"}
    out.update({f"basis/rbf_{k}": b["g_" + g] for k, g in gates.items()})
    out.update({"basis/cbf_e2e": b["w_trip"], "basis/sbf": b["w_sbf"]})
    for name in NAMES:
        out[f"graph/{name}/edge_index"], out[f"graph/{name}/cell_offset"] = graphs[name]
        out[f"graph/{name}/distance"], out[f"graph/{name}/vector"] = geometry[name]
    out["graph/main/id_swap"] = graphs["id_swap"]
    return b


def forward(params, atomic_numbers, positions, cell, batch, graphs, centres=None, smooth=False):
    """Backbone on a concatenated batch; returns a dictionary with the keys of the golden files.

    params: checkpoint name -> array. positions [N, 3] A, cell [B, 3, 3] A (rows are lattice vectors; any
    values for a molecule), batch [N] structure of each atom. graphs: "main", "a2a", "a2ee2a", "qint" ->
    (edge_index [2, E] = (source, target), cell_offset [E, 3] of the source), and "id_swap" [E of main].
    centres: Gaussian centres if not the float64 linspace (checkpoints hold PyTorch's float32 one: 4e-8 off).
    smooth: whether quadruplets are multiplied by `smooth_factor`.
    Without the force branch among the weights, `out<i>/x_F` and `feature/edge` are absent.
    """
    index = {k: tuple(np.asarray(a, dtype=np.int64) for a in graphs[k]) for k in NAMES}
    index["id_swap"] = np.asarray(graphs["id_swap"], dtype=np.int64)
    positions, cell = np.asarray(positions, dtype=np.float64), np.asarray(cell, dtype=np.float64)
    batch = np.asarray(batch, dtype=np.int64)
    w = _Weights(params, "backbone.")
    out = {"input/batch": batch, "input/natoms": np.bincount(batch, minlength=len(cell))}

    table = "embedding.atom_embedding.weight"
    table = table if table in params else "embedding.weight"
    h = np.asarray(params[table], dtype=np.float64)[np.asarray(atomic_numbers, dtype=np.int64) - 1]
    b = _bases(w.at("bases"), index, positions, cell, batch, centres, out, smooth)
    source, target = b["main"]
    m = w.dense("bases.edge_emb.dense", np.concatenate([h[source], h[target], b["rad_main"]], axis=-1))
    out["emb/h"], out["emb/m"] = h, m

    n_block = w.count("int_blocks")
    x_e, x_f = [], []
    for i in range(n_block + 1):
        if i > 0:
            h, m = _block(w.at(f"int_blocks.{i - 1}"), h, m, b, out, f"block{i - 1}")
        energy_part, force_part = _output(w.at(f"out_blocks.{i}"), h, m, b)
        x_e.append(energy_part)
        out[f"out{i}/x_E"] = energy_part
        if force_part is not None:
            x_f.append(force_part)
            out[f"out{i}/x_F"] = force_part
    out["feature/node"] = _final(w.at("out_mlp_E"), x_e)
    if x_f:
        edge = out["feature/edge"] = _final(w.at("out_mlp_F"), x_f)
        degree = np.maximum(np.bincount(target, minlength=len(positions)), 1)
        out["feature/edge_mean_per_atom"] = segment_sum(edge, target, len(positions)) / degree[:, None]
    return out


def heads(params, out, task=0, reduction="sum"):
    """(energy [B], direct forces [N, 3] or None) of one head on the result of `forward`.

    task: number of the pretraining head (`output.out_energy.<task>`), or None for a fine-tuning head
    (`out_energy`). reduction over the atoms of a structure: "sum" or "mean".
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction {reduction!r}: 'sum' or 'mean'")

    def module(kind):
        return _Weights(params, f"out_{kind}." if task is None else f"output.out_{kind}.{task}.")

    natoms = out["input/natoms"]
    per_atom = module("energy").head(out["feature/node"])[:, 0]
    energy = segment_sum(per_atom, out["input/batch"], len(natoms))
    if reduction == "mean":
        energy = energy / natoms
    if "feature/edge" not in out or not module("forces").has("0.weight"):
        return energy, None
    scalar = module("forces").head(out["feature/edge"])
    target = out["graph/main/edge_index"][1]
    return energy, segment_sum(scalar * out["graph/main/vector"], target, len(out["input/batch"]))
