"""Labelled features come in; a linear probe with its penalty chosen on validation goes out.

Single labels: multinomial logistic regression. Several labels: one logistic regression a class.
Features are standardised on the training split; the loss is the mean negative log-likelihood plus
``penalty / 2`` times the squared weights, the intercepts free. That is scikit-learn's
``LogisticRegression`` with ``C = 1 / (penalty * N)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from simclr.evaluate.newton import Likelihood

# The published grid, strongest first: every fit starts where the stronger one ended.
PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
# The search ends after this many weaker penalties that do no better: past its optimum a path only
# overfits, and its last fits cost as much as all others.
PATIENCE = 2


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted linear classifier on standardised features.

    Attributes:
        mean, scale: (D,) float64 standardisation, from the training split.
        weight: (D, C) float64; columns of classes without a choice are 0.
        intercept: (C,) float64; -inf for a class never seen, inf for one seen in every sample.
        kind: ``single`` or ``multi``.
        penalty: the one it was fitted with.
        converged: whether the gradient vanished before the iterations ended.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    intercept: Tensor
    kind: str
    penalty: float
    converged: bool

    def scores(self, features: Tensor) -> Tensor:
        """Return probabilities (N, C) float64 of features (N, D)."""
        logits = ((features.double() - self.mean) / self.scale) @ self.weight + self.intercept
        return logits.softmax(dim=1) if self.kind == "single" else logits.sigmoid()


def fit_probes(
    features: Tensor, truth: Tensor, kind: str, penalties: tuple[float, ...] = PENALTIES
) -> list[Probe]:
    """Fit a probe for every penalty, see ``probe_path``."""
    return list(probe_path(features, truth, kind, penalties))


def probe_path(
    features: Tensor, truth: Tensor, kind: str, penalties: tuple[float, ...] = PENALTIES
) -> Iterator[Probe]:
    """Fit probes one after the other, each when it is asked for.

    Args:
        features: (N, D) of the training split.
        truth: (N, C) bool; one true class a row if ``kind`` is ``single``.
        kind: ``single`` or ``multi``.
        penalties: strengths of the L2 penalty, strongest first.

    Raises:
        ValueError: there is nothing to tell apart, because no class is both present and absent.
    """
    mean, scale = standardisation(features)
    present, absent = truth.any(dim=0), (~truth).any(dim=0)
    learnable = present if kind == "single" else present & absent
    if not (present & absent).any():
        raise ValueError(
            f"all {len(truth)} training patches have the same labels; a probe needs two classes"
        )
    likelihood = Likelihood((features.double() - mean) / scale, truth[:, learnable], kind)
    constant = torch.where(present, torch.inf, -torch.inf).double()
    for penalty in penalties:
        weight, intercept, converged = likelihood.solve(penalty)
        full = weight.new_zeros(features.shape[1], truth.shape[1])
        full[:, learnable] = weight
        offset = constant.clone()
        offset[learnable] = intercept
        yield Probe(mean, scale, full, offset, kind, penalty, converged)


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of features (N, D), each (D,) float64.

    The deviation of a constant feature is infinite: divided by it, the feature says nothing, not
    even about a sample in which it differs.
    """
    exact = features.double()
    mean, scale = exact.mean(dim=0), exact.std(dim=0, correction=0)
    # Rounding makes a constant feature vary a little; divided by that, it would be loud noise.
    return mean, torch.where(scale > 1e-9 * (1 + mean.abs()), scale, torch.inf)


def choose_probe(probes: Iterable[Probe], score: Callable[[Probe], float]) -> Probe:
    """Return the probe with the highest validation score; among equals the strongest penalty.

    Of a path, no more probes are asked for once ``PATIENCE`` since the best one were worse.

    Raises:
        ValueError: there is no probe to choose from.
    """
    best, highest, waited = None, -float("inf"), 0
    for probe in probes:
        found = score(probe)
        if best is None or (found, probe.penalty) > (highest, best.penalty):
            best, highest, waited = probe, found, 0
        elif found < highest:  # on a plateau the end of the path may still be worth its price
            waited += 1
        if waited == PATIENCE:
            break
    if best is None:
        raise ValueError("no penalty is given; a probe is chosen among at least one")
    return best
