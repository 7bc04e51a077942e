"""The evaluation loop: jobs of encoders, protocols, label fractions and seeds, scored and reported.

``simclr-evaluate`` calls ``evaluate`` for the test split, or ``select_checkpoint``, the same loop
over the checkpoints of a run on the validation split. All ranks extract features and fit
classifiers; the main one scores and writes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preprocess.shards.atomic_io import write_json
from simclr.augment.views import ViewMaker
from simclr.checkpoint.manifest import CHECKPOINTS, FOLDER_PATTERN, folder_name, verify
from simclr.checkpoint.pretrained import Pretrained, load_pretrained, saved_steps
from simclr.config import AugmentConfig, PresetName, WorldConfig, require
from simclr.config_io import to_plain
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.distributed import (
    TIMEOUT_S,
    DistributedContext,
    Rendezvous,
    distributed_context,
    from_main_rank,
    map_over_ranks,
    meet,
)
from simclr.evaluation.baselines import (
    EvalData,
    EvalJob,
    EvalResult,
    EvaluatedEncoder,
    eval_jobs,
    of_checkpoint,
    open_encoders,
)
from simclr.evaluation.bootstrap import (
    Blocks,
    Difference,
    Row,
    choose_blocks,
    compare,
    holm,
    score_results,
)
from simclr.evaluation.config import PRETRAINED, SCORES, EvaluateConfig, Protocol
from simclr.evaluation.features import (
    FeatureCache,
    LabelledPatches,
    averaged_over_symmetries,
    feature_map,
    progress_bar,
    store_features,
)
from simclr.evaluation.finetune import fine_tune
from simclr.evaluation.metrics import Indices
from simclr.evaluation.probes import PENALTIES, TEMPERATURE, knn, linear_probe
from simclr.evaluation.report import (
    CHOICE_FORMAT,
    CHOICE_FORMAT_VERSION,
    CHOICE_NAME,
    FOLDER_NAME,
    choice_findings,
    choice_notes,
    findings,
    notes,
    own_path,
    verdict,
    write_report,
)
from simclr.evaluation.splits import Splits, make_splits, on_validation, seen_in_pretraining
from simclr.evaluation.task import Task, open_task

PROTOCOLS: dict[Protocol, Callable[[EvalJob, EvalData], EvalResult]] = {
    Protocol.knn: knn,
    Protocol.probe: linear_probe,
    Protocol.finetune_frozen: fine_tune,
    Protocol.finetune_last_stage: fine_tune,
    Protocol.finetune_all: fine_tune,
}
# Raise it when a control or the plain view changes, so that features stored before are not used.
FEATURES_VERSION = 2
_ENCODERS_A_PASS = 8  # checkpoints in memory at a time, each of which embeds every patch of a pass


@dataclass(frozen=True, slots=True)
class EvalSetup:
    """What an evaluation fixes before anything is scored.

    Attributes:
        config: as the user gave it.
        pretrained: the encoder in question.
        dataset: the labelled samples alone.
        task: their targets.
        splits: one a seed.
        blocks: what the bootstrap draws, over the tested samples.
        overlap: share of the test samples that the encoder was pretrained on; NaN if unknown.
    """

    config: EvaluateConfig
    pretrained: Pretrained
    dataset: ShardDataset
    task: Task
    splits: Splits
    blocks: Blocks
    overlap: float = math.nan

    @property
    def name(self) -> str:
        """Of all files of this task and these shards."""
        return f"{self.task.name}-{self.dataset.fingerprint}"


def open_setup(
    config: EvaluateConfig, device: torch.device, *, validation: bool = False
) -> EvalSetup:
    """Load the encoder and the task, and fix the splits.

    Args:
        config: run, shards and task.
        device: of the encoder.
        validation: test on the validation samples, and leave the test samples unread.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.shards), "shards is empty; give a packed folder, shards=SHARDS")
    pretrained = load_pretrained(Path(config.run), device, config.step)
    dataset = _open_labelled(config, pretrained)
    task = open_task(dataset, config.task, balanced=config.balanced)
    splits = make_splits(task, config.seeds, config.split)
    splits = on_validation(task, splits) if validation else splits
    tested = splits.tested
    units = {"tile": task.tiles, "block": task.blocks, "cell": task.cells}
    blocks = choose_blocks({name: of[tested] for name, of in units.items()}, len(tested))
    overlap = seen_in_pretraining(pretrained, dataset, config.shards, tested)
    return EvalSetup(config, pretrained, dataset, task, splits, blocks, overlap)


