{#
  The days of this build: a condition on `column`, of type date. They come from the environment and are looked at only
  when SQL is made: a variable of dbt's would have the whole project parsed anew for every day.
#}
{% macro in_window(column="event_date") -%}
{%- if execute -%}
{{ column }} between date '{{ env_var("WAREHOUSE_FIRST_DAY") }}' and date '{{ env_var("WAREHOUSE_LAST_DAY") }}'
{%- else -%}
true
{%- endif -%}
{%- endmacro %}

{# The readings that windows beginning on these days may hold: some of them were measured in the first minutes after. #}
{% macro in_windows_reach() -%}
{%- if execute -%}
{%- set last = "date '" ~ env_var("WAREHOUSE_LAST_DAY") ~ "'" -%}
event_date between date '{{ env_var("WAREHOUSE_FIRST_DAY") }}' and {{ last }} + 1
    and event_time < ({{ last }} + interval 1 day + interval {{ window_reach_s() }} second)::timestamptz
{%- else -%}
true
{%- endif -%}
{%- endmacro %}

{# Number of the UTC minute of a moment, and the rows of `keys` (device_id, window_start, window_end) once for each of
   the minutes that their window covers. #}
{% macro minute_number(moment) -%} (epoch_us({{ moment }}) // 60000000)::bigint {%- endmacro %}

{% macro minutes_of_windows(keys) -%}
select device_id, window_start, unnest(range({{ minute_number("window_start") }}, {{ minute_number("window_end") }}))
    as minute_number
from {{ keys }}
{%- endmacro %}
