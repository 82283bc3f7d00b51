//! Status codes, and the detail of an error.

use std::ffi::{CStr, c_char};
use std::fmt;

use super::ffi::{Versioned, text, versioned};
use crate::error::Error;
use crate::types::RequestId;

/// What a call came to.
///
/// 0 is success. Numbers are in groups: 1xx the caller's arguments, 2xx capacity (nothing is wrong;
/// try again when requests have finished), 3xx the device, 9xx the library itself. They are never
/// reused, and new ones may be added: treat one that you do not know by its group.
///
/// Every call that fails leaves its objects as they were, unless its description says otherwise.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum inflight_status {
    /// Done.
    Ok = 0,
    /// An argument, or a field of one, is outside its range. Also NULL where it may not be, and
    /// pointers that are not aligned as their type asks for.
    InvalidArgument = 100,
    /// A request of this id has not finished yet.
    DuplicateRequest = 101,
    /// No request of this id is waiting or running.
    UnknownRequest = 102,
    /// The prompt leaves no room for one output token below `max_model_len`.
    PromptTooLong = 103,
    /// The request would not fit even if it had the whole cache to itself.
    NeverFits = 104,
    /// The step is not in flight: never scheduled, or already committed or abandoned.
    UnknownStep = 105,
    /// Steps are committed oldest first and abandoned newest first.
    StepOutOfOrder = 106,
    /// The outputs do not match the rows of the step.
    OutputMismatch = 107,
    /// The first field of a struct is not its size, or the size of one that this library does not
    /// know: older than the first version, or newer with fields set that are unknown here.
    StructSize = 108,
    /// Another thread is inside a call with the same handle, which is for one at a time.
    InUse = 109,
    /// The scheduler of a submitter has been freed, or a call with it panicked: it takes no more
    /// requests.
    Closed = 110,
    /// The object was made before `fork`, by a parent of this process. It can be freed; make another
    /// in this process.
    Forked = 111,
    /// `max_waiting` requests wait already.
    QueueFull = 200,
    /// The pool cannot give that many blocks now.
    OutOfBlocks = 201,
    /// `max_steps_in_flight` steps await their commit.
    TooManyStepsInFlight = 202,
    /// Requests wait, nothing runs, and the policy admits none of them.
    Stalled = 203,
    /// The process has too little memory left for what was asked.
    OutOfMemory = 204,
    /// The device could not run the step.
    Device = 300,
    /// A call of the CUDA driver failed.
    Cuda = 301,
    /// The device has too little memory left.
    OutOfDeviceMemory = 302,
    /// CUDA cannot be used on this machine.
    NoCuda = 303,
    /// This build has no kernels that the device can run, or its driver: one that is older than the
    /// toolkit that compiled them allows. The message says which, and what to do.
    NoKernelImage = 304,
    /// The device, or this build, does not offer what was asked for. No call of this version returns it.
    Unsupported = 305,
    /// An invariant does not hold: a bug in the library.
    Corrupt = 900,
    /// The library panicked: a bug in it. The handle is poisoned.
    Panic = 901,
    /// An earlier call with this handle panicked: it can only be freed.
    Poisoned = 902,
}

impl inflight_status {
    /// All there are, in order.
    const ALL: [Self; 27] = [
        Self::Ok,
        Self::InvalidArgument,
        Self::DuplicateRequest,
        Self::UnknownRequest,
        Self::PromptTooLong,
        Self::NeverFits,
        Self::UnknownStep,
        Self::StepOutOfOrder,
        Self::OutputMismatch,
        Self::StructSize,
        Self::InUse,
        Self::Closed,
        Self::Forked,
        Self::QueueFull,
        Self::OutOfBlocks,
        Self::TooManyStepsInFlight,
        Self::Stalled,
        Self::OutOfMemory,
        Self::Device,
        Self::Cuda,
        Self::OutOfDeviceMemory,
        Self::NoCuda,
        Self::NoKernelImage,
        Self::Unsupported,
        Self::Corrupt,
        Self::Panic,
        Self::Poisoned,
    ];

    fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|&status| status as i32 == number)
    }

    /// What it means, in a few words and without detail.
    fn meaning(self) -> &'static CStr {
        match self {
            Self::Ok => c"done",
            Self::InvalidArgument => c"an argument is outside its range",
            Self::DuplicateRequest => c"a request of this id has not finished yet",
            Self::UnknownRequest => c"no request of this id is waiting or running",
            Self::PromptTooLong => c"the prompt leaves no room for output",
            Self::NeverFits => c"the request needs more blocks than the cache has",
            Self::UnknownStep => c"the step is not in flight",
            Self::StepOutOfOrder => c"it is another step's turn",
            Self::OutputMismatch => c"the outputs do not match the rows of the step",
            Self::StructSize => c"the size of a struct is not one that this library knows",
            Self::InUse => c"another thread is inside a call with this handle",
            Self::Closed => c"the submitter's scheduler is gone",
            Self::Forked => c"made before fork(): make another in this process",
            Self::QueueFull => c"the waiting queue is full: try again later",
            Self::OutOfBlocks => c"too few blocks are free: try again later",
            Self::TooManyStepsInFlight => c"too many steps await their commit",
            Self::Stalled => c"requests wait, and the policy admits none of them",
            Self::OutOfMemory => c"too little memory is left",
            Self::Device => c"the device could not run the step",
            Self::Cuda => c"a call of the CUDA driver failed",
            Self::OutOfDeviceMemory => c"the device has too little memory left",
            Self::NoCuda => c"CUDA cannot be used on this machine",
            Self::NoKernelImage => c"this build has no kernels that the device can run",
            Self::Unsupported => c"not offered by this device or this build",
            Self::Corrupt => c"an invariant of the library does not hold",
            Self::Panic => c"the library panicked: the handle can only be freed",
            Self::Poisoned => c"an earlier call with this handle panicked",
        }
    }
}

/// What a status means, in a few words.
///
/// Outputs: a string that lives as long as the library. A number that is no status gives
/// "unknown status".
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn inflight_status_string(status: i32) -> *const c_char {
    inflight_status::from_number(status).map_or(c"unknown status", |s| s.meaning()).as_ptr()
}

/// Bytes of `inflight_error.field`, terminator included.
pub const INFLIGHT_ERROR_FIELD_SIZE: usize = 64;
/// Bytes of `inflight_error.message`, terminator included.
pub const INFLIGHT_ERROR_MESSAGE_SIZE: usize = 424;

/// The detail of an error: every call that can fail takes a pointer to one as its last argument,
/// which may be NULL. It is the caller's, so threads never share it, and it needs no freeing.
///
/// Initialise it once with `inflight_error_init`; each call then overwrites it, a successful one
/// with code 0 and empty strings.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct inflight_error {
    /// `sizeof(inflight_error)`.
    pub struct_size: usize,
    /// The request that the failure is about, where `has_request` is 1; else 0.
    pub request_id: u64,
    /// The status that the call returned.
    pub code: i32,
    /// 1 if the failure is about one request: the one that was submitted or named, or with STALLED
    /// the one at the head of the queue.
    pub has_request: u32,
    /// The field or argument at fault, as it is spelt in this header, with INVALID_ARGUMENT and
    /// STRUCT_SIZE; empty with all others.
    pub field: [c_char; INFLIGHT_ERROR_FIELD_SIZE],
    /// What is wrong, in English, UTF-8, cut to fit. With a field it goes on from the field's name
    /// ("is NULL"): print `field: message`.
    pub message: [c_char; INFLIGHT_ERROR_MESSAGE_SIZE],
}

versioned! {
    inflight_error_init(error: inflight_error ..= message) {}
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: inflight_status,
    field: &'static str,
    message: String,
    request: Option<RequestId>,
}