def _open_labelled(config: EvaluateConfig, pretrained: Pretrained) -> ShardDataset:
    bands = pretrained.config.data.bands
    try:
        return open_dataset([config.shards], bands)
    except ValueError as error:
        text = str(error).removesuffix("; set data.bands")
        if text == str(error):
            raise
        raise ValueError(
            f"{text}; the run reads {', '.join(bands)}: evaluate it on shards with these bands, or "
            "pretrain on the bands of these shards"
        ) from error


def evaluate(
    config: EvaluateConfig, progress: bool = True, rendezvous: Rendezvous | None = None
) -> Path:
    """Score a run's encoder on a labelled task, beside encoders that learnt nothing.

    Args:
        config: run, shards, task and protocols.
        progress: show progress bars.
        rendezvous: of this process with the other ranks; None: torchrun's, or one process alone.

    Returns:
        The path of ``RUN/evaluation/TASK-FINGERPRINT.json``; ``RUN/evaluation.json`` and ``.md``
        hold all evaluations of the run.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    with distributed_context(WorldConfig(timeout_s=TIMEOUT_S), rendezvous) as context:
        setup = open_setup(config, context.device)
        encoders = open_encoders(config, setup.pretrained, context.device)
        extract(setup, encoders, context, progress=progress)
        results = run_jobs(setup, encoders, context, progress=progress)
        if context.is_main:
            rows = _score(setup, results)
            write_report(
                Path(config.run), evaluation_report(setup, rows, _cache(setup, encoders, context))
            )
        meet(context)
    return own_path(Path(config.run), setup.name)


def run_jobs(
    setup: EvalSetup,
    encoders: Sequence[EvaluatedEncoder],
    context: DistributedContext,
    *,
    progress: bool,
) -> list[EvalResult]:
    """Run every encoder under every protocol, fraction and seed that makes a difference to it."""
    jobs = eval_jobs(encoders, setup.config, setup.task, setup.splits)
    cache, num_samples = _cache(setup, encoders, context), len(setup.task.ids)

    @lru_cache(maxsize=1)  # jobs of one encoder follow each other; all features may be large
    def features(name: str) -> Any:
        """Return the stored features of an encoder."""
        return cache.stored(name, num_samples)

    data = EvalData(setup.task, features, setup.config, _patches(setup, context.device))
    with progress_bar("classifiers", "fit", -(-len(jobs) // context.size), shown=progress) as bar:

        def run(job: EvalJob) -> EvalResult:
            """Run a job by its protocol."""
            result = PROTOCOLS[job.protocol](job, data)
            bar.update()
            return result

        return map_over_ranks(jobs, run, context)


def extract(
    setup: EvalSetup,
    encoders: Sequence[EvaluatedEncoder],
    context: DistributedContext,
    *,
    progress: bool,
) -> None:
    """Leave the features of all labelled samples in the cache, extracted in one pass if missing."""
    config, patches, cache = (
        setup.config,
        _patches(setup, context.device),
        _cache(setup, encoders, context),
    )
    embedders = {
        one.features_name: averaged_over_symmetries(one.embed) if config.test_time else one.embed
        for one in encoders
        if one.embed is not None
    }

    def views(rows: Indices) -> Iterable[Tensor]:
        """Start a pass over some samples."""
        return patches.only(rows).in_order(config.batch_size)

    if context.is_main:  # features of checkpoints that are gone: nothing would read them again
        saved = set(map(folder_name, saved_steps(Path(config.run))))
        for path in cache.folder.glob(f"{FOLDER_PATTERN}.npz"):
            if path.stem not in saved:
                path.unlink()
    store_features(cache, embedders, views, len(patches.rows), context, progress=progress)


def _patches(setup: EvalSetup, device: torch.device) -> LabelledPatches:
    # 0 keeps the grid of the patches at hand: the encoder has learnt a ground resolution
    size_px = setup.pretrained.config.augment.view_size_px
    augment = AugmentConfig(preset=PresetName.none, view_size_px=size_px)
    maker = ViewMaker(setup.dataset, augment, 0, device)
    rows = np.arange(setup.dataset.num_samples)
    return LabelledPatches(setup.dataset, maker, rows, setup.task.targets, setup.task.kind, device)


def _cache(
    setup: EvalSetup, encoders: Sequence[EvaluatedEncoder], context: DistributedContext
) -> FeatureCache:
    dataset, config = setup.dataset, setup.config
    return FeatureCache(
        Path(config.run) / FOLDER_NAME / "features" / setup.name,
        {
            "version": FEATURES_VERSION,
            "torch": torch.__version__,
            "device": context.device.type,
            "model": to_plain(setup.pretrained.config.model),
            "shards": dataset.fingerprint,
            "samples": hashlib.sha256(dataset.sample_id.tobytes()).hexdigest(),
            "bands": dataset.bands,
            "view_size_px": _patches(setup, context.device).maker.view_size_px,
            "test_time": config.test_time,
        },
        {one.features_name: one.weights for one in encoders},
    )


def _score(setup: EvalSetup, results: Sequence[EvalResult]) -> list[Row]:
    tested = setup.splits.tested
    return score_results(results, setup.task.kind, tested, setup.blocks, setup.config.bootstrap)


def evaluation_report(setup: EvalSetup, rows: Sequence[Row], cache: FeatureCache) -> dict[str, Any]:
    """Return an evaluation as plain data, ready for JSON: NaN becomes null.

    Args:
        setup: what was fixed before.
        rows: the scored table.
        cache: of features, for the map of the pretrained encoder's.
    """
    differences = [
        difference
        for row in rows
        for control in rows
        if row.encoder == PRETRAINED != control.encoder
        and (row.protocol, row.fraction) == (control.protocol, control.fraction)
        for difference in _compare(setup, row, control)
    ]
    features = cache.stored(setup.pretrained.checkpoint.name, len(setup.task.ids))
    evaluation = without_nan(
        {
            **_facts(setup),
            "checkpoint": setup.pretrained.checkpoint.name,
            "step": setup.pretrained.step,
            "results": [row.as_data(setup.task.kind) for row in rows],
            "differences": _with_holm([asdict(one) for one in differences]),
            "map": feature_map(features, setup.task.targets, setup.splits.by_seed[0].test),
        }
    )
    return {
        **evaluation,
        "verdict": verdict(evaluation),
        "findings": findings(evaluation),
        "notes": notes(evaluation),
    }


def _facts(setup: EvalSetup) -> dict[str, Any]:
    """Return which run was evaluated on which patches, and how."""
    config, splits, task, pretrained = setup.config, setup.splits, setup.task, setup.pretrained
    first = splits.by_seed[0]
    parts = {"train": first.train, "validation": first.validation, "test": first.test}
    # the fewest over seeds: a class that any seed lacks is named
    positives = {
        part: np.min(
            [task.targets[getattr(one, part)].sum(axis=0) for one in splits.by_seed], axis=0
        )
        for part in parts
    }
    return {
        "simulated": setup.dataset.simulated or bool(pretrained.dataset["simulated"]),
        "run": config.run,
        "encoder": pretrained.config.model.encoder.value,
        "bands": list(setup.dataset.bands),
        "task": {
            "name": task.name,
            "kind": task.kind,
            "classes": list(task.classes),
            "positives": task.targets.sum(axis=0).tolist(),
        },
        "shards": {
            "folder": config.shards,
            "sources": list(setup.dataset.sources),
            "fingerprint": setup.dataset.fingerprint,
            "num_labelled": len(task.ids),
            "num_unlabelled": task.num_unlabelled,
            "num_surplus": task.num_surplus,
        },
        "split": {
            "origin": splits.origin,
            "redrawn": splits.redrawn,
            "seeds": list(config.seeds),
            "counts": {part: len(rows) for part, rows in parts.items()},
            "positives": {part: counts.tolist() for part, counts in positives.items()},
            "num_left_out": len(task.ids) - sum(map(len, parts.values())),
            "leakage": splits.leakage,
            "touching": splits.touching,
            "seen_in_pretraining": setup.overlap,
        },
        "protocol": {
            "features": "h in evaluation mode, standardised on the training split",
            "fractions": sorted(config.fractions),
            "test_time": config.test_time,
            "others": list(config.others),
            "fine-tune": to_plain(config.finetune),
            "k-NN": {"neighbours": config.neighbours, "temperature": TEMPERATURE},
            "linear probe": {"penalties": list(PENALTIES), "solver": "Newton-CG"},
            "bootstrap": {
                "resamples": config.bootstrap,
                "unit": setup.blocks.unit,
                "blocks": setup.blocks.count,
            },
        },
        "headline": SCORES[task.kind][0],
    }


def _compare(setup: EvalSetup, row: Row, other: Row) -> list[Difference]:
    """Return the paired differences of two rows, their test sets correlated as the splits are."""
    split = setup.splits.by_seed[0]
    ratio = len(split.test) / len(split.train) if setup.splits.redrawn else 0.0
    return compare(row, other, setup.task.kind, ratio)


def _with_holm(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return differences whose p-values are also corrected for the controls of a table."""
    families: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for one in differences:
        families.setdefault((one["protocol"], one["fraction"], one["score"]), []).append(one)
    for members in families.values():
        corrected = holm([one["p_value"] for one in members])
        for one, value in zip(members, corrected, strict=True):
            one["p_holm"] = value
    return differences


