"""Write the encoder of a checkpoint and its card into a folder that appears only once verified."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from preprocess.shards.atomic_io import fsync, publish, temporary_path
from preprocess.shards.format import sha256_of
from simclr.config import require
from simclr.data.normalisation import Normalised
from simclr.export import ExportConfig, ExportFormat, PatchUnit
from simclr.export.card import build_card, card_markdown
from simclr.export.load import CARD_NAME, WEIGHTS_NAME, load_encoder, with_normalisation
from simclr.model.pretrained import load_pretrained

PAGE_NAME = "CARD.md"
TOLERANCE = 1e-4  # of graph outputs, relative to the largest absolute value
_TOLERANCE = 1e-5  # relative and absolute, of outputs of the written weights
_STEM = "encoder"
_INPUT, _OUTPUT, _BATCH = "patches", "representations", "batch"

_log = logging.getLogger("simclr")


def export(config: ExportConfig) -> Path:
    """Write the encoder of a run's checkpoint with its card, and return the folder.

    The export is written to a temporary folder, loaded again, compared with the checkpoint, and
    only then renamed. An export is never overwritten: a folder with exactly these files is left
    unchanged, any other content is an error.

    Raises:
        ValueError: the run has no such checkpoint, the output folder has other content, or graphs
            are requested and the source of their statistics is ambiguous or unknown.
        ImportError: a package that a format needs is missing.
        RuntimeError: a written file does not reproduce the checkpoint's representations.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.output), "output is empty; give a folder, output=DIR")
    output = Path(config.output)
    target = output.resolve()  # a folder can be renamed onto an empty one, not onto a link
    pretrained = load_pretrained(Path(config.run), torch.device("cpu"), config.step)
    encoder, formats = pretrained.encoder, sorted(set(config.formats), key=lambda kind: kind.name)
    card = build_card(pretrained, Path(config.run), config.licence)
    folder = temporary_path(target)  # hidden, on the output's file system
    # a killed process with the same id may have left it
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        files = write_formats(folder, encoder, card, formats, config.source)
        _write(folder, encoder, {**card, "files": files})
        _compare(encoder, folder, card)
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            publish(folder, target)
        elif _contents(folder) != _contents(output):
            raise ValueError(
                f"{output} exists and holds other files than this export; give another output, or "
                "remove it"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _log.info("exported step %d of %s to %s", pretrained.step, config.run, output)
    return output


def write_formats(
    folder: Path, encoder: nn.Module, card: dict[str, Any], formats: list[ExportFormat], source: str
) -> list[dict[str, str]]:
    """Write an encoder, in evaluation mode on the CPU, in additional formats.

    The card is embedded in graphs, which also contain the statistics of ``source``; empty uses the
    only source of the card.

    Returns:
        For each file, its name, checksum, format and a description of its input.

    Raises:
        ValueError: the source is unknown, or ambiguous.
        ImportError: a package that a format needs is missing.
        RuntimeError: a graph does not reproduce the encoder's representations.
    """
    files = []
    for kind in formats:
        path = folder / f"{_STEM}.{kind.value}"
        if kind is ExportFormat.pth:
            buffer = io.BytesIO()  # saving to a path would store its temporary name inside
            torch.save(encoder.state_dict(), buffer)
            # torch.hub caches by file name and verifies this suffix: names must be unique
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            path = folder / f"{_STEM}-{digest[:8]}.{kind.value}"
            path.write_bytes(buffer.getvalue())
            takes = "normalised patches, as encoder.safetensors"
        else:
            bands = [band["name"] for band in card["bands"]]
            module = with_normalisation(encoder, card, bands, source, PatchUnit.stored).eval()
            _write_graph(path, kind, module, card)
            _compare_graph(path, kind, module, card["size_px"])
            whose = source or next(iter(card["normalisation"]))
            takes = f"stored values, normalised inside as those of {whose}"
        about = {"file": path.name, "sha256": sha256_of(path)}
        files.append({**about, "format": kind.name, "input": takes})
    return files


def _write_graph(path: Path, kind: ExportFormat, module: Normalised, card: dict[str, Any]) -> None:
    # report a missing package before the slow trace
    for package in ("onnx", "onnxscript") if kind is ExportFormat.onnx else ():
        _needed(package)
    shape = (2, len(card["bands"]), card["size_px"], card["size_px"])
    dynamic = {_INPUT: {0: torch.export.Dim(_BATCH)}}  # batches of any size
    program = torch.export.export(module, (torch.ones(shape),), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    if kind is ExportFormat.pt2:
        # via a buffer: the archive would contain the temporary file name
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"card.json": json.dumps(card)})
        path.write_bytes(buffer.getvalue())
        return
    # silence the exporter's passes, whose progress means nothing to a user
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        converted = torch.onnx.export(
            program, dynamo=True, input_names=[_INPUT], output_names=[_OUTPUT], verbose=False
        )
    if converted is None:  # only the exporter before dynamo returns None
        raise RuntimeError("torch.onnx.export gave no program; use the tested version of torch")
    model = converted.model_proto
    graph = model.graph
    tensors = (*graph.input, *graph.output)
    for part in (model, graph, *graph.node, *tensors, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    for tensor in tensors:
        tensor.type.tensor_type.shape.dim[0].dim_param = _BATCH
    _needed("onnx").helper.set_model_props(model, {"card": json.dumps(card)})
    path.write_bytes(model.SerializeToString(deterministic=True))


def _compare_graph(path: Path, kind: ExportFormat, module: Normalised, size_px: int) -> None:
    """Load the file as its users do, and compare it with the module for two batch sizes."""
    for batch in (1, 3):
        # stored values around the means, one pixel in ten nodata
        shape = (batch, module.mean.shape[0], size_px, size_px)
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(shape, generator=generator) * module.std + module.mean
        patches = values.round().clamp(min=1) * (torch.rand(shape, generator=generator) > 0.1)
        with torch.inference_mode():
            expected = module(patches)
        if kind is ExportFormat.onnx:
            found = _run_onnx(path, patches)
        else:
            found = torch.export.load(path).module()(patches)
        worst = float((found - expected).abs().max() / expected.abs().max())
        if not worst <= TOLERANCE:
            raise RuntimeError(f"{path.name} differs from the encoder by {worst:.2e} of its range")


def _run_onnx(path: Path, patches: Tensor) -> Tensor:
    runtime = _needed("onnxruntime")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run([_OUTPUT], {_INPUT: patches.numpy()})
    return torch.from_numpy(found)


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"formats=[onnx] needs {package}: pip install onnx onnxscript onnxruntime"
        ) from error


def _write(folder: Path, encoder: nn.Module, card: dict[str, Any]) -> None:
    """Write weights, card and page; the card is also embedded in the weights file."""
    tensors = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    weights = folder / WEIGHTS_NAME
    # One key: safetensors writes several in random order. Written here and not by save_file, whose
    # files only their owner can read.
    weights.write_bytes(safetensors.torch.save(tensors, metadata={"card": json.dumps(card)}))
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    about = {"file": WEIGHTS_NAME, "sha256": sha256_of(weights), "num_parameters": num_parameters}
    card = {**card, "weights": about}
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE_NAME).write_text(card_markdown(card), encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)


def _compare(encoder: nn.Module, folder: Path, card: dict[str, Any]) -> None:
    """Load the written encoder, and compare its representations with the checkpoint's."""
    bands, size_px = [band["name"] for band in card["bands"]], card["size_px"]
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, len(bands), size_px, size_px, generator=generator)
    with torch.inference_mode():
        expected: Tensor = encoder(views)
        found: Tensor = load_encoder(folder, bands)(views)
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        worst = float((found - expected).abs().max())
        raise RuntimeError(f"the written encoder differs from the checkpoint's by {worst:.2e}")


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of a folder's files by name; empty if it is not a folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
