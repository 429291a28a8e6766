"""Looks over the machine and names for each fault what mends it.

Belongs here: checks that need nothing to run. Does not: whether the running platform does its work (health.py).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from smoke_platform.adapters.java import find_java, find_jdk
from smoke_platform.adapters.spark_jars import CONNECTOR
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local import ports
from smoke_platform.local.jars import BROKER, KAFKA_VERSION
from smoke_platform.local.programs import embeds_kafka, instance_template, required_ports
from smoke_platform.local.supervisor import Platform
from smoke_platform.settings import Settings

Outcome = Literal["ok", "warn", "fail"]

DISTRIBUTION = "smoke-platform"
#: The platform at rest takes some 1.5 GB of memory; a training run and a report come on top of it.
LEAST_MEMORY_GB, GOOD_MEMORY_GB = 2.0, 4.0
#: Jars, environment and an idle day's log fit into the first; a week of a thousand devices wants the second.
LEAST_DISK_GB, GOOD_DISK_GB = 2.0, 10.0
LEAST_OPEN_FILES = 4096


@dataclass(frozen=True)
class Check:
    """What one look found: ``remedy`` is empty where nothing need be done."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Check]:
    """Every check, in the order in which a fault would hinder the start."""
    looks: list[Callable[[Settings], list[Check]]] = [
        _python,
        _packages,
        _checkout,
        _java,
        _jars,
        _spark,
        _ports,
        _folders,
        _disk,
        _memory,
        _open_files,
    ]
    return [check for look in looks for check in look(settings)]


def _python(_settings: Settings) -> list[Check]:
    running = platform.python_version()
    wanted = SpecifierSet(importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or "")
    if wanted.contains(running):
        return [Check("Python", "ok", f"{running} ({sys.executable})")]
    return [
        Check("Python", "fail", f"{running}; {wanted} is needed", "make the virtual environment with another Python")
    ]


def _packages(_settings: Settings) -> list[Check]:
    faults, seen = [], 0
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            faults.append(f"{line}: not understood")
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        seen += 1
        try:
            version = importlib.metadata.version(canonicalize_name(requirement.name))
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, {requirement.specifier} is needed")
    if faults:
        return [Check("Packages", "fail", "; ".join(faults), "pip install --require-hashes -r requirements.lock")]
    return [Check("Packages", "ok", f"{seen} direct requirements are met")]


def _checkout(_settings: Settings) -> list[Check]:
    if instance_template().is_file():
        return [Check("Checkout", "ok", str(instance_template().parent))]
    return [Check("Checkout", "fail", f"{instance_template()} is missing", "run from a complete checkout")]


def _java(settings: Settings) -> list[Check]:
    if not embeds_kafka(settings):
        return [Check("Java", "ok", "not needed: KAFKA_BOOTSTRAP_SERVERS names other brokers")]
    try:
        java = find_java()
    except SmokeError as fault:
        return [Check("Java", "fail", fault.message, fault.remedy)]
    return [Check("Java", "ok", f"{java.major}, from {java.origin} ({java.command})")]


def _jars(settings: Settings) -> list[Check]:
    if not embeds_kafka(settings):
        return []
    folder = BROKER.folder(settings.cache_dir)
    if not folder.is_dir():
        return [Check("Kafka's jars", "ok", f"Kafka {KAFKA_VERSION} is not in the cache yet; smoke up fetches 43 MB")]
    try:
        expected = BROKER.expected()
        BROKER.check(folder, expected)
    except SmokeError as fault:
        return [Check("Kafka's jars", "fail", fault.message, fault.remedy)]
    return [Check("Kafka's jars", "ok", f"{len(expected)} jars of Kafka {KAFKA_VERSION}, each as the list has it")]


def _spark(settings: Settings) -> list[Check]:
    if settings.engine != "spark":
        return []
    try:
        java = find_jdk()
    except SmokeError as fault:
        return [Check("Java for Spark", "fail", fault.message, fault.remedy)]
    checks = [Check("Java for Spark", "ok", f"{java.major}, from {java.origin} ({java.command})")]
    folder = CONNECTOR.folder(settings.cache_dir)
    if not folder.is_dir():
        return [
            *checks,
            Check("Spark's jars", "ok", f"{CONNECTOR.title} is not in the cache yet; the first run fetches 10 MB"),
        ]
    try:
        CONNECTOR.check(folder, CONNECTOR.expected())
    except SmokeError as fault:
        return [*checks, Check("Spark's jars", "fail", fault.message, fault.remedy)]
    return [*checks, Check("Spark's jars", "ok", f"{CONNECTOR.title}, each as the list has it")]


def _ports(settings: Settings) -> list[Check]:
    own = {process.pid for process in Platform(settings).processes()}
    checks = []
    for host, port, setting, purpose in required_ports(settings):
        name = f"Port {port}"
        if ports.is_free(host, port):
            checks.append(Check(name, "ok", f"free, for {purpose}"))
            continue
        holder = ports.holder(port)
        if holder is not None and holder.pid in own:
            checks.append(Check(name, "ok", f"in use by this platform, for {purpose}"))
            continue
        by = f" by process {holder.pid}" if holder is not None else ""
        checks.append(Check(name, "fail", f"taken{by}; {purpose} needs it", f"stop what uses it, or set {setting}"))
    return checks


def _folders(settings: Settings) -> list[Check]:
    checks = []
    for name, folder, setting in (
        ("State", settings.home, "SMOKE_HOME"),
        ("Cache", settings.cache_dir, "SMOKE_CACHE_DIR"),
    ):
        if os.access(_existing(folder), os.W_OK | os.X_OK):
            checks.append(Check(f"{name} folder", "ok", str(folder)))
        else:
            checks.append(
                Check(f"{name} folder", "fail", f"{folder} can't be written", f"change its owner, or set {setting}")
            )
    return checks


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _disk(settings: Settings) -> list[Check]:
    free = shutil.disk_usage(_existing(settings.home)).free / 1e9
    found = f"{free:.1f} GB free below {settings.home}"
    remedy = "free some, set SMOKE_HOME to another disk, or shorten SMOKE_KAFKA_RETENTION_DAYS"
    if free < LEAST_DISK_GB:
        return [Check("Disk", "fail", f"{found}; {LEAST_DISK_GB:g} GB are needed", remedy)]
    if free < GOOD_DISK_GB:
        return [Check("Disk", "warn", f"{found}; {GOOD_DISK_GB:g} GB are comfortable", remedy)]
    return [Check("Disk", "ok", found)]


def _memory(_settings: Settings) -> list[Check]:
    available = psutil.virtual_memory().available / 1e9
    found = f"{available:.1f} GB available"
    remedy = "close other programs, or run parts elsewhere (docker-compose.yml)"
    if available < LEAST_MEMORY_GB:
        return [Check("Memory", "fail", f"{found}; {LEAST_MEMORY_GB:g} GB are needed", remedy)]
    if available < GOOD_MEMORY_GB:
        return [Check("Memory", "warn", f"{found}; {GOOD_MEMORY_GB:g} GB are comfortable", remedy)]
    return [Check("Memory", "ok", found)]


def _open_files(_settings: Settings) -> list[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    # supervisord raises the soft limit for itself and its programs as far as the hard one allows.
    if hard != resource.RLIM_INFINITY and hard < LEAST_OPEN_FILES:
        return [Check("Open files", "warn", f"at most {hard}", f"raise the limit: ulimit -Hn {LEAST_OPEN_FILES}")]
    return [Check("Open files", "ok", shown)]
