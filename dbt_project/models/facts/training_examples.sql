{{ config(materialized="by_day") }}

{# The numbers are the feature kernel's: this model only chooses rows and says which belong together. #}
with kept as (
    select
        topic_id, "partition", "offset", device_id, event_time,
        epoch_us(event_time) - lag(epoch_us(event_time)) over device
            <= {{ (var("recording_gap_s") * 1000000) | int }} as follows
    from {{ ref("stg_readings") }}
    where {{ in_window() }} and not late
    window device as (partition by device_id order by event_time, "sequence", topic_id, "partition", "offset")
),
recordings as (
    select
        topic_id, "partition", "offset",
        max(case when follows then null else event_time end) over (
            partition by device_id order by event_time range between unbounded preceding and current row
        ) as recording_start
    from kept
)
select
    features.event_date,
    features.device_id,
    features.event_time,
    features."sequence",
    features.source,
    features.topic_id,
    features."partition",
    features."offset",
    features.source || ':' || features.device_id as group_id,
    features.source || ':' || features.device_id || '@'
        || strftime(recordings.recording_start at time zone 'UTC', '%Y-%m-%dT%H:%M:%SZ') as recording_id,
    features.fire_alarm as label,
    features.feature_version,
    {%- for name in feature_names() %}
    features."{{ name }}"{% if not loop.last %},{% endif %}
    {%- endfor %}
from {{ source("lake", "features") }} as features
inner join recordings using (topic_id, "partition", "offset")
where {{ in_window("features.event_date") }} and features.fire_alarm is not null
    and features.source in ('{{ var("example_sources") | join("', '") }}')
