//! A catalogue as text, to be compared. Also used by the tests of running controllers, by its path.

use sqlx::{AssertSqlSafe, Row, SqliteConnection};

/// The schema, and every row of every table in its order, but for tables that `leave_out`.
pub(crate) async fn dump(conn: &mut SqliteConnection, leave_out: fn(&str) -> bool) -> String {
    let objects =
        sqlx::query("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name")
            .fetch_all(&mut *conn)
            .await
            .unwrap();
    let mut text = String::new();
    for object in objects {
        let (name, sql): (String, String) = (object.get(0), object.get(1));
        text = format!("{text}{sql}\n");
        // When sqlx made its own table says the clock, not the log.
        if !sql.starts_with("CREATE TABLE") || name == "_sqlx_migrations" || leave_out(&name) {
            continue;
        }
        let columns = format!(
            "SELECT group_concat('quote(\"' || name || '\")', '||'',''||') FROM pragma_table_info('{name}')"
        );
        let columns: String = sqlx::query_scalar(AssertSqlSafe(columns))
            .fetch_one(&mut *conn)
            .await
            .unwrap();
        let rows = format!("SELECT {columns} FROM \"{name}\"");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(rows))
            .fetch_all(&mut *conn)
            .await
            .unwrap();
        text = format!("{text}{}\n", rows.join("\n"));
    }
    text
}

/// Nothing is left out.
pub(crate) fn nothing(_: &str) -> bool {
    false
}
