"""``smoke models``: list, show, audit, train, compare, watch, promote, roll back and validate models on recorded fires.

Belongs here: options, and how versions and findings are shown. Does not: training, the gate and the registry themselves
(``adapters.model_lifecycle`` and what it calls), the audit (``adapters.data_audit``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from smoke_platform.domain.audit_findings import AuditReport
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings, load_settings

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def models() -> None:
    """List, show, audit, train, compare, watch, promote, roll back and validate models.

    \b
    Example:
      smoke models list
      smoke models audit
      smoke models train
      smoke models rollback
    """


def _registry(settings: Settings) -> Any:
    from smoke_platform.adapters.registry import Registry

    return Registry(settings)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


@models.command(name="list")
@JSON_OPTION
def list_versions(as_json: bool) -> None:
    """List all versions, newest first, with their grouped figures and the gate's verdict.

    \b
    Example:
      smoke models list
      smoke models list --json | jq '.[0].metrics'
    """
    found = _registry(load_settings()).versions()
    if as_json:
        _print_json([asdict(version) for version in found])
        return
    console = Console()
    if not found:
        console.print("There is no model yet; train one with `smoke models train`.")
        return
    table = Table(title="Models (figures: readings of held-out groups)")
    for name in ("version", "created (UTC)", "algorithm", "trained on", "accuracy", "F1", "gate", ""):
        table.add_column(name, justify="right" if name in ("version", "accuracy", "F1") else "left")
    for version in found:
        table.add_row(
            f"{version.number}{' *' if version.champion else ' ?' if version.challenger else ''}",
            f"{version.created_at:%Y-%m-%d %H:%M:%S}",
            version.algorithm,
            version.trained_on,
            f"{version.metrics.get('accuracy', float('nan')):.4f}",
            f"{version.metrics.get('f1', float('nan')):.4f}",
            version.gate or "not judged",
            version.fault or "; ".join(version.reasons),
        )
    console.print(table)
    console.print("* the champion, which scores the readings")
    if any(version.challenger for version in found):
        console.print("? the challenger, which is watched in shadow")


@models.command()
@click.argument("version", type=click.IntRange(min=1))
@JSON_OPTION
def show(version: int, as_json: bool) -> None:
    """Show one version: its manifest, what it was trained on, how it was validated.

    \b
    Example:
      smoke models show 3
      smoke models show 3 --json | jq .validation.episodes
    """
    from smoke_platform.adapters import evaluation_page

    settings = load_settings()
    registry = _registry(settings)
    manifest, entry = registry.manifest(version), registry.version(version)
    told = evaluation_page.find(settings, version)
    if as_json:
        standing = {"champion": entry.champion, "challenger": entry.challenger, "page": told}
        _print_json({**manifest, **standing, "gate": entry.gate, "reasons": entry.reasons})
        return
    Console().print(_sheet(manifest, entry, told))


def _sheet(manifest: dict[str, Any], entry: Any, told: Path | None = None) -> Table:
    validation, trained_on = manifest["validation"], manifest["trained_on"]
    standing = " (champion)" if entry.champion else " (challenger)" if entry.challenger else ""
    table = Table(title=f"Version {entry.number}{standing}", show_header=False)
    grouped, random_split = validation["grouped"], validation["random_split"]
    rows: list[tuple[str, str]] = [
        ("algorithm", manifest["algorithm"]),
        ("threshold", f"{manifest['threshold']:.4f}"),
        ("trained on", f"{trained_on['kind']}: {trained_on['rows']:,} rows, {trained_on['groups']} groups"),
        ("", trained_on["statement"]),
        (validation["kind"], f"accuracy {grouped['accuracy']:.4f}, F1 {grouped['f1']:.4f}"),
        ("random split (flatters)", f"accuracy {random_split['accuracy']:.4f}, F1 {random_split['f1']:.4f}"),
    ]
    if validation.get("episodes"):
        seen = validation["episodes"]
        rows.append(("fires seen", f"{seen['fires_seen']} of {seen['fires']}"))
        rows.append(("nuisances taken for fire", f"{seen['nuisances_mistaken']} of {seen['nuisances']}"))
    if validation.get("alarms"):
        alarms = validation["alarms"]
        delay = alarms["median_delay_s"]
        rows.append(("fires alarmed", f"{alarms['fires'] - alarms['missed']} of {alarms['fires']}, model's rule alone"))
        rows.append(("median delay", "-" if delay is None else f"{delay:g} s"))
        rows.append(("nuisances alarmed", f"{alarms['nuisances_alarmed']} of {alarms['nuisances']}"))
        rows.append(("quiet air", f"{alarms['quiet_alarms']} alarms in {alarms['quiet_device_days']:.2f} device-days"))
    if validation.get("holdout"):
        alone = validation["holdout"]["single_readings"]
        rows.append(("single readings, held out", f"accuracy {alone['accuracy']:.4f}, F1 {alone['f1']:.4f}"))
    audit = manifest.get("audit")
    rows += [
        *([("page", str(told))] if told else []),
        ("audit of the data", "none" if not audit else "clean" if audit["clean"] else f"{audit['blocking']} blocking"),
        ("gate", entry.gate or "not judged"),
        *(("", reason) for reason in entry.reasons),
        ("features", manifest["feature_version"]),
        ("data fingerprint", trained_on["fingerprint"]),
        ("SHA-256", manifest["sha256"]),
        ("code", manifest["code_version"]),
    ]
    for row in rows:
        table.add_row(*row)
    return table


@models.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option(
    "--source",
    type=click.Choice(["auto", "devices", "simulated", "csv"]),
    default="auto",
    show_default=True,
    help="Readings of the lake to look at; auto: those that training would use.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the page (.html) or JSON (.json).")
@JSON_OPTION
def audit(file: Path | None, source: str, out: Path | None, as_json: bool) -> None:
    """Look for what would make a model one of something else than fires: copies, leaks, wrong labels.

    FILE is a recording (CSV, .gz or .zip of one), and needs no platform; without it the lake's readings are looked at.
    Exits with 1 where a finding blocks training.

    \b
    Example:
      smoke models audit
      smoke models audit smoke_detection_iot.csv --out audit.html
      smoke models audit --source csv --json | jq '.findings[].finding'
    """
    from smoke_platform.adapters import data_audit

    if out is not None and out.suffix not in (".html", ".json"):
        raise SmokeError(f"{out} is neither .html nor .json", "end the name with the one or the other")
    with Console(stderr=True).status("reading") as status:
        if file is not None:
            report = data_audit.audit_file(file, status.update)
        else:
            report = data_audit.audit_source(load_settings(), source, status.update)
    if out is not None:
        out.write_text(
            data_audit.to_text(report) if out.suffix == ".json" else data_audit.audit_page(report), encoding="utf-8"
        )
    if as_json:
        click.echo(data_audit.to_text(report))
    else:
        Console().print(_audit_table(report, data_audit.headline(report)))
    if not report.clean:
        raise SmokeError(
            f"{report.kind}: {data_audit.headline(report)}", "the gate refuses a model that is trained on this alone"
        )


def _audit_table(report: AuditReport, headline: str) -> Table:
    title = f"{report.kind}: {report.rows:,} labelled readings, {len(report.recordings)} recordings: {headline}"
    table = Table(title=title, show_lines=True)
    for name in ("", "finding", "evidence", "consequence"):
        table.add_column(name, overflow="fold")
    for found in report.findings:
        table.add_row(f"{found.family}\n{found.severity}", found.finding, found.evidence_text, found.consequence)
    for limit in report.limits:
        table.add_row("not looked at", limit, "", "")
    return table


@models.command()
@click.option(
    "--source",
    type=click.Choice(["auto", "devices", "simulated", "csv"]),
    default="auto",
    show_default=True,
    help="What to train on; auto: real devices where enough of them are labelled, else the simulated set.",
)
@click.option("--no-promote", is_flag=True, help="Register the version only.")
@JSON_OPTION
def train(source: str, no_promote: bool, as_json: bool) -> None:
    """Train a version, register it, and take it on if it passes the gate: to champion, or into the shadow first.

    \b
    Example:
      smoke models train
      smoke models train --source simulated --no-promote
    """
    from smoke_platform.adapters import evaluation_page, model_lifecycle

    settings = load_settings()
    registry = _registry(settings)
    console = Console(stderr=True)
    with console.status("starting") as status:
        registry.migrate()
        if source in ("auto", "simulated"):
            model_lifecycle.prepare_simulated(settings, progress=status.update)
        candidate = model_lifecycle.train_candidate(settings, registry, source=source, progress=status.update)
        status.update("judging")
        verdict = model_lifecycle.judge(settings, registry, candidate.number)
    advance = None
    if verdict.passed and not no_promote:
        advance = model_lifecycle.advance(settings, registry, candidate.number)
    model_lifecycle.prune(settings, registry)
    if as_json:
        _print_json(
            {
                "version": candidate.number,
                "promoted": advance is not None and advance.outcome == "champion",
                "outcome": advance.outcome if advance else "registered",
                "gate": verdict.as_dict(),
                "manifest": candidate.manifest,
            }
        )
    else:
        told = evaluation_page.find(settings, candidate.number)
        Console().print(_sheet(candidate.manifest, registry.version(candidate.number), told))
        if advance is not None:
            click.echo(f"{advance.outcome}: {advance.reason}")
    if not verdict.passed:
        raise SmokeError(
            f"version {candidate.number} is registered, but the gate refused it: " + "; ".join(verdict.reasons),
            "the champion stays",
        )


@models.command()
@click.argument("version", type=click.IntRange(min=1))
@click.argument("other", type=click.IntRange(min=1), required=False)
@JSON_OPTION
def compare(version: int, other: int | None, as_json: bool) -> None:
    """Compare VERSION with OTHER (the champion where none is given) on the same held-out fires.

    Figures of the manifests stand side by side; below them what the alarms of both do to the very same fires and
    nuisances, none of which any version was trained on.

    \b
    Example:
      smoke models compare 4
      smoke models compare 4 2 --json | jq .paired.misses
    """
    from smoke_platform.adapters import model_lifecycle

    settings = load_settings()
    registry = _registry(settings)
    other = other or (registry.champion() or {}).get("version")
    if other is None:
        raise SmokeError("there is no champion to compare with", f"smoke models compare {version} OTHER")
    manifests = {number: registry.manifest(number) for number in (version, other)}
    with Console(stderr=True).status("replaying the held-out fires"):
        paired = model_lifecycle.compare(settings, registry, version, other)
    if as_json:
        shown = {str(number): _figures(manifest) for number, manifest in manifests.items()}
        _print_json({"version": version, "other": other, "figures": shown, "paired": paired.as_dict()})
        return
    console = Console()
    console.print(_beside(manifests))
    console.print(_paired_table(paired, version, other))


def _figures(manifest: dict[str, Any]) -> dict[str, Any]:
    """The figures of a manifest that two versions are compared by."""
    validation = manifest["validation"]
    alarms = validation.get("alarms")
    return {
        "algorithm": manifest["algorithm"],
        "trained on": manifest["trained_on"]["kind"],
        "rows": manifest["trained_on"]["rows"],
        "threshold": manifest["threshold"],
        "accuracy": validation["grouped"]["accuracy"],
        "F1": validation["grouped"]["f1"],
        "precision": validation["grouped"]["precision"],
        "recall": validation["grouped"]["recall"],
        "largest difference of parity": validation["parity"]["largest_difference"],
        "microseconds a row": validation["latency_us"],
        "bytes": validation.get("size_bytes"),
        "code": manifest["code_version"],
        "data fingerprint": str(manifest["trained_on"].get("fingerprint", ""))[:16],
        **{f"alarms: {name}": value for name, value in (alarms or {}).items() if isinstance(value, (int, float, str))},
    }


def _beside(manifests: dict[int, dict[str, Any]]) -> Table:
    table = Table(title="Manifests")
    table.add_column("figure")
    sides = {number: _figures(manifest) for number, manifest in manifests.items()}
    for number in sides:
        table.add_column(f"version {number}", justify="right")
    for name in dict.fromkeys(name for side in sides.values() for name in side):
        table.add_row(name, *(_cell(side.get(name)) for side in sides.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _paired_table(paired: Any, version: int, other: int) -> Table:
    table = Table(title="The same held-out fires and nuisances (95% intervals over whole episodes)")
    for name in ("", "episodes", f"version {version}", f"version {other}", "difference", "worse / better", "sign test"):
        table.add_column(name, justify="left" if not name else "right")
    for name, count in (("fires missed", paired.misses), ("false alarms", paired.false_alarms)):
        table.add_row(
            name,
            f"{count.episodes:,}",
            f"{count.candidate:,}",
            f"{count.champion:,}",
            f"{count.more:+d} ({count.low:+g} to {count.high:+g})",
            f"{count.worse} / {count.better}",
            f"{count.p_worse:.2g}",
        )
    delay = paired.delay
    if delay.mean is not None:
        later = f"{delay.mean:+.2f} s ({delay.low:+.2f} to {delay.high:+.2f})"
        table.add_row("alarm later by", f"{delay.fires:,}", "", "", later, "", "")
    return table


@models.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--clear", is_flag=True, help="End the watch.")
@click.option("--reason", default="smoke models challenger", help="Why; kept in the history.")
@JSON_OPTION
def challenger(version: int | None, clear: bool, reason: str, as_json: bool) -> None:
    """Have VERSION watched in shadow beside the champion; without one, show which version is.

    It scores the readings that have landed, once an hour, and raises no alarm.

    \b
    Example:
      smoke models challenger 5
      smoke models challenger --clear --reason "not needed any more"
    """
    from smoke_platform.adapters.registry import read_challenger

    settings = load_settings()
    if clear and version is not None:
        raise SmokeError("--clear ends the watch of whichever version it is", "leave the version out")
    if clear:
        gone = _registry(settings).drop_challenger(reason=reason)
        if as_json:
            _print_json({"cleared": gone})
        else:
            click.echo("no version was watched" if gone is None else f"version {gone} is no challenger any more")
        return
    if version is not None:
        entry = _registry(settings).challenge(version, reason=reason)
    else:
        found = read_challenger(settings.models_dir)
        if found is None:
            raise SmokeError("no version is watched in shadow", "smoke models challenger VERSION has one watched")
        entry = found
    if as_json:
        _print_json(entry)
    else:
        click.echo(f"version {entry['version']} is watched in shadow since {entry['published_at']} ({entry['reason']})")


@models.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--force", is_flag=True, help="Promote it even if the gate refuses it.")
@click.option("--reason", help="Why; kept in the history. Required with --force.")
@JSON_OPTION
def promote(version: int, force: bool, reason: str | None, as_json: bool) -> None:
    """Make a version champion, if it passes the gate.

    \b
    Example:
      smoke models promote 4
      smoke models promote 4 --force --reason "site test, agreed with the operator"
    """
    from smoke_platform.adapters import model_lifecycle

    if force and not (reason or "").strip():
        raise SmokeError("--force needs a reason", 'add --reason "why this version although the gate refuses it"')
    settings = load_settings()
    registry = _registry(settings)
    if force:
        published = registry.promote(version, reason=str(reason), forced=True)
    else:
        published = model_lifecycle.promote(settings, registry, version, reason=reason or "smoke models promote")
    _tell(published, as_json)


@models.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--reason", default="smoke models rollback", help="Why; kept in the history.")
@JSON_OPTION
def rollback(version: int | None, reason: str, as_json: bool) -> None:
    """Make the champion before this one champion again, or the earlier champion VERSION.

    \b
    Example:
      smoke models rollback
      smoke models rollback 2 --reason "false alarms in the kitchens"
    """
    _tell(_registry(load_settings()).rollback(version, reason=reason), as_json)


@models.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--model",
    default="champion",
    show_default=True,
    metavar="champion|rules|VERSION",
    help="What scores; without a champion the start-up model is trained first.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a report with plots (HTML).")
@JSON_OPTION
def validate(folder: Path, model: str, out: Path | None, as_json: bool) -> None:
    """Run recorded fire tests through the detector, and compare it with the alarms that hung there.

    DIR holds a CSV file for each test and Activation_Times.csv, as NIST publishes its home smoke alarm tests.

    \b
    Example:
      smoke models validate nist_smoke_alarms --out report.html
      smoke models validate nist_smoke_alarms --model rules --json | jq .won
    """
    from smoke_platform.adapters import external_validation, external_validation_page
    from smoke_platform.adapters.reports import shown

    console = Console(stderr=True)
    with console.status("reading the tests") as status:
        # Where no terminal draws the status, a line for each step says that something is under way.
        tell = status.update if console.is_terminal else console.print
        outcome = external_validation.run(folder, load_settings(), model, tell)
    validation = outcome.validation
    if outcome.ignored:
        click.echo(f"note: no ionisation or photoelectric alarm: {', '.join(outcome.ignored)}", err=True)
    if out is not None:
        external_validation_page.write(validation, out, f"smoke models validate {folder} --model {model}")
    if as_json:
        _print_json(validation.as_dict())
        return
    screen = Console()
    for title, rows in (
        (f"Pairs: {validation.model} (seconds from ignition)", external_validation_page.pair_rows(validation)),
        ("Shares", external_validation_page.share_rows(validation)),
    ):
        table = Table(title=title)
        for name in rows[0]:
            table.add_column(name)
        for row in rows:
            table.add_row(*(shown(value) for value in row.values()))
        screen.print(table)
    screen.print(f"fire alarms before ignition: {validation.before_ignition}")


@models.command()
@JSON_OPTION
def champion(as_json: bool) -> None:
    """Show the champion that is published. Quick: opens no registry.

    \b
    Example:
      smoke models champion --json | jq .version
    """
    from smoke_platform.adapters.registry import read_champion

    published = read_champion(load_settings().models_dir)
    if published is None:
        raise SmokeError("there is no champion", "smoke models train trains one")
    _tell(published, as_json)


@models.command()
def migrate() -> None:
    """Make the registry's store, or bring it to the installed version's schema.

    \b
    Example:
      smoke models migrate
    """
    registry = _registry(load_settings())
    registry.migrate()
    click.echo(registry.reconcile())


def _tell(published: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(published)
        return
    metrics = published["metrics"]
    click.echo(
        f"version {published['version']} is champion since {published['published_at']} ({published['action']}: "
        f"{published['reason']})\naccuracy {metrics['accuracy']:.4f}, F1 {metrics['f1']:.4f} in "
        f"{metrics['validation']}, trained on {published['trained_on']} data"
    )
