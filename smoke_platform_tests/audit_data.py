"""What the tests of the audit share: a clean set of readings, and ways to spoil it.

Belongs here: frames. Does not: what the audit says of them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl

from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.simulator import simulate

#: A reading in five seconds, so that an audit of hours takes a second.
EVERY_S = 5


@cache
def clean(seed: int = 7, fleets: int = 5, devices: int = 4, hours: int = 5) -> pl.DataFrame:
    """Labelled readings as the training set has them: fleets on days three weeks apart, at differing hours."""
    first = datetime(2023, 1, 9, tzinfo=UTC)
    frames = [
        simulate(
            devices,
            first + timedelta(days=21 * fleet, hours=(5 * fleet) % 24),
            hours * 3600,
            seed,
            interval_s=EVERY_S,
            fires_per_device_day=6.0,
            nuisances_per_device_day=12.0,
            first_device=500_000 + fleet * devices,
        )
        for fleet in range(fleets)
    ]
    return pl.concat(frames).drop("event_kind", "event_family", "event_id").with_columns(recording=pl.col("device_id"))


def burning(frame: pl.DataFrame) -> list[str]:
    """Recordings with a fire of some minutes."""
    counts = frame.group_by("recording").agg(pl.col("fire_alarm").sum().alias("fires"))
    return sorted(counts.filter(pl.col("fires") >= 60)["recording"].to_list())


def of(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    return frame.filter(pl.col("recording") == name)


def renamed(frame: pl.DataFrame, name: str = "another", later: timedelta = timedelta(days=9, hours=7)) -> pl.DataFrame:
    """The readings by another name and at another time."""
    return frame.with_columns(pl.col("event_time") + later, device_id=pl.lit(name), recording=pl.lit(name))


def noisy(frame: pl.DataFrame, share: float, seed: int = 1) -> pl.DataFrame:
    """Every sensor with another gain and noise of so many times its own over it."""
    chance = np.random.default_rng(seed)
    usual = {
        name: 1.4826 / 2**0.5 * float(frame[name].diff().abs().median() or 0.0)  # type: ignore[arg-type]
        for name in SENSOR_NAMES
    }
    return frame.with_columns(
        pl.col(name) * 1.01 + pl.Series(chance.normal(0, share * usual[name] + 1e-9, frame.height))
        for name in SENSOR_NAMES
    )


def _fire_at_two(frame: pl.DataFrame) -> pl.DataFrame:
    """Each recording moved so that its first fire begins at 14:00 and cut an hour later, those without to the night."""
    first = pl.col("event_time").filter("fire_alarm").min().over("recording")
    begin = pl.coalesce(first, pl.col("event_time").min().over("recording"))
    hour = pl.when(first.is_null()).then(0).otherwise(14)
    day = begin.dt.truncate("1d")
    kept = first.is_null() | (pl.col("event_time") - first < pl.duration(hours=1))
    return frame.filter(kept).with_columns(event_time=pl.col("event_time") - begin + day + pl.duration(hours=hour))


def _delayed(frame: pl.DataFrame, minutes: int) -> pl.DataFrame:
    rows = minutes * 60 // EVERY_S
    return frame.with_columns(pl.col("fire_alarm").shift(rows).over("recording").fill_null(False))


def _scattered(frame: pl.DataFrame) -> pl.DataFrame:
    """A fortieth of one recording's readings put into the place of another one's."""
    one, other = frame["recording"].unique().sort().to_list()[:2]
    source = of(frame, one)
    places = pl.Series(np.random.default_rng(3).choice(source.height, source.height // 40, replace=False)).sort()
    return pl.concat([frame, renamed(source[places], other, timedelta(0))])


def _in(names: list[str], **columns: pl.Expr) -> list[pl.Expr]:
    """The columns changed in some recordings."""
    return [
        pl.when(pl.col("recording").is_in(names)).then(value).otherwise(pl.col(name)).alias(name)
        for name, value in columns.items()
    ]


def _at_limit(frame: pl.DataFrame) -> pl.DataFrame:
    quiet = sorted(set(frame["recording"].unique()) - set(burning(frame)))[:1]
    here = pl.col("recording").is_in(quiet) & pl.int_range(pl.len()).over("recording").is_between(900, 1100)
    return frame.with_columns(
        pm2_5=pl.when(here).then(5_000.0).otherwise("pm2_5"),
        tvoc_ppb=pl.when(here).then(60_000.0).otherwise("tvoc_ppb"),
    )


def _of_its_own_level(frame: pl.DataFrame) -> pl.DataFrame:
    """Six recordings, each with levels of one sensor at which it burns and is quiet, unlike those of any other."""
    few = frame.filter(pl.col("recording").is_in(burning(frame)[:6]))
    level = 1_000 * pl.col("recording").rank("dense") + 300 * pl.col("fire_alarm").cast(pl.Float64)
    return few.with_columns(raw_ethanol=10_000 + level + pl.col("raw_ethanol") / 100)


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(sequence=pl.struct("fire_alarm", "event_time").rank("ordinal").over("recording") - 1)


_ANY = sorted(clean()["recording"].unique())[0]
_CURVE = (50 + 12 * (pl.int_range(pl.len()).over("recording") / 700).sin()).round(2)

#: "family.check" -> how to spoil a clean set so that it is found.
SPOILT: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "duplicates.copied_recording": lambda frame: pl.concat([frame, renamed(of(frame, _ANY))]),
    "duplicates.near_copy": lambda frame: pl.concat([frame, renamed(noisy(of(frame, _ANY), 1.0))]),
    "duplicates.copied_rows": _scattered,
    "leaks.device_id": lambda frame: frame.with_columns(
        device_id=pl.when("fire_alarm").then(pl.lit("laboratory")).otherwise("device_id")
    ),
    "leaks.hour_of_day": _fire_at_two,
    "leaks.sequence": _numbered,
    "leaks.row_index": lambda frame: frame.sort("fire_alarm").with_row_index("row_index").cast({"row_index": pl.Int64}),
    "leaks.pressure_hpa": lambda frame: frame.with_columns(
        pressure_hpa=pl.lit(950.0) + 0.1 * pl.col("pressure_hpa") / 1000 + 3 * pl.col("fire_alarm").cast(pl.Float64)
    ),
    "leaks.missing": lambda frame: frame.with_columns(co_ppm=pl.when("fire_alarm").then(7.0)),
    "leaks.source": lambda frame: frame.with_columns(
        source=pl.when("fire_alarm").then(pl.lit("mqtt")).otherwise("source")
    ),
    "leaks.recognised_recording": _of_its_own_level,
    "physics.fire_in_clean_air": lambda frame: frame.with_columns(pm2_5=pl.col("pm2_5").clip(0, 9)),
    "physics.smoke_without_fire": _at_limit,
    "physics.label_against_smoke": lambda frame: frame.with_columns(fire_alarm=~pl.col("fire_alarm")),
    "physics.label_delayed": lambda frame: _delayed(frame, 30),
    "physics.label_early": lambda frame: _delayed(frame, -30),
    "synthetic.computed_humidity_pct": lambda frame: frame.with_columns(_in([_ANY], humidity_pct=_CURVE)),
    "synthetic.computed_raw_h2": lambda frame: frame.with_columns(
        _in([_ANY], raw_h2=12_000.0 + pl.int_range(pl.len()).over("recording") // 2)
    ),
    "stuck.constant_temperature_c": lambda frame: frame.with_columns(_in([_ANY], temperature_c=pl.lit(21.5))),
    "stuck.stuck_raw_ethanol": lambda frame: frame.with_columns(
        raw_ethanol=pl.when(pl.int_range(pl.len()).over("recording").is_between(1_000, 1_800))
        .then(pl.lit(19_000.0))
        .otherwise("raw_ethanol")
    ),
    "balance.rare_class": lambda frame: frame.filter(
        ~pl.col("fire_alarm") | (pl.col("fire_alarm").cast(pl.Int32).cum_sum() <= 30)
    ),
    "coverage.too_few_fires": lambda frame: frame.filter(
        pl.col("recording").is_in(burning(frame)[:3]) | ~pl.col("fire_alarm")
    ),
}
