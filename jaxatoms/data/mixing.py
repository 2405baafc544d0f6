"""How many structures each upstream data set gives to a mixed run of N; counts only, no data."""

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from jaxatoms.data.registry import DATASETS, is_further_target
from jaxatoms.types import InputError

_RATIO = re.compile(r"\d+(:\d+)+")


def split_names(text: str, option: str = "--upstream") -> list[str]:
    """The data sets of `a,b,c`; a comma before a word that starts no name belongs to the path, its label keys or
    the targets of one data set.

    Args:
      option: that they were given to, for messages.

    Raises:
      InputError: an empty name, or one that occurs twice.

    Example:
      >>> split_names("ani1x,file:a,1.xyz#e,f,oc20")
      ['ani1x', 'file:a,1.xyz#e,f', 'oc20']
      >>> split_names("qm9:mu,alpha,qmof")
      ['qm9:mu,alpha', 'qmof']
    """
    names: list[str] = []
    for word in (word.strip() for word in text.split(",")):
        is_key = bool(names) and "#" in names[-1]  # a label key may be empty: `#,force`
        goes_on = names and (word or is_key) and not _starts_a_name(word) and _takes_more(names[-1])
        if goes_on or (names and is_further_target(names[-1], word)):
            names[-1] += f",{word}"
        else:
            names.append(word)
    if not all(names):
        raise InputError(f"{option} '{text}' has an empty name; write e.g. ani1x,oc20")
    if len(set(names)) < len(names):
        raise InputError(f"{option} '{text}' names a data set twice; name each once")
    return names


def _takes_more(name: str) -> bool:
    """Whether a comma may go on with it: in a path, or between its three label keys."""
    _, mark, labels = name.rpartition("#")
    if name.startswith("file:"):
        return not mark or labels.count(",") < 2
    return "@" in name


def _starts_a_name(word: str) -> bool:
    return word.partition("@")[0] in DATASETS or re.match(r"\w+[:@]", word) is not None


def mix_counts(families: Sequence[str], available: Sequence[int], n: int | str, mix: str) -> list[int | str]:
    """Structures drawn from each data set for a run of `n` in all.

    "balanced": n // T each. "temperature": proportional to the square root of the paper's sizes (of `available` where
    it has none), what is left over goes to ANI-1x, or to the first. "natural": proportional to `available`, what is
    left over to the first; "all" takes everything. "2:1" and the like: int(n * share) each.

    Args:
      families: names without variant or path.
      available: training structures of each.
      n: a count or "all".
      mix: as above.

    Raises:
      InputError: an unknown mix, a ratio of another length, "all" with a mix that needs a number, an n that gives
        a data set nothing.

    Source: docs/reference/pretraining.md, Mixing; reference `setup_pretrain.py:38-58`.

    Example:
      >>> mix_counts(["ani1x", "oc22"], [4_000_000, 8_000_000], 3_000_000, "2:1")
      [2000000, 1000000]
    """
    if len(families) == 1:
        return [n]
    if n == "all":
        if mix != "natural":
            raise InputError(f"--mix {mix} needs a number of structures; give --n, or --mix natural for all")
        return ["all"] * len(families)
    counts = _counts(list(families), list(available), int(n), mix)
    if min(counts) < 1:
        raise InputError(f"--n {n} gives {families[counts.index(min(counts))]} no structure; raise --n")
    return list(counts)


def _millions(family: str, available: int) -> float:
    """Structures as the paper counts them where it does."""
    published = DATASETS[family].paper_millions if family in DATASETS else None
    return available / 1e6 if published is None else published


def _counts(families: list[str], available: list[int], n: int, mix: str) -> list[int]:
    if mix == "balanced":
        return [n // len(families)] * len(families)
    if _RATIO.fullmatch(mix):
        parts = [int(part) for part in mix.split(":")]
        if len(parts) != len(families) or not sum(parts):
            raise InputError(f"--mix {mix} has {len(parts)} parts for {len(families)} data sets; give one each")
        return [int(n * Fraction(part, sum(parts))) for part in parts]
    if mix == "temperature":
        roots = np.sqrt([_millions(name, size) for name, size in zip(families, available, strict=True)])
        counts = [int(ratio * n) for ratio in roots / roots.sum()]
        rest_to = families.index("ani1x") if "ani1x" in families else 0
    elif mix == "natural":
        counts, rest_to = [n * size // max(sum(available), 1) for size in available], 0
    else:
        raise InputError(f"unknown --mix '{mix}'; use balanced, temperature, natural or a ratio such as 2:1")
    counts[rest_to] += n - sum(counts)
    return counts
