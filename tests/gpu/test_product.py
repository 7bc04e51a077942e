"""From training to export on one GPU: stops, errors in words, scores. ``make gpu`` runs it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from make_data import packed_arrays
from rank_jobs import on_first_gpu, small_run
from ranks import run_ranks

from jobs.cli.errors import explain
from jobs.commands.pretrain import Pretrain
from preprocess.bands import L2A_BANDS
from simclr.checkpoint.manager import newest_valid
from simclr.checkpoint.manifest import folder_name
from simclr.config import Device, WorldConfig
from simclr.evaluation.config import EvaluateConfig, FinetuneConfig, Protocol
from simclr.evaluation.evaluate import evaluate
from simclr.export import ExportConfig
from simclr.export.export import export
from simclr.export.load import load_encoder
from simclr.preemption import Preempted, StopReason, TrainerHooks
from simclr.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
GPU = torch.device("cuda")
WORLD = WorldConfig(device=Device.cuda)
PROTOCOLS = [Protocol.probe, Protocol.knn, Protocol.finetune_all, Protocol.finetune_frozen]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed_arrays(tmp_path_factory.mktemp("shards"), 64)


@pytest.fixture(scope="module")
def run_dir(shards, tmp_path_factory):
    """The folder of a run that was trained on the GPU."""
    config = small_run(shards, tmp_path_factory.mktemp("run") / "run", world=WORLD)
    train(config)
    return config.run_dir


class BusyAndStopped(TrainerHooks):
    """Queues seconds of work behind a step, and sends SIGTERM while the GPU is at it."""

    def on_step(self, step: int) -> None:
        if step == 2:
            busy = torch.randn(8192, 8192, device=GPU)
            for _ in range(50):
                busy = busy @ busy.clamp(-1, 1)
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_during_a_long_kernel_saves_the_step_and_the_run_goes_on(shards, tmp_path):
    config = small_run(shards, tmp_path / "run", world=WORLD)
    with pytest.raises(Preempted) as stopped:
        train(config, hooks=BusyAndStopped())
    assert (stopped.value.step, stopped.value.reason) == (2, StopReason.SIGTERM)
    assert newest_valid(Path(config.run_dir)).name == folder_name(2)
    assert train(config).name == folder_name(16)


def test_a_batch_that_does_not_fit_is_told_in_words_with_the_fix():
    with pytest.raises(torch.OutOfMemoryError) as event:
        torch.empty(2**46, dtype=torch.uint8, device=GPU)
    line, code = explain(event.value, Pretrain)
    assert line == f"out of memory for 65536.00 GiB more; {Pretrain.memory_fix}"
    assert code == 1


@pytest.mark.parametrize(
    ("checked", "told"),
    [(True, "ranks 0, 1 share one GPU"), (False, "two ranks of a node use the same GPU")],
)
def test_ranks_that_share_a_gpu_are_told_so_by_our_check_and_by_nccl(tmp_path, checked, told):
    assert told in run_ranks(on_first_gpu, 2, tmp_path, checked)[0]


def test_evaluation_and_fine_tuning_score_every_protocol(run_dir, shards):
    config = EvaluateConfig(
        run=run_dir,
        shards=str(shards),
        task="labels",
        seeds=[0],
        bootstrap=100,
        protocols=PROTOCOLS,
        finetune=FinetuneConfig(epochs=1, max_steps=4, checks=1, learning_rates=[1e-3]),
    )
    results = json.loads(evaluate(config, progress=False).read_text())["results"]
    scored = {row["protocol"] for row in results if row["encoder"] == "pretrained"}
    assert len(scored) == len(PROTOCOLS)
    for row in results:
        assert all(0 <= score["value"] <= 1 for score in row["scores"].values())


def test_an_exported_encoder_embeds_as_on_the_cpu(run_dir, tmp_path):
    folder = export(ExportConfig(run=run_dir, output=str(tmp_path / "encoder")))
    encoder = load_encoder(folder, L2A_BANDS)
    views = torch.randn(8, len(L2A_BANDS), 12, 12)
    expected = encoder(views)
    embedded = encoder.to(GPU)(views.to(GPU)).cpu()
    # convolutions take TF32, 11 bits of each factor
    torch.testing.assert_close(embedded, expected, rtol=2e-2, atol=2e-2)


def test_a_checkpoint_of_a_gpu_holds_tensors_of_no_gpu(run_dir):
    state = torch.load(newest_valid(Path(run_dir)) / "state.pt", weights_only=True)
    assert {value.device.type for value in state["encoder"].values()} == {"cpu"}
