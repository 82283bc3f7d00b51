//! What kernels of `arch_micro.cu` and `arch_hopper.cu` gave on a GPU: recorded there, compared with
//! the emulator everywhere. A line per launch: `KERNEL THREADS in WORDS out WORDS`, in hexadecimal.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;

use super::from_bf16;

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kernel: String,
    pub(crate) threads: u32,
    pub(crate) input: Vec<u32>,
    pub(crate) out: Vec<u32>,
}

impl Entry {
    pub(crate) fn line(&self) -> String {
        let words = |words: &[u32]| {
            words.iter().map(|word| format!("{word:08x}")).collect::<Vec<_>>().join(" ")
        };
        let Self { kernel, threads, input, out } = self;
        format!("{kernel} {threads} in {} out {}", words(input), words(out))
    }

    fn of(line: &str) -> Option<Self> {
        let (head, out) = line.split_once(" out ")?;
        let (head, input) = head.split_once(" in ")?;
        let (kernel, threads) = head.split_once(' ')?;
        let words = |text: &str| -> Option<Vec<u32>> {
            text.split_whitespace().map(|word| u32::from_str_radix(word, 16).ok()).collect()
        };
        let (input, out) = (words(input)?, words(out)?);
        Some(Self { kernel: kernel.to_owned(), threads: threads.parse().ok()?, input, out })
    }

    /// Adds it to the file that `INFLIGHT_ARCH_RECORD` names, if there is one.
    pub(crate) fn write(&self) {
        if let Some(path) = std::env::var_os("INFLIGHT_ARCH_RECORD") {
            let mut file =
                std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            writeln!(file, "{}", self.line()).unwrap();
        }
    }
}

/// The records of all GPUs there are.
pub(crate) fn committed() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/record");
    let folders = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = folders.map(|entry| entry.path().join("arch.txt")).collect();
    files.retain(|file| file.exists());
    files.sort();
    files
}

/// How a word may differ from what was recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Not at all.
    Bits,
    /// As f32, two f16 or two bf16: any NaN is as good as another.
    F32,
    F16s,
    Bf16s,
    /// f32 within a part of the value, or, where that is more, of this much.
    Near {
        relative: f64,
        least: f64,
    },
    /// A sum of 17 terms that tensor cores truncate: see [`Product`].
    Product {
        bf16: bool,
    },
    /// f32 within this much.
    Within(f64),
}

/// PTX: the largest relative error of `ex2.approx.ftz` is 2^-22, that of `rcp` 1 in the last place,
/// that of `lg2` 2^-22, of the value from 0.5 to 2 (where that is less than 1); and the host's
/// own functions are off by a last place.
const ULP: f64 = 1.0 / (1 << 23) as f64;
const EX2: Rule = Rule::Near { relative: 3.0 * ULP, least: 0.0 };
const LG2: Rule = Rule::Near { relative: 3.0 * ULP, least: 3.0 * ULP };
const RCP: Rule = Rule::Near { relative: 2.0 * ULP, least: 0.0 };
/// Terms of at most 1, two products of 16 or 32 of them.
const WGMMA: Rule = Rule::Within(33.0 * 4.0 * ULP);

/// The rule of each of the words that a kernel gives; `None` for a kernel that is not known.
pub(crate) fn rules(kernel: &str) -> Option<Vec<(Range<usize>, Rule)>> {
    use Rule::{Bf16s, Bits, F16s, F32};
    let slots = |of: usize, rules: &[Rule]| {
        rules.iter().enumerate().map(|(n, rule)| (of * n..of * (n + 1), *rule)).collect()
    };
    Some(match kernel {
        "arch_copies" => slots(512, &[Bits]),
        "arch_barriers" | "arch_groups" | "arch_ldmatrix" | "arch_ldmatrix_trans" => {
            slots(128, &[Bits])
        }
        "arch_mma_bf16" => slots(128, &[Rule::Product { bf16: true }]),
        "arch_mma_f16" => slots(128, &[Rule::Product { bf16: false }]),
        "arch_shuffles" => slots(224, &[Bits]),
        "arch_numbers" => {
            slots(64, &[EX2, LG2, RCP, F32, F32, F32, Bf16s, F16s, F32, F32, F16s, F32, Bits])
        }
        // f32 arithmetic and what narrows it: their NaN is one and the same, and goes to caches.
        "arch_edges" => {
            slots(64, &[EX2, LG2, RCP, Bits, Bits, Bits, Bits, Bits, Bits, F32, F32, F32])
        }
        "arch_pairs" => slots(64, &[F16s, F16s, Bf16s, Bits, Bits, Bits]),
        "arch_bytes" => {
            let mut rules: Vec<_> = slots(64, &[Bits, F16s, F16s]);
            rules.push((192..193, Bits));
            rules
        }
        "arch_widths" => slots(704, &[Bits]),
        "arch_lanes" => slots(32 * 42, &[Bits]),
        "arch_hopper_copies" => slots(2048, &[Bits]),
        "arch_hopper_matrices" => slots(128, &[Bits]),
        "arch_hopper_atomics" => slots(387, &[Bits]),
        "arch_hopper_products" => slots(2 * 128 * 96, &[WGMMA]),
        _ => return None,
    })
}

