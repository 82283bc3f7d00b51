//! The kernel images of this build, one for each `.cu` file.

#[cfg(test)]
use std::ffi::CStr;

use super::probe::NEEDED_VERSION;
use crate::error::{Error, OutdatedDriver};

/// How the stub begins that stands for an image where none was compiled; the family's name follows,
/// and a terminator. A real driver refuses it; the emulator looks up kernels by name.
pub(super) const STUB: &[u8] = b"INFLIGHT-SIMT\0";

/// Device code for every architecture of the build.
pub(super) struct Image {
    /// The file's stem.
    pub(super) family: &'static str,
    pub(super) bytes: &'static [u8],
}

/// Aligned as the driver may assume an ELF file is.
#[allow(dead_code, reason = "used by what build.rs writes for each `.cu` file")]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

// IMAGES, sorted by family, BUILT, the architectures, TOOLKIT, which compiled them, and HEAD_DIMS,
// where not all are built: by build.rs.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The image of a family.
pub(super) fn find(family: &str) -> Option<&'static Image> {
    let at = IMAGES.binary_search_by(|image| image.family.cmp(family)).ok()?;
    Some(&IMAGES[at])
}

/// Why a family is missing that there are kernels of, where the build was to leave it out.
pub(super) fn left_out(family: &str) -> Option<Error> {
    left_out_of(HEAD_DIMS, family)
}

fn left_out_of(dims: &[u32], family: &str) -> Option<Error> {
    let dim: u32 = family.rsplit_once("_d")?.1.split('_').next()?.parse().ok()?;
    (!dims.is_empty() && !dims.contains(&dim)).then(|| {
        let reason = format!(
            "kernels for {dim} were left out of this build, which has {dims:?}: build with \
             INFLIGHT_CUDA_HEAD_DIMS naming {dim}, or without it for all"
        );
        Error::argument("head_dim", reason)
    })
}

/// The architectures that kernels were compiled for: `sm_80, sm_90, PTX 8.0, PTX 9.0`; empty where none
/// were.
#[must_use]
pub const fn architectures() -> &'static str {
    BUILT
}

/// The version of the toolkit that compiled the kernels, as CUDA counts: 13000 is 13.0; `None` where
/// there are none.
#[must_use]
pub fn toolkit() -> Option<i32> {
    TOOLKIT
}

/// The version that the driver must offer for the kernels of this build, as CUDA counts: the first
/// of the toolkit's major version, at least [`NEEDED_VERSION`]. Where it has to compile PTX, since
/// there is no code for the GPU itself, it must be as new as the [toolkit](toolkit).
#[must_use]
pub fn driver_needed() -> i32 {
    needed_by(TOOLKIT)
}

fn needed_by(toolkit: Option<i32>) -> i32 {
    toolkit.map_or(NEEDED_VERSION, |version| NEEDED_VERSION.max(version / 1000 * 1000))
}

/// What makes a driver of this version refuse images: that it is older than the toolkit allows,
/// where it is.
pub(super) fn outdated(toolkit: Option<i32>, found: i32, is_ptx: bool) -> Option<OutdatedDriver> {
    let made_with = toolkit?;
    let needed = if is_ptx { made_with } else { needed_by(toolkit) };
    (found < needed).then_some(OutdatedDriver { toolkit: made_with, needed, found })
}

/// Whether this build has kernels for GPUs (feature `cuda`).
#[must_use]
pub fn has_kernels() -> bool {
    cfg!(inflight_kernels)
}

/// The names of all families, one an image.
pub fn families() -> impl Iterator<Item = &'static str> {
    IMAGES.iter().map(|image| image.family)
}

impl Image {
    pub(super) fn is_stub(&self) -> bool {
        self.bytes.starts_with(STUB)
    }

    /// The family as a C string, of a stub.
    #[cfg(test)]
    fn stub_family(&self) -> Option<&'static CStr> {
        CStr::from_bytes_with_nul(self.bytes.strip_prefix(STUB)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_sorted_and_tagged_where_they_are_stubs() {
        assert!(IMAGES.is_sorted_by(|a, b| a.family < b.family));
        for image in IMAGES {
            assert_eq!(image.is_stub(), !has_kernels(), "{}", image.family);
            let family = image.stub_family().map(|name| name.to_str().expect("ASCII"));
            assert_eq!(family, image.is_stub().then_some(image.family));
            assert!((image.bytes.as_ptr().addr()).is_multiple_of(64));
            assert!(find(image.family).is_some());
        }
        assert!(find("no such family").is_none());
        assert!(left_out("no such family").is_none());
        assert_eq!(toolkit().is_some(), has_kernels());
        assert!(toolkit().is_none_or(|version| version >= NEEDED_VERSION));
    }

    #[test]
    fn what_the_build_left_out_is_named() {
        let why =
            left_out_of(&[64, 128], "decode_bf16_same_d96").expect("it is left out").to_string();
        assert!(
            why.contains("head_dim") && why.contains("96") && why.contains("[64, 128]"),
            "{why}"
        );
        for (dims, family) in [
            (&[64, 128][..], "decode_bf16_same_d128"),
            (&[64], "append_bf16_same"),
            (&[], "decode_bf16_same_d96"),
        ] {
            assert!(left_out_of(dims, family).is_none(), "{family}");
        }
    }

    #[test]
    fn which_driver_images_need() {
        for (toolkit, needed) in [
            (None, 12_040),
            (Some(12_040), 12_040),
            (Some(12_090), 12_040),
            (Some(13_000), 13_000),
            (Some(13_010), 13_000),
        ] {
            assert_eq!(needed_by(toolkit), needed, "{toolkit:?}");
            assert_eq!(outdated(toolkit, needed, false), None);
        }
        let old = |toolkit, needed, found| Some(OutdatedDriver { toolkit, needed, found });
        assert_eq!(outdated(Some(13_010), 12_080, false), old(13_010, 13_000, 12_080));
        assert_eq!(outdated(Some(13_010), 12_080, true), old(13_010, 13_010, 12_080));
        assert_eq!(outdated(Some(13_010), 13_000, true), old(13_010, 13_010, 13_000));
        assert_eq!(outdated(Some(12_080), 12_040, true), old(12_080, 12_080, 12_040));
        assert_eq!(outdated(Some(12_080), 12_080, true), None);
        assert_eq!(outdated(None, 12_040, true), None);
    }
}
