-- What every database of the stand-in begins with, in PostgreSQL: SQL Server's types, its functions, Change Tracking.
-- dbo and the other schemas hold what users make, tds what the stand-in needs, sides the history of tracked tables.
-- Names are in lower case; how the user wrote a name, and which type of SQL Server a column has, are in its comment.
CREATE SCHEMA dbo;
CREATE SCHEMA sys;
CREATE SCHEMA tds;
CREATE SCHEMA sides;
SET search_path = tds;
SET check_function_bodies = off;
COMMENT ON SCHEMA dbo IS 'dbo';

CREATE COLLATION tds.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE COLLATION tds.ai (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
CREATE COLLATION tds.cs (provider = icu, locale = 'und-u-ks-level3');

-- Types ---------------------------------------------------------------------------------------------------------------
-- Moments: int8 in disguise, ticks of 100 ns since 0001-01-01 (time: since midnight). The type modifier is the number of
-- digits + 1; 21 is datetime, 31 smalldatetime. A uniqueidentifier is a uuid that sorts as SQL Server sorts.
DO $$
DECLARE kind text; alike text; compare text; part text[];
BEGIN
  FOREACH part SLICE 1 IN ARRAY ARRAY[['datetime2', 'int8'], ['time', 'int8'], ['uniqueidentifier', 'uuid']] LOOP
    kind := format('tds.%I', part[1]); alike := part[2];
    EXECUTE format('CREATE TYPE %s', kind);
    EXECUTE format('CREATE FUNCTION tds.%s_in(cstring) RETURNS %s LANGUAGE internal IMMUTABLE STRICT AS %L',
                   part[1], kind, CASE alike WHEN 'uuid' THEN 'uuid_in' ELSE 'int8in' END);
    EXECUTE format('CREATE FUNCTION tds.%s_out(%s) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS %L',
                   part[1], kind, CASE alike WHEN 'uuid' THEN 'uuid_out' ELSE 'int8out' END);
    EXECUTE format('CREATE TYPE %s (INPUT = tds.%s_in, OUTPUT = tds.%s_out, LIKE = %s, TYPMOD_IN = varchartypmodin,
                   TYPMOD_OUT = varchartypmodout)', kind, part[1], part[1], alike);
    EXECUTE format('CREATE CAST (%s AS %s) WITHOUT FUNCTION', kind, alike);
    EXECUTE format('CREATE CAST (%s AS %s) WITHOUT FUNCTION', alike, kind);
  END LOOP;
END $$;

-- The order of the bytes in a comparison: the last six first, and what the text has in front last, turned round.
CREATE FUNCTION tds.guid_order(tds.uniqueidentifier) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT (substr(h, 21) || substr(h, 17, 4) || substr(h, 15, 2) || substr(h, 13, 2) || substr(h, 11, 2)
       || substr(h, 9, 2) || substr(h, 7, 2) || substr(h, 5, 2) || substr(h, 3, 2) || substr(h, 1, 2))::uuid
  FROM (SELECT replace($1::uuid::text, '-', '')) AS hex(h) $$;

DO $$
DECLARE kind text; key text; sign record;
BEGIN
  FOREACH kind IN ARRAY ARRAY['datetime2', 'time', 'uniqueidentifier'] LOOP
    key := CASE kind WHEN 'uniqueidentifier' THEN 'tds.guid_order(%s)' ELSE '%s::int8' END;
    FOR sign IN SELECT * FROM (VALUES ('<', 'lt', '>', '>='), ('<=', 'le', '>=', '>'), ('=', 'eq', '=', '<>'),
                               ('>=', 'ge', '<=', '<'), ('>', 'gt', '<', '<='), ('<>', 'ne', '<>', '='))
                               AS s(symbol, name, commutator, negator) LOOP
      EXECUTE format('CREATE FUNCTION tds.%s_%s(tds.%I, tds.%I) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS %L',
        kind, sign.name, kind, kind, format('SELECT ' || key || ' %s ' || key, '$1', sign.symbol, '$2'));
      EXECUTE format('CREATE OPERATOR tds.%s (LEFTARG = tds.%I, RIGHTARG = tds.%I, FUNCTION = tds.%s_%s,
        COMMUTATOR = OPERATOR(tds.%s), NEGATOR = OPERATOR(tds.%s)%s)', sign.symbol, kind, kind, kind, sign.name,
        sign.commutator, sign.negator, CASE sign.symbol WHEN '=' THEN ', HASHES, MERGES' ELSE '' END);
    END LOOP;
    EXECUTE format('CREATE FUNCTION tds.%s_cmp(tds.%I, tds.%I) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS %L',
      kind, kind, kind, CASE kind WHEN 'uniqueidentifier' THEN 'SELECT uuid_cmp(tds.guid_order($1), tds.guid_order($2))'
                        ELSE 'SELECT btint8cmp($1::int8, $2::int8)' END);
    EXECUTE format('CREATE OPERATOR CLASS tds.%s_btree DEFAULT FOR TYPE tds.%I USING btree AS OPERATOR 1 tds.<,
      OPERATOR 2 tds.<=, OPERATOR 3 tds.=, OPERATOR 4 tds.>=, OPERATOR 5 tds.>, FUNCTION 1 tds.%s_cmp(tds.%I, tds.%I)',
      kind, kind, kind, kind, kind);
    EXECUTE format('CREATE FUNCTION tds.%s_hash(tds.%I) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS %L',
      kind, kind, CASE kind WHEN 'uniqueidentifier' THEN 'uuid_hash' ELSE 'hashint8' END);
    EXECUTE format('CREATE OPERATOR CLASS tds.%s_hash DEFAULT FOR TYPE tds.%I USING hash AS OPERATOR 1 tds.=,
      FUNCTION 1 tds.%s_hash(tds.%I)', kind, kind, kind, kind);
  END LOOP;
END $$;

CREATE FUNCTION tds.rounded(value int8, modifier int) RETURNS int8 LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT CASE WHEN modifier = 25 THEN value / 864000000000 * 864000000000
                                  + round(((value % 864000000000) * 3 + 50000) / 100000 * 100000 / 3.0)::int8
              WHEN modifier = 35 THEN (value + 300000000) / 600000000 * 600000000
              WHEN modifier BETWEEN 5 AND 11 THEN
                (value + 5 * (10 ^ (11 - modifier))::int8) / (10 ^ (12 - modifier))::int8 * (10 ^ (12 - modifier))::int8
              ELSE value END $$;
CREATE FUNCTION tds.datetime2(tds.datetime2, int) RETURNS tds.datetime2 LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT tds.rounded($1::int8, $2)::tds.datetime2';
CREATE FUNCTION tds.time(tds.time, int) RETURNS tds.time LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT tds.rounded($1::int8, $2)::tds.time';
CREATE CAST (tds.datetime2 AS tds.datetime2) WITH FUNCTION tds.datetime2(tds.datetime2, int) AS IMPLICIT;
CREATE CAST (tds.time AS tds.time) WITH FUNCTION tds.time(tds.time, int) AS IMPLICIT;

CREATE FUNCTION tds.shown(ticks int8, digits int) RETURNS int8 LANGUAGE sql IMMUTABLE AS
  'SELECT CASE digits WHEN 3 THEN (ticks + 5000) / 10000 * 10000 ELSE ticks END';

CREATE TYPE tds.datetimeoffset AS (utc tds.datetime2, minutes int2);

CREATE FUNCTION tds.ticks(text) RETURNS int8 LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT ((extract(epoch FROM regexp_replace($1 COLLATE "C", '\.\d+', '')::timestamp) + 62135596800) * 10000000)::int8
       + coalesce(rpad(left(substring($1 COLLATE "C" FROM '\.(\d+)'), 7), 7, '0')::int8, 0) $$;
-- One expression and not strict, so that PostgreSQL puts it in place of its call: it is called for every row. Three digits
-- are those of a datetime, whose unit is a three-hundredth of a second.
CREATE FUNCTION tds.moment_text(ticks int8, digits int, style int) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT to_char('0001-01-01'::timestamp + make_interval(days => (tds.shown(ticks, digits) / 864000000000)::int,
                   secs => tds.shown(ticks, digits) % 864000000000 / 10000000),
                 CASE WHEN style IN (126, 127) THEN 'YYYY-MM-DD"T"HH24:MI:SS' ELSE 'YYYY-MM-DD HH24:MI:SS' END)
       || CASE WHEN digits > 0
          THEN '.' || left(lpad((tds.shown(ticks, digits) % 10000000)::text, 7, '0'), digits) ELSE '' END $$;
CREATE FUNCTION tds.from_clock(timestamptz) RETURNS tds.datetime2 LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT ((extract(epoch FROM $1) + 62135596800) * 10000000)::int8::tds.datetime2(21)';
CREATE FUNCTION tds.to_datetime2(text) RETURNS tds.datetime2 LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT tds.ticks($1)::tds.datetime2';
CREATE FUNCTION tds.to_time(text) RETURNS tds.time LANGUAGE sql IMMUTABLE STRICT AS
  $$SELECT (tds.ticks('0001-01-01 ' || regexp_replace($1 COLLATE "C", '^.*[T ]', '')))::tds.time$$;
CREATE FUNCTION tds.to_guid(text) RETURNS tds.uniqueidentifier LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT $1::uuid::tds.uniqueidentifier';
CREATE FUNCTION tds.to_text(tds.datetime2) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT tds.moment_text($1::int8, 7, 121)';
CREATE FUNCTION tds.to_text(tds.time) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT substr(tds.moment_text($1::int8, 7, 121), 12)';
CREATE FUNCTION tds.to_text(tds.uniqueidentifier) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT upper($1::uuid::text)';
CREATE FUNCTION tds.to_datetimeoffset(text) RETURNS tds.datetimeoffset LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT ROW((tds.ticks(btrim(substring($1 COLLATE "C" FROM '^(.*?)(?:Z|[+-]\d\d:\d\d)?$'))) - shift * 600000000::int8)::tds.datetime2,
             shift)::tds.datetimeoffset
  FROM (SELECT coalesce((m[1] || '1')::int * (m[2]::int * 60 + m[3]::int), 0)::int2
        FROM (SELECT regexp_match($1 COLLATE "C", '([+-])(\d\d):(\d\d)$')) AS found(m)) AS offsets(shift) $$;
CREATE FUNCTION tds.offset_text(value tds.datetimeoffset, digits int, style int) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT CASE WHEN style = 127 THEN tds.moment_text((value).utc::int8, digits, style) || 'Z'
         ELSE tds.moment_text((value).utc::int8 + (value).minutes * 600000000::int8, digits, style)
           || CASE style WHEN 126 THEN '' ELSE ' ' END || CASE WHEN (value).minutes < 0 THEN '-' ELSE '+' END
           || to_char(make_interval(mins => abs((value).minutes)), 'HH24:MI') END $$;
CREATE FUNCTION tds.to_text(tds.datetimeoffset) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT tds.offset_text($1, 7, 121)';
CREATE FUNCTION tds.to_date(tds.datetime2) RETURNS date LANGUAGE sql IMMUTABLE STRICT AS
  $$SELECT '0001-01-01'::date + ($1::int8 / 864000000000)::int$$;
CREATE FUNCTION tds.from_date(date) RETURNS tds.datetime2 LANGUAGE sql IMMUTABLE STRICT AS
  $$SELECT (($1 - '0001-01-01'::date) * 864000000000)::tds.datetime2$$;
CREATE FUNCTION tds.to_offset(tds.datetime2) RETURNS tds.datetimeoffset LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT ROW($1, 0::int2)::tds.datetimeoffset';
CREATE CAST (tds.datetime2 AS date) WITH FUNCTION tds.to_date(tds.datetime2) AS ASSIGNMENT;
CREATE CAST (date AS tds.datetime2) WITH FUNCTION tds.from_date(date) AS IMPLICIT;
CREATE CAST (tds.datetime2 AS tds.datetimeoffset) WITH FUNCTION tds.to_offset(tds.datetime2) AS ASSIGNMENT;
CREATE CAST (tds.datetime2 AS text) WITH FUNCTION tds.to_text(tds.datetime2) AS ASSIGNMENT;
CREATE CAST (tds.time AS text) WITH FUNCTION tds.to_text(tds.time) AS ASSIGNMENT;
CREATE CAST (tds.uniqueidentifier AS text) WITH FUNCTION tds.to_text(tds.uniqueidentifier) AS ASSIGNMENT;
CREATE CAST (tds.datetimeoffset AS text) WITH FUNCTION tds.to_text(tds.datetimeoffset) AS ASSIGNMENT;
CREATE CAST (text AS tds.datetime2) WITH FUNCTION tds.to_datetime2(text) AS IMPLICIT;
CREATE CAST (text AS tds.time) WITH FUNCTION tds.to_time(text) AS IMPLICIT;
CREATE CAST (text AS tds.uniqueidentifier) WITH FUNCTION tds.to_guid(text) AS IMPLICIT;
CREATE CAST (text AS tds.datetimeoffset) WITH FUNCTION tds.to_datetimeoffset(text) AS IMPLICIT;
CREATE CAST (varchar AS tds.datetime2) WITH FUNCTION tds.to_datetime2(text) AS IMPLICIT;
CREATE CAST (varchar AS tds.time) WITH FUNCTION tds.to_time(text) AS IMPLICIT;
CREATE CAST (varchar AS tds.uniqueidentifier) WITH FUNCTION tds.to_guid(text) AS IMPLICIT;
CREATE CAST (varchar AS tds.datetimeoffset) WITH FUNCTION tds.to_datetimeoffset(text) AS IMPLICIT;
-- A string goes where a number or a date is wanted, as in T-SQL.
CREATE CAST (text AS int2) WITH INOUT AS ASSIGNMENT;
CREATE CAST (text AS int4) WITH INOUT AS ASSIGNMENT;
CREATE CAST (text AS int8) WITH INOUT AS ASSIGNMENT;
CREATE CAST (text AS numeric) WITH INOUT AS ASSIGNMENT;
CREATE CAST (text AS float4) WITH INOUT AS ASSIGNMENT;
CREATE CAST (text AS float8) WITH INOUT AS ASSIGNMENT;
CREATE CAST (text AS date) WITH INOUT AS IMPLICIT;
CREATE OPERATOR tds.+ (LEFTARG = text, RIGHTARG = text, FUNCTION = textcat);
CREATE OPERATOR tds.+ (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = byteacat);
CREATE FUNCTION tds.flag_is(bool, int) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $1::int = $2';
CREATE FUNCTION tds.flag_is_not(bool, int) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $1::int <> $2';
CREATE OPERATOR tds.= (LEFTARG = bool, RIGHTARG = int, FUNCTION = tds.flag_is);
CREATE OPERATOR tds.<> (LEFTARG = bool, RIGHTARG = int, FUNCTION = tds.flag_is_not);

-- Change Tracking -----------------------------------------------------------------------------------------------------
CREATE TABLE tds.commits (version bigint PRIMARY KEY, xid xid8 UNIQUE, at timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO tds.commits VALUES (0, NULL);
CREATE SEQUENCE tds.version;
CREATE TABLE tds.tracked (
  oid oid PRIMARY KEY, side oid NOT NULL, begun bigint NOT NULL, masks bool NOT NULL);
CREATE TABLE tds.state (cleaned bigint NOT NULL, stamps bigint NOT NULL);
INSERT INTO tds.state VALUES (0, 0);
CREATE SEQUENCE tds.stamp START 2001;
CREATE TABLE tds.dates (
  oid oid PRIMARY KEY, created timestamptz NOT NULL, modified timestamptz NOT NULL, in_memory bool NOT NULL);
CREATE TABLE tds.users (name text PRIMARY KEY, login text NOT NULL, owner bool NOT NULL DEFAULT false);
CREATE TABLE tds.grants (grantee text, permission text, object oid, UNIQUE (grantee, permission, object));

-- Gives the transaction its version: the last thing before COMMIT. The lock is held until the commit is seen by all, so
-- that versions are in the order in which commits are seen.
CREATE FUNCTION tds.before_commit() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF coalesce(current_setting('tds.touched', true), '') = 'on' THEN
    PERFORM pg_advisory_xact_lock(7474);
    INSERT INTO tds.commits (version, xid) VALUES (nextval('tds.version'), pg_current_xact_id());
  END IF;
END $$;

CREATE FUNCTION tds.last_version() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT max(version) FROM tds.commits';

CREATE AGGREGATE tds.together(int[]) (SFUNC = array_cat, STYPE = int[], INITCOND = '{}');
-- The mask that clients see: four zero bytes, then each column's id once, in little-endian order.
CREATE FUNCTION tds.mask(int[]) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT '\x00000000'::bytea || string_agg(substr(b, 4, 1) || substr(b, 3, 1) || substr(b, 2, 1) || substr(b, 1, 1),
                                           ''::bytea ORDER BY first)
  FROM (SELECT int4send(id), min(n) FROM unnest($1) WITH ORDINALITY AS u(id, n) GROUP BY id) AS ids(b, first) $$;

-- What a statement said of itself: `oid|column,column|context in hex`, for the table that it names and no other.
CREATE FUNCTION tds.said(relation oid, part int) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN pg_trigger_depth() <= 1 AND split_part(said, '|', 1) = relation::text
         THEN nullif(split_part(said, '|', part), '') END
  FROM (SELECT coalesce(current_setting('tds.statement', true), '')) AS s(said) $$;

CREATE FUNCTION tds.change_tracking_current_version() RETURNS bigint LANGUAGE sql STABLE AS
  $$SELECT CASE WHEN tds.setting('tracking') = 'ON' THEN tds.last_version() END$$;
CREATE FUNCTION tds.change_tracking_min_valid_version(object int) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT greatest(begun, cleaned) FROM tds.tracked, tds.state
  WHERE oid = object::oid AND tds.setting('tracking') = 'ON' AND tds.may('VIEW CHANGE TRACKING', oid) $$;
CREATE FUNCTION tds.change_tracking_is_column_in_mask(id int, mask bytea) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF mask IS NULL THEN RETURN 1; END IF;
  IF length(mask) < 8 THEN RAISE 'The mask is not valid' USING ERRCODE = 'TD101'; END IF;
  FOR at IN 4..length(mask) - 4 BY 4 LOOP
    IF get_byte(mask, at) + 256 * get_byte(mask, at + 1) = id THEN RETURN 1; END IF;
  END LOOP;
  RETURN 0;
END $$;

-- Who may -------------------------------------------------------------------------------------------------------------
CREATE FUNCTION tds.setting(key text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT shobj_description(oid, 'pg_database')::jsonb ->> key FROM pg_database WHERE datname = current_database() $$;
CREATE FUNCTION tds.me() RETURNS text LANGUAGE sql STABLE AS $$SELECT coalesce(current_setting('tds.person', true), 'dbo')$$;
-- On an object, its schema, or the database (0); NULL for the object asks about anything at all.
CREATE FUNCTION tds.may(wanted text, thing oid) RETURNS bool LANGUAGE sql STABLE AS $$
  SELECT tds.me() = 'dbo' OR EXISTS (
    SELECT 1 FROM tds.users WHERE name = tds.me() AND owner) OR EXISTS (
    SELECT 1 FROM tds.grants WHERE grantee IN (tds.me(), 'public')
      AND (permission = wanted OR permission = 'CONTROL')
      AND object IN (0, thing, (SELECT relnamespace FROM pg_class WHERE pg_class.oid = thing))) $$;
CREATE FUNCTION tds.sees(thing oid) RETURNS bool LANGUAGE sql STABLE AS $$
  SELECT tds.me() = 'dbo' OR EXISTS (SELECT 1 FROM tds.users WHERE name = tds.me() AND owner) OR EXISTS (
    SELECT 1 FROM tds.grants WHERE grantee IN (tds.me(), 'public')
      AND permission IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'ALTER', 'CONTROL', 'REFERENCES', 'VIEW DEFINITION',
                         'VIEW CHANGE TRACKING')
      AND object IN (0, thing, (SELECT relnamespace FROM pg_class WHERE pg_class.oid = thing))) $$;
CREATE FUNCTION tds.has_perms_by_name(securable text, class text, permission text) RETURNS int LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN class IS NULL OR upper(class) IN ('DATABASE', 'SERVER') THEN tds.may(upper(permission), 0)::int
              WHEN upper(class) = 'SCHEMA' THEN
                (SELECT tds.may(upper(permission), oid)::int FROM pg_namespace
                 WHERE nspname = lower(btrim(securable, '[]"')))
              WHEN tds.object_id(securable) IS NOT NULL THEN
                tds.may(upper(permission), tds.object_id(securable)::oid)::int END $$;

-- Functions of T-SQL --------------------------------------------------------------------------------------------------
CREATE FUNCTION tds.object_id(name text, kind text DEFAULT NULL) RETURNS int LANGUAGE plpgsql STABLE AS $$
DECLARE parts text[]; found int;
BEGIN
  parts := parse_ident(lower(translate(name, '[]', '""')));
  parts := parts[greatest(1, cardinality(parts) - 1):];
  SELECT c.oid::int INTO found FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relname = parts[cardinality(parts)] AND c.relkind IN ('r', 'v')
    AND n.nspname = CASE cardinality(parts) WHEN 1 THEN 'dbo' ELSE parts[1] END
    AND (n.nspname = 'sys' OR tds.sees(c.oid));
  RETURN found;
EXCEPTION WHEN invalid_parameter_value THEN RETURN NULL;
END $$;
CREATE FUNCTION tds.objectproperty(object int, property text) RETURNS int LANGUAGE sql STABLE AS $$
  SELECT CASE lower(property) WHEN 'tableismemoryoptimized' THEN in_memory::int END
  FROM tds.dates WHERE oid = object::oid AND tds.sees(oid) $$;
CREATE FUNCTION tds.schema_name(id int DEFAULT NULL) RETURNS varchar LANGUAGE sql STABLE AS
  $$SELECT coalesce((SELECT coalesce(obj_description(oid, 'pg_namespace'), nspname) FROM pg_namespace
    WHERE oid = id::oid), CASE WHEN id IS NULL THEN 'dbo' END)$$;
CREATE FUNCTION tds.schema_id(name text DEFAULT 'dbo') RETURNS int LANGUAGE sql STABLE AS
  'SELECT oid::int FROM pg_namespace WHERE nspname = lower(name)';
CREATE FUNCTION tds.db_name(id int DEFAULT NULL) RETURNS varchar LANGUAGE sql STABLE AS
  'SELECT name FROM sys.databases WHERE database_id = coalesce(id, tds.db_id())';
CREATE FUNCTION tds.db_id(wanted text DEFAULT NULL) RETURNS int LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN wanted IS NULL THEN (SELECT oid::int FROM pg_database WHERE datname = current_database())
         ELSE (SELECT database_id FROM sys.databases WHERE lower(name) = lower(wanted)) END $$;
CREATE FUNCTION tds.serverproperty(property text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE lower(property) WHEN 'productversion' THEN tds.setting('build') WHEN 'edition' THEN 'Developer Edition'
    WHEN 'productmajorversion' THEN split_part(tds.setting('build'), '.', 1) WHEN 'engineedition' THEN '3'
    WHEN 'servername' THEN tds.setting('server') WHEN 'machinename' THEN tds.setting('server')
    WHEN 'ishadrenabled' THEN '0' WHEN 'collation' THEN 'SQL_Latin1_General_CP1_CI_AS'
    WHEN 'productlevel' THEN 'RTM' WHEN 'isintegratedsecurityonly' THEN '0' END $$;
CREATE FUNCTION tds.databasepropertyex(name text, property text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE lower(property) WHEN 'updateability' THEN
      CASE tds.setting('role') WHEN 'SECONDARY' THEN 'READ_ONLY' ELSE 'READ_WRITE' END
    WHEN 'status' THEN 'ONLINE' WHEN 'recovery' THEN 'FULL' WHEN 'collation' THEN 'SQL_Latin1_General_CP1_CI_AS'
    WHEN 'version' THEN '957' END
  WHERE tds.db_id(name) = tds.db_id() $$;
CREATE FUNCTION tds.newid() RETURNS tds.uniqueidentifier LANGUAGE sql VOLATILE AS
  'SELECT gen_random_uuid()::tds.uniqueidentifier';
CREATE FUNCTION tds.sysutcdatetime() RETURNS tds.datetime2 LANGUAGE sql VOLATILE AS
  'SELECT ((extract(epoch FROM clock_timestamp()) + 62135596800) * 10000000)::int8::tds.datetime2';
CREATE FUNCTION tds.sysdatetime() RETURNS tds.datetime2 LANGUAGE sql VOLATILE AS 'SELECT tds.sysutcdatetime()';
CREATE FUNCTION tds.getdate() RETURNS tds.datetime2 LANGUAGE sql VOLATILE AS
  'SELECT tds.sysutcdatetime()::tds.datetime2(21)';
CREATE FUNCTION tds.getutcdate() RETURNS tds.datetime2 LANGUAGE sql VOLATILE AS 'SELECT tds.getdate()';
CREATE FUNCTION tds.suser_sname() RETURNS varchar LANGUAGE sql STABLE AS $$SELECT current_setting('tds.login', true)$$;
CREATE AGGREGATE tds.sum(int) (SFUNC = int4pl, STYPE = int);
CREATE AGGREGATE tds.sum(bigint) (SFUNC = int8pl, STYPE = bigint);
CREATE AGGREGATE tds.sum(numeric) (SFUNC = numeric_add, STYPE = numeric);
CREATE AGGREGATE tds.sum(float8) (SFUNC = float8pl, STYPE = float8);
CREATE FUNCTION tds.len(text) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS 'SELECT length(rtrim($1))';
CREATE FUNCTION tds.replicate(text, int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS 'SELECT repeat($1, $2)';
CREATE FUNCTION tds.generate_series(first int, last int) RETURNS TABLE (value int) LANGUAGE sql IMMUTABLE STRICT AS
  'SELECT pg_catalog.generate_series($1, $2)';
CREATE FUNCTION tds.sql_variant_property(value text, property text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT CASE lower(property) WHEN 'basetype' THEN substring(value COLLATE "C" FROM '^[a-z0-9]+')
    WHEN 'precision' THEN substring(value COLLATE "C" FROM '^[a-z0-9]+\((\d+)')
    WHEN 'scale' THEN coalesce(substring(value COLLATE "C" FROM '^decimal\(\d+,(\d+)'), substring(value COLLATE "C" FROM '^[dt][a-z0-9]+\((\d)\)'))
    WHEN 'maxlength' THEN substring(value COLLATE "C" FROM '^[a-z]+\((\d+)\)') END $$;

-- Methods of hierarchyid (kept as `/1/2/`) and of geometry and geography (kept as `4326;POINT (1 2)`).
CREATE FUNCTION tds.hierarchyid__parse(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $1';
CREATE FUNCTION tds.geometry__stgeomfromtext(text, int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
  $$SELECT $2 || ';' || $1$$;
CREATE FUNCTION tds.geography__point(lat float8, long float8, srid int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
  $$SELECT srid || ';POINT (' || long || ' ' || lat || ')'$$;
CREATE FUNCTION tds.tostring(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS
  $$SELECT regexp_replace($1 COLLATE "C", '^\d+;', '')$$;
CREATE FUNCTION tds.turned(bytea) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT string_agg(substr($1, n, 1), ''::bytea ORDER BY n DESC) FROM generate_series(1, length($1)) AS n $$;
CREATE FUNCTION tds.points(text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT string_agg(tds.turned(float8send(n::float8)), ''::bytea ORDER BY place)
  FROM regexp_split_to_table(btrim($1, ' ()') COLLATE "C", '[ ,]+') WITH ORDINALITY AS numbers(n, place) $$;
-- Well-known binary, little-endian, of a point, a line or a polygon of one ring.
CREATE FUNCTION tds.stasbinary(shape text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT '\x01'::bytea || CASE kind
    WHEN 'POINT' THEN '\x01000000'::bytea
    WHEN 'LINESTRING' THEN '\x02000000'::bytea || tds.turned(int4send(length(points) / 16))
    WHEN 'POLYGON' THEN '\x0300000001000000'::bytea || tds.turned(int4send(length(points) / 16)) END || points
  FROM (SELECT upper(substring(shape COLLATE "C" FROM ';\s*(\w+)')), tds.points(substring(shape COLLATE "C" FROM '\((.*)\)'))) AS s(kind, points) $$;
-- A varchar as bytes of its code page, with ? for what that lacks; a nvarchar as UTF-16, little-endian.
CREATE FUNCTION tds.to_bytes(letters text) RETURNS bytea LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
  RETURN convert_to(letters, 'WIN1252');
EXCEPTION WHEN untranslatable_character THEN
  RETURN convert_to(regexp_replace(letters COLLATE "C", '[^\u0001-\u007f\u00a0-\u00ff]', '?', 'g'), 'WIN1252');
END $$;
CREATE FUNCTION tds.to_wide_bytes(text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT coalesce(string_agg(CASE WHEN code < 65536 THEN tds.turned(substr(int4send(code), 3))
                             ELSE tds.turned(substr(int4send(55296 + (code - 65536) / 1024), 3))
                               || tds.turned(substr(int4send(56320 + (code - 65536) % 1024), 3)) END,
                             ''::bytea ORDER BY place), '')
  FROM (SELECT ascii(letter), place FROM regexp_split_to_table($1 COLLATE "C", '') WITH ORDINALITY AS l(letter, place)) AS c(code, place)
  WHERE code > 0 $$;
CREATE FUNCTION tds.to_wide_bytes(bytea) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $1';
CREATE FUNCTION tds.datediff(unit text, since tds.datetime2, until tds.datetime2) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT (until::int8 / ticks - since::int8 / ticks)::int
  FROM (SELECT 10000000::int8 * CASE unit WHEN 'second' THEN 1 WHEN 'minute' THEN 60 WHEN 'hour' THEN 3600
        WHEN 'day' THEN 86400 END) AS u(ticks) $$;
CREATE FUNCTION tds.dateadd(unit text, number bigint, since tds.datetime2) RETURNS tds.datetime2
  LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT (since::int8 + number * 10000000 * CASE unit WHEN 'second' THEN 1 WHEN 'minute' THEN 60 WHEN 'hour' THEN 3600
          WHEN 'day' THEN 86400 END)::tds.datetime2 $$;
CREATE FUNCTION tds.bit(bool) RETURNS int2 LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $1::int::int2';
CREATE CAST (bool AS int2) WITH FUNCTION tds.bit(bool);