impl Rule {
    fn allows(self, recorded: u32, got: u32, product: Option<&Product>) -> bool {
        let float = |word: u32| f64::from(f32::from_bits(word));
        let halves = |is_nan: &dyn Fn(u16) -> bool| {
            [0, 16].into_iter().all(|shift| {
                let (a, b) = ((recorded >> shift) as u16, (got >> shift) as u16);
                a == b || (is_nan(a) && is_nan(b))
            })
        };
        let near = |bound: f64| {
            let (a, b) = (float(recorded), float(got));
            // An infinity is near to nothing but itself, though as large a bound as it would allow all.
            let is_near = bound.is_finite() && (a - b).abs() <= bound;
            recorded == got || a == b || (a.is_nan() && b.is_nan()) || is_near
        };
        match self {
            Self::Bits => recorded == got,
            Self::F32 => recorded == got || (float(recorded).is_nan() && float(got).is_nan()),
            Self::F16s => halves(&|x| f16::from_bits(x).is_nan()),
            Self::Bf16s => halves(&|x| from_bf16(x).is_nan()),
            Self::Near { relative, least } => near((relative * float(recorded).abs()).max(least)),
            Self::Product { .. } => near(product.expect("one per word").bound()),
            Self::Within(bound) => near(bound),
        }
    }
}

/// What is unlike in a launch: the kernel, the word, and both values.
pub(crate) fn differences(entry: &Entry, got: &[u32]) -> Vec<String> {
    let Entry { kernel, input, out, .. } = entry;
    let Some(rules) = rules(kernel) else { return vec![format!("{kernel}: no such kernel")] };
    if kernel == "arch_bytes" && out.last() == Some(&0) {
        // A GPU without these instructions.
        return Vec::new();
    }
    let mut unlike = Vec::new();
    for (range, rule) in rules {
        let products = match rule {
            Rule::Product { bf16 } => Product::all(input, bf16),
            _ => Vec::new(),
        };
        for word in range.clone() {
            let (recorded, got) = (out[word], got[word]);
            if !rule.allows(recorded, got, products.get(word - range.start)) {
                unlike.push(format!(
                    "{kernel}, word {word}: {recorded:08x} recorded, {got:08x} now, {rule:?}"
                ));
            }
        }
    }
    unlike
}

/// Launches of a record, each done again by `run`, which leaves out those that are not its own.
pub(crate) fn compare(
    file: &Path,
    mut run: impl FnMut(&Entry) -> Option<Vec<u32>>,
) -> Result<usize, Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|error| vec![error.to_string()])?;
    let (mut compared, mut unlike) = (0, Vec::new());
    for (number, line) in text.lines().enumerate() {
        let at = format!("{}:{}", file.display(), number + 1);
        let Some(entry) = Entry::of(line) else {
            unlike.push(format!("{at}: not `KERNEL THREADS in WORDS out WORDS`"));
            continue;
        };
        // A launch of another form is not to be done.
        let words = rules(&entry.kernel).and_then(|rules| Some(rules.last()?.0.end));
        if words != Some(entry.out.len()) {
            let Entry { kernel, out, .. } = entry;
            unlike.push(format!("{at}: {kernel} of {} words, which gives {words:?}", out.len()));
            continue;
        }
        let Some(got) = run(&entry) else { continue };
        unlike.extend(differences(&entry, &got).into_iter().map(|what| format!("{at}: {what}")));
        compared += entry.out.len();
    }
    if unlike.is_empty() { Ok(compared) } else { Err(unlike) }
}

/// One number of `d = a b + c`, 16 x 16 times 16 x 8, from fragments as PTX has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// To rounding of f64.
    pub(crate) value: f64,
    /// Of all terms, the size of the largest.
    largest: f64,
}

impl Product {
    /// In the order of the result's words.
    pub(crate) fn all(input: &[u32], bf16: bool) -> Vec<Self> {
        let half = |word: u32, i: usize| {
            let bits = (word >> (16 * i)) as u16;
            f64::from(if bf16 { from_bf16(bits) } else { f16::from_bits(bits).to_f32() })
        };
        let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
        for lane in 0..32 {
            let (row, column) = (lane / 4, lane % 4 * 2);
            for i in 0..2 {
                for r in 0..4 {
                    a[row + r % 2 * 8][column + r / 2 * 8 + i] = half(input[4 * lane + r], i);
                }
                for r in 0..2 {
                    b[column + r * 8 + i][row] = half(input[128 + 2 * lane + r], i);
                }
            }
        }
        let number = |word: usize| {
            let (lane, i) = (word / 4, word % 4);
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let mut terms: Vec<f64> = (0..16).map(|k| a[row][k] * b[k][column]).collect();
            terms.push(f64::from(f32::from_bits(input[256 + word])));
            let largest = terms.iter().fold(0.0, |most: f64, term| most.max(term.abs()));
            Self { value: terms.iter().sum(), largest }
        };
        (0..128).map(number).collect()
    }

    /// Tensor cores align 17 terms to the largest and cut them off there, 24 bits or more below its
    /// first; they may do so in two steps. Sums of f32 in the emulator are off by less.
    pub(crate) fn bound(&self) -> f64 {
        2.0 * 17.0 * 2.0 * ULP * self.largest + f64::from(f32::MIN_POSITIVE)
    }
}

/// What GPUs gave is what comes out here: every committed record, launch by launch, of those that `again`
/// runs.
///
/// # Panics
/// Where words differ.
pub(crate) fn check_committed(again: impl Fn(&Entry) -> Option<Vec<u32>>) {
    let files = committed();
    if files.is_empty() {
        println!("skipped: no record of a GPU yet");
    }
    for file in files {
        match compare(&file, &again) {
            Ok(words) => println!("{}: {words} words", file.display()),
            Err(unlike) => panic!("{} words differ: {unlike:#?}", unlike.len()),
        }
    }
}
