"""Scores feature rows with the champion: an ONNX model that is verified before it is believed.

Belongs here: reading ``champion.json``, checking an artifact against its hash and the platform's features,
inference, and the watch that swaps models while a program runs. Does not: deciding which model is champion
(``adapters.registry`` publishes the file), computing features (``domain.features``), HTTP.

A model is data, never code: only ONNX's own operators are available to it, and the session is made from the
very bytes whose hash was checked, so that nobody can change the file between the check and the use.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from smoke_platform.domain import features
from smoke_platform.domain.errors import SmokeError

CHAMPION_FILE = "champion.json"
MANIFEST_FILE = "manifest.json"
#: A larger file is no model of ours; reading it would only fill the memory of a long-running program.
LARGEST_ARTIFACT_BYTES = 512 * 1024 * 1024

Features = NDArray[np.float32]
Probabilities = NDArray[np.float64]


class Refusal(StrEnum):
    """Why a published model is not used; a closed list, so that it may become a metric's label."""

    NO_CHAMPION = "no_champion"
    UNREADABLE = "unreadable"
    HASH_MISMATCH = "hash_mismatch"
    FEATURE_MISMATCH = "feature_mismatch"
    BAD_MODEL = "bad_model"


class ModelRefused(SmokeError):
    """A published model that must not score anything.

    Attributes:
        reason: one of the closed list.
        version: the version at fault, or an empty string where it is not known.
    """

    def __init__(self, reason: Refusal, message: str, remedy: str = "", *, version: str = "") -> None:
        super().__init__(message, remedy)
        self.reason = reason
        self.version = version


class Champion(msgspec.Struct, frozen=True, kw_only=True):
    """``champion.json`` as the registry publishes it; ``adapters.registry`` describes the fields."""

    version: int
    sha256: str
    path: str
    manifest_sha256: str
    feature_version: str
    feature_names: tuple[str, ...]
    threshold: float
    trained_on: str = ""
    metrics: Mapping[str, Any] = msgspec.field(default_factory=dict)
    published_at: str = ""
    previous: int | None = None
    action: str = "promote"


def read_champion(models_dir: Path, name: str = CHAMPION_FILE) -> Champion:
    """What ``champion.json`` in ``models_dir`` says, or the file ``name`` of the same form.

    Raises:
        ModelRefused: there is none, or it is not what the registry writes.
    """
    place = models_dir / name
    try:
        raw = place.read_bytes()
    except FileNotFoundError:
        raise ModelRefused(
            Refusal.NO_CHAMPION, f"no {name.removesuffix('.json')} is published yet", "train one: smoke models train"
        ) from None
    except OSError as error:
        raise ModelRefused(Refusal.UNREADABLE, f"{name}: {error.strerror}") from None
    try:
        return msgspec.json.decode(raw, type=Champion)
    except msgspec.DecodeError as error:
        raise ModelRefused(
            Refusal.UNREADABLE, f"{name} is not what the registry writes: {error}", _PROMOTE_AGAIN
        ) from None


_PROMOTE_AGAIN = "promote a version again: smoke models promote VERSION"


