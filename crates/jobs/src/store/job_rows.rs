//! The table `jobs`.

use super::types::{JobRow, Outcome, Progress, State};
use crate::request::Request;
use runtime::scheduler::JobId;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, named_params, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value that is stored as JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?).map(Self).map_err(FromSqlError::other)
    }
}

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        let text = serde_json::to_string(&self.0);
        let text = text.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok(text.into())
    }
}

struct StoredRequest(Request);

impl FromSql for StoredRequest {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Request::from_json(value.as_str()?).map(Self).map_err(FromSqlError::other)
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        Self::ALL.into_iter().find(|state| state.name() == name).ok_or(FromSqlError::InvalidType)
    }
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

/// The number of a job or order as SQLite stores it. A number that is too large belongs to no row.
pub(super) fn stored_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(-1)
}

/// Reads the number of a job or order.
pub(super) fn read_number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).ok().ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number))
}

fn read(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let StoredRequest(request) = row.get(2)?;
    let Json(progress) = row.get::<_, Json<Progress>>(3)?;
    let outcome = row.get::<_, Option<Json<Outcome>>>(7)?;
    Ok(JobRow {
        id: JobId(read_number(row, 0)?),
        state: row.get(1)?,
        request,
        progress,
        submitted: row.get(4)?,
        started: row.get(5)?,
        ended: row.get(6)?,
        outcome: outcome.map(|Json(outcome)| outcome),
    })
}

/// All jobs, oldest first.
pub(super) fn all(database: &Connection) -> rusqlite::Result<Vec<JobRow>> {
    let sql = "SELECT id, state, request, progress, submitted, started, ended, outcome FROM jobs ORDER BY id";
    database.prepare(sql)?.query_map([], read)?.collect()
}

/// One job.
pub(super) fn get(database: &Connection, id: JobId) -> rusqlite::Result<Option<JobRow>> {
    let sql =
        "SELECT id, state, request, progress, submitted, started, ended, outcome FROM jobs WHERE id = ?1";
    database.query_row(sql, [stored_number(id.0)], read).optional()
}

/// The jobs that have not ended, oldest first.
pub(super) fn open(database: &Connection) -> rusqlite::Result<Vec<JobRow>> {
    let sql = "SELECT id, state, request, progress, submitted, started, ended, outcome FROM jobs
        WHERE state IN (?1, ?2) ORDER BY id";
    let mut statement = database.prepare(sql)?;
    let rows = statement.query_map([State::Queued, State::Running], read)?;
    rows.collect()
}

/// The largest number of a job; 0 if there is none.
pub(super) fn largest(database: &Connection) -> rusqlite::Result<u64> {
    database.query_row("SELECT coalesce(max(id), 0) FROM jobs", [], |row| read_number(row, 0))
}

/// Adds a job, or replaces what is known of it.
pub(super) fn put(database: &Connection, row: &JobRow) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO jobs (id, state, request, progress, submitted, started, ended, outcome)
        VALUES (:id, :state, :request, :progress, :submitted, :started, :ended, :outcome)";
    let values = named_params! {
        ":id": stored_number(row.id.0),
        ":state": row.state,
        ":request": Json(&row.request),
        ":progress": Json(&row.progress),
        ":submitted": row.submitted,
        ":started": row.started,
        ":ended": row.ended,
        ":outcome": row.outcome.as_ref().map(Json),
    };
    database.execute(sql, values).map(drop)
}

/// Removes jobs.
pub(super) fn delete(database: &Connection, id: JobId) -> rusqlite::Result<()> {
    database.execute("DELETE FROM jobs WHERE id = ?1", [stored_number(id.0)]).map(drop)
}

/// Notes the progress of jobs. Those that do not exist are skipped.
pub(super) fn set_progress(database: &Connection, progress: &[(JobId, Progress)]) -> rusqlite::Result<()> {
    let mut statement = database.prepare("UPDATE jobs SET progress = ?2 WHERE id = ?1")?;
    for (id, progress) in progress {
        statement.execute(params![stored_number(id.0), Json(progress)])?;
    }
    Ok(())
}
