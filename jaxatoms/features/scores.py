"""Pairs of extracted sets -> their scores with intervals, and the ranking per task."""

import numpy as np

from jaxatoms.csi.aggregation import aggregate
from jaxatoms.csi.distances.distance import Distance, RowBlocks
from jaxatoms.csi.distances.gaussian import FRECHET
from jaxatoms.csi.half_samples import half_sample_interval, row_blocks
from jaxatoms.csi.moments import Moments
from jaxatoms.csi.score import csi_terms
from jaxatoms.csi.uncertainty import (
    SMALLEST,
    Interval,
    bootstrap_interval,
    effective_rank,
    extrapolate,
    interval_about,
    weighted_merges,
)
from jaxatoms.features.extraction import Extracted
from jaxatoms.types import InputError


def score_pairs(
    upstream: dict[str, Extracted], downstream: dict[str, Extracted], distance: Distance, estimate: str, config
) -> list[dict]:
    """One record per pair: its estimates with their intervals, resampled scores, parts of the index, sizes.

    Args:
      upstream, downstream: extracted sets by label, with rows where the distance needs them.
      distance: between two sets.
      estimate: of `distance.estimates`, the one that the resampled scores are about.
      config: `resamples`, `level` and `seed` of the intervals.

    Raises:
      InputError: a set is too small, or whatever the distance raises, with the sets' names.
    """
    up, down = ([_whole(e) for e in side.values()] for side in (upstream, downstream))
    up_ranks, down_ranks = ([float(effective_rank(m)) for m in side] for side in (up, down))
    terms = csi_terms(up, down)._asdict() if distance is FRECHET else {}
    samples = {id(e): _sample(e, distance, config) for e in (*upstream.values(), *downstream.values())}
    rows = []
    for i, (u, a) in enumerate(upstream.items()):
        for j, (d, b) in enumerate(downstream.items()):
            parts = {f"{name} part": float(term[i, j]) for name, term in terms.items()}
            found = _interval(distance, samples[id(a)], samples[id(b)], f"{u} and {d}", config)
            value = sum(parts.values()) if parts else found.value
            rows.append({
                "Upstream": u,
                "Downstream": d,
                "Sampling": a.info["sampling"],
                "Seed": a.info["seed"],
                **_estimates(a, b, value, found, distance, estimate, config),
                **parts,
                **_sizes("upstream", a, up_ranks[i], samples[id(a)]),
                **_sizes("downstream", b, down_ranks[j], samples[id(b)]),
            })
    return rows


def _sample(data: Extracted, distance: Distance, config) -> Moments | RowBlocks:
    """What the distance needs of a set, in blocks of whole structures."""
    if distance.needs == "moments":
        return data.blocks
    assert data.features is not None
    rows, structure = aggregate(data.features.features, data.features.draws, data.info["aggregation"])
    try:
        return row_blocks(rows, structure, data.info["n_blocks"], distance.max_rows, config.seed or 0)
    except InputError as error:
        raise InputError(f"{data.info['dataset']}: {error}") from None


def _interval(distance: Distance, a: Moments | RowBlocks, b: Moments | RowBlocks, names: str, config) -> Interval:
    """The distance of all that there is, and of resamples."""
    how = config.resamples, config.level, config.seed or 0
    if distance.needs == "moments":
        return bootstrap_interval(a, b, *how, distance=distance.function)
    try:
        return half_sample_interval(distance, a, b, *how)
    except InputError as error:
        raise InputError(f"{names}: {error}") from None


def _estimates(
    a: Extracted, b: Extracted, plain: float, found: Interval, distance: Distance, estimate: str, config
) -> dict:
    """Every estimate of a pair with its interval, and the resamples about the one that is asked for."""
    values = {"plain": plain} | ({"corrected": plain - found.bias} if distance.corrects else {})
    if estimate == "extrapolated":
        _check_rows(a, b)
        values["extrapolated"] = extrapolate(
            a.blocks, b.blocks, seed=config.seed or 0, distance=distance.function
        ).value
    columns, cut, out = distance.columns, not distance.signed, {}
    for name, value in values.items():
        ends = interval_about(value, found.samples, config.level, cut)
        out |= dict(zip(columns[name], (max(0.0, value) if cut else value, *ends), strict=True))
    resampled = found.samples - np.median(found.samples) + values[estimate]
    excess = {"small-sample excess": found.bias} if distance.corrects else {}
    return out | excess | {"resampled": resampled.tolist()}


def _check_rows(*sets: Extracted) -> None:
    """Refuse to extrapolate where the smallest subset has too few rows to be on the straight line."""
    for data in sets:
        rows, width = int(data.blocks.count.sum()), data.blocks.mean.shape[-1]
        if SMALLEST * rows < 2 * width:
            raise InputError(f"{data.info['dataset']}: {rows} feature rows are too few to extrapolate for {width} "
                             f"features, {int(2 * width / SMALLEST)} are needed; raise --n")  # fmt: skip


def _whole(data: Extracted) -> Moments:
    merged = weighted_merges(data.blocks, np.ones((1, len(data.blocks.count))))
    return type(merged)(*(part[0] for part in merged))


def _sizes(role: str, data: Extracted, rank: float, sample: Moments | RowBlocks) -> dict:
    sizes = {
        f"{role} structures": data.info["n_structure"],
        f"{role} distinct": data.info.get("n_distinct", data.info["n_structure"]),
        f"{role} atoms": data.info["n_atom"],
        f"{role} fingerprint": data.info.get("fingerprint"),
        f"{role} effective rank": rank,
    }
    return sizes | ({f"{role} rows": len(sample.rows)} if isinstance(sample, RowBlocks) else {})


def rank(rows: list[dict], distance: Distance, estimate: str) -> dict[str, list[dict]]:
    """Per task, upstream sets from best to worst, each with the share of resamples in which it is the best.

    The value stands under the distance's title in lower case: `csi` for the index.
    """
    columns, sign = distance.columns, 1 if distance.lower_is_closer else -1
    value, low, high = columns[estimate]
    out = {}
    for task in dict.fromkeys(row["Downstream"] for row in rows):
        # The median of the resamples is the estimate before it is clipped at 0, where several may lie.
        own = sorted((r for r in rows if r["Downstream"] == task), key=lambda r: sign * np.median(r["resampled"]))
        winner = np.argmin([sign * np.array(r["resampled"]) for r in own], axis=0)
        out[task] = [
            {"upstream": r["Upstream"], distance.title.lower(): r[value], "low": r[low], "high": r[high],
             "estimate": estimate, "plain": r[columns["plain"][0]], "probability_best": float(np.mean(winner == i))}
            for i, r in enumerate(own)
        ]  # fmt: skip
    return out