class OnnxScorer:
    """One verified model, ready to score. Safe to use from several threads at once.

    Attributes:
        champion: what was published about it.
        manifest: its manifest, as an object of plain JSON types.
        version: the registry's version, as text.
        threshold: probability from which on a reading is called fire.
        single_threshold: the same of a reading that stands alone; the model's own where its manifest names none.
        loaded_at: when this process took it in, UTC.
    """

    def __init__(self, champion: Champion, manifest: Mapping[str, Any], artifact: bytes) -> None:
        """Makes the session from bytes that are already verified; use ``load``.

        Raises:
            ModelRefused: ``bad_model``, where the bytes do not turn feature rows into fire probabilities.
        """
        self.champion = champion
        self.manifest = manifest
        self.version = str(champion.version)
        self.threshold = champion.threshold
        single = manifest.get("threshold_single")
        self.single_threshold = single if isinstance(single, float) and 0.0 < single < 1.0 else champion.threshold
        self.loaded_at = datetime.now(UTC)
        self._session = _session(artifact, self.version)
        self._input, self._outputs, self._column = _signature(self._session, self.version)
        self._try()

    @classmethod
    def load(cls, models_dir: Path, champion: Champion) -> OnnxScorer:
        """The model that ``champion`` names, verified.

        Raises:
            ModelRefused: with its reason, where artifact, manifest, champion and platform do not agree.
        """
        version = str(champion.version)
        _check_features(champion.feature_version, champion.feature_names, "champion.json", version)
        if not 0.0 < champion.threshold < 1.0:
            raise ModelRefused(
                Refusal.UNREADABLE,
                f"model {version}: threshold {champion.threshold} is no probability between 0 and 1",
                _PROMOTE_AGAIN,
                version=version,
            )
        place = _inside(models_dir, champion.path, version)
        artifact = _read(place, version)
        manifest_file = place.parent / MANIFEST_FILE
        manifest_bytes = _read(manifest_file, version)
        for file, content, expected in (
            (place, artifact, champion.sha256),
            (manifest_file, manifest_bytes, champion.manifest_sha256),
        ):
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise ModelRefused(
                    Refusal.HASH_MISMATCH,
                    f"model {version}: {file.name} has SHA-256 {found[:12]}..., published was {expected[:12]}...",
                    "the file was changed after it was published: roll back (smoke models rollback) or train anew",
                    version=version,
                )
        manifest = _manifest(manifest_bytes, version)
        if manifest.get("sha256") != champion.sha256:
            raise ModelRefused(
                Refusal.HASH_MISMATCH,
                f"model {version}: its manifest describes another artifact",
                _PROMOTE_AGAIN,
                version=version,
            )
        _check_features(
            str(manifest.get("feature_version")), tuple(manifest.get("feature_names", ())), MANIFEST_FILE, version
        )
        _check_origin(champion, manifest, version)
        return cls(champion, manifest, artifact)

    def score(self, rows: Features) -> Probabilities:
        """Fire probability of each row.

        Args:
            rows: float32, shape (n, F), columns in the order of ``domain.features.FEATURE_NAMES``; NaN where a
                sensor was not measured or a feature has no history yet.

        Returns:
            float64, shape (n,), each within 0..1.
        """
        answer = self._session.run(self._outputs, {self._input: rows})[0]
        column = answer[:, self._column] if answer.ndim == 2 else answer
        probabilities: Probabilities = column.astype(np.float64)
        return probabilities

    def _try(self) -> None:
        width = len(features.FEATURE_NAMES)
        trial = np.zeros((3, width), dtype=np.float32)
        trial[1] = np.nan
        trial[2] = 1.0
        try:
            answer = self.score(trial)
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
            raise self._bad(f"fails on a trial row: {error}") from None
        if answer.shape != (3,) or not np.isfinite(answer).all() or (answer < 0).any() or (answer > 1).any():
            raise self._bad(f"answers a trial of 3 rows with {answer.tolist()!r:.200} in place of probabilities")

    def _bad(self, what: str) -> ModelRefused:
        return ModelRefused(Refusal.BAD_MODEL, f"model {self.version} {what}", _PROMOTE_AGAIN, version=self.version)


def _check_features(feature_version: str, names: tuple[str, ...], origin: str, version: str) -> None:
    ours = features.FEATURE_SET_VERSION
    if feature_version == ours and names == features.FEATURE_NAMES:
        return
    strange = sorted(set(names) ^ set(features.FEATURE_NAMES))
    what = (
        f"its feature set is {feature_version}, this platform's is {ours}"
        if feature_version != ours
        else f"features differ: {', '.join(strange[:5]) or 'their order'}"
    )
    raise ModelRefused(
        Refusal.FEATURE_MISMATCH,
        f"model {version}: {what} ({origin})",
        "train a model on the present features: smoke models train",
        version=version,
    )


