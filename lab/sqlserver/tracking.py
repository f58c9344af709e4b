"""Change Tracking in PostgreSQL.

Triggers of a tracked table write what each statement did to each key into a side table, under the transaction's own id:
`I` inserted, `U` updated, `R` updated with its key written again, `D` deleted. Whatever changes rows does so (MERGE,
cascades), and what is rolled back leaves nothing. `tds.before_commit` gives the transaction its version. What clients
see is folded from that when they ask.
"""

from lab.sqlserver.catalog import Table, listed, quoted
from lab.sqlserver.values import SqlType

# The columns of CHANGETABLE(CHANGES …) before those of the key.
COLUMNS = {
    "sys_change_version": SqlType("bigint"),
    "sys_change_creation_version": SqlType("bigint"),
    "sys_change_operation": SqlType("nchar", length=1),
    "sys_change_columns": SqlType("varbinary", length=4100),
    "sys_change_context": SqlType("varbinary", length=128),
}


def enable(table: Table, *, masks: bool) -> str:
    """The statements that begin tracking. The first change of a table since may come with any later version."""
    side, function = f"sides.ct_{table.oid}", f"sides.record_{table.oid}"
    key = listed(table.key)
    return f"""
      CREATE TABLE {side} AS SELECT {key} FROM {table.quoted} WITH NO DATA;
      ALTER TABLE {side} ADD COLUMN tds_seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ADD COLUMN tds_xid xid8,
        ADD COLUMN tds_op "char", ADD COLUMN tds_columns int[], ADD COLUMN tds_mask bytea,
        ADD COLUMN tds_context bytea;
      CREATE INDEX ON {side} (tds_xid);
      CREATE INDEX ON {side} ({key});
      {record(table)};
      CREATE TRIGGER tds_i AFTER INSERT ON {table.quoted} REFERENCING NEW TABLE AS n EXECUTE FUNCTION {function}();
      CREATE TRIGGER tds_u AFTER UPDATE ON {table.quoted} REFERENCING OLD TABLE AS o NEW TABLE AS n
        EXECUTE FUNCTION {function}();
      CREATE TRIGGER tds_d AFTER DELETE ON {table.quoted} REFERENCING OLD TABLE AS o EXECUTE FUNCTION {function}();
      INSERT INTO tds.tracked
        SELECT {table.oid}, '{side}'::regclass, tds.last_version(), {masks}"""


def record(table: Table) -> str:
    """The function of the triggers; again after the table has got or lost a column."""
    body = _body(table, f"sides.ct_{table.oid}")
    # Its plans are kept. One that was made for a row would compare each row with each when there are thousands.
    function = f"FUNCTION sides.record_{table.oid}() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop TO off"
    return f"CREATE OR REPLACE {function} AS $body$ {body} $body$"


def disable(table: Table) -> str:
    return f"""
      DROP TRIGGER tds_i ON {table.quoted}; DROP TRIGGER tds_u ON {table.quoted}; DROP TRIGGER tds_d ON {table.quoted};
      DROP FUNCTION sides.record_{table.oid}; {forget(table)}"""


def forget(table: Table) -> str:
    """When the table itself is gone, too."""
    return (
        f"DROP TABLE sides.ct_{table.oid}; DROP FUNCTION IF EXISTS sides.record_{table.oid};"
        f" DELETE FROM tds.tracked WHERE oid = {table.oid}"
    )


def emptied(table: Table) -> str:
    """After a TRUNCATE: no history, and it begins now; the counter stays."""
    return f"TRUNCATE sides.ct_{table.oid}; UPDATE tds.tracked SET begun = tds.last_version() WHERE oid = {table.oid}"


def _body(table: Table, side: str) -> str:
    """One function for the three triggers. Sets are compared by the key, with its collation, as of the whole statement:
    `SET id = id + 1` deletes the lowest, inserts the highest, and replaces those between."""
    key, old, new = listed(table.key), listed(table.key, "o."), listed(table.key, "n.")
    same = _same_key(table, "o", "n")
    others = [c for name, c in table.columns.items() if name not in table.key and not c.computed]
    numbers = ",".join(str(column.number) for column in others)
    changed = ", ".join(
        f"CASE WHEN bool_or(o.{quoted(c.name)}::text IS DISTINCT FROM n.{quoted(c.name)}::text) THEN {c.number} END"
        for c in others
    )
    into = (
        f"INSERT INTO {side} (tds_xid, tds_op, tds_columns, tds_mask, tds_context, {key}) SELECT pg_current_xact_id()"
    )
    stamps = [c.number for c in others if c.kind.name == "timestamp"]
    in_key = ",".join(str(table.columns[name].number) for name in table.key)
    return f"""
    DECLARE
      context bytea := decode(tds.said(TG_RELID, 3), 'hex');
      columns int[] := string_to_array(tds.said(TG_RELID, 2), ',')::int[];
      replaced bool := false;
      every int[] := '{{{numbers}}}';
      moved bool := false;
      mask bytea;
    BEGIN
      IF TG_OP = 'INSERT' THEN
        {into}, 'I', NULL, NULL, context, {new} FROM n;
      ELSIF TG_OP = 'DELETE' THEN
        {into}, 'D', NULL, NULL, context, {old} FROM o;
      ELSE
        IF columns IS NULL THEN
          SELECT array_remove(ARRAY[{changed or "NULL::int"}], NULL) INTO columns FROM o JOIN n ON {same};
        END IF;
        replaced := columns && '{{{in_key}}}'::int[];
        columns := columns || '{{{",".join(map(str, stamps))}}}'::int[];
        IF replaced OR columns @> every OR columns = '{{}}'
           OR NOT (SELECT masks FROM tds.tracked WHERE oid = TG_RELID) THEN
          columns := NULL;
        END IF;
        mask := tds.mask(columns);
        {into}, 'D', NULL, NULL, context, {old} FROM o WHERE NOT EXISTS (SELECT 1 FROM n WHERE {same});
        moved := FOUND;
        {into}, CASE WHEN replaced THEN 'R' ELSE 'U' END, columns, mask, context, {old} FROM o JOIN n ON {same};
        moved := moved OR FOUND;
        {into}, 'I', NULL, NULL, context, {new} FROM n WHERE NOT EXISTS (SELECT 1 FROM o WHERE {same});
      END IF;
      IF FOUND OR moved THEN PERFORM set_config('tds.touched', 'on', true); END IF;
      RETURN NULL;
    END"""


