{{ config(materialized="by_day") }}

{%- set joined = ["late_count", "judged_count", "score_mean", "score_max", "rule_hits", "alarm_count"] %}
{%- set own = window_columns() %}
{%- set place = own.index(window_sensors()[0] ~ "_mean") %}

{# Which row of a window holds is found on narrow rows; the wide ones are then only passed through. #}
with keys as (
    select device_id, window_start, max(window_end) as window_end, max((revision, written_at)) as newest
    from {{ source("lake", "window_statistics") }}
    where {{ in_window() }}
    group by device_id, window_start
),
minutes as (
    {{ minutes_of_windows("keys") }}
),
{# An alarm has several records; a detector that was paused may have written the first one twice. #}
alarms as (
    select device_id, {{ minute_number("min(raised_event_time)") }} as minute_number
    from {{ source("lake", "alarms") }}
    where raised_event_time is not null and alarm_id <> ''
    group by device_id, alarm_id
),
alarm_minutes as (
    select device_id, minute_number, count(*) as alarms from alarms group by device_id, minute_number
),
found as (
    select
        minutes.device_id,
        minutes.window_start,
        coalesce(sum(read.late_readings), 0)::bigint as late_count,
        coalesce(sum(read.judged), 0)::bigint as judged_count,
        (sum(read.score_sum) / nullif(sum(read.scored), 0))::double as score_mean,
        max(read.score_max)::double as score_max,
        case when sum(read.judged) > 0 then sum(read.rule_hits) end::bigint as rule_hits,
        coalesce(sum(alarm_minutes.alarms), 0)::bigint as alarm_count
    from minutes
    left join {{ ref("stg_window_minutes") }} as read using (device_id, minute_number)
    left join alarm_minutes using (device_id, minute_number)
    group by minutes.device_id, minutes.window_start
)
select
    {%- for name in own[:place] %}
    windows."{{ name }}"{{ "::integer as level" if name == "level" }},
    {%- endfor %}
    {%- for name in joined %}
    found.{{ name }},
    {%- endfor %}
    {%- for name in own[place:] %}
    windows."{{ name }}"{% if not loop.last %},{% endif %}
    {%- endfor %}
from {{ source("lake", "window_statistics") }} as windows
inner join keys
    on windows.device_id = keys.device_id
    and windows.window_start = keys.window_start
    and (windows.revision, windows.written_at) = keys.newest
inner join found
    on windows.device_id = found.device_id
    and windows.window_start = found.window_start
where {{ in_window("windows.event_date") }}
