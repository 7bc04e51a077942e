"""Labelled features come in; a linear probe with its penalty chosen on validation goes out.

Single labels: multinomial logistic regression. Several labels: one logistic regression a class.
Features are standardised on the training split; the loss is the mean negative log-likelihood plus
``penalty / 2`` times the squared weights, the intercepts free. That is scikit-learn's
``LogisticRegression`` with ``C = 1 / (penalty * N)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# The published grid, strongest first: every fit starts where the stronger one ended.
PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ITERATIONS = 3000
_GRADIENT_TOLERANCE = 1e-5
# Below this many products a step costs less than waking a second thread; on a shared machine that
# wait is a hundred times the work.
_WORTH_THREADS = 2**24


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
    """Fit a probe for every penalty.

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
    problem = _Problem((features.double() - mean) / scale, truth[:, learnable], kind)
    constant = torch.where(present, torch.inf, -torch.inf).double()
    probes = []
    for penalty in penalties:
        weight, intercept, converged = problem.solve(penalty)
        full = weight.new_zeros(features.shape[1], truth.shape[1])
        full[:, learnable] = weight
        offset = constant.clone()
        offset[learnable] = intercept
        probes.append(Probe(mean, scale, full, offset, kind, penalty, converged))
    return probes


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of features (N, D), each (D,) float64.

    The deviation of a constant feature is infinite: divided by it, the feature says nothing, not
    even about a sample in which it differs.
    """
    exact = features.double()
    mean, scale = exact.mean(dim=0), exact.std(dim=0, correction=0)
    # Rounding makes a constant feature vary a little; divided by that, it would be loud noise.
    return mean, torch.where(scale > 1e-9 * (1 + mean.abs()), scale, torch.inf)


def choose_probe(probes: list[Probe], score: Callable[[Probe], float]) -> Probe:
    """Return the probe with the highest validation score; among equals the strongest penalty."""
    return max(probes, key=lambda probe: (score(probe), probe.penalty))


class _Problem:
    """One penalised likelihood, solved for a row of penalties by L-BFGS.

    The solver sees the features along their principal axes, each scaled by the square root of the
    loss's greatest curvature there. That changes the path, not the optimum: the axes are a
    rotation, which the penalty does not notice, and the scaling is undone inside the loss.
    Without it, the collinear features of a collapsed encoder take thousands of steps.
    """

    def __init__(self, features: Tensor, truth: Tensor, kind: str) -> None:
        self._kind = kind
        self._target = truth.double()
        self._variance, self._axes = _principal_axes(features)
        self._features = features @ self._axes
        rank, num_classes = self._axes.shape[1], truth.shape[1]
        self._weight = features.new_zeros(rank, num_classes)
        self._intercept = features.new_zeros(num_classes)

    def solve(self, penalty: float) -> tuple[Tensor, Tensor, bool]:
        """Return weight (D, C), intercept (C,) and whether the solver converged."""
        stretch = (self._variance / 4 + penalty).rsqrt()[:, None]
        free = (self._weight / stretch).requires_grad_()
        intercept = self._intercept.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [free, intercept],
            max_iter=MAX_ITERATIONS,
            tolerance_grad=_GRADIENT_TOLERANCE,
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            """Return the loss, and leave its gradient in the parameters."""
            solver.zero_grad()
            value = self._loss(free * stretch, intercept, penalty)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with _threads_that_pay(self._features.numel() * len(intercept)):
            solver.step(loss)  # type: ignore[no-untyped-call]
        gradients = torch.autograd.grad(
            self._loss(free * stretch, intercept, penalty), (free, intercept)
        )
        converged = all(bool(part.abs().max() <= 2 * _GRADIENT_TOLERANCE) for part in gradients)
        self._weight, self._intercept = (free * stretch).detach(), intercept.detach()
        return self._axes @ self._weight, self._intercept, converged

    def _loss(self, weight: Tensor, intercept: Tensor, penalty: float) -> Tensor:
        logits = self._features @ weight + intercept
        if self._kind == "single":
            likelihood = functional.cross_entropy(logits, self._target)
        else:  # summed over classes, so that each class is a regression of its own
            likelihood = functional.binary_cross_entropy_with_logits(
                logits, self._target, reduction="sum"
            ) / len(logits)
        return likelihood + penalty / 2 * weight.square().sum()


@contextmanager
def _threads_that_pay(products: int) -> Iterator[None]:
    """Use one thread for the time of the block, unless there is work for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if products > _WORTH_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return variances (r,) and orthonormal axes (D, r) that span the rows of (N, D) features."""
    num_samples, width = features.shape
    if num_samples < width:  # cheaper, and the directions left out have weight 0 at the optimum
        _, singular, rows = torch.linalg.svd(features, full_matrices=False)
        return singular.square() / num_samples, rows.T
    variance, axes = torch.linalg.eigh(features.T @ features / num_samples)
    return variance.clamp_min(0), axes
