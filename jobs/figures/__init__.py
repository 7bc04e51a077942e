"""Pictures and pages that people look at: curves, contact sheets, heatmaps, reports."""
