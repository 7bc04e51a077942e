"""Protocols on frozen features: a linear probe and a k-NN vote, each ``(job, data) -> result``.

The probe equals scikit-learn's ``LogisticRegression`` with ``C = 1 / (penalty * N)`` on features
standardised on the training split: multinomial for single labels, else one regression per class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from simclr.evaluation.jobs import EvalData, EvalJob, EvalResult
from simclr.evaluation.metrics import (
    Predictions,
    ScoreArray,
    balancing_weights,
    best_thresholds,
    decide,
    primary_metric,
)
from simclr.evaluation.task import Task

# The published grid, strongest first: each fit starts from the solution of the previous one.
PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
# The search ends after this many weaker penalties that do worse: past its optimum a path only
# overfits, and its last fits cost as much as all the others.
PATIENCE = 2
GRADIENT_TOLERANCE = 1e-5
MAX_STEPS = 100
_MAX_PRODUCTS = 200  # conjugate gradient iterations per step
_MAX_HALVINGS = 30
# Feature elements times classes. Below: float64 and one thread, since a step costs less than waking
# a second one. Above: float32, whose rounding stays a hundred times below the tolerance.
_LARGE = 2**24

TEMPERATURE = 0.07  # for k-NN: Wu et al. 2018 (arXiv 1805.01978), section 3.4, and most since
_BLOCK_ELEMENTS = 1 << 25


def knn(job: EvalJob, data: EvalData) -> EvalResult:
    """Predict the test split by a weighted vote of nearest training samples.

    Features are standardised on the training split, as for the probe: otherwise an untrained
    encoder, whose features are nearly parallel, would be an unfairly weak control.
    """
    parts, num_neighbours = _parts(job, data), data.config.neighbours
    mean, scale = standardisation(parts[0])
    train, validation, test = (((part - mean) / scale).float() for part in parts)
    targets = torch.from_numpy(data.task.targets[job.split.train])
    on_validation, on_test = (
        knn_scores(train, targets, queries, num_neighbours).numpy()
        for queries in (validation, test)
    )
    choices = {"neighbours": float(min(num_neighbours, len(train))), "temperature": TEMPERATURE}
    return result_of(job, data.task, on_validation, on_test, choices)


def linear_probe(job: EvalJob, data: EvalData) -> EvalResult:
    """Fit a linear probe for every penalty, and predict the test split with the best one.

    Penalty and thresholds are chosen on the validation split by the primary metric.
    """
    task = data.task
    train, validation, test = _parts(job, data)
    kind = "single" if task.kind == "single" else "multi"
    expected = task.targets[job.split.validation]
    path = probe_path(train, torch.from_numpy(task.targets[job.split.train]), kind)
    best = choose_probe(
        path, lambda probe: primary_metric(expected, probe.scores(validation).numpy(), task.kind)
    )
    choices = {
        "penalty": best.penalty,
        "penalty_at_end_of_grid": best.penalty in (PENALTIES[0], PENALTIES[-1]),
        "converged": best.converged,
    }
    return result_of(job, task, best.scores(validation).numpy(), best.scores(test).numpy(), choices)


def _parts(job: EvalJob, data: EvalData) -> list[Tensor]:
    """Return the features of the training, validation and test split."""
    features, split = data.features(job.encoder.features_name), job.split
    parts = split.train, split.validation, split.test
    return [torch.from_numpy(features[rows]) for rows in parts]


def result_of(
    job: EvalJob,
    task: Task,
    on_validation: ScoreArray,
    on_test: ScoreArray,
    choices: dict[str, Any],
) -> EvalResult:
    """Choose thresholds on the validation scores (V, C) and apply them to the test scores (T, C).

    For the balanced scores of a binary task, a second threshold is chosen under weights that
    balance the validation split.
    """
    test, balanced = job.split.test, None
    targets = task.targets[job.split.validation]
    if task.kind != "single":
        choices = {**choices, "thresholds": best_thresholds(targets, on_validation).tolist()}
    if task.kind == "binary":
        even = best_thresholds(targets, on_validation, balancing_weights(targets))
        balanced = decide(on_test, task.kind, even)
        choices["thresholds_balanced"] = even.tolist()
    predicted = decide(on_test, task.kind, np.array(choices.get("thresholds", 0.5)))
    predictions = Predictions(on_test, predicted, balanced)
    names = job.row, job.protocol.value, job.seed
    return EvalResult(*names, test, task.targets[test], predictions, choices, job.fraction)


def knn_scores(features: Tensor, targets: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    """Score queries (M, D) by their nearest features (N, D) in cosine similarity: (M, C) float32.

    A neighbour votes for each of its classes with weight exp(similarity / 0.07); the votes of a
    query are divided by the sum of its weights, so that scores are in [0, 1] for single and
    multiple labels alike. With fewer features than neighbours, all of them vote. Similarities are
    computed block by block: memory does not grow with the product of features and queries.

    Raises:
        ValueError: there are no features.
    """
    if len(features) == 0:
        raise ValueError("k-NN has no labelled features to search")
    unit, votes = functional.normalize(features, dim=1), targets.to(features.dtype)
    scores = []
    for block in torch.split(queries, max(1, _BLOCK_ELEMENTS // len(features))):
        similarity = functional.normalize(block, dim=1) @ unit.T
        nearest, index = similarity.topk(min(num_neighbours, len(features)), dim=1)
        weights = functional.softmax(nearest / TEMPERATURE, dim=1)
        scores.append(torch.einsum("mk,mkc->mc", weights, votes[index]))
    return torch.cat(scores).clamp_(0, 1)  # a sum of rounded weights may exceed 1 by an ulp


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted linear classifier on standardised features."""

    mean: Tensor  # (D,) float64, of the training split
    scale: Tensor  # (D,) float64, likewise; inf for a constant feature
    weight: Tensor  # (D, C) float64; 0 for classes that are always or never present
    intercept: Tensor  # (C,) float64; -inf for a class never present, inf for one always present
    kind: str  # single or multi
    penalty: float  # penalty of the fit
    converged: bool  # whether the gradient vanished before the iterations ended

    def scores(self, features: Tensor) -> Tensor:
        """Return probabilities (N, C) float64 of features (N, D)."""
        logits = ((features.double() - self.mean) / self.scale) @ self.weight + self.intercept
        return logits.softmax(dim=1) if self.kind == "single" else logits.sigmoid()


