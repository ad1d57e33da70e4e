//! Keeps panics of operators inside Rust: they must not unwind into ONNX Runtime, which calls the operators from C.
//!
//! Wrong shapes are errors of the kernels. A panic is an error of the program, which ends the run of the graph but not
//! the process.

use super::tensors::operator_error;
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

/// Runs `body` and turns a panic into an error of the operator.
///
/// After a panic, the only state that the caller keeps is scratch memory, whose content is unspecified at all times.
fn caught<T>(operator: &str, body: impl FnOnce() -> ort::Result<T>) -> ort::Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let why = message(payload.as_ref());
        Err(operator_error(format!("the operator `{operator}` failed with an internal error: {why}")))
    })
}

/// Returns the text of a panic.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// An operator whose panics are errors.
pub(super) struct Caught<O>(pub(super) O);

/// The kernel of an operator whose panics are errors.
pub(super) struct CaughtKernel<K> {
    name: String,
    kernel: K,
}

impl<O: Operator> Operator for Caught<O> {
    type Kernel<'attr> = CaughtKernel<O::Kernel<'attr>>;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.0.inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.0.outputs()
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let kernel = caught(self.name(), || self.0.create_kernel(context))?;
        Ok(CaughtKernel { name: self.name().to_owned(), kernel })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        caught(self.name(), || self.0.infer_shape(context))
    }
}

impl<K: Kernel> Kernel for CaughtKernel<K> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let Self { name, kernel } = self;
        caught(name, || kernel.compute(context))
    }
}

/// The first panic of the tasks of an operator, on any thread.
#[derive(Default)]
pub(super) struct TaskPanic(Mutex<Option<Box<dyn Any + Send>>>);

impl TaskPanic {
    /// Runs a task and keeps its panic.
    pub(super) fn catch(&self, task: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(task)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// Continues the panic on the calling thread, if there was one.
    pub(super) fn resume(self) {
        if let Some(payload) = self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors_with_their_message() {
        assert_eq!(caught("Ok", || Ok(3)).ok(), Some(3));
        let length = [1, 2].len();
        for (error, expected) in [
            (caught::<()>("A", || panic!("plain")), "plain"),
            (caught::<()>("B", || panic!("found {length}")), "found 2"),
            (caught::<()>("C", || std::panic::panic_any(7)), "no message"),
        ] {
            let text = error.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains("internal error") && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn the_panic_of_a_task_continues_after_all_tasks() {
        let (panics, mut done) = (TaskPanic::default(), 0);
        for index in 0..3 {
            panics.catch(|| {
                done += 1;
                assert!(index != 1, "task {index}");
            });
        }
        let resumed = caught::<()>("D", || {
            panics.resume();
            Ok(())
        });
        assert!(resumed.is_err_and(|error| error.to_string().contains("task 1")));
        assert_eq!(done, 3);
        TaskPanic::default().resume();
    }
}
