{# The days of this build: a condition on `column`, of type date. #}
{% macro in_window(column="event_date") -%}
{{ column }} between date '{{ var("min_day") }}' and date '{{ var("max_day") }}'
{%- endmacro %}

{#
  Incremental strategy: the days of this build are replaced as a whole, in the transaction of the model. dbt's own
  delete+insert deletes only the days that have new rows, and would keep the rows of a day that has none left.
#}
{% macro get_incremental_replace_days_sql(arguments) %}
  {%- set columns = get_quoted_csv(arguments["dest_columns"] | map(attribute="name")) -%}
  delete from {{ arguments["target_relation"] }} where {{ in_window() }};
  insert into {{ arguments["target_relation"] }} ({{ columns }})
  select {{ columns }} from {{ arguments["temp_relation"] }};
{% endmacro %}
