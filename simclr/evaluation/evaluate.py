"""The evaluation loop: one job per encoder, protocol, label fraction and seed, scored and reported.

All ranks extract features and fit classifiers; the main rank scores and writes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preprocess.progress import progress_of
from preprocess.shards.atomic_io import write_json
from simclr.augment.views import ViewMaker
from simclr.checkpoint.manifest import CHECKPOINTS, FOLDER_PATTERN, folder_name, verify
from simclr.config import AugmentConfig, PresetName, WorldConfig, require, to_plain
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.distributed import (
    TIMEOUT_S,
    DistributedContext,
    barrier,
    distributed_context,
    from_main_rank,
    map_over_ranks,
)
from simclr.evaluation import report
from simclr.evaluation.bootstrap import (
    Blocks,
    Row,
    choose_blocks,
    compare,
    compare_with_all,
    score_results,
)
from simclr.evaluation.config import PRETRAINED, SCORES, EvaluateConfig, Protocol
from simclr.evaluation.features import (
    FeatureCache,
    LabelledPatches,
    averaged_over_symmetries,
    feature_map,
    store_features,
)
from simclr.evaluation.finetune import fine_tune
from simclr.evaluation.jobs import (
    EvalData,
    EvalJob,
    EvalResult,
    EvaluatedEncoder,
    eval_jobs,
    of_checkpoint,
    open_encoders,
)
from simclr.evaluation.probes import PENALTIES, TEMPERATURE, knn, linear_probe
from simclr.evaluation.splits import Splits, make_splits, on_validation, seen_in_pretraining
from simclr.evaluation.task import Task, open_task
from simclr.model.pretrained import Pretrained, load_pretrained, saved_steps
from simclr.model.simclr import joined_stages
from simclr.rendezvous import Rendezvous

_ON_FEATURES = {Protocol.knn: knn, Protocol.probe: linear_probe}  # all others fine-tune
# Increment when a control or the unaugmented view changes, to invalidate stored features.
FEATURES_VERSION = 2
_ENCODERS_A_PASS = 8  # checkpoints in memory at a time, sharing one pass over all patches


@dataclass(frozen=True, slots=True)
class EvalSetup:
    """The state of an evaluation that is fixed before anything is scored."""

    config: EvaluateConfig
    context: DistributedContext
    pretrained: Pretrained  # the run's encoder to evaluate
    patches: LabelledPatches  # labelled samples only
    task: Task  # targets and locations of these samples
    splits: Splits  # one per seed; they test on validation samples to select a checkpoint
    blocks: Blocks  # units of the bootstrap, over the tested samples
    overlap: float  # share of tested samples used in pretraining; NaN if unknown
    cache: FeatureCache  # of this task and these shards
    progress: bool  # whether to show progress bars

    @property
    def name(self) -> str:
        """Base name of this evaluation's files, ``TASK-FINGERPRINT``."""
        return self.cache.folder.name


def evaluate(
    config: EvaluateConfig, progress: bool = True, rendezvous: Rendezvous | None = None
) -> Path:
    """Score a run's encoder on a labelled task, next to untrained controls.

    ``rendezvous`` connects this process to the other ranks; None: torchrun's, or a single process.

    Returns:
        The path of ``RUN/evaluation/TASK-FINGERPRINT.json``; ``RUN/evaluation.json`` and ``.md``
        hold all evaluations of the run.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the label set, or
            the labels cannot form a task.
    """
    run_dir = Path(config.run)
    with distributed_context(WorldConfig(timeout_s=TIMEOUT_S), rendezvous) as context:
        setup = open_setup(config, context, progress=progress)
        encoders = open_encoders(config, setup.pretrained, context.device)
        extract(setup, encoders)
        results = run_jobs(setup, encoders)
        if context.is_main:
            report.write_report(run_dir, evaluation_report(setup, _score(setup, results)))
        barrier(context)
    return report.own_path(run_dir, setup.name)


