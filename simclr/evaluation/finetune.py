"""The fine-tuning protocols: an encoder and a linear layer trained on labelled patches.

A pretrained encoder and the same architecture from scratch are trained alike: rate, steps and the
state that counts are chosen on the validation patches for each of them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simclr.config import Precision
from simclr.evaluation.config import FinetuneConfig, Protocol
from simclr.evaluation.features import (
    LabelledPatches,
    apply_symmetry,
    averaged_over_symmetries,
    draw_symmetries,
    steps_per_epoch,
)
from simclr.evaluation.jobs import EvalData, EvalJob, EvalResult
from simclr.evaluation.metrics import ScoreArray, primary_metric
from simclr.evaluation.probes import result_of
from simclr.optim import parameter_groups
from simclr.philox import Philox

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
    """A trained classifier in evaluation mode, and what was chosen on validation, for the report.

    ``choices`` hold the ``learning_rate``, the ``step`` of ``num_steps`` at which the weights were
    taken, and ``validation``, the primary metric there.
    """

    classifier: Classifier
    choices: dict[str, Any]


def fine_tune(job: EvalJob, data: EvalData) -> EvalResult:
    """Train the network of a job and predict the test split.

    Raises:
        ValueError: its encoder is no network, or all training patches have the same labels.
    """
    patches, split, config, network = data.patches, job.split, data.config, job.encoder.network
    if network is None or patches is None:
        raise ValueError(f"{job.row} is not a network that can be trained")
    train, validation, test = map(patches.only, (split.train, split.validation, split.test))
    tuning = FineTuning(train, validation, config.finetune, job.protocol, job.seed)
    tuned = tuning.fit(network)
    on_validation, on_test = (
        predict(tuned.classifier, part, test_time=config.test_time) for part in (validation, test)
    )
    return result_of(job, data.task, on_validation, on_test, tuned.choices)


@dataclass(frozen=True, slots=True)
class FineTuning:
    """A search for the best learning rate and state of a classifier.

    Attributes:
        train: patches to learn from.
        validation: patches that choose the rate and the state.
        config: how long, and with which rates.
        depth: what is trained beside the classifier; what is not keeps its weights and its
            BatchNorm statistics.
        seed: of the classifier's first weights, the order and the symmetries.
    """

    train: LabelledPatches
    validation: LabelledPatches
    config: FinetuneConfig
    depth: Protocol = Protocol.finetune_all
    seed: int = 0

    def fit(self, encoder: nn.Module) -> Finetuned:
        """Train a classifier from an encoder, which is left as it is, at every rate.

        Raises:
            ValueError: all training patches have the same labels, or there is one only.
        """
        targets = self.train.targets[self.train.rows]
        if len(targets) < 2 or (targets == targets[0]).all():
            raise ValueError(
                f"all {len(targets)} training patches have the same labels; a classifier needs "
                "two classes"
            )
        tuned = (self._train(encoder, rate) for rate in self.config.learning_rates)
        return max(tuned, key=lambda one: one.choices["validation"])

    def _train(self, encoder: nn.Module, rate: float) -> Finetuned:
        """Train for all steps; return the state with the best validation score."""
        train, config = self.train, self.config
        per_epoch = steps_per_epoch(len(train.rows), config.batch_size)
        num_steps = min(config.max_steps, config.epochs * per_epoch)
        checks = {math.ceil(num_steps * (k + 1) / config.checks) for k in range(config.checks)}
        classifier = _build(encoder, train, self.seed)
        trained = _unfreeze(classifier, self.depth)
        groups = parameter_groups(classifier, config.weight_decay)
        # fused: unfused, the update is a tenth of a step on a CPU
        optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _rate_share(step, num_steps)
        )
        best, step_of_best, state = -math.inf, 0, classifier.state_dict()
        generator = Philox(self.seed, next(encoder.parameters()).device)
        batches = train.shuffled(config.batch_size, num_steps, self.seed)
        for step, (epoch, sample_id, views, targets) in enumerate(batches, start=1):
            if config.symmetries:
                views = apply_symmetry(views, draw_symmetries(generator, epoch, sample_id))
            for part in trained:
                part.train()
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(classifier, views, targets, train.kind, config.precision)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step in checks and (score := _score(classifier, self.validation)) >= best:
                best, step_of_best = score, step
                state = copy.deepcopy(classifier.state_dict())
        classifier.load_state_dict(state)
        classifier.eval().requires_grad_(False)
        choices = {
            "learning_rate": rate,
            "step": step_of_best,
            "num_steps": num_steps,
            "validation": best,
        }
        return Finetuned(classifier, choices)


def predict(
    classifier: Classifier, patches: LabelledPatches, *, test_time: bool = False
) -> ScoreArray:
    """Return probabilities (n, C) float32 of patches, each independent of its batch.

    ``test_time`` averages them over the 8 symmetries of each patch.
    """

    def probabilities(views: Tensor) -> Tensor:
        """Return probabilities (B, C)."""
        logits: Tensor = classifier(views)
        return logits.softmax(dim=1) if patches.kind == "single" else logits.sigmoid()

    network = averaged_over_symmetries(probabilities) if test_time else probabilities
    classifier.eval()  # BatchNorm would otherwise mix the patches of a batch
    with torch.inference_mode():
        parts = [network(views).float().cpu().numpy() for views in patches.in_order(_BATCH_SIZE)]
    return np.concatenate(parts)


def _score(classifier: Classifier, patches: LabelledPatches) -> float:
    scores = predict(classifier, patches)
    return primary_metric(patches.targets[patches.rows], scores, patches.kind)


def _rate_share(step: int, num_steps: int) -> float:
    """Return the rate as a share of its peak: linear warm-up, then a cosine to 0."""
    warmup = max(1, round(_WARMUP_SHARE * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup))) / 2


def _build(encoder: nn.Module, train: LabelledPatches, seed: int) -> Classifier:
    encoder, size_px = copy.deepcopy(encoder).eval(), train.maker.view_size_px
    view = torch.zeros(1, len(train.dataset.bands), size_px, size_px, device=train.device)
    with torch.inference_mode():
        width = encoder(view).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(encoder, width, train.targets.shape[1]).to(train.device)


def _unfreeze(classifier: Classifier, depth: Protocol) -> list[nn.Module]:
    """Unfreeze the parts that are trained, and return them."""
    trained: list[nn.Module] = [classifier.scale, classifier.head]
    if depth is Protocol.finetune_all:
        trained.insert(0, classifier.encoder)
    elif depth is Protocol.finetune_last_stage:
        trained.insert(0, classifier.encoder.get_submodule("layer4"))
    classifier.eval().requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    return trained


def _loss(
    classifier: Classifier, views: Tensor, targets: Tensor, kind: str, precision: Precision
) -> Tensor:
    half = precision is Precision.bfloat16
    with torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=half):
        logits = classifier(views).float()
    if kind == "single":
        return functional.cross_entropy(logits, targets.float())
    return functional.binary_cross_entropy_with_logits(logits, targets.float())
