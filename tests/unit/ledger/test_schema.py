"""The tables have the columns of ledger §2 and §3, and the migrations lead exactly there."""

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from turnout.ledger import connection, rows, schema, upgrade
from turnout.ledger.store import Store

# `?` marks what may be NULL, as in the specification.
COLUMNS = {
    "routes": "route_id provider model replica",
    "writers": "writer_id router_id started_at_ms",
    "calls": """
        seq call_id request_id router_id writer_id started_at_ms ended_at_ms recorded_at_ms queue_ms? decide_us?
        ttft_ms? e2e_ms tenant key_id session_id? user_id? dialect path stream requested_model selected_model reason
        bundle_version knobs_hash clusters score_e9? route_id? attempts_n prefix_blocks? prefix_matched_blocks? outcome
        class http_status error_kind committed resumed hedged recovered est_tokens? tokens_in? tokens_out?
        tokens_cached? tokens_cache_write? tokens_reasoning? usage_source tools_requested tools_emitted cache_match
        cache_similarity_e3? cache_source? saved_nusd? cost_nusd? cost_basis reserved_nusd?""",
    "attempts": """
        seq call_id attempt_no phase route_id? kind writer_id started_at_ms ended_at_ms recorded_at_ms e2e_ms? ttft_ms?
        ok counted error_kind http_status? committed tokens_in? tokens_out? tokens_cached? tokens_cache_write?
        usage_source tools_requested tools_emitted cost_nusd? cost_basis list_nusd? price_version?""",
    "attempt_buckets": """
        bucket_ms route_id writer_id n counted_n ok_n e2e_n e2e_sum_ms ttft_n ttft_sum_ms tools_n tools_emitted_n""",
    "decisions": "call_id json",
    "late_buckets": "seq recorded_at_ms bucket_ms writer_id",
    "price_versions": "version effective_from_ms created_at_ms source note",
    "prices": "version provider model p_in? p_out? p_cached? p_write? above_tokens? p_in_above? p_out_above?",
    "rerated": "rerate_id call_id attempt_no phase cost_nusd? list_nusd?",
    "usage_hourly": """
        hour_ms tenant key_id provider model requested_model outcome calls tokens_in tokens_out tokens_cached cost_nusd
        priced_n e2e_n e2e_sum_ms last_at_ms""",
    "rollup_state": "name covered_from_ms covered_until_ms",
    "dirty_hours": "hour_ms",
    "budgets": "tenant key_id day_ms spent_nusd",
    "budget_moves": "call_id attempt_no phase ended_at_ms price_version moved_nusd",
}
INDEXES = {
    "ix_calls_session": "tenant, session_id, ended_at_ms DESC, seq DESC) WHERE session_id IS NOT NULL",
    "ix_calls_tenant_ended": "tenant, ended_at_ms)",
    "ix_calls_ended": "ended_at_ms)",
    "ix_budgets_day": "day_ms)",
    "ix_budget_moves_ended": "ended_at_ms)",
    "ix_rerated_call": "call_id)",
    "ix_attempts_ended": "ended_at_ms)",
    "ix_attempts_route": "route_id, ended_at_ms DESC, seq DESC)",
}


@pytest.mark.parametrize("table", COLUMNS)
def test_columns_are_those_of_the_specification(table: str) -> None:
    columns = schema.metadata.tables[table].columns
    assert [c.name + "?" * bool(c.nullable) for c in columns] == COLUMNS[table].split()


def test_migrations_create_exactly_the_tables_of_the_schema(database: Path) -> None:
    fresh = sa.create_engine("sqlite://")
    schema.metadata.create_all(fresh)
    wanted = _definitions(fresh)
    upgrade.migrate(database)
    assert _definitions(connection.reading_engine(database)) == {**wanted, **_VERSION_TABLE}
    for name, columns in INDEXES.items():
        assert wanted[name].endswith(f"({columns}")


@pytest.mark.usefixtures("store")
def test_a_fresh_file_is_what_the_migrations_lead_to(database: Path, tmp_path: Path) -> None:
    upgrade.migrate(tmp_path / "migrated.db")
    made, migrated = (connection.reading_engine(path) for path in (database, tmp_path / "migrated.db"))
    assert _definitions(made) == _definitions(migrated)
    for engine in (made, migrated):
        with engine.connect() as conn:
            assert conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [upgrade.HEAD]


@pytest.mark.usefixtures("store")
def test_one_time_unit(database: Path, store: Store, call: type) -> None:
    instants = [c for t in schema.metadata.tables.values() for c in t.columns if c.name.endswith("_ms")]
    assert len(instants) == 27
    assert {type(c.type) for c in instants} == {sa.BigInteger}
    assert not [
        c for t in schema.metadata.tables.values() for c in t.columns if isinstance(c.type, sa.Float | sa.DateTime)
    ]
    store.write([call(0, queue_ms=1, ttft_ms=2)])
    with connection.reading_engine(database).connect() as conn:
        for column in instants:
            kinds = conn.exec_driver_sql(f"SELECT typeof({column.name}) FROM {column.table.name}").scalars().all()
            written = column.table.name in {"writers", "calls", "attempts", "attempt_buckets"}
            assert kinds == ["integer"] * written, column


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE calls SET cost_nusd = -1",
        "UPDATE calls SET saved_nusd = -1",
        "UPDATE calls SET reserved_nusd = -1",
        "UPDATE attempts SET cost_nusd = -1",
        "UPDATE attempts SET list_nusd = -1",
        "UPDATE calls SET stream = 2",
        "UPDATE attempts SET counted = 'yes'",
        "UPDATE calls SET tenant = NULL",
        "UPDATE calls SET route_id = 99",
    ],
)
def test_rows_that_lie_about_money_flags_or_routes_are_refused(
    database: Path, store: Store, call: type, statement: str
) -> None:
    store.write([call()])
    with connection.writing_engine(database).connect() as conn, pytest.raises(sa.exc.IntegrityError):
        conn.exec_driver_sql(statement)


def test_history_is_linear_and_known_to_the_start_check() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(upgrade.__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [upgrade.HEAD]
    assert tuple(reversed([revision.revision for revision in script.walk_revisions()])) == upgrade.REVISIONS


def test_the_writing_connection_has_the_pragmas_of_the_specification(database: Path) -> None:
    with connection.writing_engine(database).connect() as conn:
        values = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys", "auto_vacuum")
        }
    assert values == {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 5000,
        "foreign_keys": 1,
        "auto_vacuum": 2,
    }


_VERSION_TABLE = {
    "alembic_version": (
        "CREATE TABLE alembic_version ( version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num) )"
    )
}


def _definitions(engine: sa.Engine) -> dict[str, str]:
    with engine.connect() as conn:
        found = conn.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: re.sub(r"\s+", " ", sql).strip() for name, sql in found}


@pytest.mark.parametrize("table", ["calls", "attempts", *rows.INSERTED])
def test_what_is_inserted_are_the_columns_of_the_table_in_its_order(table: str) -> None:
    columns = schema.metadata.tables[table].columns
    assert rows.inserted_columns(table) == tuple(column.name for column in columns if column.name != "seq")


@pytest.mark.parametrize("table", [*rows.SUM_KEYS])
def test_sums_are_found_by_the_key_of_their_table(table: str) -> None:
    key = tuple(column.name for column in schema.metadata.tables[table].primary_key)
    assert rows.INSERTED[table][: rows.SUM_KEYS[table]] == key
