//! An allocator for tests, in which the code under test runs out of memory. Other threads, and the
//! test itself, always get what they want.

#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

/// What must be asked for: smaller allocations may not fail.
pub(crate) const LARGE_LEN: usize = 4 * 1024;

/// How the code under test runs out of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shortage {
    /// The code under test may hold so many bytes.
    Cap(isize),
    /// So many large allocations succeed, the next one fails, and those after it succeed.
    Once(u32),
    /// So many large allocations succeed, and no other.
    Always(u32),
}

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static SHORTAGE: Cell<Option<Shortage>> = const { Cell::new(None) };
    static IS_ARMED: Cell<bool> = const { Cell::new(false) };
    static FAILURES: Cell<u32> = const { Cell::new(0) };
}

/// Runs the code under test.
pub(crate) fn armed<T>(call: impl FnOnce() -> T) -> T {
    IS_ARMED.set(true);
    let result = call();
    IS_ARMED.set(false);
    result
}

/// What applies from now on in [`armed`] code of this thread.
pub(crate) fn set_shortage(shortage: Option<Shortage>) {
    SHORTAGE.set(shortage);
    FAILURES.set(0);
}

/// Bytes that the code under test holds.
pub(crate) fn held() -> isize {
    HELD.get()
}

/// Allocations that failed since the shortage was set.
pub(crate) fn failures() -> u32 {
    FAILURES.get()
}

/// Whether an allocation fails that takes `more` bytes than were held.
fn fails(len: usize, more: isize) -> bool {
    if !IS_ARMED.get() || more <= 0 {
        return false;
    }
    let is_large = len >= LARGE_LEN;
    let is_failing = match SHORTAGE.get() {
        None => false,
        Some(Shortage::Cap(cap)) => HELD.get() + more > cap,
        Some(Shortage::Once(0)) if is_large => {
            SHORTAGE.set(None);
            true
        }
        Some(Shortage::Always(0)) => is_large,
        Some(Shortage::Once(left)) if is_large => {
            SHORTAGE.set(Some(Shortage::Once(left - 1)));
            false
        }
        Some(Shortage::Always(left)) if is_large => {
            SHORTAGE.set(Some(Shortage::Always(left - 1)));
            false
        }
        Some(Shortage::Once(_) | Shortage::Always(_)) => false,
    };
    if is_failing {
        FAILURES.set(FAILURES.get() + 1);
    }
    is_failing
}

/// Only what the code under test takes and gives back counts.
fn count(more: isize) {
    if IS_ARMED.get() {
        HELD.set(HELD.get() + more);
    }
}

/// The length of a layout fits `isize`, see `Layout`.
const fn signed(len: usize) -> isize {
    len.cast_signed()
}

struct Failing;

#[global_allocator]
static ALLOCATOR: Failing = Failing;

// SAFETY: every block comes from `System` with the layout that it goes back with, or is null, which
// means a failure. Nothing here allocates or panics: the variables of the thread have constant
// initial values and no destructors.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let len = signed(layout.size());
        if fails(layout.size(), len) {
            return ptr::null_mut();
        }
        count(len);
        // SAFETY: the caller's promise is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the block came from `System` with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_len: usize) -> *mut u8 {
        let more = signed(new_len) - signed(layout.size());
        if fails(new_len, more) {
            return ptr::null_mut();
        }
        count(more);
        // SAFETY: the block came from `System` with this layout, and the caller's promise is
        // `System`'s.
        unsafe { System.realloc(block, layout, new_len) }
    }
}
