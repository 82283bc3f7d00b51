//! The driver's library, and its functions by name.
//!
//! cudarc declares what each takes, and is not called: its functions return an enum of the results
//! that [`NEEDED_VERSION`](super::NEEDED_VERSION) has, where newer drivers have others, and panic
//! where the driver lacks them.

use std::ffi::c_void;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use cudarc::driver::sys::CUresult;
use libloading::Library;

use crate::device::fork::Generation;
use crate::error::{CudaUnavailable, Error, Result};

/// Takes the driver for this process, or finds that a parent has it: from then on no function of it
/// is called here, not even to free something, and no lock taken that is around such calls.
pub(super) fn claim() -> Result<(), CudaUnavailable> {
    /// The generation's number, 0 before the first call.
    static CLAIMED: AtomicU32 = AtomicU32::new(0);
    let own = Generation::current().number();
    if CLAIMED.load(Ordering::Relaxed) == own {
        return Ok(());
    }
    match CLAIMED.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed) {
        Err(other) if other != own => Err(CudaUnavailable::Forked),
        _ => Ok(()),
    }
}

/// The driver's library. It is never unloaded: its threads run its code.
fn library() -> Result<&'static Library, CudaUnavailable> {
    static OPENED: OnceLock<Result<Library, CudaUnavailable>> = OnceLock::new();
    OPENED.get_or_init(open).as_ref().map_err(CudaUnavailable::clone)
}

fn open() -> Result<Library, CudaUnavailable> {
    // By its plain name first, as cudarc looks for it: a library of that name that the process has
    // already, as the emulator's, is the one that all users of cudarc get.
    // SAFETY: the initialisers of the driver's library have no preconditions.
    let plain = unsafe { Library::new("libcuda.so") };
    let library = plain.or_else(|_| {
        // SAFETY: as above.
        unsafe { Library::new("libcuda.so.1") }
    });
    library.map_err(|error| {
        // The error itself names the call that failed; what it is made from, the library and why.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        CudaUnavailable::NoDriver { reason: cause.unwrap_or_else(|| error.to_string()) }
    })
}

/// Where the driver has a function, or that it has none.
pub(super) fn find(name: &'static str) -> Result<*mut c_void, CudaUnavailable> {
    // SAFETY: the address is not called.
    let found = unsafe { library()?.get::<*mut c_void>(name) };
    found.map(|at| *at).map_err(|_| CudaUnavailable::MissingSymbol { name })
}

/// A function as cudarc declares it, and as it is called: with a number for its result.
pub(super) trait Declared {
    type Function: Copy;
}

macro_rules! declared {
    ($($argument:ident)*) => {
        impl<$($argument),*> Declared for unsafe fn($($argument),*) -> CUresult {
            type Function = unsafe extern "C" fn($($argument),*) -> u32;
        }
    };
}
declared!(A);
declared!(A B);
declared!(A B C);
declared!(A B C D);
declared!(A B C D E);
declared!(A B C D E F G H);
declared!(A B C D E F G H I J K L);

impl Declared for unsafe fn() -> CUresult {
    type Function = unsafe extern "C" fn() -> u32;
}

/// A function of the driver, looked up when it is first called. Made by `call!` alone, which takes
/// the name and the declaration from one identifier.
pub(super) struct Symbol {
    name: &'static str,
    /// Null until it is found.
    address: AtomicPtr<c_void>,
}

impl Symbol {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, address: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The function, whose type is that of `_declared`, where this process may call it.
    pub(super) fn function<F: Declared>(&self, _declared: F) -> Result<F::Function> {
        claim().map_err(Error::NoCuda)?;
        let mut address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            address = find(self.name).map_err(Error::NoCuda)?;
            self.address.store(address, Ordering::Release);
        }
        const { assert!(size_of::<F::Function>() == size_of::<*mut c_void>()) };
        // SAFETY: a pointer becomes a function pointer, of the C type that the driver's header
        // gives this name: cudarc's declaration is made from that header, and an enum that is a
        // result in C is a number of 32 bits.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}
