"""The card of an exported encoder, as data and as a page: all that its user must know.

It leaves out paths of the machine and the time: equal exports are equal byte for byte.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from pathlib import Path
from typing import Any

from preprocess.bands import BANDS
from preprocess.shards.format import NODATA, UNIT
from simclr.config import Stem, to_plain
from simclr.data.normalisation import usable
from simclr.evaluation.report import markdown
from simclr.model.pretrained import Pretrained
from simclr.model.simclr import WIDTHS

FORMAT = "simclr-s2-encoder"
FORMAT_VERSION = 1
DISTRIBUTION = "simclr-s2"
OFFSET_RULE = (
    "the radiometric offset of baselines 04.00 and later (-1000) is added where the digital number "
    "is not 0, and the result clipped at 1"
)
RESAMPLING_RULE = (
    "every band from its native grid to the input grid by bilinear interpolation in the pixel-area "
    "convention (align_corners=False), widened where that grid is coarser: no pixel is skipped"
)

_log = logging.getLogger("simclr")


def build_card(pretrained: Pretrained, run_dir: Path, licence: str) -> dict[str, Any]:
    """Return the card as plain data, ready for JSON.

    Args:
        pretrained: the encoder and its origin.
        run_dir: run folder; its evaluation.json and provenance.json are quoted where they exist.
        licence: of the weights.
    """
    config, dataset = pretrained.config, pretrained.dataset
    settings = to_plain(config)
    del settings["shards"], settings["run_dir"]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "simulated": dataset["simulated"],
        "licence": licence,
        "architecture": config.model.encoder.value,
        "stem": config.model.stem.value,
        "width": WIDTHS[config.model.encoder.value],
        "bands": [_band(name) for name in config.data.bands],
        "unit": UNIT,
        "offset": OFFSET_RULE,
        "processing_level": _processing_level(pretrained),
        "nodata": f"stored value {NODATA} becomes 0 after normalisation",
        "resampling": RESAMPLING_RULE,
        "size_px": pretrained.view_size_px,
        "normalisation": {
            source: usable(table) for source, table in pretrained.normalisation.items()
        },
        "dataset": {
            name: dataset[name] for name in ("sources", "simulated", "fingerprint", "num_samples")
        },
        "augmentation": config.augment.preset,
        "step": pretrained.step,
        "num_steps": pretrained.manifest.num_steps,
        "training": settings,
        "code": {"version": _version(), **_commit(run_dir), "torch": pretrained.manifest.torch},
        "evaluations": _evaluations(run_dir, pretrained.step),
    }


def card_markdown(card: dict[str, Any]) -> str:
    """Return the card as a readable page, with code that loads the encoder without ours."""
    blocks = [
        f"# {card['architecture']} for Sentinel-2, pretrained with SimCLR",
        *(
            ["**Trained on simulated patches: for tests, not for use on the Earth.**"]
            * card["simulated"]
        ),
        _summary(card),
        "## Load it",
        f"```python\n{loading_example(card)}```",
        *_files(card.get("files", [])),
        "## Input",
        _input(card),
        _band_table(card),
        "## Scores",
        *(markdown(evaluation, level=3).strip() for evaluation in card["evaluations"]),
        *([] if card["evaluations"] else ["Not evaluated at this step."]),
        "## Origin",
        _origin(card),
    ]
    return "\n\n".join(blocks) + "\n"


def loading_example(card: dict[str, Any]) -> str:
    """Return Python that loads the encoder into a plain torchvision ResNet and embeds a patch.

    It runs in the folder of the export, and needs torch, torchvision and safetensors.
    """
    small = card["stem"] == Stem.small.value
    layer = "kernel_size=3, stride=1, padding=1" if small else "kernel_size=7, stride=2, padding=3"
    num_bands, source = len(card["bands"]), next(iter(card["normalisation"]))
    lines = [
        "import json, torch, torchvision",
        "from safetensors.torch import load_file",
        'card = json.load(open("card.json", encoding="utf-8"))',
        f"encoder = torchvision.models.{card['architecture']}(weights=None)",
        f"encoder.conv1 = torch.nn.Conv2d({num_bands}, 64, {layer}, bias=False)",
        *(["encoder.maxpool = torch.nn.Identity()"] if small else []),
        "encoder.fc = torch.nn.Identity()",
        'encoder.load_state_dict(load_file("encoder.safetensors"))',
        "encoder.eval()",
        "",
        f'table = [card["normalisation"]["{source}"][band["name"]] for band in card["bands"]]',
        'mean = torch.tensor([band["mean"] for band in table])[:, None, None]',
        'std = torch.tensor([band["std"] for band in table])[:, None, None]',
        f"patches = torch.full((1, {num_bands}, {card['size_px']}, {card['size_px']}), 1000.0)"
        "  # stored values",
        f"h = encoder(torch.where(patches == {NODATA}, 0.0, (patches - mean) / std))"
        f"  # (1, {card['width']})",
    ]
    return "\n".join(lines) + "\n"


def _band(name: str) -> dict[str, Any]:
    band = BANDS[name]
    return {
        "name": name,
        "wavelength_nm": band.wavelength_nm,
        "ground_resolution_m": band.ground_resolution_m,
    }


def _processing_level(pretrained: Pretrained) -> dict[str, str]:
    """Return L1C, L2A or, where unknown, nothing for each source."""
    known = pretrained.dataset.get("processing_level", {})
    return {source: known.get(source, "") for source in pretrained.normalisation}


def _version() -> str | None:
    """Return the installed version of this code; None where it runs from a bare folder."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(run_dir: Path) -> dict[str, Any]:
    """Return the commit the run was started from, and whether files differed from it."""
    code = _read_json(run_dir / "provenance.json").get("code", {})
    return {"commit": code.get("commit"), "changed": code.get("changed")}


