//! Pages of lists.

use crate::fault::Fault;
use serde::Deserialize;
use utoipa::ToSchema;

/// Things of a page, unless asked for otherwise, and at most.
const PAGE: usize = 20;
const MOST: usize = 100;

/// Which page of a list is shown.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// The name after which the page begins.
    pub(crate) after: Option<String>,
    /// The most that the page has.
    #[param(minimum = 1, maximum = 100)]
    pub(crate) limit: Option<usize>,
    /// `desc`, newest first, or `asc`.
    #[param(inline)]
    pub(crate) order: Option<ListOrder>,
}

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ListOrder {
    Asc,
    Desc,
}

/// The page of a list that is given oldest first, and whether another page follows.
///
/// # Errors
/// The limit is out of range, or nothing in the list has the name after which the page begins.
pub(crate) fn page<T>(
    mut list: Vec<T>,
    query: &ListQuery,
    what: &str,
    id_of: impl Fn(&T) -> &str,
) -> Result<(Vec<T>, bool), Fault> {
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MOST).contains(&limit) {
        return Err(Fault::parameter("limit", format!("`limit` is a number from 1 to {MOST}")));
    }
    if query.order != Some(ListOrder::Asc) {
        list.reverse();
    }
    let start = match &query.after {
        None => 0,
        Some(after) => {
            let at = list.iter().position(|one| id_of(one) == after);
            at.ok_or_else(|| Fault::not_found(what).about("after"))? + 1
        }
    };
    let has_more = list.len() - start > limit;
    Ok((list.into_iter().skip(start).take(limit).collect(), has_more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_after_a_name_and_say_whether_others_follow() {
        let list = || vec!["a", "b", "c"];
        let query = |after: Option<&str>, limit, order| ListQuery {
            after: after.map(str::to_owned),
            limit: Some(limit),
            order: Some(order),
        };
        let shown = |query| page(list(), &query, "thing", |one| one).map_err(|fault| fault.param);
        assert_eq!(shown(query(None, 2, ListOrder::Asc)), Ok((vec!["a", "b"], true)));
        assert_eq!(shown(query(Some("b"), 2, ListOrder::Asc)), Ok((vec!["c"], false)));
        assert_eq!(shown(query(Some("c"), 1, ListOrder::Desc)), Ok((vec!["b"], true)));
        assert_eq!(shown(query(Some("a"), 1, ListOrder::Desc)), Ok((vec![], false)));
        assert_eq!(shown(query(Some("d"), 1, ListOrder::Desc)), Err(Some("after".into())));
        assert_eq!(shown(query(None, 0, ListOrder::Asc)), Err(Some("limit".into())));
        assert_eq!(page(list(), &ListQuery::default(), "thing", |one| one), Ok((vec!["c", "b", "a"], false)));
    }
}
