"""The partitions every subject shares: UTC days of event time, and Kafka partitions."""

from __future__ import annotations

import dagster as dg

from smoke_platform.settings import Settings


def daily(settings: Settings) -> dg.DailyPartitionsDefinition:
    """UTC days of event time since ``SMOKE_FIRST_DAY``, the unfinished current day included."""
    return dg.DailyPartitionsDefinition(start_date=settings.first_day.isoformat(), timezone="UTC", end_offset=1)


def kafka(settings: Settings) -> dg.StaticPartitionsDefinition:
    """The partitions of the readings' topic, as their numbers."""
    return dg.StaticPartitionsDefinition([str(number) for number in range(settings.kafka_partitions)])
