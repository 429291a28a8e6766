{{ config(materialized="by_day") }}

select
    event_date,
    device_id,
    time_bucket(interval 1 minute, event_time) as "minute",
    {{ reading_counts() }},
    {{ sensor_facts() }}
from {{ ref("stg_readings") }}
where {{ in_window() }}
group by all
