//! Blocks of the attention kernels: rows of csrc/kernels.def.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use crate::device::cuda::CudaDeviceInfo;
use crate::kernels::DType;

/// A row: a kernel for each type of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    family: &'static str,
    kv: &'static str,
    pub(super) head_dim: usize,
    /// Query rows of a tile.
    pub(super) rows: u32,
    /// Keys of a tile.
    pub(super) keys: u32,
    pub(super) threads: u32,
    /// Dynamic shared memory, in bytes.
    pub(super) shared: u32,
    /// Of [`CLASSES`].
    class: usize,
    /// Of its kernels' names.
    suffix: &'static str,
}

/// A class of devices.
#[derive(Clone, Debug)]
struct Class {
    /// As 80 for 8.0.
    capabilities: RangeInclusive<u32>,
    /// Of shared memory that a block can have at least.
    kib: u32,
}

// CLASSES, PADDED, head dimensions with the larger one whose kernels compute them, HEAD_DIMS and ROWS:
// by build.rs.
include!(concat!(env!("OUT_DIR"), "/kernel_table.rs"));

impl Class {
    fn has(&self, device: &CudaDeviceInfo) -> bool {
        let (major, minor) = device.compute_capability;
        self.capabilities.contains(&(10 * major + minor))
            && device.max_shared_memory >= self.kib << 10
    }
}

impl Row {
    /// That of a family (`decode`, `prefill` or `mixed`) for a device: of the classes that it is of, the
    /// last one with such a row.
    pub(super) fn find(
        family: &str,
        cache: DType,
        head_dim: usize,
        device: &CudaDeviceInfo,
    ) -> Option<&'static Self> {
        Self::find_in((ROWS, CLASSES), family, cache, head_dim, device)
    }

    fn find_in<'a>(
        (rows, classes): (&'a [Self], &[Class]),
        family: &str,
        cache: DType,
        head_dim: usize,
        device: &CudaDeviceInfo,
    ) -> Option<&'a Self> {
        let key = (family, kv_name(cache), head_dim);
        // A device without any class is told so when the first one's kernel is loaded.
        let fits = |row: &&Self| {
            let is_of_class = row.class == 0 || classes[row.class].has(device);
            (row.family, row.kv, row.head_dim) == key && is_of_class
        };
        rows.iter().filter(fits).max_by_key(|row| row.class)
    }

    /// The file of its kernel for queries of a type: `decode_bf16_same_d128`.
    pub(super) fn file(&self, q: DType) -> String {
        format!("{}_{}_{}", self.family, q.name(), self.suffix)
    }
}

/// What kernels call the type of a cache: `same` is that of the queries.
pub(super) fn kv_name(cache: DType) -> &'static str {
    if cache == DType::Fp8E4m3 { "e4m3" } else { "same" }
}

/// The head dimension of the kernels that compute `head_dim`.
pub(super) fn kernel_dim(head_dim: usize) -> Option<usize> {
    let padded = PADDED.iter().find(|(dim, _)| *dim == head_dim).map(|(_, kernel)| *kernel);
    padded.or_else(|| ROWS.iter().map(|row| row.head_dim).find(|dim| *dim == head_dim))
}

/// [`HEAD_DIMS`] in words: `64, 80 or 96`.
pub(super) fn head_dims_in_words() -> String {
    let dims: Vec<_> = HEAD_DIMS.iter().map(usize::to_string).collect();
    let (last, others) = dims.split_last().expect("there are kernels");
    format!("{} or {last}", others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(compute_capability: (u32, u32), kib: u32) -> CudaDeviceInfo {
        CudaDeviceInfo {
            ordinal: 0,
            name: String::new(),
            uuid: [0; 16],
            compute_capability,
            multiprocessors: 1,
            memory: 0,
            max_shared_memory: kib << 10,
            l2_cache: 0,
        }
    }

    #[test]
    fn every_device_has_kernels_of_every_head_dimension() {
        for (capability, kib) in [((8, 0), 163), ((8, 6), 99), ((9, 0), 227), ((12, 0), 99)] {
            let device = device(capability, kib);
            for dim in HEAD_DIMS {
                let dim = kernel_dim(*dim).expect("it is one that kernels have");
                for cache in [DType::Bf16, DType::Fp8E4m3] {
                    for family in ["decode", "prefill"] {
                        let row = Row::find(family, cache, dim, &device);
                        let row = row.unwrap_or_else(|| panic!("{family} {cache} {dim}"));
                        assert!(row.shared <= device.max_shared_memory, "{row:?}");
                    }
                    let mixed = Row::find("mixed", cache, dim, &device);
                    assert_eq!(mixed.is_some(), dim <= 128, "{dim}");
                }
            }
        }
        assert_eq!(kernel_dim(80), Some(96));
        assert_eq!(kernel_dim(72), None);
    }

    #[test]
    fn a_device_gets_the_kernel_of_the_last_class_that_it_is_of() {
        let row = |class, shared: u32, suffix| Row {
            family: "decode",
            kv: "same",
            head_dim: 128,
            rows: 16,
            keys: 64,
            threads: 128,
            shared: shared << 10,
            class,
            suffix,
        };
        let [small, large, hopper] =
            [row(0, 66, "same_d128"), row(1, 98, "same_d128_a"), row(2, 98, "same_d128_b")];
        let class = |capabilities, kib| Class { capabilities, kib };
        let classes = [class(80..=999, 99), class(80..=999, 163), class(90..=90, 227)];
        let found = |rows: &[Row], capability, kib| {
            let device = device(capability, kib);
            Row::find_in((rows, &classes), "decode", DType::F16, 128, &device).copied()
        };
        let all = [hopper, small, large];
        assert_eq!(found(&all, (8, 9), 99), Some(small));
        assert_eq!(found(&all, (12, 0), 99), Some(small));
        assert_eq!(found(&all, (8, 0), 163), Some(large));
        assert_eq!(found(&all, (9, 0), 227), Some(hopper));
        assert_eq!(found(&all, (10, 0), 227), Some(large));
        assert_eq!(found(&[large, small], (9, 0), 227), Some(large));
        assert_eq!(found(&[large, hopper], (8, 6), 99), None);
        // Which no kernel is for: loading it says so.
        assert_eq!(found(&all, (5, 3), 48), Some(small));
        assert_eq!(large.file(DType::Bf16), "decode_bf16_same_d128_a");
    }

    #[test]
    fn documents_name_the_head_dimensions_of_kernels() {
        let dims = head_dims_in_words();
        for (name, text) in [
            ("capi/attention.rs", include_str!("../../capi/attention.rs")),
            ("kernels/cuda/mod.rs", include_str!("mod.rs")),
        ] {
            let words = text.replace("///", " ").replace("//!", " ");
            let words: Vec<_> = words.split_whitespace().collect();
            let words = words.join(" ");
            let listed = words.contains(&dims) || words.contains(&dims.replace(" or ", " and "));
            assert!(listed, "{name} does not say {dims}");
        }
    }
}
