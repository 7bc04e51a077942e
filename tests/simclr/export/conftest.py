"""An export of the small trained run, for all tests that read one."""

from __future__ import annotations

from pathlib import Path

import pytest

from simclr.export import ExportConfig, ExportFormat
from simclr.export.export import export


@pytest.fixture(scope="session")
def exported(trained_run, tmp_path_factory) -> Path:
    """Export the trained run; read the folder, do not write."""
    output = tmp_path_factory.mktemp("exported") / "encoder"
    return export(ExportConfig(run=str(trained_run.folder), output=str(output), licence="MIT"))


@pytest.fixture(scope="session")
def exported_formats(trained_run, tmp_path_factory) -> Path:
    """Export the trained run in every format; read the folder, do not write."""
    output = tmp_path_factory.mktemp("exported") / "formats"
    config = ExportConfig(
        run=str(trained_run.folder), output=str(output), formats=list(ExportFormat)
    )
    return export(config)
