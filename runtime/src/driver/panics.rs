//! Panics as errors.

use bundle::Report;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does `work`, which `what` names. A panic becomes an error. What the work was changing is not used afterwards, or is
/// valid at all times, as sessions are.
pub(super) fn guarded<T>(what: &str, work: impl FnOnce() -> Result<T, Report>) -> Result<T, Report> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Report::bug(format!("{what} panicked"), message_of(&*panic))))
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it gave no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::ErrorClass;

    #[test]
    fn a_panic_is_a_fault_with_its_message() {
        assert_eq!(guarded("a sum", || Ok(3)), Ok(3));
        for panic in [(|| panic!("seven")) as fn() -> i32, || std::panic::panic_any(7)] {
            let report = guarded("a sum", || Ok(panic())).unwrap_err();
            assert_eq!((report.class, &*report.what), (ErrorClass::Bug, "a sum panicked"));
            assert!(["seven", "it gave no message"].contains(&&*report.why), "{report}");
        }
    }
}
