//! If the operating system refuses tiles to a process, the kernels use the next path.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]
#![expect(unsafe_code, reason = "a system call without a function in the standard library")]

use kernels::{
    CpuPath, Int8Matrix, Kernels, MatrixShape, Output, PathError, QuantisedRows, RowScale, Serial,
    TileRefusal, tile_refusal,
};
use std::process::Command;

/// Set in the environment of the child process.
const CHILD: &str = "KERNELS_TEST_SMALL_SIGNAL_STACK";
const NO_SPACE: i32 = 28;

#[test]
fn a_small_signal_stack_disables_tiles() {
    if std::env::var_os(CHILD).is_some() {
        std::thread::spawn(run_with_a_small_signal_stack).join().unwrap();
        return;
    }
    // Permission and refusal apply to a whole process.
    let output = Command::new(std::env::current_exe().unwrap()).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    if tile_refusal() == Some(TileRefusal::Processor) {
        eprintln!("partly skipped: this processor has no AMX");
    }
}

fn run_with_a_small_signal_stack() {
    /// `stack_t` of Linux.
    #[repr(C)]
    struct Stack {
        start: *mut u8,
        flags: i32,
        size: usize,
    }
    const SIGALTSTACK: i64 = 131;
    // Smaller than a signal frame with tile state.
    let mut memory = vec![0_u8; 4096];
    let stack = Stack { start: memory.as_mut_ptr(), flags: 0, size: memory.len() };
    let result: i64;
    // SAFETY: the call only reads `stack`; no signal is delivered while this thread runs.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") SIGALTSTACK => result,
            in("rdi") &raw const stack,
            in("rsi") 0,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    assert_eq!(result, 0);
    let best = Kernels::best();
    assert_ne!(best.path(), CpuPath::Amx);
    let why = tile_refusal().unwrap();
    if why != TileRefusal::Processor {
        assert_eq!(why, TileRefusal::Process(NO_SPACE));
        assert!(why.to_string().contains("signal stack"), "{why}");
        let refused = Kernels::of(CpuPath::Amx).unwrap_err();
        assert_eq!(refused, PathError::NoTiles { why, best: best.path() });
    }
    let (rows, shape) = (40, MatrixShape::new(16, 64).unwrap());
    let matrix = Int8Matrix::pack(shape, &[1; 16 * 64], &[1.0; 16]).unwrap();
    let scales = vec![RowScale { scale: 1.0, zero: 0.0 }; rows];
    let quantised = vec![2; rows * shape.inputs()];
    let mut sums = vec![0.0; rows * shape.outputs()];
    let x = QuantisedRows::new(&quantised, &scales).unwrap();
    best.linear_int8(&Serial, x, matrix.view(), &[0.0; 16], Output::F32(&mut sums)).unwrap();
    assert_eq!(sums, vec![128.0; rows * shape.outputs()]);
}
