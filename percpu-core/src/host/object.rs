//! Which executable or library this crate is a part of.

/// Returns whether this crate is part of a Rust `dylib`.
///
/// Of all libraries only a Rust `dylib` exports functions without a fixed name, for crates that are
/// compiled against it. The main program may export them, too (`-rdynamic`).
#[cfg(not(any(miri, target_feature = "crt-static")))]
pub(crate) fn is_in_rust_dylib() -> bool {
    use core::ffi::c_void;
    use core::mem::MaybeUninit;
    use core::ptr::with_exposed_provenance;

    /// Asks the dynamic linker in which object an address lies.
    fn object_of(address: *const c_void) -> Option<libc::Dl_info> {
        let mut info = MaybeUninit::uninit();
        // SAFETY: writes to `info`, and says so by a number that is not 0; the address is only
        // compared.
        unsafe { (libc::dladdr(address, info.as_mut_ptr()) != 0).then(|| info.assume_init()) }
    }

    // A function that is not generic, so that it is compiled with this crate.
    let function = (super::boot as fn(usize) -> _ as *const ()).cast::<c_void>();
    // SAFETY: asks for a number: where the main program's headers are.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    let Some(own) = object_of(function) else { return false };
    let main = object_of(with_exposed_provenance(headers));
    let is_main = main.is_some_and(|main| main.dli_fbase == own.dli_fbase);
    !is_main && core::ptr::eq(own.dli_saddr, function)
}

/// Where there is one object, the main program.
#[cfg(any(miri, target_feature = "crt-static"))]
pub(crate) fn is_in_rust_dylib() -> bool {
    false
}
