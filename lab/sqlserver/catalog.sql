-- The catalog views that clients ask for, over PostgreSQL's. bool is sent as bit, varchar(n) as nvarchar(n), name and
-- other text as nvarchar(max). Only what the user may see is there.
SET search_path = tds;

CREATE FUNCTION tds.about(oid, int) RETURNS jsonb LANGUAGE sql STABLE AS 'SELECT col_description($1, $2)::jsonb';

CREATE VIEW sys.schemas AS
  SELECT coalesce(obj_description(oid, 'pg_namespace'), nspname)::varchar(128) COLLATE tds.ci AS name,
         oid::int AS schema_id, 1 AS principal_id
  FROM pg_namespace WHERE nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('tds', 'sides', 'information_schema', 'public');

CREATE VIEW sys.objects AS
  SELECT coalesce(obj_description(c.oid, 'pg_class'), relname)::varchar(128) COLLATE tds.ci AS name, c.oid::int AS object_id,
         NULL::int AS principal_id, relnamespace::int AS schema_id, 0 AS parent_object_id, 'U '::bpchar(2) AS type,
         'USER_TABLE'::varchar(60) AS type_desc, tds.from_clock(created) AS create_date, tds.from_clock(modified) AS modify_date,
         false AS is_ms_shipped
  FROM pg_class c LEFT JOIN tds.dates d ON d.oid = c.oid
  WHERE relkind = 'r' AND relnamespace IN (SELECT schema_id::oid FROM sys.schemas) AND tds.sees(c.oid)
  UNION ALL
  SELECT conname, con.oid::int, NULL, connamespace::int, conrelid::int,
         CASE contype WHEN 'p' THEN 'PK' WHEN 'u' THEN 'UQ' WHEN 'f' THEN 'F ' ELSE 'C ' END,
         CASE contype WHEN 'p' THEN 'PRIMARY_KEY_CONSTRAINT' WHEN 'u' THEN 'UNIQUE_CONSTRAINT'
                      WHEN 'f' THEN 'FOREIGN_KEY_CONSTRAINT' ELSE 'CHECK_CONSTRAINT' END,
         tds.from_clock(created), tds.from_clock(modified), false
  FROM pg_constraint con LEFT JOIN tds.dates d ON d.oid = conrelid
  WHERE connamespace IN (SELECT schema_id::oid FROM sys.schemas) AND tds.sees(conrelid);

CREATE VIEW sys.tables AS
  SELECT o.*, false AS is_external, 0::int2 AS temporal_type, 'NON_TEMPORAL_TABLE'::varchar(60) AS temporal_type_desc,
         false AS is_memory_optimized, false AS is_filetable, false AS is_node, false AS is_edge, false AS is_replicated,
         false AS is_tracked_by_cdc, 0::int2 AS ledger_type, 0::int2 AS durability,
         (SELECT max(attnum) FROM pg_attribute WHERE attrelid = o.object_id::oid)::int AS max_column_id_used
  FROM sys.objects o WHERE type = 'U ';

CREATE VIEW sys.views AS SELECT * FROM sys.objects WHERE false;

CREATE TABLE tds.types (name varchar(128) COLLATE tds.ci, system_type_id int2, user_type_id int, max_length int2);
INSERT INTO tds.types VALUES
  ('image', 34, 34, 16), ('text', 35, 35, 16), ('uniqueidentifier', 36, 36, 16), ('date', 40, 40, 3), ('time', 41, 41, 5),
  ('datetime2', 42, 42, 8), ('datetimeoffset', 43, 43, 10), ('tinyint', 48, 48, 1), ('smallint', 52, 52, 2),
  ('int', 56, 56, 4), ('smalldatetime', 58, 58, 4), ('real', 59, 59, 4), ('money', 60, 60, 8), ('datetime', 61, 61, 8),
  ('float', 62, 62, 8), ('sql_variant', 98, 98, 8016), ('ntext', 99, 99, 16), ('bit', 104, 104, 1),
  ('decimal', 106, 106, 17), ('numeric', 108, 108, 17), ('smallmoney', 122, 122, 4), ('bigint', 127, 127, 8),
  ('hierarchyid', 240, 128, 892), ('geometry', 240, 129, -1), ('geography', 240, 130, -1),
  ('varbinary', 165, 165, 8000), ('varchar', 167, 167, 8000), ('binary', 173, 173, 8000), ('char', 175, 175, 8000),
  ('timestamp', 189, 189, 8), ('nvarchar', 231, 231, 8000), ('sysname', 231, 256, 256), ('nchar', 239, 239, 8000),
  ('xml', 241, 241, -1);
CREATE VIEW sys.types AS
  SELECT *, 4 AS schema_id, user_type_id > 256 AS is_user_defined, user_type_id IN (128, 129, 130) AS is_assembly_type,
         true AS is_nullable, 0::int2 AS precision, 0::int2 AS scale
  FROM tds.types;

