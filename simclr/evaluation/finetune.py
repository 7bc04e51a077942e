"""The fine-tuning protocols: an encoder and a linear layer trained on labelled patches.

A pretrained encoder and the same architecture from scratch are trained alike: rate, steps and the
state that counts are chosen on the validation patches for each of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simclr.config import Precision
from simclr.evaluation.baselines import EvalData, EvalJob, EvalResult
from simclr.evaluation.config import FinetuneConfig, Protocol
from simclr.evaluation.features import (
    LabelledPatches,
    apply_symmetry,
    averaged_over_symmetries,
    draw_symmetries,
    steps_per_epoch,
)
from simclr.evaluation.metrics import ScoreArray, primary_metric
from simclr.evaluation.probes import result_of
from simclr.optim import parameter_groups

_WARMUP_SHARE = 0.1
_BATCH_SIZE = 256


class Classifier(nn.Module):
    """An encoder with a linear layer on its standardised representations.

    Views (B, C, S, S) to logits (B, classes).
    """

    def __init__(self, encoder: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        # Encoders differ in scale by orders of magnitude; one rate cannot suit them all unscaled.
        self.scale = nn.BatchNorm1d(width, affine=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, views: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.head(self.scale(self.encoder(views)))
        return logits


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A trained classifier in evaluation mode, and how it was trained.

    Attributes:
        classifier: views to logits.
        kind: of its task.
        learning_rate: the rate that was chosen.
        step: optimizer steps at which its weights were taken.
        num_steps: that were taken.
        validation: primary metric there.
    """

    classifier: Classifier
    kind: str
    learning_rate: float
    step: int
    num_steps: int
    validation: float

    def choices(self) -> dict[str, Any]:
        """Return what was chosen on validation, for the report."""
        return {
            "learning_rate": self.learning_rate,
            "step": self.step,
            "num_steps": self.num_steps,
            "validation": self.validation,
        }


def fine_tune(job: EvalJob, data: EvalData) -> EvalResult:
    """Train the network of a job and predict the test split.

    Raises:
        ValueError: its encoder is no network, or all training patches have the same labels.
    """
    patches, split, config, network = data.patches, job.split, data.config, job.encoder.network
    if network is None or patches is None:
        raise ValueError(f"{job.row} is no network that can be trained")
    train, validation = patches.only(split.train), patches.only(split.validation)
    tuned = finetune(network, train, validation, config.finetune, job.protocol, job.seed)
    on_validation, on_test = (
        predict(tuned, part, test_time=config.test_time)
        for part in (validation, patches.only(split.test))
    )
    return result_of(job, data.task, on_validation, on_test, tuned.choices())


def finetune(
    encoder: nn.Module,
    train: LabelledPatches,
    validation: LabelledPatches,
    config: FinetuneConfig,
    depth: Protocol = Protocol.finetune_all,
    seed: int = 0,
) -> Finetuned:
    """Train a classifier on labelled patches, starting from an encoder, which is left as it is.

    Args:
        encoder: views (B, C, S, S) to h (B, width), as torchvision names its parts.
        train: patches to learn from.
        validation: patches that choose the rate and the state.
        config: how long, and with which rates.
        depth: what is trained beside the classifier; what is not keeps its weights and its
            BatchNorm statistics.
        seed: of the classifier's first weights, the order and the symmetries.

    Raises:
        ValueError: all training patches have the same labels, or there is one only.
    """
    _require_two_classes(train)
    per_epoch = steps_per_epoch(len(train.rows), config.batch_size)
    num_steps = min(config.max_steps, config.epochs * per_epoch)
    return max(
        (
            _train(
                _build(encoder, train, seed),
                train,
                validation,
                _Recipe(config, depth, seed, rate, num_steps),
            )
            for rate in config.learning_rates
        ),
        key=lambda tuned: tuned.validation,
    )


def predict(tuned: Finetuned, patches: LabelledPatches, *, test_time: bool = False) -> ScoreArray:
    """Return probabilities (n, C) float32 of patches, each independent of its batch.

    Args:
        tuned: the classifier.
        patches: to be predicted.
        test_time: average the probabilities over the 8 symmetries of each patch.
    """
    return _probabilities(tuned.classifier, patches, tuned.kind, test_time=test_time)


