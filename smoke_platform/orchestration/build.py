"""Puts the code location together: one ``definitions`` per subject, merged.

Belongs here: which subjects there are. Does not: any asset, job or sensor.
"""

from __future__ import annotations

import dagster as dg

from smoke_platform.orchestration import (
    audit,
    external_validation,
    landing,
    maintenance,
    model_watch,
    models,
    monitoring,
    retraining,
    warehouse,
)
from smoke_platform.settings import Settings, load_settings


def build_definitions(settings: Settings | None = None) -> dg.Definitions:
    """The whole code location, for ``settings`` or, where none are given, those of the environment."""
    chosen = settings or load_settings()
    return dg.Definitions.merge(
        landing.definitions(chosen),
        warehouse.definitions(chosen),
        audit.definitions(chosen),
        models.definitions(chosen),
        external_validation.definitions(chosen),
        model_watch.definitions(chosen),
        monitoring.definitions(chosen),
        retraining.definitions(chosen),
        maintenance.definitions(chosen),
    )
