{{ config(materialized="by_day") }}

{%- set interval_us = (var("reporting_interval_s") * 1000000) | int %}

with readings as (
    select *, epoch_us(event_time) // {{ interval_us }} as interval_number
    from {{ ref("stg_readings") }}
    where {{ in_window() }}
),
facts as (
    select
        event_date,
        device_id,
        {{ reading_counts() }},
        count(distinct epoch_us(event_time) // 60000000)::bigint as minutes_with_data,
        count(distinct interval_number)::bigint as seconds_with_data,
        (max(interval_number) - min(interval_number) + 1)::bigint as expected_readings,
        {{ sensor_facts() }}
    from readings
    group by event_date, device_id
)
select
    event_date,
    device_id,
    readings,
    duplicate_readings,
    late_readings,
    labelled_readings,
    fire_readings,
    fire_share,
    first_event_time,
    last_event_time,
    minutes_with_data,
    seconds_with_data,
    expected_readings,
    (seconds_with_data / expected_readings)::double as completeness,
    (seconds_with_data * {{ var("reporting_interval_s") }} / 86400.0)::double as day_completeness,
    facts.* exclude (
        event_date, device_id, readings, duplicate_readings, late_readings, labelled_readings, fire_readings,
        fire_share, first_event_time, last_event_time, minutes_with_data, seconds_with_data, expected_readings
    )
from facts