def without_nan(data: Any) -> Any:
    """Return plain data in which NaN is None, which JSON can hold."""
    if isinstance(data, dict):
        return {name: without_nan(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data


def select_checkpoint(
    config: EvaluateConfig,
    losses: Mapping[int, float],
    progress: bool = True,
    rendezvous: Rendezvous | None = None,
) -> Path:
    """Score every checkpoint of a run on the validation split of a labelled task.

    No label of the test split is read: it is to judge what is chosen here. Features of all labelled
    patches are kept for that evaluation.

    Args:
        config: run, shards, task; ``protocols`` without fine-tuning.
        losses: by logged step, to stand beside the scores.
        progress: show progress bars.
        rendezvous: of this process with the other ranks; None: torchrun's, or one process alone.

    Returns:
        The path of ``RUN/evaluation/TASK-FINGERPRINT/checkpoints.json``.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    run_dir = Path(config.run)
    with distributed_context(WorldConfig(timeout_s=TIMEOUT_S), rendezvous) as context:
        setup = open_setup(config, context.device, validation=True)
        # rank 0 decides for all: two ranks might see a damaged file differently
        text = json.dumps(_valid_checkpoints(run_dir)) if context.is_main else ""
        steps, damaged = json.loads(from_main_rank(text))
        _, *others = open_encoders(config, setup.pretrained, context.device)
        extract(setup, others, context, progress=progress)
        encoders = []
        for start in range(0, len(steps), _ENCODERS_A_PASS):
            loaded = [
                of_checkpoint(f"step {step}", load_pretrained(run_dir, context.device, step))
                for step in steps[start : start + _ENCODERS_A_PASS]
            ]
            extract(setup, loaded, context, progress=progress)
            encoders += [replace(one, embed=None) for one in loaded]
        results = run_jobs(setup, [*encoders, *others], context, progress=progress)
        path = run_dir / FOLDER_NAME / setup.name / CHOICE_NAME
        if context.is_main:
            write_json(path, _choice(setup, _score(setup, results), steps, losses, damaged))
        meet(context)
    return path


def _valid_checkpoints(run_dir: Path) -> tuple[list[int], list[str]]:
    """Return the steps of valid checkpoints, and a sentence on each of the others."""
    valid, damaged = [], []
    for step in saved_steps(run_dir):
        try:
            verify(run_dir / CHECKPOINTS / folder_name(step))
        except ValueError as error:
            damaged.append(str(error))
        else:
            valid.append(step)
    return valid, damaged


def _choice(
    setup: EvalSetup,
    rows: Sequence[Row],
    steps: Sequence[int],
    losses: Mapping[int, float],
    damaged: Sequence[str],
) -> dict[str, Any]:
    """Return the choice as plain data, ready for JSON."""
    names, primary = {f"step {step}": step for step in steps}, SCORES[setup.task.kind][0]
    protocols = [row.protocol for row in rows]
    chooser = Protocol.probe.value if Protocol.probe.value in protocols else protocols[0]
    own = [row for row in rows if row.encoder in names and row.protocol == chooser]
    best = max(own, key=lambda row: np.nan_to_num(row.intervals[primary].value, nan=-math.inf))
    differences = [
        asdict(one)
        for other in rows
        if other.protocol == chooser and other is not best
        for one in _compare(setup, best, other)
        if one.score == primary
    ]
    # the loss that was logged last at each step
    last = [max((at for at in losses if at <= step), default=-1) for step in steps]
    choice = without_nan(
        {
            "format": CHOICE_FORMAT,
            "format_version": CHOICE_FORMAT_VERSION,
            **_facts(setup),
            "chosen_by": chooser,
            "best": names[best.encoder],
            "steps": list(steps),
            "losses": [losses.get(step) for step in last],
            "results": [{**row.scores_as_data(), "step": names.get(row.encoder)} for row in rows],
            "differences": differences,
        }
    )
    words = {"findings": choice_findings(choice), "notes": [*choice_notes(choice), *damaged]}
    return {**choice, **words}
