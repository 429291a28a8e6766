"""Dagster's entry point: the code location, and nothing else."""

import dagster as dg

from smoke_platform.orchestration.build import build_definitions


@dg.definitions
def defs() -> dg.Definitions:
    return build_definitions()
