// SPDX-License-Identifier: GPL-2.0

//! What libFuzzer calls. The only unsafe code of the fuzz targets.

use std::path::Path;

/// The bytes that libFuzzer passes.
///
/// # Safety
///
/// `data` points to `size` bytes that nobody changes for as long as `'a`; `size` may be 0, and `data` is anything then.
pub unsafe fn bytes<'a>(data: *const u8, size: usize) -> &'a [u8] {
    if size == 0 {
        return &[];
    }
    // SAFETY: The caller promises it.
    unsafe { std::slice::from_raw_parts(data, size) }
}

/// Writes a target's seeds into the directory that `XB_SEEDS` names, for libFuzzer to find. Ends the program if it does.
pub fn write_seeds(seeds: &[Vec<u8>]) {
    let Some(directory) = std::env::var_os("XB_SEEDS") else {
        return;
    };
    for (number, seed) in seeds.iter().enumerate() {
        if let Err(error) =
            std::fs::write(Path::new(&directory).join(format!("seed-{number}")), seed)
        {
            eprintln!("{}: {error}", Path::new(&directory).display());
            std::process::exit(1);
        }
    }
    std::process::exit(0);
}

/// Makes a program of libFuzzer's `main` and of a target, the module of the given name.
#[macro_export]
macro_rules! target {
    ($target:ident) => {
        /// Called once, before all else.
        #[allow(unsafe_code)]
        #[no_mangle]
        extern "C" fn LLVMFuzzerInitialize(_: *mut i32, _: *mut *mut *mut u8) -> i32 {
            $crate::libfuzzer::write_seeds(&$crate::$target::seeds());
            0
        }

        /// Called for each input. A panic ends the program, as none may unwind out of here.
        #[allow(unsafe_code)]
        #[no_mangle]
        extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> i32 {
            // SAFETY: libFuzzer leaves the bytes alone until we return.
            $crate::$target::run(unsafe { $crate::libfuzzer::bytes(data, size) });
            0
        }
    };
}
