//! Checks whether this process may use AMX tiles: the processor has them, and the operating system saves and permits
//! them.
#![expect(unsafe_code, reason = "a system call and an instruction of the processor")]

use std::fmt;
use std::sync::OnceLock;

/// Reason why AMX tiles cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileRefusal {
    /// The processor has no tiles, or none with INT8, bf16 and the required size.
    Processor,
    /// The operating system does not save tiles on context switches.
    System,
    /// The operating system refuses tiles to this process, with this error number.
    Process(i32),
}

impl fmt::Display for TileRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const EPERM: i32 = 1;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        const ENOSYS: i32 = 38;
        match *self {
            Self::Processor => write!(f, "the processor has no AMX for bytes and bf16"),
            Self::System => write!(f, "the system does not save AMX tiles; Linux 5.16 or newer is required"),
            Self::Process(ENOSPC) => {
                write!(f, "a thread of this process has a signal stack that is too small for AMX tiles")
            }
            Self::Process(EPERM | ENOSYS | EINVAL) => write!(
                f,
                "the system refuses AMX tiles to this process (arch_prctl); seccomp may forbid it, or Linux is older than 5.16"
            ),
            Self::Process(error) => write!(f, "the system refuses AMX tiles to this process (error {error})"),
        }
    }
}

/// Requests permission for the tiles, once. The result applies to all threads of the process.
pub(crate) fn tiles() -> Result<(), TileRefusal> {
    static RESULT: OnceLock<Result<(), TileRefusal>> = OnceLock::new();
    *RESULT.get_or_init(|| processor().and_then(|()| request()))
}

#[cfg(target_arch = "x86_64")]
fn processor() -> Result<(), TileRefusal> {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: called only if OSXSAVE is set.
        unsafe { _xgetbv(0) }
    }
    // Leaf 7: AMX-BF16, AMX-TILE and AMX-INT8; leaf 1: OSXSAVE; XCR0: tile configuration and data.
    const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    const SAVED: u64 = 1 << 17 | 1 << 18;
    const PALETTES: u32 = 0x1D;
    if __cpuid(0).eax < PALETTES || __cpuid_count(7, 0).edx & AMX != AMX {
        return Err(TileRefusal::Processor);
    }
    // Palette 1: eight tiles of sixteen rows of 64 bytes.
    let palette = __cpuid_count(PALETTES, 1);
    if palette.eax >> 16 < 1024 || palette.ebx != (8 << 16 | 64) || palette.ecx & 0xFFFF != 16 {
        return Err(TileRefusal::Processor);
    }
    // SAFETY: OSXSAVE shows that the instruction is available.
    if __cpuid(1).ecx & OSXSAVE == 0 || unsafe { saved() } & SAVED != SAVED {
        return Err(TileRefusal::System);
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> Result<(), TileRefusal> {
    Err(TileRefusal::Processor)
}

/// Requests tile permission from Linux, which allocates tile state only for processes that request it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request() -> Result<(), TileRefusal> {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: the call changes only the permissions of this process; the kernel preserves all registers but three.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    if result == 0 { Ok(()) } else { Err(TileRefusal::Process(i32::try_from(-result).unwrap_or(i32::MAX))) }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn request() -> Result<(), TileRefusal> {
    Err(TileRefusal::System)
}
