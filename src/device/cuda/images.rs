//! The kernel images of this build, one for each `.cu` file.

#[cfg(test)]
use std::ffi::CStr;

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

// IMAGES, sorted by family, and BUILT, the architectures: both by build.rs.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The image of a family.
pub(super) fn find(family: &str) -> Option<&'static Image> {
    let at = IMAGES.binary_search_by(|image| image.family.cmp(family)).ok()?;
    Some(&IMAGES[at])
}

/// The architectures that kernels were compiled for: `sm_80, sm_90, PTX 8.0, PTX 9.0`; empty where none
/// were.
#[must_use]
pub fn architectures() -> &'static str {
    BUILT
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
    }
}
