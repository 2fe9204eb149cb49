//! The statements by which each database tells of its tables. All take one parameter, the name of a table, or NULL for all of them.
//!
//! `tables`: table, schema, name, kind, comment. `columns`: table, name, type, nullable, default, extra, comment, key. `indexes`: table,
//! index, unique, primary, column. `foreign_keys`: table, constraint, column, to_table, to_column. All in the order of their names.

use crate::services::settings::database::Driver;

pub struct Catalogue {
    pub tables: &'static str,
    pub columns: &'static str,
    pub indexes: &'static str,
    pub foreign_keys: &'static str,
}

pub fn of(driver: Driver) -> &'static Catalogue {
    match driver {
        Driver::Mysql => &MYSQL,
        Driver::Postgres => &POSTGRES,
        Driver::Sqlite => &SQLITE,
    }
}

/// Of the connection's database alone.
const MYSQL: Catalogue = Catalogue {
    tables: "SELECT table_name AS `table`, NULL AS `schema`, table_name AS `name`,
            IF(table_type LIKE '%VIEW', 'view', 'table') AS `kind`,
            IF(table_type = 'BASE TABLE', table_comment, NULL) AS `comment`
        FROM information_schema.tables
        WHERE table_schema = DATABASE() AND (? IS NULL OR table_name = ?) ORDER BY table_name",
    columns: "SELECT table_name AS `table`, column_name AS `name`, column_type AS `type`, is_nullable = 'YES' AS `nullable`,
            column_default AS `default`, extra AS `extra`, column_comment AS `comment`, NULL AS `key`
        FROM information_schema.columns
        WHERE table_schema = DATABASE() AND (? IS NULL OR table_name = ?) ORDER BY table_name, ordinal_position",
    indexes: "SELECT table_name AS `table`, index_name AS `index`, non_unique = 0 AS `unique`, index_name = 'PRIMARY' AS `primary`,
            column_name AS `column`
        FROM information_schema.statistics
        WHERE table_schema = DATABASE() AND (? IS NULL OR table_name = ?) ORDER BY table_name, index_name, seq_in_index",
    foreign_keys: "SELECT table_name AS `table`, constraint_name AS `constraint`, column_name AS `column`,
            IF(referenced_table_schema = DATABASE(), referenced_table_name,
                CONCAT(referenced_table_schema, '.', referenced_table_name)) AS `to_table`,
            referenced_column_name AS `to_column`
        FROM information_schema.key_column_usage
        WHERE table_schema = DATABASE() AND referenced_table_name IS NOT NULL AND (? IS NULL OR table_name = ?)
        ORDER BY table_name, constraint_name, ordinal_position",
};

/// Of every schema but the system's, as far as the role may read.
macro_rules! postgres {
    ($statement:literal) => {
        concat!(
            "WITH shown AS (
                SELECT c.oid, n.nspname, c.relname, c.relkind,
                    CASE WHEN pg_table_is_visible(c.oid) THEN c.relname::text ELSE n.nspname || '.' || c.relname END AS label
                FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
                    AND has_any_column_privilege(c.oid, 'SELECT'))
            ",
            $statement
        )
    };
}

const POSTGRES: Catalogue = Catalogue {
    tables: postgres!(
        "SELECT label AS \"table\", nspname AS \"schema\", relname AS \"name\",
            CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'table' END AS \"kind\",
            obj_description(oid, 'pg_class') AS \"comment\"
        FROM shown WHERE $1::text IS NULL OR label = $1 ORDER BY label"
    ),
    columns: postgres!(
        "SELECT label AS \"table\", a.attname AS \"name\", format_type(a.atttypid, a.atttypmod) AS \"type\",
            NOT a.attnotnull AS \"nullable\", pg_get_expr(d.adbin, d.adrelid) AS \"default\",
            CASE WHEN a.attidentity <> '' THEN 'identity' WHEN a.attgenerated <> '' THEN 'generated' END AS \"extra\",
            col_description(a.attrelid, a.attnum) AS \"comment\", NULL::int4 AS \"key\"
        FROM shown s JOIN pg_attribute a ON a.attrelid = s.oid AND a.attnum > 0 AND NOT a.attisdropped
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE $1::text IS NULL OR label = $1 ORDER BY label, a.attnum"
    ),
    indexes: postgres!(
        "SELECT label AS \"table\", i.relname AS \"index\", x.indisunique AS \"unique\", x.indisprimary AS \"primary\",
            pg_get_indexdef(x.indexrelid, k.place::int4, true) AS \"column\"
        FROM shown s JOIN pg_index x ON x.indrelid = s.oid JOIN pg_class i ON i.oid = x.indexrelid
            CROSS JOIN LATERAL generate_series(1, x.indnkeyatts) AS k(place)
        WHERE $1::text IS NULL OR label = $1 ORDER BY label, i.relname, k.place"
    ),
    foreign_keys: postgres!(
        "SELECT s.label AS \"table\", c.conname AS \"constraint\", a.attname AS \"column\",
            coalesce(t.label, c.confrelid::regclass::text) AS \"to_table\", f.attname AS \"to_column\"
        FROM shown s JOIN pg_constraint c ON c.conrelid = s.oid AND c.contype = 'f'
            CROSS JOIN LATERAL unnest(c.conkey, c.confkey) WITH ORDINALITY AS k(here, there, place)
            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.here
            JOIN pg_attribute f ON f.attrelid = c.confrelid AND f.attnum = k.there
            LEFT JOIN shown t ON t.oid = c.confrelid
        WHERE $1::text IS NULL OR s.label = $1 ORDER BY s.label, c.conname, k.place"
    ),
};

const SQLITE: Catalogue = Catalogue {
    tables: "SELECT name AS \"table\", NULL AS \"schema\", name AS \"name\", type AS \"kind\", NULL AS \"comment\"
        FROM sqlite_schema
        WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND (?1 IS NULL OR name = ?1) ORDER BY name",
    columns: "SELECT s.name AS \"table\", c.name AS \"name\", c.type AS \"type\", c.\"notnull\" = 0 AS \"nullable\",
            c.dflt_value AS \"default\", CASE WHEN c.hidden IN (2, 3) THEN 'generated' END AS \"extra\", NULL AS \"comment\",
            c.pk AS \"key\"
        FROM sqlite_schema s JOIN pragma_table_xinfo(s.name) c
        WHERE s.type IN ('table', 'view') AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND c.hidden <> 1
            AND (?1 IS NULL OR s.name = ?1)
        ORDER BY s.name, c.cid",
    indexes: "SELECT s.name AS \"table\", i.name AS \"index\", i.\"unique\" AS \"unique\", i.origin = 'pk' AS \"primary\",
            coalesce(c.name, 'expression') AS \"column\"
        FROM sqlite_schema s JOIN pragma_index_list(s.name) i JOIN pragma_index_info(i.name) c
        WHERE s.type = 'table' AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND (?1 IS NULL OR s.name = ?1)
        ORDER BY s.name, i.name, c.seqno",
    foreign_keys: "SELECT s.name AS \"table\", f.id AS \"constraint\", f.\"from\" AS \"column\", f.\"table\" AS \"to_table\",
            f.\"to\" AS \"to_column\"
        FROM sqlite_schema s JOIN pragma_foreign_key_list(s.name) f
        WHERE s.type = 'table' AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND (?1 IS NULL OR s.name = ?1)
        ORDER BY s.name, f.id, f.seq",
};
