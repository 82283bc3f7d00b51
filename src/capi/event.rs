//! What happened to requests, for code that answers their clients.

use super::elements::Element;
use super::request::{INFLIGHT_NO_TOKEN, inflight_request_result};
use super::status::inflight_status;
use super::step_view::{INFLIGHT_FINISH_NONE, INFLIGHT_FINISH_STOPPED, finish_of};
use crate::scheduler::{Ended, Output};
use crate::types::{RequestId, StepId};

/// A request that a submitter handed over cannot run: `status` says why. For DUPLICATE_REQUEST the
/// id is that of another request as well, which goes on.
pub const INFLIGHT_EVENT_REFUSED: u32 = 1;
/// A request has finished: `finish` says why.
pub const INFLIGHT_EVENT_FINISHED: u32 = 2;
/// A request was cancelled through a submitter.
pub const INFLIGHT_EVENT_CANCELLED: u32 = 3;
/// A request had to give way in step `step_id`, and waits again. It goes on later.
pub const INFLIGHT_EVENT_PREEMPTED: u32 = 4;

/// Something that happened to a request. Kinds may be added: pass over those that you do not know. In
/// arrays `event_size` bytes from one to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct inflight_event {
    /// The request.
    pub request_id: u64,
    /// Its `client`, which tells requests of one id apart.
    pub client: u64,
    /// The step with which it happened, or 2^64 - 1.
    pub step_id: u64,
    /// `INFLIGHT_EVENT_*`.
    pub kind: u32,
    /// Why it was refused: an `inflight_status`; else 0.
    pub status: i32,
    /// Why it finished: `INFLIGHT_FINISH_*`; else `INFLIGHT_FINISH_NONE`.
    pub finish: u32,
    /// The stop token that ended it, or `INFLIGHT_NO_TOKEN`.
    pub stop_token: u32,
    /// Zeros.
    pub reserved: [u64; 2],
    /// Its counts and times, where it has finished or was cancelled; else zeros, and no times.
    pub result: inflight_request_result,
}

// SAFETY: integers, without padding.
unsafe impl Element for inflight_event {}

#[derive(Clone, Copy, Debug)]
pub(super) enum EventKind {
    Refused = INFLIGHT_EVENT_REFUSED as isize,
    Finished = INFLIGHT_EVENT_FINISHED as isize,
    Cancelled = INFLIGHT_EVENT_CANCELLED as isize,
    Preempted = INFLIGHT_EVENT_PREEMPTED as isize,
}

impl inflight_event {
    pub(super) fn new(id: RequestId, client: u64, kind: EventKind) -> Self {
        Self {
            request_id: id.0,
            client,
            step_id: u64::MAX,
            kind: kind as u32,
            status: 0,
            finish: INFLIGHT_FINISH_NONE,
            stop_token: INFLIGHT_NO_TOKEN,
            reserved: [0; 2],
            result: inflight_request_result::NONE,
        }
    }

    pub(super) fn refused(id: RequestId, client: u64, status: inflight_status) -> Self {
        Self { status: status as i32, ..Self::new(id, client, EventKind::Refused) }
    }

    /// A request that a submitter cancelled.
    pub(super) fn cancelled(ended: &Ended) -> Self {
        let of = Self::new(ended.id, ended.last.client, EventKind::Cancelled);
        Self { result: (&ended.last).into(), ..of }
    }

    /// A request that a submitter finished.
    pub(super) fn stopped(ended: &Ended) -> Self {
        let of = Self::new(ended.id, ended.last.client, EventKind::Finished);
        Self { finish: INFLIGHT_FINISH_STOPPED, result: (&ended.last).into(), ..of }
    }

    /// A request that sampled its last token in a step.
    pub(super) fn finished(output: &Output, ended: &Ended, step: StepId) -> Self {
        let (finish, stop_token) = finish_of(output.finish);
        let of = Self::new(output.id, output.client, EventKind::Finished);
        Self { step_id: step.0, finish, stop_token, result: (&ended.last).into(), ..of }
    }
}
