"""``simclr-export``: a run's encoder becomes files that others load."""

from __future__ import annotations

from jobs.cli import main as cli
from jobs.cli.help import Help
from jobs.cli.schema import ExportApp, narrow
from jobs.commands.evaluate import Export
from jobs.launch import dispatch
from simclr.export.config import ExportConfig

HELP = Help(
    sentence="export a run's encoder with its card: bands, units, normalisation, origin.",
    examples=(
        "simclr-export run=runs/first output=export",
        "simclr-export run=runs/first output=export licence=CC-BY-4.0",
        "simclr-export run=runs/first output=export step=4000 formats=[onnx,pt2]",
        "simclr-export run=runs/first output=export cluster=slurm_cpu_example",
    ),
    settings={
        "run": "run folder",
        "output": "folder for the files",
        "step": "of the checkpoint; 0 is the newest valid one",
        "formats": "further files: onnx, pt2 (torch.export), pth (weights for hub loaders)",
        "source": "whose normalisation onnx and pt2 carry; empty is the only one of the run",
        "licence": "licence of the weights, written into the card",
    },
    output="encoder.safetensors, card.json, CARD.md and further formats; stdout names the folder.",
)


def work(app: ExportApp, member: str | None) -> str:
    """Export, or submit it; return the folder."""
    return dispatch(Export(narrow(app, ExportConfig)), app.cluster, in_sweep=member is not None)


def main() -> None:
    """Console script."""
    cli.main("export", work, HELP)


if __name__ == "__main__":
    main()