def _read_json(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return data


def _evaluations(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """Return what evaluation.json says of this step; other steps are other encoders."""
    quoted = []
    for evaluation in _read_json(run_dir / "evaluation.json").get("evaluations", []):
        if evaluation["step"] != step:
            _log.warning(
                "the evaluation of %s is of step %d, the export of step %d: left out of the card",
                evaluation["task"]["name"],
                evaluation["step"],
                step,
            )
            continue
        shards = {key: value for key, value in evaluation["shards"].items() if key != "folder"}
        kept = {key: value for key, value in evaluation.items() if key != "run"}
        quoted.append({**kept, "shards": shards})
    return quoted


def _summary(card: dict[str, Any]) -> str:
    dataset = card["dataset"]
    return (
        f"A torchvision {card['architecture']} without its last layer: {len(card['bands'])} bands "
        f"in, {card['width']} numbers a patch out. Pretrained without labels on "
        f"{dataset['num_samples']} patches of {', '.join(dataset['sources'])}, "
        f"{card['step']} of {card['num_steps']} steps. Licence of the weights: {card['licence']}."
    )


def _input(card: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"- Unit: {card['unit']}; {card['offset']}.",
            f"- Processing level: {_levels(card)}.",
            f"- Nodata: {card['nodata']}.",
            f"- Size: trained on {card['size_px']} x {card['size_px']} px; {card['resampling']}.",
            "- Normalisation: (stored value - mean) / std, with the statistics of the patch's own "
            "source. For a source not listed, compute its own over many patches.",
        ]
    )


def _levels(card: dict[str, Any]) -> str:
    return ", ".join(
        f"{level or 'unknown'} ({source})" for source, level in card["processing_level"].items()
    )


def _files(files: list[dict[str, str]]) -> list[str]:
    """Return the section on further formats; none without such files."""
    if not files:
        return []
    rows = [f"| `{one['file']}` | {one['input']} |" for one in files]
    return ["## Other formats", "\n".join(["| file | takes |", "|---|---|", *rows])]


def _band_table(card: dict[str, Any]) -> str:
    sources = list(card["normalisation"])
    head = ["channel", "band", "nm", "native m", *(f"mean, std of {source}" for source in sources)]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for channel, band in enumerate(card["bands"]):
        tables = [card["normalisation"][source][band["name"]] for source in sources]
        cells = [
            str(channel),
            band["name"],
            f"{band['wavelength_nm']:.1f}",
            str(band["ground_resolution_m"]),
            *(f"{one['mean']:.1f}, {one['std']:.1f}" for one in tables),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _origin(card: dict[str, Any]) -> str:
    training, dataset, code = card["training"], card["dataset"], card["code"]
    changes = " with local changes" if code["changed"] else ""
    return "\n".join(
        [
            f"- Augmentation preset `{card['augmentation']}`, positives "
            f"`{training['data']['positives']}`, loss `{training['loss']['name']}` at "
            f"temperature {training['loss']['temperature']}, optimizer "
            f"`{training['optim']['name']}`, {training['data']['global_batch_size']} pairs a step, "
            f"seed {training['seed']}.",
            f"- Shards: fingerprint `{dataset['fingerprint']}`.",
            f"- Code: {DISTRIBUTION} {code['version'] or 'not installed'}, commit "
            f"{code['commit'] or 'unknown'}{changes}, torch {code['torch']}.",
            "- All settings: `card.json`, key `training`.",
        ]
    )