def _check_origin(champion: Champion, manifest: Mapping[str, Any], version: str) -> None:
    """What is published of a model must be what its manifest says; only the manifest is protected by a hash.

    A threshold that was raised in the published file would silence the model without touching a single hashed byte.
    """
    for name, published in (("version", champion.version), ("threshold", champion.threshold)):
        if manifest.get(name) != published:
            raise ModelRefused(
                Refusal.HASH_MISMATCH,
                f"model {version}: published is {name} {published}, its manifest says {manifest.get(name)}",
                _PROMOTE_AGAIN,
                version=version,
            )
    definition = manifest.get("feature_sha256", features.FEATURE_SET_HASH)
    if definition != features.FEATURE_SET_HASH:
        raise ModelRefused(
            Refusal.FEATURE_MISMATCH,
            f"model {version}: its features are defined by {str(definition)[:12]}..., this platform's by "
            f"{features.FEATURE_SET_HASH[:12]}... ({MANIFEST_FILE})",
            "train a model on the present features: smoke models train",
            version=version,
        )


def _inside(models_dir: Path, relative: str, version: str) -> Path:
    place = (models_dir / relative).resolve()
    if not place.is_relative_to(models_dir.resolve()):
        raise ModelRefused(
            Refusal.UNREADABLE,
            f"model {version}: path {relative!r} leads out of the folder of models",
            _PROMOTE_AGAIN,
            version=version,
        )
    return place


def _read(place: Path, version: str) -> bytes:
    try:
        if place.stat().st_size > LARGEST_ARTIFACT_BYTES:
            raise ModelRefused(
                Refusal.UNREADABLE,
                f"model {version}: {place.name} is larger than {LARGEST_ARTIFACT_BYTES >> 20} MB",
                _PROMOTE_AGAIN,
                version=version,
            )
        return place.read_bytes()
    except OSError as error:
        raise ModelRefused(
            Refusal.UNREADABLE, f"model {version}: {place.name}: {error.strerror}", _PROMOTE_AGAIN, version=version
        ) from None


