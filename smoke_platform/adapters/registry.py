"""The model registry: versions in MLflow, artifacts in ``models/``, the champion in one small file.

Belongs here: registering, listing, verifying, promoting and rolling back versions; publishing the champion. Does not:
training (``adapters.trainer``), the gate's conditions (``domain.promotion``), scoring (``adapters.scorer``).

MLflow keeps the versions with their metrics, parameters and promotions. It is opened by Dagster (inside the pool
``registry``) and by the command line only: an import costs 4 s and 200 MB, which no service should pay. Detector and
API read ``models/champion.json``, which is replaced by an atomic rename, so that a reader sees the old or the new
champion and never a part of one. That file decides what is served; MLflow's alias follows it.

``models/champion.json``::

    {"version": 3,                           version in the registry, a whole number
     "sha256": "9f2c...",                    of the artifact, lower-case hex
     "path": "3/model.onnx",                 relative to the folder of champion.json
     "manifest_sha256": "77ab...",           of manifest.json beside the artifact
     "feature_version": "1-eb56bcf35834",    features.FEATURE_SET_VERSION it was trained on
     "feature_names": ["temperature_c", ...],
     "threshold": 0.42,                      probability from which on a reading is called fire, within 0.01..0.99
     "trained_on": "simulated",              simulated | devices | csv: what the training data were
     "metrics": {"accuracy": ..., "f1": ..., "precision": ..., "recall": ..., "random_split_accuracy": ...,
                 "random_split_f1": ..., "validation": "5 folds grouped by device_id"},
     "published_at": "2024-05-01T02:03:04Z",
     "previous": 2,                          the champion before it, or null
     "action": "promote",                    promote | rollback | reconcile
     "reason": "...", "forced": false}

``models/<version>/`` never changes once it is there:

* ``model.onnx``: one input ``features``, float32 ``[n, F]`` in the order of ``feature_names``, NaN where unknown; one
  output ``probabilities``, float32 ``[n, 2]``, column 1 is fire.
* ``manifest.json``: ``format, name, version, sha256, algorithm, parameters, feature_version, feature_sha256,
  feature_names, threshold, trained_on`` (kind, statement, rows, devices, fires, nuisances, period, table, Delta
  version, fingerprint, sampling, simulated), ``validation`` (grouped figures, each fold, the flattering random
  split, holdout, episodes, cold rows, parity, latency, the candidates compared), ``seed, code_version, libraries,
  created_at``.
* ``reference.parquet``: a bounded sample of the training rows: the features (float32), ``device_id, event_time,
  label, sample_weight, probability, called``; drift is measured against it.

``models/promotions.jsonl`` has one line for every change of champion, oldest first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import champions_before
from smoke_platform.settings import Settings

MODEL_NAME = "smoke-fire"
EXPERIMENT = "smoke-fire"
CHAMPION_ALIAS = "champion"
CHAMPION_FILE = "champion.json"
HISTORY_FILE = "promotions.jsonl"
ARTIFACT = "model.onnx"
MANIFEST = "manifest.json"
REFERENCE = "reference.parquet"
MANIFEST_FORMAT = 1

#: Tags of a version in MLflow.
_TAG_SHA256 = "smoke.sha256"
_TAG_MANIFEST = "smoke.manifest_sha256"
_TAG_TRAINED_ON = "smoke.trained_on"
_TAG_VERDICT = "smoke.gate"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the model as the registry lists it.

    Attributes:
        number: given by MLflow, from 1 upwards.
        champion: whether it is the one that is served.
        metrics: accuracy and F1 of the grouped validation, and the like.
        gate: "passed", "refused", or an empty string where it was not judged.
        reasons: why the gate refused it.
        whole: whether its artifact and manifest are those that were registered.
        fault: what is wrong with them, an empty string where nothing is.
    """

    number: int
    champion: bool
    created_at: datetime
    algorithm: str
    trained_on: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    gate: str = ""
    reasons: tuple[str, ...] = ()
    whole: bool = True
    fault: str = ""