impl Failure {
    pub(super) fn new(
        status: inflight_status,
        field: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, field, message: message.into(), request: None }
    }

    /// An argument outside its range.
    pub(super) fn argument(field: &'static str, message: impl Into<String>) -> Self {
        Self::new(inflight_status::InvalidArgument, field, message)
    }

    /// The same failure, of a field that has another name here.
    pub(super) fn renamed(mut self, names: &[(&str, &'static str)]) -> Self {
        if let Some(&(_, name)) = names.iter().find(|&&(of, _)| of == self.field) {
            self.field = name;
        }
        self
    }

    /// The same failure, of this request.
    pub(super) fn of_request(self, id: u64) -> Self {
        Self { request: Some(RequestId(id)), ..self }
    }

    pub(super) fn detail(&self) -> inflight_error {
        let mut error = inflight_error {
            code: self.status as i32,
            request_id: self.request.map_or(0, |id| id.0),
            has_request: u32::from(self.request.is_some()),
            ..inflight_error::initial()
        };
        text(&mut error.field, self.field);
        text(&mut error.message, &self.message);
        error
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            "" => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = inflight_status::from_number(error.status());
        let status = status.unwrap_or(inflight_status::Corrupt);
        let request = error.request();
        let failure = match error {
            Error::InvalidArgument { field, reason } => Self::new(status, field, reason),
            other => Self::new(status, "", other.to_string()),
        };
        // A struct in a request in Rust, fields of the request in C.
        let names = [
            ("repetition.min_count", "repetition_count"),
            ("repetition.max_pattern", "repetition_max_pattern"),
        ];
        Self { request, ..failure }.renamed(&names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{CudaUnavailable, OutdatedDriver, Pool};
    use crate::types::StepId;

    #[test]
    fn every_error_has_a_status_of_its_own() {
        let (id, step) = (RequestId(1), StepId(1));
        let errors = [
            Error::argument("field", "reason"),
            Error::DuplicateRequest(id),
            Error::UnknownRequest(id),
            Error::PromptTooLong { id, prompt_len: 1, max_model_len: 1, blocks: None },
            Error::NeverFits { id, needed: 1, usable: 1 },
            Error::UnknownStep(step),
            Error::StepOutOfOrder { step, expected: step },
            Error::OutputMismatch { step, expected: 1, given: 1 },
            Error::Closed,
            Error::Forked { what: "" },
            Error::QueueFull { max_waiting: 1 },
            Error::OutOfBlocks { pool: Pool::Device, needed: 1, free: 1 },
            Error::TooManyStepsInFlight { limit: 1 },
            Error::Stalled { head: id, needed: 1, free: 1 },
            Error::OutOfMemory { bytes: 1 },
            Error::Device(String::new()),
            Error::OutOfDeviceMemory { needed: 1, free: 1 },
            Error::NoCuda(CudaUnavailable::NoDevice),
            Error::NoKernelImage { device: String::new(), built: "", outdated: None },
            Error::Corrupt(String::new()),
        ];
        let mut seen = std::collections::HashSet::new();
        for error in errors {
            let number = error.status();
            assert!(inflight_status::from_number(number).is_some(), "{error:?}");
            assert!(seen.insert(number), "{error:?}");
            let request = error.request();
            let detail = Failure::from(error).detail();
            assert_eq!(detail.has_request == 1, request.is_some());
            assert_eq!(detail.request_id, request.map_or(0, |id| id.0));
            let about_one = matches!(number, 101..=104 | 203);
            assert_eq!(request, about_one.then_some(id));
        }
        assert!(inflight_status::ALL.is_sorted_by(|a, b| (*a as i32) < *b as i32));
    }

    #[test]
    fn a_driver_too_old_for_the_kernels_is_told_what_to_do() {
        let driver = OutdatedDriver { toolkit: 13_000, needed: 13_000, found: 12_040 };
        let error = |built, driver| {
            let device = "sm_90".to_owned();
            let error = Error::NoKernelImage { device, built, outdated: Some(driver) };
            let detail = Failure::from(error).detail();
            assert_eq!((detail.code, detail.field[0]), (304, 0));
            let bytes: Vec<u8> = detail.message.iter().map(|&c| c as u8).collect();
            let text = std::ffi::CStr::from_bytes_until_nul(&bytes).expect("it has a terminator");
            text.to_str().expect("it is UTF-8").to_owned()
        };
        assert_eq!(
            error("sm_80, sm_90, PTX 8.0", driver),
            "no kernel image for sm_90: kernel images were built with CUDA 13.0 and need driver 580 \
             or later; this driver offers CUDA 12.4: update the driver, or build with a 12.x toolkit"
        );
        let driver = OutdatedDriver { toolkit: 12_080, needed: 12_080, found: 12_040 };
        let built = "sm_80, PTX 8.0";
        let text = error(built, driver);
        assert_eq!(
            text,
            "no kernel image for sm_90: this build has sm_80, PTX 8.0, whose PTX was made with CUDA \
             12.8 and needs a driver that offers CUDA 12.8; this driver offers CUDA 12.4: update the \
             driver, or build with INFLIGHT_CUDA_ARCHS naming 90"
        );
        // Room for what a build for every architecture is called.
        assert!(text.len() - built.len() + 160 < INFLIGHT_ERROR_MESSAGE_SIZE, "{}", text.len());
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let long = "ä".repeat(400);
        let error = Failure::argument("field", long).detail();
        let bytes: Vec<u8> = error.message.iter().map(|&c| c as u8).collect();
        let text = std::ffi::CStr::from_bytes_until_nul(&bytes).expect("it has a terminator");
        assert_eq!(text.to_str().expect("it is UTF-8").len(), 422);
    }
}