def _manifest(content: bytes, version: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ModelRefused(
            Refusal.UNREADABLE, f"model {version}: its manifest is not JSON: {error}", _PROMOTE_AGAIN, version=version
        ) from None


def _session(artifact: bytes, version: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    # One row takes microseconds: handing it to other threads costs more than it saves, and the cores have other work.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(artifact, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
        raise ModelRefused(
            Refusal.BAD_MODEL, f"model {version} is no usable ONNX model: {error}", _PROMOTE_AGAIN, version=version
        ) from None


def _signature(session: Any, version: str) -> tuple[str, list[str], int]:
    """Name of the input, names of the outputs to ask for, and the column with the fire class."""
    inputs = session.get_inputs()
    width = len(features.FEATURE_NAMES)
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or list(inputs[0].shape)[1:] not in ([width], [None]):
        found = "; ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
        raise ModelRefused(
            Refusal.BAD_MODEL,
            f"model {version}: its input is {found}, expected one tensor(float) [n, {width}]",
            _PROMOTE_AGAIN,
            version=version,
        )
    for output in session.get_outputs():
        if output.type in ("tensor(float)", "tensor(double)"):
            shape = list(output.shape)
            return inputs[0].name, [output.name], 0 if shape[1:] == [1] else 1
    raise ModelRefused(
        Refusal.BAD_MODEL,
        f"model {version}: no output is a tensor of probabilities (export it without ZipMap)",
        _PROMOTE_AGAIN,
        version=version,
    )


@dataclass(frozen=True, slots=True)
class WatcherStatus:
    """What the watcher knows, at one moment.

    Attributes:
        version: the model that scores, or ``None``.
        loaded_at: when it was taken in.
        swaps: how often a model was taken in, the first one included.
        refusals: how many published models were refused, by reason.
        refused_reason: why what is published now is not used; ``None`` while it is.
        refused_version: the version refused, as far as it is known.
        refused_detail: message and remedy, for a person.
        refused_at: since when.
    """

    version: str | None = None
    loaded_at: datetime | None = None
    swaps: int = 0
    refusals: Mapping[Refusal, int] = field(default_factory=dict)
    refused_reason: Refusal | None = None
    refused_version: str = ""
    refused_detail: str = ""
    refused_at: datetime | None = None


class ChampionWatcher:
    """Keeps the published champion loaded and swaps it without a restart.

    ``current`` is one reference that is replaced as a whole: whoever read it finishes with the model it took, the
    next reader gets the new one, and nobody waits. A champion that is refused changes nothing but ``status``.

    Example:
        >>> watcher = ChampionWatcher(models_dir, poll_seconds=1.0)  # doctest: +SKIP
        >>> with watcher:  # doctest: +SKIP
        ...     scorer = watcher.current
    """

    def __init__(self, models_dir: Path, poll_seconds: float = 1.0) -> None:
        """Looks once at once, so that ``current`` is set when a champion is there; ``start`` begins the watch."""
        self._models_dir = models_dir
        self._poll_seconds = poll_seconds
        self._current: OnnxScorer | None = None
        self._status = WatcherStatus()
        self._seen: object = None
        self._looking = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.check()

    @property
    def current(self) -> OnnxScorer | None:
        """The model to score with; take it once per request."""
        return self._current

    @property
    def status(self) -> WatcherStatus:
        return self._status

    def start(self) -> ChampionWatcher:
        """Watches in a thread of its own until ``stop``."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._watch, name="champion-watcher", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the watch; ``current`` stays usable."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> ChampionWatcher:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self, *, force: bool = False) -> bool:
        """Looks at what is published now and takes it in if it is new and good.

        Args:
            force: verify again even if no file has changed.

        Returns:
            Whether the published champion is the one in use.
        """
        with self._looking:
            fingerprint = self._fingerprint()
            if fingerprint != self._seen or force:
                # Remembered as it was before reading: a file that changes meanwhile is read again next time.
                self._seen = fingerprint
                self._take_in()
            return self._status.refused_reason is None

    def _watch(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            self.check()

    def _take_in(self) -> None:
        try:
            champion = read_champion(self._models_dir)
            scorer = OnnxScorer.load(self._models_dir, champion)
        except ModelRefused as refusal:
            self._refuse(refusal)
            return
        except Exception as error:  # noqa: BLE001 - a watch that dies would freeze the model in silence
            self._refuse(ModelRefused(Refusal.UNREADABLE, f"the champion cannot be loaded: {error!r}"))
            return
        current = self._current
        if current is not None and current.champion == champion:
            # Verified again and still the same: sessions stay warm, and nothing was swapped.
            self._status = replace(
                self._status, refused_reason=None, refused_version="", refused_detail="", refused_at=None
            )
            return
        self._current = scorer
        self._status = WatcherStatus(
            version=scorer.version,
            loaded_at=scorer.loaded_at,
            swaps=self._status.swaps + 1,
            refusals=self._status.refusals,
        )

    def _refuse(self, refusal: ModelRefused) -> None:
        counts = Counter(self._status.refusals)
        counts[refusal.reason] += 1
        self._status = replace(
            self._status,
            refusals=dict(counts),
            refused_reason=refusal.reason,
            refused_version=refusal.version,
            refused_detail=str(refusal),
            refused_at=datetime.now(UTC),
        )

    def _fingerprint(self) -> tuple[object, ...]:
        """Changes whenever the published file, or the artifact or manifest it names, does."""
        places = [self._models_dir / CHAMPION_FILE]
        try:
            champion = read_champion(self._models_dir)
        except ModelRefused:
            return tuple(map(_stamp, places))
        artifact = self._models_dir / champion.path
        return tuple(map(_stamp, [*places, artifact, artifact.parent / MANIFEST_FILE]))


def _stamp(place: Path) -> tuple[int, int, int] | None:
    try:
        found = place.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
