"""Write the encoder of a checkpoint with its card, in a folder that appears only when checked."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from simclr.export.load import (
    CARD_NAME,
    WEIGHTS_NAME,
    load_encoder,
    with_normalisation,
)
from simclr.model.pretrained import load_pretrained

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
            buffer = io.BytesIO()  # a file would put its name, here a temporary one, inside
            torch.save(encoder.state_dict(), buffer)
            # torch.hub caches by file name and checks this suffix: no two encoders share a name
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            path = folder / f"{_STEM}-{digest[:8]}.{kind.value}"
            path.write_bytes(buffer.getvalue())
            files.append(_about(path, kind, "normalised patches, as encoder.safetensors"))
            continue
        bands = [band["name"] for band in card["bands"]]
        module = with_normalisation(encoder, card, bands, source, PatchUnit.stored).eval()
        _WRITERS[kind](path, module, card)
        _compare_of_graph(path, kind, module, card)
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
    # the exporter's passes print and log their own progress, which tells a user nothing
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            _program(module, card),
            dynamo=True,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            verbose=False,
        )
    if program is None:  # of the exporter before dynamo
        raise RuntimeError("torch.onnx.export gave no program; use the tested version of torch")
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


def _compare_of_graph(
    path: Path, kind: ExportFormat, module: Normalised, card: dict[str, Any]
) -> None:
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
            f"formats=[onnx] needs {package}: pip install onnx onnxscript onnxruntime"
        ) from error


PAGE_NAME = "CARD.md"
_TOLERANCE = 1e-5

_log = logging.getLogger("simclr")


def export(config: ExportConfig) -> Path:
    """Write the encoder of a checkpoint of a run with its card, and return the folder.

    The folder is built beside its place, loaded again and compared with the checkpoint, and only
    then renamed. An export is never overwritten: a folder that holds exactly these files is left
    as it is, any other content stops.

    Raises:
        ValueError: the run has no such checkpoint, the output folder holds something else, or
            graphs are asked for and it is not clear whose statistics they carry.
        ImportError: a package that a format needs is missing.
        RuntimeError: a written file does not give the checkpoint's representations.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.output), "output is empty; give a folder, output=DIR")
    output = Path(config.output)
    pretrained = load_pretrained(Path(config.run), torch.device("cpu"), config.step)
    encoder, formats = pretrained.encoder, sorted(set(config.formats), key=lambda kind: kind.name)
    card = build_card(pretrained, Path(config.run), config.licence)
    with _folder_beside(output) as folder:
        files = write_formats(folder, encoder, card, formats, config.source)
        _write(folder, encoder, {**card, "files": files})
        _compare(encoder, folder, card)
        if _holds_files(output):
            _require_equal(folder, output)
        else:
            publish(folder, output)
    _log.info("exported step %d of %s to %s", pretrained.step, config.run, output)
    return output


@contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    """Yield a new hidden folder on the output's file system, gone at the end unless renamed."""
    folder = temporary_path(output.absolute())
    shutil.rmtree(
        folder, ignore_errors=True
    )  # a killed process of the same number may have left it
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, encoder: nn.Module, card: dict[str, Any]) -> None:
    """Write weights, card and page; the card also lies inside the weights file."""
    tensors = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    weights = folder / WEIGHTS_NAME
    # One key: safetensors writes several in random order. Written here and not by save_file, which
    # makes a file that nobody else may read.
    weights.write_bytes(safetensors.torch.save(tensors, metadata={"card": json.dumps(card)}))
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    about = {"file": WEIGHTS_NAME, "sha256": sha256_of(weights), "num_parameters": num_parameters}
    card = {**card, "weights": about}
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE_NAME).write_text(card_markdown(card), encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)


def _compare(encoder: nn.Module, folder: Path, card: dict[str, Any]) -> None:
    """Load what was written, and hold its representations against the checkpoint's."""
    bands, size_px = [band["name"] for band in card["bands"]], card["size_px"]
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, len(bands), size_px, size_px, generator=generator)
    with torch.inference_mode():
        expected: Tensor = encoder(views)
        found: Tensor = load_encoder(folder, bands)(views)
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        worst = float((found - expected).abs().max())
        raise RuntimeError(f"the written encoder differs from the checkpoint's by {worst:.2e}")


def _holds_files(output: Path) -> bool:
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def _require_equal(folder: Path, output: Path) -> None:
    """Stop unless the output already holds exactly the files of the folder."""
    ours = {path.name: path.read_bytes() for path in folder.iterdir()}
    theirs = (
        {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
        if output.is_dir()
        else {}
    )
    if ours != theirs:
        raise ValueError(
            f"{output} exists and holds other files than this export; give another output, or "
            "remove it"
        )
