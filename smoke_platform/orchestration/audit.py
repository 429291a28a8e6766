"""The audit of the training data in Dagster, with a check for each family of findings.

Belongs here: the asset, its checks, what of the report the UI shows. Does not: the checks' sense
(``domain.data_audit``), reading and drawing (``adapters.data_audit``), the candidate (``orchestration.models``).

The checks block: where one fails, the training run stops before a candidate is made, says why, and the champion goes on
scoring. The run is then red, which a refusal by the gate is not: bad data are a fault that somebody has to mend, and a
nightly training that quietly does nothing would hide it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from smoke_platform.adapters import data_audit
from smoke_platform.adapters.reports import StoredReport, markdown_table
from smoke_platform.domain.audit_findings import FAMILIES, AuditReport
from smoke_platform.orchestration import names
from smoke_platform.settings import Settings

#: A check for each family, by its name.
CHECKS = tuple(f"audit_{family}" for family in FAMILIES)

Step = Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]


def definitions(settings: Settings) -> dg.Definitions:
    """Asset and checks of the subject; the training job of ``orchestration.models`` runs them."""
    return dg.Definitions(assets=[_audit(settings)])


def _audit(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.DATA_AUDIT,
        group_name=names.GROUP_MODELS,
        deps=[
            dg.AssetDep(names.SIMULATED_READINGS),
            dg.AssetDep(names.TRAINING_EXAMPLES, partition_mapping=dg.AllPartitionMapping()),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                f"audit_{family}", asset=names.DATA_AUDIT, description=f"In what is trained on {promise}", blocking=True
            )
            for family, promise in FAMILIES.items()
        ],
        kinds={"polars"},
        description="Whether a model of the readings that training would use is one of fires: copies, leaks, physics.",
    )
    def models_data_audit(context: dg.AssetExecutionContext) -> Step:
        report = data_audit.audit_source(settings, progress=context.log.info)
        stored = data_audit.store(settings, report, datetime.now(UTC))
        if not report.clean:
            context.log.warning(
                f"nothing is trained on {report.kind}, the champion stays: {data_audit.headline(report)}"
            )
        yield dg.MaterializeResult(metadata=_metadata(settings, report, stored))
        yield from _check_results(report)

    return models_data_audit


def _metadata(settings: Settings, report: AuditReport, stored: StoredReport) -> dict[str, Any]:
    rows = [finding.as_reason() for finding in report.findings]
    return {
        "verdict": data_audit.headline(report),
        "looked_at": report.kind,
        "dagster/row_count": report.rows,
        "recordings": len(report.recordings),
        "findings": dg.MetadataValue.md(markdown_table(rows)),
        # A browser opens no file:// link from a page that came over HTTP, so the API hands the reports out.
        "report": dg.MetadataValue.url(settings.api_url + stored.route),
        "file": dg.MetadataValue.path(str(stored.page)),
        **{name: str(value) for name, value in report.origin.items()},
    }


def _check_results(report: AuditReport) -> Iterator[dg.AssetCheckResult]:
    for family, promise in FAMILIES.items():
        found = report.of(family)
        blocking = [finding for finding in found if finding.blocking]
        told = " ".join(f"{finding.finding}." for finding in blocking)
        yield dg.AssetCheckResult(
            asset_key=names.DATA_AUDIT,
            check_name=f"audit_{family}",
            passed=not blocking,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"{told} Nothing is trained, the champion stays." if blocking else f"Held: {promise}.",
            metadata={
                "blocking": len(blocking),
                "notes": len(found) - len(blocking),
                "findings": dg.MetadataValue.md(markdown_table([finding.as_reason() for finding in found])),
            },
        )
