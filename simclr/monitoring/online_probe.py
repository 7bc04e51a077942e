"""The online probe: scores of an encoder during training on held-out labelled shards.

The classifiers are those of the final evaluation, chosen and scored on the validation split; test
samples are never scored, so that they can judge the checkpoint chosen here. Samples, splits and
order are fixed, and no global random numbers are drawn: weights are the same with and without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig, PresetName, TrainConfig, require
from simclr.data.dataset import open_dataset
from simclr.data.loader import Loader
from simclr.data.sampler import Samples, permutation
from simclr.distributed import DistributedContext, copy_from_main_rank, from_main_rank, gather_rows
from simclr.evaluation.config import SCORES, EvaluateConfig, Protocol
from simclr.evaluation.features import Embedder, Features, image_statistics, random_encoder
from simclr.evaluation.jobs import EvalData, EvalJob, EvaluatedEncoder
from simclr.evaluation.metrics import metric_table, unit_weights
from simclr.evaluation.probes import knn, linear_probe
from simclr.evaluation.splits import Split, make_splits
from simclr.evaluation.task import open_task
from simclr.model.batchnorm import running_statistics
from simclr.monitoring.health import moments, ranks_of_moments

_BATCH_SIZE = 256
_SEED = 0  # of a drawn split, the chosen samples and the random control
_ENCODER = "encoder"


class OnlineProbe:
    """Scores an encoder on part of a labelled task; all ranks share the forward passes.

    ``headline`` is the key of the score that selects checkpoints. ValueError if the shards lack a
    band or the label set, or the labels cannot form a task.
    """

    def __init__(self, config: TrainConfig, context: DistributedContext) -> None:
        self._config, self._context, monitor = config, context, config.monitor
        # training and validation samples of the task, at most ``max_samples``
        self._dataset = dataset = open_dataset([monitor.shards], config.data.bands)
        whole = make_splits(open_task(dataset, monitor.task), [_SEED]).by_seed[0]
        rows = np.sort(np.concatenate([whole.train, whole.validation]))
        shuffled = permutation(len(rows), _SEED, 0)
        chosen: Samples = np.sort(rows[shuffled[: monitor.max_samples]])
        dataset.select(chosen)
        train, validation = (
            np.flatnonzero(np.isin(chosen, part)) for part in (whole.train, whole.validation)
        )
        self._task = open_task(dataset, monitor.task)
        self._split = Split(train, validation, validation)
        answers = self._task.targets[train]
        require(
            len(validation) > 0 and bool((answers != answers[:1]).any()),
            f"monitor.max_samples is {monitor.max_samples}, of which {len(train)} train and "
            f"{len(validation)} validate; a probe needs training patches of two classes and one to "
            "validate, so raise it",
        )
        # 0 keeps the grid of the patches, as in the final evaluation
        augment = AugmentConfig(preset=PresetName.none, view_size_px=config.augment.view_size_px)
        self._maker = ViewMaker(dataset, augment, 0, context.device)
        self._main_score = SCORES[self._task.kind][0]
        self.headline = f"probe/{self._main_score}"

    def score(self, encoder: nn.Module) -> dict[str, float]:
        """Return k-NN and linear-probe scores and RankMe of h, equal on all ranks.

        Every rank must call it at the same step. The encoder is returned to training mode.
        """
        # Each rank has its own running statistics; rank 0's are the ones that are saved.
        copy_from_main_rank(running_statistics(encoder))
        encoder.eval()
        features = self._features({_ENCODER: encoder})[_ENCODER]
        encoder.train()
        return self._told_by_main(lambda: self._scores(features))

    def controls(self) -> dict[str, float]:
        """Return the headline score of untrained controls, equal on all ranks."""
        config, device = self._config, self._context.device
        untrained = random_encoder(config.model, len(self._dataset.bands), _SEED, device)
        features = self._features(
            {"random_encoder": untrained, "image_statistics": image_statistics}
        )
        return self._told_by_main(
            lambda: {
                f"controls/{name}": self._table(Protocol.probe, rows)[self._main_score]
                for name, rows in features.items()
            }
        )

    def _features(self, embedders: Mapping[str, Embedder]) -> dict[str, Features]:
        """Return (N, D) features per embedder on all ranks; each rank embeds a part."""
        num, size = self._dataset.num_samples, self._context.size
        share = -(-num // size)
        # All ranks need equal numbers of rows; surplus rows repeat the last sample.
        own = np.arange(share, dtype=np.int64) + self._context.rank * share
        parts = np.array_split(np.minimum(own, num - 1), -(-share // _BATCH_SIZE))
        loader = Loader(
            self._dataset,
            parts.__getitem__,
            num_batches=len(parts),
            batch_size=len(parts[0]),
            device=self._context.device,
        )
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in embedders}
        with torch.no_grad():
            for batch in loader:
                views = self._maker.eval_views(batch)
                for name, embed in embedders.items():
                    rows[name].append(embed(views).float())
            joined = {name: gather_rows(torch.cat(parts)) for name, parts in rows.items()}
        return {name: part[:num].cpu().numpy() for name, part in joined.items()}

    def _told_by_main(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        # Only the main rank fits; the others wait, and receive the exact numbers.
        text = json.dumps(measure()) if self._context.is_main else ""
        told: dict[str, float] = json.loads(from_main_rank(text))
        return told

    def _scores(self, features: Features) -> dict[str, float]:
        ranks = ranks_of_moments(moments(torch.from_numpy(features)))
        return {
            **{f"held_out/{name}": value for name, value in ranks.items()},
            **{
                f"{protocol.name}/{score}": value
                for protocol in (Protocol.knn, Protocol.probe)
                for score, value in self._table(protocol, features).items()
            },
        }

    def _table(self, protocol: Protocol, features: Features) -> dict[str, float]:
        encoder = EvaluatedEncoder(_ENCODER, None, None)
        job = EvalJob(encoder, protocol, 1.0, _SEED, self._split)
        config = EvaluateConfig(neighbours=self._config.monitor.neighbours)
        data = EvalData(self._task, lambda _: features, config)
        result = knn(job, data) if protocol is Protocol.knn else linear_probe(job, data)
        table = metric_table(result.targets, result.predictions, self._task.kind)
        overall = table(unit_weights(len(result.test))).overall
        return {name: float(value[0]) for name, value in overall.items()}
