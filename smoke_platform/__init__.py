"""Smoke-detection data platform: streaming, lake, warehouse, models and serving, orchestrated by Dagster."""

__version__ = "0.1.0"