def _probabilities(
    classifier: Classifier, patches: LabelledPatches, kind: str, *, test_time: bool = False
) -> ScoreArray:
    def probabilities(views: Tensor) -> Tensor:
        """Return probabilities (B, C)."""
        logits: Tensor = classifier(views)
        return logits.softmax(dim=1) if kind == "single" else logits.sigmoid()

    network = averaged_over_symmetries(probabilities) if test_time else probabilities
    classifier.eval()  # BatchNorm would otherwise mix the patches of a batch
    with torch.inference_mode():
        parts = [network(views).float().cpu().numpy() for views in patches.in_order(_BATCH_SIZE)]
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """One learning rate of the search, and the settings that all rates share."""

    config: FinetuneConfig
    depth: Protocol
    seed: int
    rate: float
    num_steps: int

    @property
    def checks(self) -> set[int]:
        """Steps after which the validation score is taken, the last one among them."""
        count = self.config.checks
        return {math.ceil(self.num_steps * (k + 1) / count) for k in range(count)}

    def share(self, step: int) -> float:
        """Return the rate as a share of its peak: linear warm-up, then a cosine to 0."""
        warmup = max(1, round(_WARMUP_SHARE * self.num_steps))
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(1, self.num_steps - warmup))) / 2


def _train(
    classifier: Classifier, train: LabelledPatches, validation: LabelledPatches, recipe: _Recipe
) -> Finetuned:
    """Train for all steps of a recipe; return the state with the best validation score."""
    trained = _unfreeze(classifier, recipe.depth)
    groups = parameter_groups(classifier, recipe.config.weight_decay)
    # fused: unfused, the update is a tenth of a step on a CPU
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.share)
    best, state = -math.inf, classifier.state_dict()
    step_of_best, checks = 0, recipe.checks
    for step, (views, targets) in enumerate(_batches(train, recipe), start=1):
        for part in trained:
            part.train()
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(classifier, views, targets, train.kind, recipe.config.precision)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step in checks and (score := _primary_metric(classifier, validation)) >= best:
            best, step_of_best = score, step
            state = copy.deepcopy(classifier.state_dict())
    classifier.load_state_dict(state)
    classifier.eval().requires_grad_(False)
    return Finetuned(classifier, train.kind, recipe.rate, step_of_best, recipe.num_steps, best)


def _batches(train: LabelledPatches, recipe: _Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield views and targets of each step, under random symmetries if the settings say so."""
    batches = train.shuffled(recipe.config.batch_size, recipe.num_steps, recipe.seed)
    for epoch, sample_id, views, targets in batches:
        if recipe.config.symmetries:
            yield apply_symmetry(views, draw_symmetries(recipe.seed, epoch, sample_id)), targets
        else:
            yield views, targets


def _build(encoder: nn.Module, train: LabelledPatches, seed: int) -> Classifier:
    encoder = copy.deepcopy(encoder).eval()
    with torch.inference_mode():
        width = encoder(torch.zeros(1, *train.view_shape, device=train.device)).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(encoder, width, train.targets.shape[1]).to(train.device)


def _unfreeze(classifier: Classifier, depth: Protocol) -> list[nn.Module]:
    """Unfreeze the parts that are trained, and return them."""
    encoder: nn.Module = classifier.encoder
    parts: dict[Protocol, list[nn.Module]] = {
        Protocol.finetune_frozen: [],
        Protocol.finetune_all: [encoder],
    }
    if depth is Protocol.finetune_last_stage:
        parts[depth] = [encoder.get_submodule("layer4")]
    trained = [*parts[depth], classifier.scale, classifier.head]
    classifier.eval().requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    return trained


def _loss(
    classifier: Classifier, views: Tensor, targets: Tensor, kind: str, precision: Precision
) -> Tensor:
    half = precision is Precision.bfloat16
    with torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=half):
        logits = classifier(views)
    target = targets.float()
    if kind == "single":
        return functional.cross_entropy(logits.float(), target)
    return functional.binary_cross_entropy_with_logits(logits.float(), target)


def _primary_metric(classifier: Classifier, validation: LabelledPatches) -> float:
    scores = _probabilities(classifier, validation, validation.kind)
    return primary_metric(validation.targets[validation.rows], scores, validation.kind)


def _require_two_classes(train: LabelledPatches) -> None:
    targets = train.targets[train.rows]
    if len(targets) < 2 or (targets == targets[0]).all():
        raise ValueError(
            f"all {len(targets)} training patches have the same labels; a classifier needs two "
            "classes"
        )