def changes(table: Table, since: str) -> str:
    """CHANGETABLE(CHANGES …) as a query: the net change of each key after `since`, which is NULL for all.

    The first and the last entry of a key are found by their numbers: of one key these rise as the versions do, because
    who changes a row waits until the one before has committed. A number has the operation in its last bits, so that the
    entries themselves are looked up for a mask or a context only, and only for rows that are sent.
    """
    side, key, order = f"sides.ct_{table.oid}", listed(table.key), "ORDER BY tds_seq"
    entry = "tds_seq << 7 | ascii(tds_op::text)"
    # Of a key that was written in several ways, the first.
    keys = ", ".join(
        f"(array_agg({quoted(n)} {order}))[1] AS {quoted(n)}" if table.columns[n].kind.textual else quoted(n)
        for n in table.key
    )
    masks = f"""SELECT tds.mask(tds.together(m.tds_columns ORDER BY m.tds_seq))
          FROM {side} m JOIN tds.commits c ON c.xid = m.tds_xid
          WHERE c.version > coalesce({since}, 0) AND {_same_key(table, "m", "folded")}"""
    return f"""
      SELECT sys_change_version, sys_change_creation_version,
        CASE WHEN tds_last & 127 = ascii('D') THEN 'D' WHEN tds_first & 127 = ascii('I') THEN 'I' ELSE 'U' END::varchar
          AS sys_change_operation,
        CASE WHEN NOT tds_plain THEN NULL WHEN tds_first <> tds_last THEN ({masks})
             ELSE (SELECT tds_mask FROM {side} WHERE tds_seq = tds_last >> 7) END AS sys_change_columns,
        CASE WHEN tds_said THEN (SELECT tds_context FROM {side} WHERE tds_seq = tds_last >> 7) END
          AS sys_change_context,
        {key}
      FROM (SELECT max(c.version) AS sys_change_version, max({entry}) AS tds_last, min({entry}) AS tds_first,
              bool_or(tds_context IS NOT NULL) AS tds_said,
              max(c.version) FILTER (WHERE tds_op IN ('I', 'R')) AS sys_change_creation_version,
              bool_and(tds_op = 'U' AND tds_columns IS NOT NULL) AS tds_plain, {keys}
            FROM tds.commits c JOIN {side} ON tds_xid = c.xid
            WHERE c.version > coalesce({since}, 0) AND coalesce({since}, 0) >= 0
            GROUP BY {key}) AS folded"""


def _same_key(table: Table, one: str, other: str) -> str:
    return " AND ".join(f"{one}.{quoted(name)} = {other}.{quoted(name)}" for name in table.key)


def version_of(table: Table, columns: list[str], values: list[str]) -> str:
    """CHANGETABLE(VERSION …) as a query: what is last known of one key; nothing of a change that is not committed."""
    pairs = list(zip(columns, values, strict=True))
    where = " AND ".join(f"{quoted(name)} = {value}" for name, value in pairs)
    keys = ", ".join(f"{value} AS {quoted(name)}" for name, value in pairs)
    pending = (
        f"EXISTS (SELECT 1 FROM sides.ct_{table.oid} WHERE tds_xid = pg_current_xact_id_if_assigned() AND {where})"
    )
    return f"""
      SELECT CASE WHEN NOT {pending} THEN version END AS sys_change_version,
             CASE WHEN NOT {pending} THEN context END AS sys_change_context, {keys}
      FROM (SELECT 1) AS one LEFT JOIN (
        SELECT c.version, tds_context AS context FROM sides.ct_{table.oid} JOIN tds.commits c ON tds_xid = c.xid
        WHERE {where} ORDER BY c.version DESC, tds_seq DESC LIMIT 1) AS latest ON true"""


CLEANUP = """
DO $do$
DECLARE upto bigint := {version}; side regclass;
BEGIN
  FOR side IN SELECT tracked.side FROM tds.tracked LOOP
    EXECUTE format('DELETE FROM %s s USING tds.commits c WHERE c.xid = s.tds_xid AND c.version <= $1', side) USING upto;
  END LOOP;
  DELETE FROM tds.commits WHERE version <= upto AND version < (SELECT max(version) FROM tds.commits);
  UPDATE tds.state SET cleaned = greatest(cleaned, upto);
END $do$"""