CREATE VIEW sys.columns AS
  SELECT attrelid::int AS object_id, (about ->> 'name')::varchar(128) COLLATE tds.ci AS name, attnum::int AS column_id,
         (about #>> '{ids,0}')::int2 AS system_type_id, (about #>> '{ids,1}')::int AS user_type_id,
         (about #>> '{ids,2}')::int2 AS max_length, (about #>> '{ids,3}')::int2 AS precision,
         (about #>> '{ids,4}')::int2 AS scale, (about ->> 'collation')::varchar(128) AS collation_name,
         NOT attnotnull AS is_nullable, false AS is_rowguidcol, attidentity <> '' AS is_identity,
         attgenerated <> '' AS is_computed, (about ->> 'sparse') IS NOT NULL AS is_sparse, false AS is_column_set,
         false AS is_hidden, 0::int2 AS generated_always_type, false AS is_masked, NULL::int AS encryption_type,
         coalesce((SELECT d.oid::int FROM pg_attrdef d WHERE adrelid = attrelid AND adnum = attnum AND attgenerated = ''
                   AND about ->> 'type' <> 'timestamp'), 0) AS default_object_id
  FROM pg_attribute, tds.about(attrelid, attnum) AS about
  WHERE attnum > 0 AND NOT attisdropped AND attrelid IN (SELECT object_id::oid FROM sys.tables);
CREATE VIEW sys.all_columns AS SELECT * FROM sys.columns;
CREATE VIEW sys.computed_columns AS SELECT c.*, true AS is_persisted FROM sys.columns c WHERE is_computed;
CREATE VIEW sys.identity_columns AS SELECT c.* FROM sys.columns c WHERE is_identity;

CREATE VIEW sys.indexes AS
  SELECT indrelid::int AS object_id,
         coalesce(obj_description(indexrelid, 'pg_class'), (SELECT relname FROM pg_class WHERE oid = indexrelid))
           ::varchar(128) COLLATE tds.ci AS name,
         CASE WHEN indisprimary THEN 1 ELSE indexrelid::int END AS index_id,
         CASE WHEN indisprimary THEN 1 ELSE 2 END::int2 AS type,
         CASE WHEN indisprimary THEN 'CLUSTERED' ELSE 'NONCLUSTERED' END::varchar(60) AS type_desc,
         indisunique AS is_unique, indisprimary AS is_primary_key,
         EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid AND contype = 'u') AS is_unique_constraint,
         false AS is_disabled, false AS has_filter, false AS is_hypothetical, indexrelid::int AS lab_oid
  FROM pg_index WHERE indrelid IN (SELECT object_id::oid FROM sys.tables);
CREATE VIEW sys.index_columns AS
  SELECT indrelid::int AS object_id, index_id, n::int AS index_column_id, attnum::int AS column_id,
         n::int2 AS key_ordinal, 0::int2 AS partition_ordinal, (indoption[n - 1] & 1) = 1 AS is_descending_key,
         false AS is_included_column
  FROM sys.indexes i JOIN pg_index x ON x.indexrelid = i.lab_oid::oid,
       unnest(indkey::int2[]) WITH ORDINALITY AS keys(attnum, n);
CREATE VIEW sys.key_constraints AS
  SELECT o.*, CASE WHEN type = 'PK' THEN 1 ELSE conindid::int END AS unique_index_id, true AS is_enforced
  FROM sys.objects o JOIN pg_constraint con ON con.oid = o.object_id::oid WHERE type IN ('PK', 'UQ');
CREATE VIEW sys.foreign_keys AS
  SELECT o.*, confrelid::int AS referenced_object_id FROM sys.objects o JOIN pg_constraint con ON con.oid = o.object_id::oid
  WHERE type = 'F ';

CREATE VIEW sys.partitions AS
  SELECT oid::bigint AS partition_id, oid::int AS object_id, 1 AS index_id, 1 AS partition_number,
         greatest(coalesce(pg_stat_get_live_tuples(oid), 0), 0)::bigint AS rows
  FROM pg_class WHERE oid IN (SELECT object_id::oid FROM sys.tables UNION SELECT side FROM tds.tracked);
CREATE VIEW sys.dm_db_partition_stats AS
  SELECT partition_id, object_id, index_id, partition_number, rows AS row_count,
         (pg_relation_size(object_id::oid::regclass) / 8192)::bigint AS used_page_count,
         (pg_relation_size(object_id::oid::regclass) / 8192)::bigint AS reserved_page_count
  FROM sys.partitions;

-- All databases of this server: their names have its prefix, their comments what is set for them.
CREATE VIEW sys.databases AS
  SELECT (about ->> 'name')::varchar(128) COLLATE tds.ci AS name, oid::int AS database_id, NULL::int AS source_database_id,
         tds.to_datetime2(left(about ->> 'created', 23))::tds.datetime2(21) AS create_date, 
         (about ->> 'level')::int2 AS compatibility_level,
         'SQL_Latin1_General_CP1_CI_AS'::varchar(128) AS collation_name, 0::int2 AS state, 'ONLINE'::varchar(60) AS state_desc,
         (about ->> 'role') = 'SECONDARY' AS is_read_only, 0::int2 AS user_access,
         CASE about ->> 'snapshot' WHEN 'ON' THEN 1 ELSE 0 END::int2 AS snapshot_isolation_state,
         (about ->> 'snapshot')::varchar(60) AS snapshot_isolation_state_desc,
         (about ->> 'versioned') = 'ON' AS is_read_committed_snapshot_on, 1::int2 AS recovery_model,
         'FULL'::varchar(60) AS recovery_model_desc, tds.to_guid(about ->> 'broker') AS service_broker_guid,
         NULL::tds.uniqueidentifier AS replica_id, NULL::tds.uniqueidentifier AS group_database_id, false AS is_cdc_enabled
  FROM pg_database, LATERAL (SELECT shobj_description(oid, 'pg_database')::jsonb) AS d(about)
  WHERE about ->> 'backup' = 'no' AND starts_with(datname, split_part(current_database(), ':', 1) || ':');
CREATE VIEW sys.database_recovery_status AS
  SELECT oid::int AS database_id, tds.to_guid(about ->> 'broker') AS database_guid, tds.to_guid(about ->> 'broker') AS family_guid,
         NULL::numeric(25, 0) AS last_log_backup_lsn, tds.to_guid(about ->> 'fork') AS recovery_fork_guid,
         tds.to_guid(about ->> 'first_fork') AS first_recovery_fork_guid, 1::numeric(25, 0) AS fork_point_lsn
  FROM pg_database, LATERAL (SELECT shobj_description(oid, 'pg_database')::jsonb) AS d(about)
  WHERE about ->> 'backup' = 'no' AND starts_with(datname, split_part(current_database(), ':', 1) || ':');

CREATE VIEW sys.change_tracking_databases AS
  SELECT oid::int AS database_id, (about ->> 'cleanup') = 'ON' AS is_auto_cleanup_on,
         split_part(about ->> 'retention', ' ', 1)::int AS retention_period,
         CASE split_part(about ->> 'retention', ' ', 2) WHEN 'MINUTES' THEN 1 WHEN 'HOURS' THEN 2 ELSE 3 END::int2
           AS retention_period_units,
         split_part(about ->> 'retention', ' ', 2)::varchar(60) AS retention_period_units_desc,
         1::bigint AS max_cleanup_version
  FROM pg_database, LATERAL (SELECT shobj_description(oid, 'pg_database')::jsonb) AS d(about)
  WHERE about ->> 'backup' = 'no' AND about ->> 'tracking' = 'ON' AND starts_with(datname, split_part(current_database(), ':', 1) || ':');
CREATE VIEW sys.change_tracking_tables AS
  SELECT oid::int AS object_id, masks AS is_track_columns_updated_on, greatest(begun, cleaned) AS min_valid_version,
         begun AS begin_version, cleaned AS cleanup_version
  FROM tds.tracked, tds.state WHERE tds.sees(oid);
CREATE VIEW sys.internal_tables AS
  SELECT ('change_tracking_' || oid)::varchar(128) COLLATE tds.ci AS name, side::int AS object_id, 4 AS schema_id,
         oid::int AS parent_object_id, oid::int AS parent_id, 0 AS parent_minor_id, 'IT'::bpchar(2) AS type,
         209::int2 AS internal_type, 'CHANGE_TRACKING'::varchar(60) AS internal_type_desc
  FROM tds.tracked WHERE tds.sees(oid);
CREATE VIEW sys.dm_tran_commit_table AS
  SELECT version AS commit_ts, xid::text::bigint AS xdes_id, version AS commit_lbn, version AS commit_csn,
         ((extract(epoch FROM at) + 62135596800) * 10000000)::int8::tds.datetime2(31) AS commit_time
  FROM tds.commits WHERE xid IS NOT NULL;
CREATE VIEW sys.syscommittab AS SELECT * FROM sys.dm_tran_commit_table;
CREATE VIEW sys.dm_hadr_database_replica_states AS
  SELECT tds.db_id() AS database_id, true AS is_local, false AS is_primary_replica WHERE false;
CREATE VIEW sys.database_principals AS
  SELECT name::varchar(128) COLLATE tds.ci, row_number() OVER ()::int + 4 AS principal_id, 'S'::bpchar(1) AS type FROM tds.users;
