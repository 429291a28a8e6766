{# Tests look at the days of this build only: the others were tested when they were built. A work table holds nothing
   else and is looked at as a whole. One scan each. #}

{% test required_columns(model, columns, whole=false) %}
select *
from (
    {%- for column in columns %}
    select '{{ column }}' as column_name, count(*) as missing
    from {{ model }} where {{ "true" if whole else in_window() }} and "{{ column }}" is null
    {% if not loop.last %}union all{% endif %}
    {%- endfor %}
)
where missing > 0
{% endtest %}

{% test unique_together(model, columns, whole=false) %}
{%- set key = get_quoted_csv(columns) -%}
select {{ key }}, count(*) as copies
from {{ model }}
where {{ "true" if whole else in_window() }}
group by {{ key }}
having count(*) > 1
{% endtest %}

{% test known_values(model, column, values) %}
select "{{ column }}", count(*) as found
from {{ model }}
where {{ in_window() }} and "{{ column }}" not in ('{{ values | join("', '") }}')
group by all
{% endtest %}

{% macro out_of_range(model, suffix, names=none) %}
select *
from (
    {%- for sensor in sensors() if names is none or sensor["name"] in names %}
    {%- set value = '"' ~ sensor["name"] ~ suffix ~ '"' %}
    select
        '{{ sensor["name"] ~ suffix }}' as column_name, count(*) as outside,
        min({{ value }}) as least, max({{ value }}) as greatest
    from {{ model }}
    where {{ in_window() }} and {{ value }} not between {{ sensor["low"] }} and {{ sensor["high"] }}
    {% if not loop.last %}union all{% endif %}
    {%- endfor %}
)
where outside > 0
{% endmacro %}

{# The ranges are those by which readings are accepted: a row outside them did not come through landing. #}
{% test sensors_in_range(model) %}
{{ out_of_range(model, "") }}
{% endtest %}

{% test facts_in_range(model) %}
{%- for suffix in ["_min", "_max", "_mean"] %}
{{ out_of_range(model, suffix) }}
{% if not loop.last %}union all{% endif %}
{%- endfor %}
{% endtest %}

{# No reading is lost or counted twice between staging and a fact. #}
{% test counts_every_reading(model) %}
with facts as (
    select event_date, sum(readings) as readings, sum(duplicate_readings) as duplicates
    from {{ model }} where {{ in_window() }} group by event_date
),
staged as (
    select event_date, count(*) as readings, sum(copies - 1) as duplicates
    from {{ ref("stg_readings") }} where {{ in_window() }} group by event_date
)
select
    event_date, facts.readings as counted, staged.readings as staged,
    facts.duplicates as duplicates_counted, staged.duplicates as duplicates_staged
from facts full join staged using (event_date)
where facts.readings is distinct from staged.readings or facts.duplicates is distinct from staged.duplicates
{% endtest %}

{% test windows_in_range(model) %}
{%- for suffix in ["_min", "_max", "_mean", "_median", "_p05", "_p95", "_first", "_last"] %}
{{ out_of_range(model, suffix, window_sensors()) }}
union all
{%- endfor %}
select *
from (
    {%- for column, low, high in [
        ("completeness", 0, 1), ("quality_score", 0, 100), ("validity", 0, 1), ("plausibility", 0, 1),
        ("freshness", 0, 1), ("level", 0, 4), ("score_mean", 0, 1), ("score_max", 0, 1),
    ] %}
    select
        '{{ column }}' as column_name, count(*) as outside,
        min({{ column }})::double as least, max({{ column }})::double as greatest
    from {{ model }}
    where {{ in_window() }} and {{ column }} not between {{ low }} and {{ high }}
    {% if not loop.last %}union all{% endif %}
    {%- endfor %}
)
where outside > 0
{% endtest %}

{# Counts that follow from one another, within each window. #}
{% test windows_add_up(model) %}
select device_id, window_start, window_end, revision, record_count, duplicate_count, judged_count
from {{ model }}
where {{ in_window() }} and not (
    record_count >= 1
    and revision = record_count + duplicate_count
    and fire_label_count between 0 and label_count
    and label_count <= record_count
    and judged_count <= record_count
    and first_event_time between window_start and last_event_time
    and last_event_time < window_end
    and event_date = (window_start at time zone 'UTC')::date
    and (level = 0) = (level_sensor is null)
    {%- for name in window_sensors() %}
    and {{ name }}_missing between 0 and record_count
    and ({{ name }}_mean is null) = ({{ name }}_missing = record_count)
    {%- endfor %}
)
{% endtest %}

{# The windows beside the readings that they are made of, which may have gone on since: none rests on more than there
   are. One that does was computed from readings that are gone, or counted some of them twice. #}
{% test windows_rest_on_readings(model) %}
select device_id, window_start, revision, rows_in_time, record_count, readings
from ({{ windows_beside_readings(model) }})
where record_count is not null and (rows_in_time is null or revision > rows_in_time or record_count > readings)
{% endtest %}

{# Windows whose readings have been there for long enough, and which are missing or rest on fewer. Nothing else is
   wrong when an engine is behind or switched off, so this one only warns. #}
{% test windows_are_complete(model) %}
select device_id, window_start, revision, rows_in_time, last_ingest_time
from ({{ windows_beside_readings(model) }})
where last_ingest_time < now() - interval {{ var("windows_settle_s") | int }} second
    and (revision is null or revision < rows_in_time)
{% endtest %}

{# A row for each window of the days that has readings, a row in the mart, or both. #}
{% macro windows_beside_readings(model) -%}
with windows as (
    select device_id, window_start, revision, record_count from {{ model }} where {{ in_window() }}
),
{# A reading of a minute is in the windows that begin in that minute and in those before that still cover it. #}
expected as (
    select
        device_id, make_timestamptz((minute_number - reach.minutes) * 60000000) as window_start,
        sum(rows_in_time) as rows_in_time, sum(readings) as readings, max(last_ingest_time) as last_ingest_time
    from {{ ref("stg_window_minutes") }}
    cross join (select unnest(range({{ (window_reach_s() / 60) | int + 1 }})) as minutes) as reach
    where rows_in_time > 0
    group by all
)
select *
from windows full join expected using (device_id, window_start)
where {{ in_window("(window_start at time zone 'UTC')::date") }}
{%- endmacro %}
