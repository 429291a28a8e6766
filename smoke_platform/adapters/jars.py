"""Jars that pip does not bring: resolved by Apache Ivy, held against a committed list, kept in a cache for all.

Belongs here: the resolution, the lists' form and their check. Does not: which jars (``local.jars`` names the broker's,
``adapters.spark_jars`` the connector's of Spark), what is run with them. No repository's address stands here: Ivy's
default resolver has one.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from smoke_platform.adapters.java import Java, find_java, network_options
from smoke_platform.domain.errors import SmokeError

ATTEMPTS = 4

#: Receives a short line that says what is being done.
Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """The progress of somebody who doesn't look."""


@dataclass(frozen=True)
class JarSet:
    """Modules with all they need, as one folder of the cache.

    Attributes:
        title: what a person knows them as, such as ``Kafka 4.4.0``.
        folder_name: of their folder in the cache; a new version needs a new one.
        purpose: of the jars, for the message when they can't be had.
        modules: (organisation, module, version).
        lock_file: the committed list of names and SHA-256.
        writer: the command that rewrites the list.
        excluded: (organisation, module) of what something else brings already; ``*`` stands for all modules.
    """

    title: str
    folder_name: str
    purpose: str
    modules: tuple[tuple[str, str, str], ...]
    lock_file: Path
    writer: str
    excluded: tuple[tuple[str, str], ...] = ()

    def folder(self, cache_dir: Path) -> Path:
        return cache_dir / self.folder_name

    def expected(self) -> dict[str, str]:
        """The committed list: name of each jar -> its SHA-256.

        Raises:
            SmokeError: for a line that is no entry.
        """
        return read_lock(self.lock_file)

    def ensure(self, cache_dir: Path, progress: Progress = silent, java: Java | None = None) -> list[Path]:
        """The class path, every entry checked; fetched first where it is not in the cache.

        Any number of processes may call it at once: one fetches, the others wait for it. A folder appears in the cache
        complete or not at all.

        Raises:
            SmokeError: where a jar is not the one of the list, or the download fails repeatedly.
        """
        expected = self.expected()
        folder = self.folder(cache_dir)
        if not _complete(folder, expected):
            with _exclusive(cache_dir / f"{self.folder_name}.lock"):
                if not _complete(folder, expected):
                    self._fetch(cache_dir, expected, progress, java or find_java())
        self.check(folder, expected)
        return [folder / name for name in expected]

    def check(self, folder: Path, expected: dict[str, str]) -> None:
        """Holds the jars in ``folder`` against the list.

        Raises:
            SmokeError: where one is missing, or its content is another than the committed list says.
        """
        for name, digest in expected.items():
            jar = folder / name
            if not jar.is_file():
                raise SmokeError(f"{jar} is missing", f"remove {folder}; it is fetched anew")
            found = sha256_of(jar)
            if found != digest:
                raise SmokeError(
                    f"{jar} is refused: its SHA-256 is {found}, the committed list {self.lock_file.name} says {digest}",
                    f"remove {folder} to fetch it anew; if that repeats, something between here and the repository "
                    "changes files",
                )

    def write_lock(self) -> int:
        """Resolves from nothing and writes the list of names and SHA-256; gives the number of jars.

        Read the change before it is committed: from then on it is what every platform trusts.
        """
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "jars"
            target.mkdir()
            self._resolve(target, Path(scratch), silent, find_java())
            jars = sorted(target.glob("*.jar"))
            lines = [
                f"# Jars of {self.title} and their SHA-256; {self.writer} writes it.",
                *(f"{jar.name} {sha256_of(jar)}" for jar in jars),
            ]
        replacement = self.lock_file.with_suffix(".new")
        replacement.write_text("\n".join(lines) + "\n", encoding="utf-8")
        replacement.replace(self.lock_file)
        return len(jars)

    def _ivy_cache(self, cache_dir: Path) -> Path:
        return cache_dir / f"ivy-{self.folder_name}"

    def _fetch(self, cache_dir: Path, expected: dict[str, str], progress: Progress, java: Java) -> None:
        folder = self.folder(cache_dir)
        staging = Path(tempfile.mkdtemp(prefix=f"{self.folder_name}-", dir=cache_dir))
        try:
            self._resolve(staging, cache_dir, progress, java, total=len(expected))
            self.check(staging, expected)
            if folder.exists():
                folder.rename(staging / "incomplete")
            staging.rename(folder)
            shutil.rmtree(folder / "incomplete", ignore_errors=True)
            # What is in Ivy's cache is now here too.
            shutil.rmtree(self._ivy_cache(cache_dir), ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _resolve(self, target: Path, cache_dir: Path, progress: Progress, java: Java, total: int | None = None) -> None:
        """Lets Ivy resolve the modules with all they need and puts the jars into ``target``.

        Ivy checks what it downloads against the checksums that the repository publishes. What one attempt has fetched
        stays in Ivy's cache for the next.

        Raises:
            SmokeError: after the last attempt, with the end of Ivy's report.
        """
        ivy_cache = self._ivy_cache(cache_dir)
        ivy_cache.mkdir(parents=True, exist_ok=True)
        description = ivy_cache / "ivy.xml"
        dependencies = "".join(
            f'<dependency org="{organisation}" name="{module}" rev="{version}" conf="default->default"/>'
            for organisation, module, version in self.modules
        ) + "".join(f'<exclude org="{organisation}" module="{module}"/>' for organisation, module in self.excluded)
        description.write_text(
            '<ivy-module version="2.0"><info organisation="smoke-platform" module="jars"/>'
            f'<configurations><conf name="default"/></configurations><dependencies>{dependencies}</dependencies>'
            "</ivy-module>",
            encoding="utf-8",
        )
        command = [
            str(java.command), "-Xmx256m", *network_options(java, cache_dir), "-jar", str(_ivy_jar()),
            "-cache", str(ivy_cache), "-ivy", str(description), "-confs", "default",
            "-retrieve", f"{target}/[artifact]-[revision](-[classifier]).[ext]",
        ]  # fmt: skip
        report: list[str] = []
        for attempt in range(1, ATTEMPTS + 1):
            report = []
            fetched = 0
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ivy:
                assert ivy.stdout is not None  # noqa: S101 - stdout=PIPE makes it so; this tells the type checker
                for line in ivy.stdout:
                    report.append(line.rstrip())
                    if "[SUCCESSFUL ]" in line and ".jar" in line:
                        fetched += 1
                        progress(f"{self.title}: {fetched} of {total or '?'} jars downloaded")
                    elif line.startswith("downloading") and ".pom" in line:
                        progress(f"{self.title}: resolving {line.split()[1].rsplit('/', 1)[-1]}")
            if ivy.returncode == 0 and any(target.iterdir()):
                return
            progress(f"{self.title}: attempt {attempt} of {ATTEMPTS} to download the jars failed")
            if attempt < ATTEMPTS:
                time.sleep(2**attempt)
        faults = [line.strip() for line in report if "ERROR" in line or "WARN" in line or "FAILED" in line][-6:]
        raise SmokeError(
            f"{self.purpose} jars could not be downloaded: " + ("; ".join(faults) or " ".join(report[-3:])),
            f"check the network and the proxy settings, then try again; or copy {self.folder(cache_dir)} from a "
            "machine that has it",
        )


def read_lock(lock_file: Path) -> dict[str, str]:
    """Name of each jar -> its SHA-256 as hex digits.

    Raises:
        SmokeError: for a line that is neither a comment nor ``name sha256``.
    """
    jars: dict[str, str] = {}
    for number, line in enumerate(lock_file.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        if len(fields) != 2 or len(fields[1]) != 64 or "/" in fields[0]:
            raise SmokeError(f"{lock_file}, line {number}: expected a jar's name and its SHA-256, found {line!r}")
        jars[fields[0]] = fields[1]
    return jars


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(folder: Path, expected: dict[str, str]) -> bool:
    return all((folder / name).is_file() for name in expected)


@contextmanager
def _exclusive(lock_file: Path) -> Iterator[None]:
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _ivy_jar() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("pyspark")
    found = sorted(Path(str(spec.origin)).parent.glob("jars/ivy-*.jar")) if spec else []
    if not found:
        raise SmokeError("Apache Ivy, which comes with pyspark, was not found", "install pyspark as setup.py pins it")
    return found[-1]
