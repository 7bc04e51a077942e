"""The card of an exported encoder, as data and as a page, with everything its user must know.

It contains no machine-specific paths and no time: equal exports are identical byte for byte.
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
    """Return the card as plain data for JSON.

    The evaluation.json and provenance.json of the run folder are included if they exist.
    """
    config, dataset, normalisation = pretrained.config, pretrained.dataset, pretrained.normalisation
    settings = to_plain(config)
    del settings["shards"], settings["run_dir"]
    for part, key in (("model", "weights"), ("monitor", "shards")):
        settings[part][key] = Path(settings[part][key]).name
    levels = dataset.get("processing_level", {})
    code = _read_json(run_dir / "provenance.json").get("code", {})
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # runs from a source folder, not installed
        version = None
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "simulated": dataset["simulated"],
        "licence": licence,
        "architecture": config.model.encoder.value,
        "stem": config.model.stem.value,
        "width": WIDTHS[config.model.encoder.value],
        "bands": [
            {
                "name": name,
                "wavelength_nm": BANDS[name].wavelength_nm,
                "ground_resolution_m": BANDS[name].ground_resolution_m,
            }
            for name in config.data.bands
        ],
        "unit": UNIT,
        "offset": OFFSET_RULE,
        # per source: L1C, L2A or, if unknown, empty
        "processing_level": {source: levels.get(source, "") for source in normalisation},
        "nodata": f"stored value {NODATA} becomes 0 after normalisation",
        "resampling": RESAMPLING_RULE,
        "size_px": pretrained.view_size_px,
        "normalisation": {source: usable(table) for source, table in normalisation.items()},
        "dataset": {
            name: dataset[name] for name in ("sources", "simulated", "fingerprint", "num_samples")
        },
        "augmentation": config.augment.preset,
        "step": pretrained.step,
        "num_steps": pretrained.manifest.num_steps,
        "training": settings,
        "code": {
            "version": version,
            "commit": code.get("commit"),  # commit that the run was started from
            "changed": code.get("changed"),  # whether files differed from that commit
            "torch": pretrained.manifest.torch,
        },
        "evaluations": _evaluations(run_dir, pretrained.step),
    }


def card_markdown(card: dict[str, Any]) -> str:
    """Return the card as a Markdown page, with code that loads the encoder without this package."""
    dataset, size_px = card["dataset"], card["size_px"]
    levels = ", ".join(
        f"{level or 'unknown'} ({source})" for source, level in card["processing_level"].items()
    )
    summary = (
        f"A torchvision {card['architecture']} without its last layer: {len(card['bands'])} bands "
        f"in, {card['width']} numbers a patch out. Pretrained without labels on "
        f"{dataset['num_samples']} patches of {', '.join(dataset['sources'])}, "
        f"{card['step']} of {card['num_steps']} steps. Licence of the weights: {card['licence']}."
    )
    takes = (
        f"- Unit: {card['unit']}; {card['offset']}.\n"
        f"- Processing level: {levels}.\n"
        f"- Nodata: {card['nodata']}.\n"
        f"- Size: trained on {size_px} x {size_px} px; {card['resampling']}.\n"
        "- Normalisation: (stored value - mean) / std, with the statistics of the patch's own "
        "source. For a source not listed, compute its own over many patches."
    )
    rows = [f"| `{one['file']}` | {one['input']} |" for one in card.get("files", [])]
    formats = "\n".join(["## Other formats\n\n| file | takes |\n|---|---|", *rows]) if rows else ""
    simulated = "**Trained on simulated patches: for tests, not for use on the Earth.**"
    blocks = [
        f"# {card['architecture']} for Sentinel-2, pretrained with SimCLR",
        simulated if card["simulated"] else "",
        summary,
        "## Load it",
        f"```python\n{loading_example(card)}```",
        formats,
        "## Input",
        takes,
        _band_table(card),
        "## Scores",
        *(markdown(evaluation, level=3).strip() for evaluation in card["evaluations"]),
        "" if card["evaluations"] else "Not evaluated at this step.",
        "## Origin",
        _origin(card),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def loading_example(card: dict[str, Any]) -> str:
    """Return Python that loads the encoder into a plain torchvision ResNet and embeds a patch.

    The code runs in the export folder, and needs torch, torchvision and safetensors.
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


def _read_json(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return data


def _evaluations(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """Return the entries of evaluation.json for this step; other steps are other encoders."""
    quoted = []
    for evaluation in _read_json(run_dir / "evaluation.json").get("evaluations", []):
        if evaluation["step"] != step:
            found = evaluation["task"]["name"], evaluation["step"], step
            text = "the evaluation of %s is of step %d, the export of step %d: left out of the card"
            _log.warning(text, *found)
            continue
        shards = {key: value for key, value in evaluation["shards"].items() if key != "folder"}
        kept = {key: value for key, value in evaluation.items() if key != "run"}
        protocol = evaluation["protocol"]
        others = [Path(path).name for path in protocol.get("others", ())]
        quoted.append({**kept, "shards": shards, "protocol": {**protocol, "others": others}})
    return quoted


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
    training, code = card["training"], card["code"]
    changes = " with local changes" if code["changed"] else ""
    return (
        f"- Augmentation preset `{card['augmentation']}`, positives "
        f"`{training['data']['positives']}`, loss `{training['loss']['name']}` at temperature "
        f"{training['loss']['temperature']}, optimizer `{training['optim']['name']}`, "
        f"{training['data']['global_batch_size']} pairs a step, seed {training['seed']}.\n"
        f"- Shards: fingerprint `{card['dataset']['fingerprint']}`.\n"
        f"- Code: {DISTRIBUTION} {code['version'] or 'not installed'}, commit "
        f"{code['commit'] or 'unknown'}{changes}, torch {code['torch']}.\n"
        "- All settings: `card.json`, key `training`."
    )
