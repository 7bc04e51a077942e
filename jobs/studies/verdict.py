"""What the numbers of a study allow to say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs.studies.analysis import RELIABLE, Estimate, Stability
from jobs.studies.bans import Bans
from jobs.studies.scores import Table
from simclr.augment.presets import BANNED, NINE

NUM_COUPLETS = math.comb(len(NINE), 2)


def ranking(found: Stability, table: Table) -> list[str]:
    """Say whether the ranking of arms is resolved, and how many seeds would resolve it."""
    sentences = []
    if not math.isnan(found.pearson_labels):
        agree = (
            f"Label sets agree on the arms with Spearman {found.spearman_labels:.2f} and Pearson "
            f"{found.pearson_labels:.2f}"
        )
        reliability = (
            f"as replicates, their mean has reliability {found.reliability_labels:.2f}"
            if found.pearson_labels > 0  # Spearman and Brown have no answer to others
            else "no better than chance"
        )
        sentences.append(f"{agree}; {reliability}.")
    return [*sentences, _seeds(found, len(table.seeds))]


def effects(estimates: Sequence[Estimate], what: str) -> str:
    """Say which effects are beyond chance."""
    tested = [one for one in estimates if not math.isnan(one.p_value)]
    if not tested:
        return f"{what}: one seed says nothing about chance; give three or more."
    clear = [
        f"{one.name} {one.mean:+.3f} ± {one.half_width:.3f}" for one in tested if one.excludes_zero
    ]
    if len(clear) == len(tested):
        return f"{what}: beyond chance are all, {', '.join(clear)}."
    if not clear:
        return f"{what}: not conclusive, none of {len(tested)} differs from 0 beyond chance."
    return (
        f"{what}: beyond chance are {', '.join(clear)}; not the other {len(tested) - len(clear)}."
    )


def pruning(found: Bans, derived: Estimate | None, tested: Sequence[int], score: str) -> list[str]:
    """Say what was banned, on which seeds, and whether it helps on those that had no part in it."""
    table = found.table
    by_chance = len(found.banned) * len(BANNED) / NUM_COUPLETS
    known = (
        f"Bans: seeds {_listed(table.seeds)} put {len(found.banned)} of {len(table.arms)} couplets "
        f"last, {', '.join(found.banned)}; {found.in_2021} of them were banned in 2021, "
        f"{by_chance:.1f} would be by chance."
    )
    return [known, f"Pruning, tested on seeds {_listed(tested)}: {_helps(derived, score)}"]


def missing(table: Table) -> str:
    """Name what has no score."""
    gaps = table.missing
    if not gaps:
        return ""
    more = f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
    return f"Without a score: {'; '.join(gaps[:5])}{more}. The same command makes what is missing."


def halved(seeds: Sequence[int]) -> str:
    """Say what early stopping has done to the numbers."""
    return (
        f"Halving: of the arms left, the lower half was given up after each of {len(seeds)} seeds. "
        "Means of arms given up rest on fewer seeds, and an unlucky first seed may have cost a "
        "good arm: this finds candidates, and ranks nothing."
    )


def _helps(derived: Estimate | None, score: str) -> str:
    if derived is None or derived.seeds == 0:
        return "nothing is known yet; the same command trains and scores what is missing."
    if math.isnan(derived.half_width):
        return "one seed says nothing about chance; give four seeds or more."
    # one comparison, planned before anything was seen: its own interval, without correction
    told = f"{derived.mean:+.3f} ± {derived.half_width:.3f} {score} against all 36 couplets."
    if abs(derived.mean) <= derived.half_width:
        return f"not conclusive, {told}"
    return f"it {'helps' if derived.mean > 0 else 'harms'}, {told}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _seeds(found: Stability, count: int) -> str:
    if math.isnan(found.pearson_seeds):
        return "Not conclusive: with one seed, nobody knows how much of a difference is chance."
    if math.isinf(found.seeds_needed):  # Spearman and Brown have no answer to a negative r
        return f"Not conclusive: {count} seeds agree on the arms no better than chance."
    reliability = found.reliability_seeds
    rank = f"the mean of {count} seeds ranks the arms with reliability {reliability:.2f}"
    if reliability >= RELIABLE:
        return f"Conclusive: {rank}."
    return f"Not conclusive: {rank}; about {found.seeds_needed:.0f} seeds would resolve them."