class Registry:
    """The registry of one platform. Opening it costs nothing; the first use imports MLflow and opens its store."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self.models_dir: Path = settings.models_dir

    # -- the store ---------------------------------------------------------------------------------------
    def migrate(self) -> None:
        """Makes MLflow's store, or brings it to the installed MLflow's schema; to be called once before use.

        One process at a time: of two that open a new database at once, both die in its migration.
        """
        _quiet_mlflow()
        from mlflow.store.db import utils as store

        # What `mlflow db upgrade` calls; it has no public function of its own.
        uri = self._settings.registry_uri
        with self._exclusive():
            _make_sqlite_folder(uri)
            engine = store.create_sqlalchemy_engine_with_retry(uri)
            try:
                if store._is_empty_database(engine):
                    store._initialize_tables(engine)
                elif store._get_schema_version(engine) != store._get_latest_schema_revision():
                    store._upgrade_db(engine)
            finally:
                engine.dispose()
        self._open()

    def _open(self) -> Any:
        if self._client is None:
            _quiet_mlflow()
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            uri = self._settings.registry_uri
            with self._exclusive():
                _make_sqlite_folder(uri)
                try:
                    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
                    if client.get_experiment_by_name(EXPERIMENT) is None:
                        places = (self._settings.home / "mlflow" / "artifacts").as_uri()
                        client.create_experiment(EXPERIMENT, artifact_location=places)
                    if not client.search_registered_models(f"name = '{MODEL_NAME}'"):
                        client.create_registered_model(MODEL_NAME, description="Fire probability of one reading")
                except MlflowException as error:
                    raise SmokeError(
                        f"the model registry {_without_password(uri)} cannot be opened: {error.message}",
                        "smoke models migrate brings its schema up to date",
                    ) from None
            self._client = client
        return self._client

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time; the kernel drops the lock when its holder dies."""
        self.models_dir.mkdir(parents=True, exist_ok=True)
        with (self.models_dir / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # -- versions ----------------------------------------------------------------------------------------
    def register(self, artifact: bytes, manifest: Mapping[str, Any], reference: pl.DataFrame) -> int:
        """Keeps a trained model as a new version.

        Args:
            artifact: the ONNX model.
            manifest: as described above, without ``version``, which is given here.
            reference: sample of the training rows, for drift.

        Returns:
            The version's number. The version's folder appears whole or not at all.

        Raises:
            SmokeError: when the manifest does not describe this artifact.
        """
        found = hashlib.sha256(artifact).hexdigest()
        if manifest.get("sha256") != found:
            raise SmokeError(f"the manifest describes {manifest.get('sha256')}, the model is {found}")
        client = self._open()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        run = client.create_run(experiment.experiment_id, run_name=str(manifest["algorithm"]))
        _log(client, run.info.run_id, manifest)
        made = client.create_model_version(
            MODEL_NAME,
            source=(self.models_dir / f"run-{run.info.run_id}").as_uri(),
            run_id=run.info.run_id,
            tags={_TAG_SHA256: found, _TAG_TRAINED_ON: str(manifest["trained_on"]["kind"])},
        )
        number = int(made.version)
        text = _json({**manifest, "name": MODEL_NAME, "format": MANIFEST_FORMAT, "version": number})
        client.set_model_version_tag(MODEL_NAME, str(number), _TAG_MANIFEST, hashlib.sha256(text).hexdigest())
        self._keep(number, artifact, text, reference)
        client.set_terminated(run.info.run_id)
        return number

    def _keep(self, number: int, artifact: bytes, manifest: bytes, reference: pl.DataFrame) -> None:
        staging = self.models_dir / f".staging-{uuid.uuid4().hex}"
        staging.mkdir(parents=True)
        try:
            _write(staging / ARTIFACT, artifact)
            _write(staging / MANIFEST, manifest)
            reference.write_parquet(staging / REFERENCE)
            _sync(staging / REFERENCE)
            _sync(staging)
            staging.rename(self.models_dir / str(number))
            _sync(self.models_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def versions(self) -> list[Version]:
        """All versions, newest first, each with whether its files are still what was registered."""
        client = self._open()
        champion = self.champion()
        served = None if champion is None else int(champion["version"])
        found = client.search_model_versions(f"name = '{MODEL_NAME}'")
        return [self._describe(client, entry, served) for entry in sorted(found, key=lambda e: -int(e.version))]

    def version(self, number: int) -> Version:
        """One version.

        Raises:
            SmokeError: when there is none of this number.
        """
        for entry in self.versions():
            if entry.number == number:
                return entry
        raise _unknown(number)

    def _describe(self, client: Any, entry: Any, served: int | None) -> Version:
        number = int(entry.version)
        fault = ""
        algorithm = ""
        try:
            algorithm = str(self._verified(number, entry.tags)["algorithm"])
        except SmokeError as error:
            fault = error.message
        run = client.get_run(entry.run_id)
        verdict = json.loads(entry.tags.get(_TAG_VERDICT, "{}"))
        return Version(
            number=number,
            champion=number == served,
            created_at=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
            algorithm=algorithm or run.data.params.get("algorithm", ""),
            trained_on=entry.tags.get(_TAG_TRAINED_ON, ""),
            metrics=dict(run.data.metrics),
            gate="" if not verdict else "passed" if verdict["passed"] else "refused",
            reasons=tuple(verdict.get("reasons", ())),
            whole=not fault,
            fault=fault,
        )

    def manifest(self, number: int) -> dict[str, Any]:
        """The manifest of a version, verified.

        Raises:
            SmokeError: for an unknown version, or one whose files are not what was registered.
        """
        return self._verified(number, self._tags(number))

    def artifact(self, number: int) -> bytes:
        """The ONNX model of a version, verified; raises as ``manifest`` does."""
        expected = self.manifest(number)["sha256"]
        content = (self.models_dir / str(number) / ARTIFACT).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise _tampered(number, ARTIFACT)
        return content

    def note_verdict(self, number: int, passed: bool, reasons: tuple[str, ...]) -> None:
        """Keeps the gate's answer with the version."""
        # A tag's value holds 8,000 characters at most.
        verdict = {"passed": passed, "reasons": [reason[:500] for reason in reasons[:10]]}
        self._open().set_model_version_tag(MODEL_NAME, str(number), _TAG_VERDICT, json.dumps(verdict))

    def _tags(self, number: int) -> Mapping[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            tags: Mapping[str, str] = self._open().get_model_version(MODEL_NAME, str(number)).tags
        except MlflowException:
            raise _unknown(number) from None
        return tags

    def _verified(self, number: int, tags: Mapping[str, str]) -> dict[str, Any]:
        folder = self.models_dir / str(number)
        for name, tag in ((MANIFEST, _TAG_MANIFEST), (ARTIFACT, _TAG_SHA256)):
            try:
                content = (folder / name).read_bytes()
            except OSError as error:
                raise SmokeError(
                    f"version {number}: {folder / name}: {error.strerror}", "choose another version: smoke models list"
                ) from None
            if hashlib.sha256(content).hexdigest() != tags.get(tag):
                raise _tampered(number, name)
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        return manifest

    # -- the champion ------------------------------------------------------------------------------------
    def champion(self) -> dict[str, Any] | None:
        """What ``champion.json`` says, or ``None`` where there is no champion. Needs no MLflow."""
        return read_champion(self.models_dir)

    def promote(self, number: int, *, reason: str, forced: bool = False, action: str = "promote") -> dict[str, Any]:
        """Makes a version champion: publishes the file, then sets the alias. The gate is the caller's business.

        Returns:
            What was published.

        Raises:
            SmokeError: for an unknown or tampered version; the champion stays.
        """
        manifest = self.manifest(number)
        client = self._open()
        with self._exclusive():
            before = self.champion()
            published = {
                "version": number,
                "sha256": manifest["sha256"],
                "path": f"{number}/{ARTIFACT}",
                "manifest_sha256": self._tags(number)[_TAG_MANIFEST],
                "feature_version": manifest["feature_version"],
                "feature_names": manifest["feature_names"],
                "threshold": manifest["threshold"],
                "trained_on": manifest["trained_on"]["kind"],
                "metrics": headline(manifest),
                "published_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                "previous": None if before is None else before["version"],
                "action": action,
                "reason": reason,
                "forced": forced,
            }
            publish(self.models_dir, published)
            self._remember(published)
        client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, str(number))
        return published

    def rollback(self, number: int | None = None, *, reason: str) -> dict[str, Any]:
        """Makes an earlier champion champion again: the one before the present one, or the version given.

        Raises:
            SmokeError: when there is no earlier champion, or the version never was one.
        """
        chain = champions_before(self.history())
        if number is None:
            if len(chain) < 2:
                raise SmokeError("there is no earlier champion to roll back to", "smoke models list shows the versions")
            number = chain[-2]
        elif number not in self.history():
            raise SmokeError(
                f"version {number} was never champion",
                f"smoke models promote {number} takes it through the gate; champions so far: "
                + (", ".join(map(str, dict.fromkeys(self.history()))) or "none"),
            )
        elif chain and number == chain[-1]:
            raise SmokeError(f"version {number} is the champion already")
        return self.promote(number, reason=reason, action="rollback")

    def history(self) -> list[int]:
        """Every version that was made champion, in order, rollbacks included."""
        place = self.models_dir / HISTORY_FILE
        if not place.exists():
            return []
        return [int(json.loads(line)["version"]) for line in place.read_text(encoding="utf-8").splitlines() if line]

    def _remember(self, published: Mapping[str, Any]) -> None:
        kept = ("version", "previous", "action", "reason", "forced", "published_at", "sha256")
        line = json.dumps({name: published[name] for name in kept}, ensure_ascii=False) + "\n"
        with (self.models_dir / HISTORY_FILE).open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def reconcile(self) -> str:
        """Makes the file and the alias agree again after a crash between the two; what is served wins.

        Returns:
            What was done, for a person: one sentence.
        """
        from mlflow.exceptions import MlflowException

        client = self._open()
        try:
            alias: int | None = int(client.get_model_version_by_alias(MODEL_NAME, CHAMPION_ALIAS).version)
        except MlflowException:
            alias = None
        champion = self.champion()
        if champion is None and alias is None:
            return "there is no champion yet"
        if champion is None:
            assert alias is not None  # noqa: S101 - tells the type checker what the line above has excluded
            self.promote(alias, reason="champion.json was missing; the registry's alias was kept", action="reconcile")
            return f"champion.json was missing: published version {alias} again"
        served = int(champion["version"])
        if alias != served:
            client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, str(served))
            return f"the alias was on {alias}, the champion served is {served}: moved the alias"
        return f"version {served} is champion in both places"


def read_champion(models_dir: Path) -> dict[str, Any] | None:
    """What ``champion.json`` says, or ``None`` where there is none. For readers without a registry.

    Raises:
        SmokeError: when the file is no champion file.
    """
    place = models_dir / CHAMPION_FILE
    try:
        answer = json.loads(place.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SmokeError(f"{place}: {error}", "smoke models rollback VERSION publishes a champion again") from None
    if not isinstance(answer, dict):
        raise SmokeError(f"{place} is no champion file", "smoke models rollback VERSION publishes a champion again")
    return answer


def publish(models_dir: Path, champion: Mapping[str, Any]) -> None:
    """Replaces ``champion.json`` in one step that survives a power cut: readers see the old or the new one."""
    staging = models_dir / f".{CHAMPION_FILE}-{uuid.uuid4().hex}"
    try:
        _write(staging, _json(champion))
        staging.replace(models_dir / CHAMPION_FILE)
        _sync(models_dir)
    finally:
        staging.unlink(missing_ok=True)


def headline(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures of a manifest that are shown everywhere."""
    validation = manifest["validation"]
    grouped = validation["grouped"]
    return {
        **{name: grouped[name] for name in ("accuracy", "f1", "precision", "recall")},
        "random_split_accuracy": validation["random_split"]["accuracy"],
        "random_split_f1": validation["random_split"]["f1"],
        "validation": validation["kind"],
    }


def _log(client: Any, run_id: str, manifest: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(datetime.now(UTC).timestamp() * 1000)
    metrics = [
        Metric(name, float(value), now, 0)
        for name, value in headline(manifest).items()
        if isinstance(value, (int, float))
    ]
    values = {
        "algorithm": manifest["algorithm"],
        "threshold": manifest["threshold"],
        "seed": manifest["seed"],
        "feature_version": manifest["feature_version"],
        **{f"parameter.{name}": value for name, value in manifest["parameters"].items()},
        **{
            f"trained_on.{name}": value
            for name, value in manifest["trained_on"].items()
            if isinstance(value, (str, int, float))
        },
    }
    params = [Param(name, str(value)[:500]) for name, value in values.items()]
    tags = [RunTag("smoke.code_version", str(manifest["code_version"]))]
    client.log_batch(run_id, metrics=metrics, params=params, tags=tags)


def _quiet_mlflow() -> None:
    """Before the first import: no usage statistics leave the machine, no chatter reaches the logs."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _make_sqlite_folder(uri: str) -> None:
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)


def _without_password(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if "@" in rest else uri


def _unknown(number: int) -> SmokeError:
    return SmokeError(f"there is no version {number}", "smoke models list shows the versions")


def _tampered(number: int, name: str) -> SmokeError:
    return SmokeError(
        f"version {number}: {name} is not what was registered (its SHA-256 differs)",
        "it is refused; choose another version: smoke models list",
    )


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(place: Path, content: bytes) -> None:
    with place.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