def choose_probe(probes: Iterable[Probe], score: Callable[[Probe], float]) -> Probe:
    """Return the probe with the highest validation score; among equals, the strongest penalty.

    The search stops once ``PATIENCE`` probes after the best one were worse. ``probes`` are one or
    more, strongest penalty first.
    """
    weaker = iter(probes)
    best = next(weaker)
    highest, waited = score(best), 0
    for probe in weaker:
        found = score(probe)
        if found > highest:
            best, highest, waited = probe, found, 0
        elif found < highest:  # equal ones do not count: after a plateau scores may rise again
            waited += 1
        if waited == PATIENCE:
            break
    return best


def probe_path(
    features: Tensor, targets: Tensor, kind: str, penalties: tuple[float, ...] = PENALTIES
) -> Iterator[Probe]:
    """Fit a probe for every penalty, strongest first, each starting from the previous solution.

    Features are (N, D), targets (N, C) bool; ``kind``: ``single``, one class per row, or ``multi``.

    Raises:
        ValueError: no class is both present and absent.
    """
    mean, scale = standardisation(features)
    present, absent = targets.any(dim=0), (~targets).any(dim=0)
    learnable = present if kind == "single" else present & absent
    if not (present & absent).any():
        raise ValueError(
            f"all {len(targets)} training patches have the same labels; a probe needs two classes"
        )
    likelihood = Likelihood((features.double() - mean) / scale, targets[:, learnable], kind)
    constant = torch.where(present, torch.inf, -torch.inf).double()
    for penalty in penalties:
        weight, intercept, converged = likelihood.solve(penalty)
        full = weight.new_zeros(features.shape[1], targets.shape[1])
        full[:, learnable] = weight
        offset = constant.clone()
        offset[learnable] = intercept
        yield Probe(mean, scale, full, offset, kind, penalty, converged)


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of features (N, D), each (D,) float64.

    A constant feature gets an infinite deviation, so that it contributes nothing, not even in a
    sample in which it differs.
    """
    exact = features.double()
    mean, scale = exact.mean(dim=0), exact.std(dim=0, correction=0)
    # Rounding makes a constant feature vary a little; divided by that, it would be amplified noise.
    return mean, torch.where(scale > 1e-9 * (1 + mean.abs()), scale, torch.inf)


class Likelihood:
    """Minimiser of the mean negative log-likelihood plus ``penalty / 2`` times the squared weights.

    Each solution is the start of the next one. ``single``: multinomial. ``multi``: one regression
    per class, all at once. Newton's method, each step solved by conjugate gradients.
    """

    def __init__(self, features: Tensor, targets: Tensor, kind: str) -> None:
        """Prepare standardised features (N, D) float64 and targets (N, C) bool."""
        num_samples, width = features.shape
        # variances (r,) and orthonormal axes (D, r) that span the rows
        if num_samples < width:  # cheaper, and directions outside have weight 0 at the optimum
            _, singular, rows = torch.linalg.svd(features, full_matrices=False)
            variance, axes = singular.square() / num_samples, rows.T
        else:
            variance, axes = torch.linalg.eigh(features.T @ features / num_samples)
            variance = variance.clamp_min(0)
        large = num_samples * axes.shape[1] * targets.shape[1] > _LARGE
        self._single, self._axes = kind == "single", axes
        self._type = torch.float32 if large else torch.float64
        ones = features.new_ones(num_samples, 1)
        self._features = torch.cat([features @ axes, ones], dim=1).to(self._type)
        self._curvature = torch.cat([variance, ones[0]]).to(self._type)[:, None]
        self._targets = targets.to(self._type)
        # (r + 1, C), the last row the intercept
        self._weight = self._features.new_zeros(axes.shape[1] + 1, targets.shape[1])

    def solve(self, penalty: float) -> tuple[Tensor, Tensor, bool]:
        """Return weight (D, C), intercept (C,), both float64, and whether the gradient vanished."""
        penalties = torch.full_like(self._curvature, penalty)
        penalties[-1] = 0  # the intercept is not penalised
        before, products = torch.get_num_threads(), self._features.numel() * self._targets.shape[1]
        torch.set_num_threads(before if products > _LARGE else 1)
        try:
            self._weight, converged = self._descend(penalties)
        finally:
            torch.set_num_threads(before)
        exact = self._weight.double()
        return self._axes @ exact[:-1], exact[-1], converged

    def _descend(self, penalties: Tensor) -> tuple[Tensor, bool]:
        weight = self._weight
        logits, loss = self._evaluated(weight, penalties)
        for _ in range(MAX_STEPS):
            share = logits.softmax(dim=1) if self._single else logits.sigmoid()
            gradient = self._features.T @ ((share - self._targets) / len(share))
            gradient += penalties * weight
            steepest = float(gradient.abs().max())
            if steepest <= GRADIENT_TOLERANCE:
                return weight, True
            step = self._newton_step(gradient, share, penalties, min(0.1, steepest**0.5))
            # halve the step per class until its loss falls; losses are always float64
            length = torch.ones_like(loss, dtype=step.dtype)
            for _ in range(_MAX_HALVINGS):
                moved = weight + length * step
                logits, reached = self._evaluated(moved, penalties)
                worse = reached > loss
                if not worse.any():
                    break
                length = torch.where(worse, length / 2, length)
            if worse.any() or not (reached < loss).any():  # rounding: no step lowers the loss
                return weight, steepest <= 10 * GRADIENT_TOLERANCE
            weight, loss = moved, reached
        return weight, False

    def _newton_step(
        self, gradient: Tensor, share: Tensor, penalties: Tensor, accuracy: float
    ) -> Tensor:
        """Solve Hessian x step = -gradient by preconditioned conjugate gradients, (r + 1, C)."""
        # the Hessian's diagonal if the axes were independent of the targets
        scale = 1 / (self._curvature * (share * (1 - share)).mean(dim=0) + penalties + 1e-12)
        step, residual = torch.zeros_like(gradient), -gradient
        direction = scale * residual
        size = first = self._sum(residual * direction)
        for _ in range(_MAX_PRODUCTS):
            change = self._features @ direction
            if self._single:
                change = share * (change - (share * change).sum(dim=1, keepdim=True))
            else:
                change = share * (1 - share) * change
            bent = self._features.T @ (change / len(share)) + penalties * direction
            length = size / self._sum(direction * bent).clamp_min(torch.finfo(bent.dtype).tiny)
            step, residual = step + length * direction, residual - length * bent
            sought = scale * residual
            before, size = size, self._sum(residual * sought)
            if bool((size <= accuracy**2 * first).all()):
                break
            direction = sought + size / before.clamp_min(torch.finfo(bent.dtype).tiny) * direction
        return step

    def _evaluated(self, weight: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, C) and losses (C,): per class, or for ``single`` the total repeated."""
        logits = self._features @ weight
        # sum in float64: near the minimum two losses differ only in their last digits
        if self._single:
            losses = functional.cross_entropy(logits, self._targets, reduction="none")
            loss = losses.double().mean().expand(weight.shape[1])
        else:
            losses = functional.binary_cross_entropy_with_logits(
                logits, self._targets, reduction="none"
            )
            loss = losses.double().mean(dim=0)
        return logits, loss + self._sum((penalties / 2 * weight**2).double())

    def _sum(self, products: Tensor) -> Tensor:
        """Return (C,) sums: per class if classes are separate problems, else the total repeated."""
        sums = products.sum(dim=0)
        return sums.sum().expand(len(sums)) if self._single else sums
