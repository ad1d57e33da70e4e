//! The table `orders`.

use super::job_rows::{Json, read_number, stored_number};
use super::types::{Answer, JobOrder, PendingOrder};
use runtime::scheduler::JobId;
use rusqlite::{Connection, OptionalExtension, params};

/// Adds an order and returns its number.
pub(super) fn add(database: &Connection, job: JobId, order: &JobOrder, given: f64) -> rusqlite::Result<u64> {
    let sql = "INSERT INTO orders (job, content, given) VALUES (?1, ?2, ?3) RETURNING number";
    database.query_row(sql, params![stored_number(job.0), Json(order), given], |row| read_number(row, 0))
}

/// The orders without an answer, in the order in which they were given.
pub(super) fn pending(database: &Connection) -> rusqlite::Result<Vec<PendingOrder>> {
    let sql = "SELECT number, job, content FROM orders WHERE answer IS NULL ORDER BY number";
    let mut statement = database.prepare(sql)?;
    let orders = statement.query_map([], |row| {
        let Json(order) = row.get(2)?;
        Ok(PendingOrder { number: read_number(row, 0)?, job: JobId(read_number(row, 1)?), order })
    })?;
    orders.collect()
}

/// Answers an order.
pub(super) fn answer(database: &Connection, order: u64, answer: &Answer) -> rusqlite::Result<()> {
    let sql = "UPDATE orders SET answer = ?2 WHERE number = ?1";
    database.execute(sql, params![stored_number(order), Json(answer)]).map(drop)
}

/// The answer to an order.
pub(super) fn answer_to(database: &Connection, order: u64) -> rusqlite::Result<Option<Answer>> {
    let sql = "SELECT answer FROM orders WHERE number = ?1";
    let found = database.query_row(sql, [stored_number(order)], |row| row.get::<_, Option<Json<Answer>>>(0));
    Ok(found.optional()?.flatten().map(|Json(answer)| answer))
}

/// Removes answered orders that were given before a time, in seconds since 1970.
pub(super) fn forget_before(database: &Connection, time: f64) -> rusqlite::Result<()> {
    database.execute("DELETE FROM orders WHERE answer IS NOT NULL AND given < ?1", [time]).map(drop)
}
