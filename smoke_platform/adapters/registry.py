"""The model registry: versions in MLflow, artifacts in ``models/``, champion and challenger in one small file each.

Belongs here: registering, listing, verifying, promoting, rolling back and pruning versions; publishing champion and
challenger. Does not: training (``adapters.trainer``), the gate's conditions and what is kept (``domain.promotion``),
scoring (``adapters.scorer``), when any of it happens (``orchestration``).

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
     "threshold": 0.42,                      probability from which on the rule `model` counts a reading as fire
     "trained_on": "simulated",              simulated | devices | csv: what the training data were
     "metrics": {"accuracy": ..., "f1": ..., "precision": ..., "recall": ..., "random_split_accuracy": ...,
                 "random_split_f1": ..., "validation": "5 folds grouped by device_id"},
     "published_at": "2024-05-01T02:03:04Z",
     "previous": 2,                          the champion before it, or null
     "action": "promote",                    promote | rollback | reconcile
     "reason": "...", "forced": false,
     "automatic": false,                     whether no person asked for it
     "report": ""}                           of a rollback by itself: the performance report that led to it

``models/challenger.json`` is of the same form, with ``action`` ``challenge``; it is there while a version is watched in
shadow. Nothing that raises alarms reads it.

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

``models/promotions.jsonl`` has one line for every change of champion or challenger, oldest first.
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

import msgspec
import polars as pl

from smoke_platform.adapters.scorer import Champion, OnnxScorer
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import Change, champions_before, outdated
from smoke_platform.settings import Settings

MODEL_NAME = "smoke-fire"
EXPERIMENT = "smoke-fire"
CHAMPION_ALIAS = "champion"
CHAMPION_FILE = "champion.json"
CHALLENGER_ALIAS = "challenger"
CHALLENGER_FILE = "challenger.json"
#: Actions that made a version champion; the others are about challengers.
CROWNING = ("promote", "rollback", "reconcile")
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
        champion: whether it is the one that is served; ``challenger``: the one that is watched in shadow.
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
    challenger: bool = False


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
        found = client.search_model_versions(f"name = '{MODEL_NAME}'")
        return [self._describe(client, entry) for entry in sorted(found, key=lambda e: -int(e.version))]

    def version(self, number: int) -> Version:
        """One version.

        Raises:
            SmokeError: when there is none of this number.
        """
        for entry in self.versions():
            if entry.number == number:
                return entry
        raise _unknown(number)

    def _describe(self, client: Any, entry: Any) -> Version:
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
            champion=number == _number(self.champion()),
            challenger=number == _number(self.challenger()),
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

    def scorer(self, number: int) -> OnnxScorer:
        """A version ready to score, verified as ``promote`` does it; raises as that does."""
        entry = self._entry(number, reason="", action="compare")
        return OnnxScorer.load(self.models_dir, msgspec.convert(entry, Champion))

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

    def promote(
        self,
        number: int,
        *,
        reason: str,
        forced: bool = False,
        action: str = "promote",
        automatic: bool = False,
        report: str = "",
    ) -> dict[str, Any]:
        """Makes a version champion: publishes the file, then sets the alias. The gate is the caller's business.

        A challenger that becomes champion is no challenger any more.

        Args:
            automatic, report: as ``champion.json`` has them.

        Returns:
            What was published.

        Raises:
            SmokeError: for an unknown or tampered version, or one that no service would take in; the champion stays.
        """
        entry = self._entry(number, reason=reason, action=action)
        entry |= {"forced": forced, "automatic": automatic, "report": report}
        client = self._open()
        with self._exclusive():
            entry["previous"] = _number(self.champion())
            publish(self.models_dir, entry)
            self._remember(entry)
            if _number(self.challenger()) == number:
                (self.models_dir / CHALLENGER_FILE).unlink(missing_ok=True)
        client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, str(number))
        self._follow_challenger(client)
        return entry

    def _entry(self, number: int, *, reason: str, action: str) -> dict[str, Any]:
        """What is to be published of a version, which is verified as the services will do it.

        Raises:
            SmokeError: where it is not what was registered, or the services would refuse it. They would serve the old
                model on, but after a restart they would have none.
        """
        manifest = self.manifest(number)
        entry = {
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
            "previous": None,
            "action": action,
            "reason": reason,
            "forced": False,
            "automatic": False,
            "report": "",
        }
        OnnxScorer.load(self.models_dir, msgspec.convert(entry, Champion))
        return entry

    def rollback(
        self, number: int | None = None, *, reason: str, automatic: bool = False, report: str = ""
    ) -> dict[str, Any]:
        """Makes an earlier champion champion again: the one before the present one, or the version given.

        Raises:
            SmokeError: when there is no earlier champion, the version never was one, or it is not what was registered.
        """
        history = self.history()
        chain = champions_before(history)
        if number is None:
            if len(chain) < 2:
                raise SmokeError("there is no earlier champion to roll back to", "smoke models list shows the versions")
            number = chain[-2]
        elif number not in history:
            raise SmokeError(
                f"version {number} was never champion",
                f"smoke models promote {number} takes it through the gate; champions so far: "
                + (", ".join(map(str, dict.fromkeys(history))) or "none"),
            )
        elif chain and number == chain[-1]:
            raise SmokeError(f"version {number} is the champion already")
        return self.promote(number, reason=reason, action="rollback", automatic=automatic, report=report)

    def history(self) -> list[int]:
        """Every version that was made champion, in order, rollbacks included. Needs no MLflow."""
        return [change.version for change in read_changes(self.models_dir)]

    def _remember(self, published: Mapping[str, Any]) -> None:
        kept = (
            *("version", "previous", "action", "reason", "forced", "automatic", "report", "published_at", "sha256"),
        )
        line = json.dumps({name: published[name] for name in kept}, ensure_ascii=False) + "\n"
        with (self.models_dir / HISTORY_FILE).open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    # -- the challenger ----------------------------------------------------------------------------------
    def challenger(self) -> dict[str, Any] | None:
        """What ``challenger.json`` says, or ``None`` where no version is watched in shadow. Needs no MLflow."""
        return read_challenger(self.models_dir)

    def challenge(self, number: int, *, reason: str) -> dict[str, Any]:
        """Publishes a version as challenger, in place of the present one. It scores nothing that raises an alarm.

        Raises:
            SmokeError: as ``promote`` does, and where there is no other champion to watch it beside.
        """
        entry = self._entry(number, reason=reason, action="challenge")
        client = self._open()
        with self._exclusive():
            champion = _number(self.champion())
            if champion is None:
                raise SmokeError("there is no champion to watch it beside", f"smoke models promote {number}")
            if champion == number:
                raise SmokeError(f"version {number} is the champion already")
            entry["previous"] = _number(self.challenger())
            publish(self.models_dir, entry, CHALLENGER_FILE)
            self._remember(entry)
        self._follow_challenger(client)
        return entry

    def drop_challenger(self, *, reason: str) -> int | None:
        """Ends the watch of the challenger; gives its version, or ``None`` where there was none."""
        client = self._open()
        with self._exclusive():
            entry = self.challenger()
            if entry is not None:
                (self.models_dir / CHALLENGER_FILE).unlink()
                _sync(self.models_dir)
                now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
                self._remember({**entry, "action": "drop", "reason": reason, "published_at": now})
        self._follow_challenger(client)
        return _number(entry)

    def _follow_challenger(self, client: Any) -> None:
        number = _number(self.challenger())
        if number is None:
            client.delete_registered_model_alias(MODEL_NAME, CHALLENGER_ALIAS)
        else:
            client.set_registered_model_alias(MODEL_NAME, CHALLENGER_ALIAS, str(number))

    # -- retention ---------------------------------------------------------------------------------------
    def prune(self, keep: int) -> list[int]:
        """Removes the versions that ``domain.promotion.outdated`` names, from MLflow and from the disk.

        Their numbers are never given again. A version goes from MLflow first: a crash in between leaves a folder that
        no version names, and the next call takes it away.

        Args:
            keep: how many of the newest versions stay beside champion, challenger and the way back.

        Returns:
            The versions removed, the oldest first.
        """
        client = self._open()
        with self._exclusive():
            found = {int(e.version): e for e in client.search_model_versions(f"name = '{MODEL_NAME}'")}
            named = {_number(self.champion()), _number(self.challenger())}
            protected = {number for number in named if number is not None}
            gone = outdated(found.keys(), protected, self.history(), keep)
            for number in gone:
                client.delete_model_version(MODEL_NAME, str(number))
                client.delete_run(found[number].run_id)
            newest = max(found, default=0)
            for folder in self.models_dir.iterdir():
                # A folder above the newest number is of a version that is being registered at this moment.
                orphan = folder.name.isdigit() and int(folder.name) < newest and int(folder.name) not in found
                if orphan or folder.name in map(str, gone):
                    _remove(folder)
        return list(gone)

    def reconcile(self) -> str:
        """Makes the file and the alias agree again after a crash between the two; what is served wins.

        Returns:
            What was done, for a person: one sentence.
        """
        from mlflow.exceptions import MlflowException

        client = self._open()
        self._follow_challenger(client)
        try:
            alias: int | None = int(client.get_model_version_by_alias(MODEL_NAME, CHAMPION_ALIAS).version)
        except MlflowException:
            alias = None
        champion = self.champion()
        if champion is None and alias is None:
            return "there is no champion yet"
        if champion is None:
            assert alias is not None  # noqa: S101 - tells the type checker what the line above has excluded
            try:
                self.promote(alias, reason="champion.json was missing; the alias was kept", action="reconcile")
            except SmokeError as error:
                # The platform starts all the same, and trains a version that it can use.
                return f"champion.json is missing, and version {alias} cannot be published again: {error.message}"
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
    return _read_published(models_dir / CHAMPION_FILE, "smoke models rollback VERSION publishes a champion again")


def read_challenger(models_dir: Path) -> dict[str, Any] | None:
    """What ``challenger.json`` says, or ``None`` where no version is watched in shadow.

    A damaged file counts as none: no alarm depends on it, and it must not keep the platform from starting.
    """
    try:
        return _read_published(models_dir / CHALLENGER_FILE, "")
    except SmokeError:
        return None


def _read_published(place: Path, remedy: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(place.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SmokeError(f"{place}: {error}", remedy) from None
    if not isinstance(answer, dict):
        raise SmokeError(f"{place} is not what the registry writes", remedy)
    return answer


def read_changes(models_dir: Path) -> list[Change]:
    """Every change of champion, the oldest first. For readers without a registry."""
    place = models_dir / HISTORY_FILE
    if not place.exists():
        return []
    entries = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines() if line]
    return [
        Change(
            version=int(entry["version"]),
            previous=entry["previous"],
            action=entry["action"],
            at=datetime.fromisoformat(entry["published_at"]),
            automatic=bool(entry.get("automatic")),
            report=str(entry.get("report", "")),
        )
        for entry in entries
        if entry["action"] in CROWNING
    ]


def publish(models_dir: Path, entry: Mapping[str, Any], name: str = CHAMPION_FILE) -> None:
    """Replaces ``champion.json`` or ``challenger.json`` in one step that survives a power cut.

    Readers see the old or the new one.
    """
    staging = models_dir / f".{name}-{uuid.uuid4().hex}"
    try:
        _write(staging, _json(entry))
        staging.replace(models_dir / name)
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


def _number(entry: Mapping[str, Any] | None) -> int | None:
    return None if entry is None else int(entry["version"])


def _remove(folder: Path) -> None:
    """Out of sight in one step, so that nobody finds half a version."""
    aside = folder.with_name(f".pruned-{uuid.uuid4().hex}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


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
