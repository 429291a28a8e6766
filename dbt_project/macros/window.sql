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
