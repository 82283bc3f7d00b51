//! The CUDA device under test: the emulator, or a GPU with `INFLIGHT_TEST_DRIVER=real`.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use inflight::Error;
use inflight::device::cuda::Cuda;

/// A device, held by one test at a time.
pub(crate) struct Device {
    pub(crate) cuda: Arc<Cuda>,
    /// `None` on a GPU.
    #[allow(dead_code, reason = "some tests ask it nothing")]
    pub(crate) emulator: Option<&'static simt::Emulator>,
    _lock: MutexGuard<'static, ()>,
}

/// The device; `None`, and a line that says why, where there is none. `INFLIGHT_SIMT=checking` is
/// the emulator that looks for races, `ptx` the one that executes what nvcc made.
pub(crate) fn device() -> Option<Device> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Opened before anything opens libcuda, which then is this one.
    let emulator = match simt::device(simt::Mode::asked(simt::Mode::Fast)) {
        Ok(emulator) => {
            // Below 9.0, where the device has none, every launch is looked at as a dependent.
            emulator.set_dependent(true);
            Some(emulator)
        }
        Err(_) if simt::wants_real_driver() => None,
        Err(why) => {
            println!("skipped: {why}");
            return None;
        }
    };
    // A GPU's context takes long to make, and goes with its last user.
    static KEPT: OnceLock<Arc<Cuda>> = OnceLock::new();
    match Cuda::new(0) {
        Ok(cuda) => {
            if emulator.is_none() {
                KEPT.get_or_init(|| Arc::clone(&cuda));
            }
            Some(Device { cuda, emulator, _lock: lock })
        }
        Err(Error::NoCuda(why)) if emulator.is_none() => {
            println!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
