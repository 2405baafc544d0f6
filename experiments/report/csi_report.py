"""A comparison's rows -> table, JSON, bar charts in the style of Figures 3 and 5, and the advice in words."""

import csv
from pathlib import Path

import numpy as np

from jaxatoms.csi.distances.distance import Distance
from jaxatoms.csi.distances.gaussian import FRECHET
from jaxatoms.plots import drawing, spread_bars
from jaxatoms.types import InputError

COLUMNS = FRECHET.columns  # the first is what the reference's tables hold
SMALL = 0.1  # excess of a sample's size, as a share of the plain score, from which more structures are advised


def write_csv(path: Path, rows: list[dict]):
    """The reference's columns first, then ours."""
    columns = [name for name in rows[0] if name != "resampled"]
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None


def plot(path: Path, rows: list[dict], distance: Distance, estimate: str):
    """One panel per task, one bar per upstream set: an estimate with its interval."""
    tasks, upstream = (list(dict.fromkeys(r[k] for r in rows)) for k in ("Downstream", "Upstream"))
    shown, closer = distance.columns[estimate], "lower" if distance.lower_is_closer else "higher"
    with drawing(path, len(tasks), panel=(3.2, 2.8), columns=4, dpi=150) as (_, axes):
        for axis, task in zip(axes, tasks, strict=True):
            own = {r["Upstream"]: r for r in rows if r["Downstream"] == task}
            values, low, high = (np.array([own[u][column] for u in upstream]) for column in shown)
            errors = np.maximum([values - low, high - values], 0)  # of rounding
            colors = [f"C{i}" for i in range(len(upstream))]
            axis.bar(range(len(upstream)), values, yerr=errors, capsize=3, color=colors)
            axis.set_xticks(range(len(upstream)), upstream, rotation=30, ha="right", fontsize=8)
            axis.set_title(task, fontsize=9)
            axis.grid(axis="y")
            spread_bars(axis, values)
            axis.set_ylabel(f"{distance.title}, {estimate} ({closer} = closer)", fontsize=8)


def print_ranking(rows: list[dict], ranking: dict[str, list[dict]], distance: Distance, estimate: str, level: float):
    """The table per task and one line of advice with how sure it is."""
    by_pair, title = {(r["Upstream"], r["Downstream"]): r for r in rows}, distance.title
    plain = f"; plain: {'the published procedure' if distance is FRECHET else 'not corrected'}"
    plain = "" if estimate == "plain" else plain
    print(f"\n{title} {estimate} [{level:.0%} interval]{plain}")
    if distance is not FRECHET:
        print(_what_it_is(distance))
    for task, order in ranking.items():
        r = by_pair[order[0]["upstream"], task]
        print(f"\n{task}  ({_sample(r, 'downstream')}, {r['downstream atoms']:,} atoms)")
        for entry in order:
            row = by_pair[entry["upstream"], task]
            sizes = f"{_sample(row, 'upstream')}, effective rank {row['upstream effective rank']:.1f}"
            interval = f"[{entry['low']:.4g}, {entry['high']:.4g}]"
            beside = f"plain {entry['plain']:.4g}, " if plain else ""
            print(f"  {entry['upstream']:24s} {title} {entry[title.lower()]:10.4g}  {interval:22s} {beside}{sizes}")
        print(f"  pretrain on {order[0]['upstream']}{_how_sure(order)}")
    small = [task for task in ranking if any(_is_small(r, distance) for r in rows if r["Downstream"] == task)]
    if small and estimate != "extrapolated":
        remedy = "--n), or --estimate extrapolated" if "extrapolated" in distance.estimates else "--n)"
        print(f"\nsmall samples: over {SMALL:.0%} of some plain score of {', '.join(small)} comes from their size; "
              f"take more structures ({remedy}")  # fmt: skip


def _what_it_is(distance: Distance) -> str:
    """The description, which rows enter, and what the interval is."""
    if distance.needs == "moments":
        return f"{distance.description} Intervals: resampled blocks of structures."
    most = "" if distance.max_rows is None else f" At most {distance.max_rows:,} rows of a set enter."
    return f"{distance.description}{most} Intervals: random halves of each set's structures."


def _is_small(row: dict, distance: Distance) -> bool:
    """Whether much of the plain score is excess, where that is estimated."""
    return distance.corrects and row["small-sample excess"] > SMALL * row[distance.columns["plain"][0]]


def _sample(row: dict, role: str) -> str:
    """ "400 structures", and how many of them differ where the sampler repeated some."""
    n, distinct = row[f"{role} structures"], row[f"{role} distinct"]
    return f"{n:,} structures" + (f" ({distinct:,} distinct)" if distinct < n else "")


def _how_sure(order: list[dict]) -> str:
    if len(order) == 1:
        return ": it was the only candidate"
    sure = order[0]["probability_best"]
    word = "clear" if sure >= 0.95 else "likely" if sure >= 0.75 else "not settled by this sample"
    return f": closest in {sure:.0%} of resamples ({word}; next: {order[1]['upstream']})"
