{#
  Incremental by UTC day: the days of this build are replaced as a whole, in one transaction.

  dbt's own delete+insert deletes only days that have new rows, so that a day which lost its rows would keep its facts,
  and writes every row twice, the first time to a temporary table: for 1.7 million training examples twice the time.
  Columns that the model has gained are added, those it has lost stay empty.
#}
{% materialization by_day, adapter="duckdb" %}
  {%- set target = this.incorporate(type="table") -%}
  {%- set existing = load_cached_relation(this) -%}

  {{ run_hooks(pre_hooks, inside_transaction=False) }}
  {{ run_hooks(pre_hooks, inside_transaction=True) }}

  {%- if existing is none or existing.is_view or should_full_refresh() %}
    {% do drop_relation_if_exists(existing) %}
    {% call statement("main") %}
      {{ create_table_as(False, target, sql) }}
    {% endcall %}
  {%- else %}
    {% do get_assert_columns_equivalent(sql) %}
    {%- set wanted = adapter.get_column_schema_from_query(sql) -%}
    {%- set present = adapter.get_columns_in_relation(existing) | map(attribute="name") | list -%}
    {%- for column in wanted if column.name not in present %}
      {% do run_query("alter table " ~ target ~ " add column " ~ adapter.quote(column.name) ~ " " ~ column.dtype) %}
    {%- endfor %}
    {%- set columns = get_quoted_csv(wanted | map(attribute="name")) %}
    {% call statement("main") %}
      delete from {{ target }} where {{ in_window() }};
      insert into {{ target }} ({{ columns }})
      select {{ columns }} from ({{ sql }}) as model
    {% endcall %}
  {%- endif %}

  {{ run_hooks(post_hooks, inside_transaction=True) }}
  {% do adapter.commit() %}
  {{ run_hooks(post_hooks, inside_transaction=False) }}

  {{ return({"relations": [target]}) }}
{% endmaterialization %}