def select_checkpoint(
    config: EvaluateConfig,
    losses: Mapping[int, float],
    progress: bool = True,
    rendezvous: Rendezvous | None = None,
) -> Path:
    """Score every checkpoint of a run on the validation split of a labelled task.

    No test label influences the choice: the test split is to judge it later. Features of all
    labelled patches are kept for that evaluation. ``losses``, by logged step, are reported next to
    the scores. Otherwise as ``evaluate``.

    Returns:
        The path of ``RUN/evaluation/TASK-FINGERPRINT/checkpoints.json``.
    """
    run_dir = Path(config.run)
    with distributed_context(WorldConfig(timeout_s=TIMEOUT_S), rendezvous) as context:
        setup = open_setup(config, context, validation=True, progress=progress)
        # rank 0 decides for all: ranks might disagree about a damaged file
        text = json.dumps(_valid_checkpoints(run_dir)) if context.is_main else ""
        steps, damaged = json.loads(from_main_rank(text))
        _, *others = open_encoders(config, setup.pretrained, context.device)
        extract(setup, others)
        encoders = []
        for start in range(0, len(steps), _ENCODERS_A_PASS):
            loaded = [
                of_checkpoint(f"step {step}", load_pretrained(run_dir, context.device, step))
                for step in steps[start : start + _ENCODERS_A_PASS]
            ]
            extract(setup, loaded)
            encoders += [replace(one, embed=None) for one in loaded]
        results = run_jobs(setup, [*encoders, *others])
        path = run_dir / report.FOLDER_NAME / setup.name / report.CHOICE_NAME
        if context.is_main:
            choice = _choice(setup, _score(setup, results), steps, losses)
            choice["notes"] += damaged
            write_json(path, choice)
        barrier(context)
    return path


