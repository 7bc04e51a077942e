"""The fine-tuning protocols: an encoder and a linear layer trained on labelled patches.

For pretrained and untrained encoders alike, the validation patches choose learning rate and state.
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

from simclr.config import Precision, require
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

    Maps views (B, C, S, S) to logits (B, classes).
    """

    def __init__(self, encoder: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        # Encoders differ in scale by orders of magnitude; unscaled, no single rate suits them all.
        self.scale = nn.BatchNorm1d(width, affine=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, views: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.head(self.scale(self.encoder(views)))
        return logits


def fine_tune(job: EvalJob, data: EvalData) -> EvalResult:
    """Train the network of a job and predict the test split.

    Raises:
        ValueError: its encoder is not trainable, or all training patches have the same labels.
    """
    patches, split, config, network = data.patches, job.split, data.config, job.encoder.network
    if network is None or patches is None:
        raise ValueError(f"{job.row} is not a network that can be trained")
    train, validation, test = map(patches.only, (split.train, split.validation, split.test))
    tuning = FineTuning(train, validation, config.finetune, job.protocol, job.seed)
    classifier, choices = tuning.fit(network)
    on_validation, on_test = (
        predict(classifier, part, test_time=config.test_time) for part in (validation, test)
    )
    return result_of(job, data.task, on_validation, on_test, choices)


@dataclass(frozen=True, slots=True)
class FineTuning:
    """A search for the best learning rate and state of a classifier, by the validation patches.

    Parts that ``depth`` does not train keep their weights and BatchNorm statistics. ``seed``
    determines the initial weights of the classifier, the order of patches and the symmetries.
    """

    train: LabelledPatches
    validation: LabelledPatches
    config: FinetuneConfig
    depth: Protocol = Protocol.finetune_all
    seed: int = 0

    def fit(self, encoder: nn.Module) -> tuple[Classifier, dict[str, Any]]:
        """Train a classifier on a copy of the encoder at every learning rate.

        Returns:
            The best classifier, in evaluation mode, and the choices made on validation, for the
            report: ``learning_rate``, the ``step`` (of ``num_steps``) of the returned weights,
            and ``validation``, the primary metric at that step.

        Raises:
            ValueError: all training patches have the same labels, there is only one, or training
                diverged at every learning rate.
        """
        targets = self.train.targets[self.train.rows]
        require(
            len(targets) > 1 and bool((targets != targets[0]).any()),
            f"all {len(targets)} training patches have the same labels; a classifier needs two "
            "classes",
        )
        rates = self.config.learning_rates
        tuned = (self._train(encoder, rate) for rate in rates)
        best = max(tuned, key=lambda one: one[1]["validation"])
        state = best[0].state_dict().values()
        require(
            all(bool(tensor.isfinite().all()) for tensor in state),
            f"training diverged at every rate of finetune.learning_rates={rates}; give lower ones",
        )
        return best

    def _train(self, encoder: nn.Module, rate: float) -> tuple[Classifier, dict[str, Any]]:
        """Train for all steps; return the state with the best validation score."""
        train, validation, config = self.train, self.validation, self.config
        per_epoch = steps_per_epoch(len(train.rows), config.batch_size)
        num_steps = min(config.max_steps, config.epochs * per_epoch)
        checks = {math.ceil(num_steps * (k + 1) / config.checks) for k in range(config.checks)}
        classifier, trained = self._build(encoder)
        groups = parameter_groups(classifier, config.weight_decay)
        # fused: otherwise, the update takes a tenth of a step on a CPU
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
            if step not in checks:
                continue
            scores = predict(classifier, validation)
            score = -math.inf  # of a state that has diverged, which no rate should cost the others
            if np.isfinite(scores).all():
                score = primary_metric(validation.targets[validation.rows], scores, validation.kind)
            if score >= best:
                best, step_of_best = score, step
                state = copy.deepcopy(classifier.state_dict())
        classifier.load_state_dict(state)
        classifier.eval().requires_grad_(False)
        choices = {"learning_rate": rate, "step": step_of_best, "num_steps": num_steps}
        return classifier, {**choices, "validation": best}

    def _build(self, encoder: nn.Module) -> tuple[Classifier, list[nn.Module]]:
        """Return a classifier, frozen except for the parts to train, and these parts."""
        train = self.train
        encoder, size_px = copy.deepcopy(encoder).eval(), train.maker.view_size_px
        view = torch.zeros(1, len(train.dataset.bands), size_px, size_px, device=train.device)
        with torch.inference_mode():
            width = encoder(view).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            classifier = Classifier(encoder, width, train.targets.shape[1]).to(train.device)
        trained: list[nn.Module] = [classifier.scale, classifier.head]
        if self.depth is Protocol.finetune_all:
            trained.insert(0, classifier.encoder)
        elif self.depth is Protocol.finetune_last_stage:
            trained.insert(0, classifier.encoder.get_submodule("layer4"))
        classifier.eval().requires_grad_(False)
        for part in trained:
            part.requires_grad_(True)
        return classifier, trained


def predict(
    classifier: Classifier, patches: LabelledPatches, *, test_time: bool = False
) -> ScoreArray:
    """Return probabilities (n, C) float32 of patches, each independent of its batch.

    ``test_time`` averages them over the 8 symmetries of each patch.
    """

    def probabilities(views: Tensor) -> Tensor:
        """Return the probability of each class."""
        logits: Tensor = classifier(views)
        return logits.softmax(dim=1) if patches.kind == "single" else logits.sigmoid()

    network = averaged_over_symmetries(probabilities) if test_time else probabilities
    classifier.eval()  # BatchNorm would otherwise mix the patches of a batch
    with torch.inference_mode():
        parts = [network(views).float().cpu().numpy() for views in patches.in_order(_BATCH_SIZE)]
    return np.concatenate(parts)


def _rate_share(step: int, num_steps: int) -> float:
    """Return the rate as a fraction of its peak: linear warm-up, then cosine decay to 0."""
    warmup = max(1, round(_WARMUP_SHARE * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup))) / 2


def _loss(
    classifier: Classifier, views: Tensor, targets: Tensor, kind: str, precision: Precision
) -> Tensor:
    half = precision is Precision.bfloat16
    with torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=half):
        logits = classifier(views).float()
    if kind == "single":
        return functional.cross_entropy(logits, targets.float())
    return functional.binary_cross_entropy_with_logits(logits, targets.float())
