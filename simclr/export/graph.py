"""An encoder and its card come in; files for other programs go out, each checked as it is read.

ONNX and torch.export graphs carry the normalisation of one source: they take stored values. Traces
of the source code, and with them paths of the machine, are taken out of both: equal exports are
equal byte for byte.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from preprocess.shards.checksums import sha256_of
from simclr.choices import ExportFormat, PatchUnit
from simclr.export.inputs import Normalised, with_normalisation

TOLERANCE = 1e-4  # of the largest number of the representations
_STEM = "encoder"
_INPUT, _OUTPUT, _BATCH = "patches", "representations", "batch"


def write_formats(
    folder: Path,
    encoder: nn.Module,
    card: dict[str, Any],
    formats: Sequence[ExportFormat],
    source: str,
) -> list[dict[str, str]]:
    """Write an encoder in further formats.

    Args:
        folder: takes the files.
        encoder: in evaluation mode, on the CPU.
        card: of the encoder; it is put into each file that has a place for it.
        formats: to write.
        source: whose statistics the graphs carry; empty takes the only source of the card.

    Returns:
        For each file its name, checksum, format and input in words.

    Raises:
        ValueError: the source is unknown, or one must be chosen.
        ImportError: a package that a format needs is missing.
        RuntimeError: a graph gives other representations than the encoder.
    """
    files = []
    for kind in formats:
        path = folder / f"{_STEM}.{kind.value}"
        if kind is ExportFormat.pth:
            torch.save(encoder.state_dict(), path)
            files.append(_about(path, kind, "normalised patches, as encoder.safetensors"))
            continue
        bands = [band["name"] for band in card["bands"]]
        module = with_normalisation(encoder, card, bands, source, PatchUnit.stored).eval()
        _WRITERS[kind](path, module, card)
        _compare(path, kind, module, card)
        whose = source or next(iter(card["normalisation"]))
        files.append(_about(path, kind, f"stored values, normalised inside as those of {whose}"))
    return files


def _about(path: Path, kind: ExportFormat, takes: str) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256_of(path), "format": kind.name, "input": takes}


def _program(module: Normalised, card: dict[str, Any]) -> torch.export.ExportedProgram:
    """Trace the module for batches of any size."""
    shape = (2, len(card["bands"]), card["size_px"], card["size_px"])
    dynamic = {_INPUT: {0: torch.export.Dim(_BATCH)}}
    program = torch.export.export(module, (torch.ones(shape),), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _write_pt2(path: Path, module: Normalised, card: dict[str, Any]) -> None:
    # through a buffer: the archive would be named after the file, here a temporary one
    buffer = io.BytesIO()
    program = _program(module, card)
    torch.export.save(program, buffer, extra_files={"card.json": json.dumps(card)})
    path.write_bytes(buffer.getvalue())


def _write_onnx(path: Path, module: Normalised, card: dict[str, Any]) -> None:
    onnx = _needed("onnx")
    _needed("onnxscript")
    program = torch.onnx.export(
        _program(module, card),
        dynamo=True,
        input_names=[_INPUT],
        output_names=[_OUTPUT],
        verbose=False,
    )
    assert program is not None  # None is for the exporter before dynamo
    model = program.model_proto
    graph = model.graph
    for part in (
        model,
        graph,
        *(*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer),
    ):
        part.ClearField("metadata_props")
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = _BATCH
    onnx.helper.set_model_props(model, {"card": json.dumps(card)})
    path.write_bytes(model.SerializeToString(deterministic=True))


_WRITERS = {ExportFormat.onnx: _write_onnx, ExportFormat.pt2: _write_pt2}


def _compare(path: Path, kind: ExportFormat, module: Normalised, card: dict[str, Any]) -> None:
    """Read the file as its users do, and hold it against the module for two batch sizes."""
    run = {ExportFormat.onnx: _run_onnx, ExportFormat.pt2: _run_pt2}[kind]
    for batch in (1, 3):
        patches = _plausible_patches(module, batch, card["size_px"])
        with torch.inference_mode():
            expected = module(patches)
        worst = float((run(path, patches) - expected).abs().max() / expected.abs().max())
        if not worst <= TOLERANCE:
            raise RuntimeError(f"{path.name} differs from the encoder by {worst:.2e} of its range")


def _run_onnx(path: Path, patches: Tensor) -> Tensor:
    runtime = _needed("onnxruntime")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run([_OUTPUT], {_INPUT: patches.numpy()})
    return torch.from_numpy(found)


def _run_pt2(path: Path, patches: Tensor) -> Tensor:
    found: Tensor = torch.export.load(path).module()(patches)
    return found


def _plausible_patches(module: Normalised, batch: int, size_px: int) -> Tensor:
    """Return stored values around the means, one in ten nodata."""
    shape = (batch, module.mean.shape[0], size_px, size_px)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator) * module.std + module.mean
    return values.round().clamp(min=1) * (torch.rand(shape, generator=generator) > 0.1)


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"formats=[onnx] needs {package}: pip install 'simclr-s2[onnx]'"
        ) from error