def open_setup(
    config: EvaluateConfig,
    context: DistributedContext,
    *,
    validation: bool = False,
    progress: bool = False,
) -> EvalSetup:
    """Load the encoder and the task, and fix the splits.

    With ``validation``, the splits test on the validation samples; test samples stay unused.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.shards), "shards is empty; give a packed folder, shards=SHARDS")
    pretrained = load_pretrained(Path(config.run), context.device, config.step)
    dataset = _open_labelled(config, pretrained)
    task = open_task(dataset, config.task, balanced=config.balanced)
    splits = make_splits(task, config.seeds, config.split)
    splits = on_validation(task, splits) if validation else splits
    for split in splits.by_seed:
        require(
            bool(task.targets[split.test].any()),
            f"none of the {len(split.test)} {'validation' if validation else 'test'} patches is "
            f"{' or '.join(task.classes)}; without one there is no {SCORES[task.kind][0]}: take "
            "another split, or label more patches",
        )
    tested = splits.tested
    units = {"tile": task.tiles, "block": task.blocks, "cell": task.cells}
    blocks = choose_blocks({name: of[tested] for name, of in units.items()}, len(tested))
    overlap = seen_in_pretraining(pretrained, dataset, config.shards, tested)
    # 0 keeps the grid of these patches: the encoder has learnt a ground resolution
    size_px = pretrained.config.augment.view_size_px
    augment = AugmentConfig(preset=PresetName.none, view_size_px=size_px)
    maker = ViewMaker(dataset, augment, 0, context.device)
    rows = np.arange(dataset.num_samples)
    patches = LabelledPatches(dataset, maker, rows, task.targets, task.kind, context.device)
    origin = {
        "version": FEATURES_VERSION,
        "torch": torch.__version__,
        "device": context.device.type,
        "model": to_plain(pretrained.config.model),
        "shards": dataset.fingerprint,
        "samples": hashlib.sha256(dataset.sample_id.tobytes()).hexdigest(),
        "bands": dataset.bands,
        "normalisation": dataset.normalisation,
        "view_size_px": maker.view_size_px,
        "test_time": config.test_time,
        "stages": config.stages,
    }
    folder = Path(config.run, report.FOLDER_NAME, "features", f"{task.name}-{dataset.fingerprint}")
    fixed = pretrained, patches, task, splits, blocks, overlap
    return EvalSetup(config, context, *fixed, FeatureCache(folder, origin), progress)


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


def _valid_checkpoints(run_dir: Path) -> tuple[list[int], list[str]]:
    """Return the steps of valid checkpoints, and an error message for each of the others."""
    valid, damaged = [], []
    for step in saved_steps(run_dir):
        try:
            verify(run_dir / CHECKPOINTS / folder_name(step))
            valid.append(step)
        except ValueError as error:
            damaged.append(str(error))
    return valid, damaged


def extract(setup: EvalSetup, encoders: Sequence[EvaluatedEncoder]) -> None:
    """Ensure the features of all labelled samples are cached; extract missing ones in one pass."""
    config, cache = setup.config, setup.cache
    cache.weights.update({one.features_name: one.weights for one in encoders})
    embedders = {one.features_name: one.embed for one in encoders if one.embed is not None}
    wraps = (config.stages, joined_stages), (config.test_time, averaged_over_symmetries)
    for wrap in (wrap for wanted, wrap in wraps if wanted):
        embedders = {name: wrap(embed) for name, embed in embedders.items()}

    if setup.context.is_main:  # delete features of deleted checkpoints: nothing would read them
        saved = set(map(folder_name, saved_steps(Path(config.run))))
        for path in cache.folder.glob(f"{FOLDER_PATTERN}.npz"):
            if path.stem not in saved:
                path.unlink()
    store_features(
        cache,
        embedders,
        lambda rows: setup.patches.only(rows).in_order(config.batch_size),
        len(setup.patches.rows),
        setup.context,
        progress=setup.progress,
    )


def run_jobs(setup: EvalSetup, encoders: Sequence[EvaluatedEncoder]) -> list[EvalResult]:
    """Run each encoder under all protocols, fractions and seeds that make a difference to it."""
    jobs = eval_jobs(encoders, setup.config, setup.task, setup.splits)

    @lru_cache(maxsize=1)  # jobs of one encoder follow each other; all features may be large
    def features(name: str) -> Any:
        """Return the stored features of a network."""
        return setup.cache.stored(name, len(setup.task.ids))

    data = EvalData(setup.task, features, setup.config, setup.patches)
    own = -(-len(jobs) // setup.context.size)
    with progress_of(own, "classifiers", setup.progress, "fits") as advance:

        def run(job: EvalJob) -> EvalResult:
            """Fit and test one classifier."""
            result = _ON_FEATURES.get(job.protocol, fine_tune)(job, data)
            advance(1)
            return result

        return map_over_ranks(jobs, run, setup.context)


def _score(setup: EvalSetup, results: Sequence[EvalResult]) -> list[Row]:
    tested = setup.splits.tested
    return score_results(results, setup.task.kind, tested, setup.blocks, setup.config.bootstrap)


def evaluation_report(setup: EvalSetup, rows: Sequence[Row]) -> dict[str, Any]:
    """Return an evaluation as plain data for JSON; NaN becomes null."""
    checkpoint, task, splits = setup.pretrained.checkpoint.name, setup.task, setup.splits
    features, shown = setup.cache.stored(checkpoint, len(task.ids)), splits.by_seed[0].test
    evaluation = without_nan(
        {
            **_facts(setup),
            "checkpoint": checkpoint,
            "step": setup.pretrained.step,
            "results": [row.as_data(task.kind) for row in rows],
            "differences": compare_with_all(rows, PRETRAINED, task.kind, splits.test_to_train),
            # a single patch has no axes
            "map": feature_map(features, task.targets, shown) if len(shown) > 1 else None,
        }
    )
    return {**evaluation, **report.conclusions(evaluation)}


def _choice(
    setup: EvalSetup, rows: Sequence[Row], steps: Sequence[int], losses: Mapping[int, float]
) -> dict[str, Any]:
    """Return the choice of a checkpoint as plain data for JSON; NaN becomes null."""
    names, primary = {f"step {step}": step for step in steps}, SCORES[setup.task.kind][0]
    protocols = [row.protocol for row in rows]
    chooser = Protocol.probe.value if Protocol.probe.value in protocols else protocols[0]
    asked = [row for row in rows if row.protocol == chooser]
    own = (row for row in asked if row.encoder in names)
    best = max(own, key=lambda row: row.intervals[primary].value)
    differences = [
        asdict(one)
        for other in asked
        if other is not best
        for one in compare(best, other, setup.task.kind, setup.splits.test_to_train)
        if one.score == primary
    ]
    # the last logged step at or before each checkpoint
    last = [max((at for at in losses if at <= step), default=-1) for step in steps]
    choice = without_nan(
        {
            "format": report.CHOICE_FORMAT,
            "format_version": report.CHOICE_FORMAT_VERSION,
            **_facts(setup),
            "chosen_by": chooser,
            "best": names[best.encoder],
            "steps": list(steps),
            "losses": [losses.get(step) for step in last],
            "results": [{**row.scores_as_data(), "step": names.get(row.encoder)} for row in rows],
            "differences": differences,
        }
    )
    return {**choice, **report.choice_conclusions(choice)}


def _facts(setup: EvalSetup) -> dict[str, Any]:
    """Return the run, the task, the shards, the splits and the protocol as plain data."""
    config, splits, task, pretrained = setup.config, setup.splits, setup.task, setup.pretrained
    dataset, blocks = setup.patches.dataset, setup.blocks
    counts, positives = splits.counts(task.targets)
    return {
        "simulated": dataset.simulated or bool(pretrained.dataset["simulated"]),
        "run": config.run,
        "encoder": pretrained.config.model.encoder.value,
        "bands": list(dataset.bands),
        "task": {
            "name": task.name,
            "kind": task.kind,
            "classes": list(task.classes),
            "positives": task.targets.sum(axis=0).tolist(),
        },
        "shards": {
            "folder": config.shards,
            "sources": list(dataset.sources),
            "fingerprint": dataset.fingerprint,
            "num_labelled": len(task.ids),
            "num_unlabelled": task.num_unlabelled,
            "num_surplus": task.num_surplus,
        },
        "processing_level": {
            "patches": sorted({one.processing_level for one in dataset.manifests}),
            "pretraining": sorted(set(pretrained.dataset.get("processing_level", {}).values())),
        },
        "split": {
            "origin": splits.origin,
            "rule": config.split.value,
            "redrawn": splits.redrawn,
            "seeds": list(config.seeds),
            "counts": counts,
            "positives": positives,
            "num_left_out": len(task.ids) - sum(counts.values()),
            "leakage": splits.leakage,
            "touching": splits.touching,
            "seen_in_pretraining": setup.overlap,
        },
        "protocol": {
            "features": ("pooled outputs of all stages" if config.stages else "h")
            + " in evaluation mode, standardised on the training split",
            "fractions": sorted(config.fractions),
            "stages": config.stages,
            "test_time": config.test_time,
            "others": list(config.others),
            "fine-tune": to_plain(config.finetune),
            "k-NN": {"neighbours": config.neighbours, "temperature": TEMPERATURE},
            "linear probe": {"penalties": list(PENALTIES), "solver": "Newton-CG"},
            "bootstrap": {
                "resamples": config.bootstrap,
                "unit": blocks.unit,
                "blocks": blocks.count,
            },
        },
        "headline": SCORES[task.kind][0],
    }


def without_nan(data: Any) -> Any:
    """Return plain data with every NaN replaced by None, since JSON has no NaN."""
    if isinstance(data, dict):
        return {name: without_nan(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data
