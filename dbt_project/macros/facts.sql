{# Counts that the facts per minute and per day share; reads rows of stg_readings. #}
{% macro reading_counts() -%}
    count(*)::bigint as readings,
    sum(copies - 1)::bigint as duplicate_readings,
    count(*) filter (late)::bigint as late_readings,
    count(fire_alarm)::bigint as labelled_readings,
    count(*) filter (fire_alarm)::bigint as fire_readings,
    (count(*) filter (fire_alarm) / nullif(count(fire_alarm), 0))::double as fire_share,
    min(event_time) as first_event_time,
    max(event_time) as last_event_time
{%- endmacro %}

{# Mean (compensated, so that the order of summation does not show), extremes and missing values of each sensor. #}
{% macro sensor_facts() -%}
    {%- for sensor in sensors() %}
    favg({{ sensor["name"] }}) as {{ sensor["name"] }}_mean,
    min({{ sensor["name"] }}) as {{ sensor["name"] }}_min,
    max({{ sensor["name"] }}) as {{ sensor["name"] }}_max,
    (count(*) - count({{ sensor["name"] }}))::bigint as {{ sensor["name"] }}_nulls
    {%- if not loop.last %},{% endif %}
    {%- endfor %}
{%- endmacro %}
