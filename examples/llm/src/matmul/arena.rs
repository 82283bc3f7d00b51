//! Memory of a model's weights, on huge pages: a step reads all of it, and with pages of 4 KiB that
//! is 23,000 page walks for 90 MB.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use inflight::device::memory::Buffer;

/// Bytes taken from the system at once; larger arrays have their own.
const CHUNK: usize = 8 << 20;
/// A cache line: where arrays start.
const ALIGN: usize = 64;

/// Where arrays are placed, one after the other.
pub struct Arena {
    chunk: usize,
    current: Option<(Arc<Buffer>, NonNull<u8>)>,
    used: usize,
}

impl Default for Arena {
    /// For the arrays of a whole model.
    fn default() -> Self {
        Self { chunk: CHUNK, current: None, used: 0 }
    }
}

impl Arena {
    /// For few arrays: each has as much memory as it needs.
    pub fn exact() -> Self {
        Self { chunk: 0, ..Self::default() }
    }

    /// A copy of `values`.
    pub(super) fn place<T: Copy>(&mut self, values: &[T]) -> inflight::Result<Array<T>> {
        const { assert!(align_of::<T>() <= ALIGN) };
        let bytes = size_of_val(values);
        let (owner, start) = if bytes > self.chunk { allocate(bytes)? } else { self.take(bytes)? };
        let start = start.cast::<T>();
        // SAFETY: there are so many bytes, aligned to `ALIGN`, and they are in no other use.
        unsafe { start.as_ptr().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Ok(Array { _owner: owner, start, len: values.len() })
    }

    /// The next bytes of a chunk, which are given out once.
    fn take(&mut self, bytes: usize) -> inflight::Result<(Arc<Buffer>, NonNull<u8>)> {
        let (owner, start) = match &self.current {
            Some((owner, start)) if bytes <= owner.len() - self.used => (owner, start),
            _ => {
                self.used = 0;
                let (owner, start) = self.current.insert(allocate(self.chunk)?);
                (&*owner, &*start)
            }
        };
        // SAFETY: `used + bytes` bytes are inside the buffer.
        let taken = (Arc::clone(owner), unsafe { start.add(self.used) });
        self.used = (self.used + bytes).next_multiple_of(ALIGN);
        Ok(taken)
    }
}

/// Whole lines of a buffer, which starts on one.
fn allocate(bytes: usize) -> inflight::Result<(Arc<Buffer>, NonNull<u8>)> {
    let mut buffer = Buffer::zeroed(bytes.next_multiple_of(ALIGN))?;
    let start = NonNull::from(&mut buffer[..]).cast();
    Ok((Arc::new(buffer), start))
}

/// An array in an arena, whose memory lives as long as any of its arrays.
pub(super) struct Array<T> {
    _owner: Arc<Buffer>,
    start: NonNull<T>,
    len: usize,
}

// SAFETY: gives `&[T]` only; the memory is kept by a shared `Buffer`, which is `Send` and `Sync`.
unsafe impl<T: Sync> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Array<T> {}

impl<T> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values were stored there, are never written again, and `_owner` keeps them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_copies_on_lines_of_their_own_and_outlive_the_arena() {
        for mut arena in [Arena::exact(), Arena { chunk: 256, ..Arena::default() }] {
            let bytes: Vec<Array<u8>> =
                (0..9).map(|at| arena.place(&vec![at; 50 * usize::from(at)]).unwrap()).collect();
            let words = arena.place(&[1.5_f32; 1000]).unwrap();
            drop(arena);
            for (at, array) in bytes.iter().enumerate() {
                assert_eq!(array[..], vec![at as u8; 50 * at]);
                assert!(array.as_ptr().addr().is_multiple_of(ALIGN));
            }
            assert_eq!(words[..], [1.5; 1000]);
        }
    }
}
