"""Figures and pages for people: curves, contact sheets, heatmaps, reports."""
