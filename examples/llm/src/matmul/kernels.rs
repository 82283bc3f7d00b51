//! What an instruction set has to provide, and the choice among them.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
use super::input::Block;
use super::pack::{LANES, Panel, Q4, Q8};
use super::portable::Portable;

/// Products of one panel. `T` tokens share each weight that is read.
pub(super) trait Kernels: Copy + Sync {
    /// Rounds a row of activations; `x` may end within a block, which zeros then fill.
    fn round(self, x: &[f32], out: &mut [Block]);

    /// `out[token][lane]` of tokens whose blocks stand one after the other in `x`.
    fn q4<const T: usize>(self, w: Q4<'_>, x: &[Block], out: &mut [[f32; LANES]; T]);
    fn q8<const T: usize>(self, w: Q8<'_>, x: &[Block], out: &mut [[f32; LANES]; T]);

    /// The weights of a panel, dequantised exactly, `[column][lane]`.
    fn expand(self, w: Panel<'_>, out: &mut [[f32; LANES]]);

    /// Products in f32. Columns are summed in four strands, column `4 * i + j` to strand `j`, and
    /// the strands in their order; `J` strands run at once, which changes no result.
    fn f32<const T: usize, const J: usize>(
        self,
        w: &[[f32; LANES]],
        x: &[f32],
        out: &mut [[f32; LANES]; T],
    );

    /// `expand` and `f32` for a few tokens, which a kernel may join; `scratch` has the panel's
    /// columns.
    fn few<const T: usize>(
        self,
        w: Panel<'_>,
        scratch: &mut [[f32; LANES]],
        x: &[f32],
        out: &mut [[f32; LANES]; T],
    ) {
        self.expand(w, scratch);
        self.f32::<T, 4>(scratch, x, out);
    }
}

#[derive(Clone, Copy)]
pub(super) enum Isa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

impl Isa {
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Portable(Portable)
    }
}
