//! Frequencies of rotary embeddings against those of Hugging Face transformers 5.23.

use inflight::Error;
use inflight::kernels::rope::{RopeConfig, RopeScaling};

/// A configuration, its attention factor, and the frequencies of some pairs, computed with the
/// functions of `modeling_rope_utils` in f64.
type Reference = (RopeConfig, f64, [(usize, f64); 6]);

fn config(rotary_dim: usize, theta: f32, scaling: RopeScaling) -> RopeConfig {
    RopeConfig { rotary_dim, theta, scaling }
}

fn yarn(factor: f32, original_max_position: u32) -> RopeScaling {
    RopeScaling::Yarn {
        factor,
        original_max_position,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    }
}

fn llama3(factor: f32) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    }
}

#[rustfmt::skip]
fn references() -> Vec<Reference> {
    let mut deepseek = yarn(40.0, 4096);
    if let RopeScaling::Yarn { mscale, mscale_all_dim, .. } = &mut deepseek {
        (*mscale, *mscale_all_dim) = (Some(0.707), Some(1.0));
    }
    let mut gpt_oss = yarn(32.0, 4096);
    if let RopeScaling::Yarn { truncate, .. } = &mut gpt_oss {
        *truncate = false;
    }
    let dynamic = RopeScaling::DynamicNtk { factor: 2.0, max_position: 4096 };
    vec![
        (config(64, 500_000.0, RopeScaling::None), 1.0,
         [(0, 1.0), (1, 6.636012377e-01), (8, 3.760603093e-02), (10, 1.656044008e-02), (16, 1.414213562e-03), (31, 3.013858152e-06)]),
        (config(128, 10_000.0, RopeScaling::Linear { factor: 4.0 }), 1.0,
         [(0, 0.25), (1, 2.164910808e-01), (21, 1.217418813e-02), (32, 2.5e-03), (42, 5.928434264e-04), (63, 2.886954962e-05)]),
        (config(96, 10_000.0, RopeScaling::Ntk { factor: 8.0 }), 1.0,
         [(0, 1.0), (1, 7.896815405e-01), (12, 5.880629702e-02), (16, 2.286818924e-02), (32, 5.229540792e-04), (47, 1.514409573e-05)]),
        (config(128, 10_000.0, dynamic), 1.0,
         [(0, 1.0), (1, 8.659643234e-01), (16, 0.1), (21, 4.869675252e-02), (42, 2.371373706e-03), (63, 1.154781985e-04)]),
        // Qwen 2.5
        (config(128, 1_000_000.0, yarn(4.0, 32768)), 1.138629436111989,
         [(0, 1.0), (1, 8.058421878e-01), (21, 1.074607828e-02), (32, 6.029411765e-04), (42, 2.886954962e-05), (63, 3.102344402e-07)]),
        // DeepSeek V2
        (config(64, 10_000.0, deepseek), 0.9210423553163399,
         [(0, 1.0), (1, 7.498942093e-01), (10, 5.623413252e-02), (16, 5.5e-03), (21, 4.149903985e-04), (31, 3.333803580e-06)]),
        (config(64, 150_000.0, gpt_oss), 1.3465735902799727,
         [(0, 1.0), (1, 6.890443059e-01), (8, 5.081327482e-02), (10, 1.933500113e-02), (21, 1.253256982e-05), (31, 3.023511428e-07)]),
        // Llama 3.1
        (config(128, 500_000.0, llama3(8.0)), 1.0,
         [(0, 1.0), (1, 8.146172339e-01), (21, 1.349041989e-02), (32, 5.248461610e-04), (42, 2.274892860e-05), (63, 3.068925989e-07)]),
        // Llama 3.2
        (config(64, 500_000.0, llama3(32.0)), 1.0,
         [(0, 1.0), (1, 6.636012377e-01), (10, 1.656044008e-02), (16, 4.295567966e-04), (21, 5.687232150e-06), (31, 9.418306725e-08)]),
    ]
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * b.abs()
}

#[test]
fn frequencies_are_those_of_published_models() {
    for (config, factor, frequencies) in references() {
        let inv_freq = config.inv_freq().unwrap();
        assert_eq!(inv_freq.len(), config.rotary_dim / 2);
        for (pair, frequency) in frequencies {
            let got = f64::from(inv_freq[pair]);
            assert!(near(got, frequency, 2e-7), "{config:?}: pair {pair}: {got}, not {frequency}");
        }
        let got = f64::from(config.attention_factor().unwrap());
        assert!(near(got, factor, 1e-7), "{config:?}: attention factor {got}, not {factor}");
    }
}

#[test]
fn dynamic_frequencies_follow_the_length_of_the_table() {
    let scaling = RopeScaling::DynamicNtk { factor: 2.0, max_position: 64 };
    let config = config(128, 10_000.0, scaling);
    let plain = RopeConfig { scaling: RopeScaling::None, ..config };
    assert_eq!(config.table(64).unwrap(), plain.table(64).unwrap());
    let table = config.table(512).unwrap();
    let reference = [(0, 1.0), (1, 8.295295948e-01), (21, 1.974556569e-02), (63, 7.698546565e-06)];
    for (pair, frequency) in reference {
        // At position 1 the angle is the frequency.
        let got = f64::from(table[128 + 64 + pair]).asin();
        assert!(near(got, frequency, 1e-6), "pair {pair}: {got}, not {frequency}");
    }
}

#[test]
fn tables_are_cosines_and_sines_times_the_attention_factor() {
    for (config, factor, frequencies) in references() {
        let (dim, positions) = (config.rotary_dim, 1000);
        let table = config.table(positions).unwrap();
        assert_eq!(table.len(), positions * dim);
        for position in [0, 1, 7, 999] {
            for (pair, frequency) in frequencies {
                let angle = position as f64 * frequency;
                let row = &table[position * dim..];
                let (cos, sin) = (f64::from(row[pair]), f64::from(row[dim / 2 + pair]));
                // The references have ten digits.
                assert!((cos - angle.cos() * factor).abs() < 1e-6, "{config:?} {position} {pair}");
                assert!((sin - angle.sin() * factor).abs() < 1e-6, "{config:?} {position} {pair}");
            }
        }
    }
    assert!(RopeConfig::new(64, 10_000.0).table(0).unwrap().is_empty());
}

#[test]
fn bad_fields_are_named() {
    let plain = RopeConfig::new(64, 10_000.0);
    let with = |scaling| RopeConfig { scaling, ..plain };
    let yarn_with = |change: fn(&mut [f32; 6])| {
        // factor, beta_fast, beta_slow, attention factor, mscale, mscale_all_dim
        let mut numbers = [4.0, 32.0, 1.0, 1.0, 1.0, 1.0];
        change(&mut numbers);
        let [factor, beta_fast, beta_slow, attention, mscale, all] = numbers;
        with(RopeScaling::Yarn {
            factor,
            original_max_position: 4096,
            beta_fast,
            beta_slow,
            attention_factor: Some(attention),
            mscale: Some(mscale),
            mscale_all_dim: Some(all),
            truncate: true,
        })
    };
    let llama = |factor, low_freq_factor, high_freq_factor, original_max_position| {
        with(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position,
        })
    };
    let cases = [
        ("rotary_dim", RopeConfig { rotary_dim: 0, ..plain }),
        ("rotary_dim", RopeConfig { rotary_dim: 63, ..plain }),
        ("rotary_dim", RopeConfig { rotary_dim: 258, ..plain }),
        ("theta", RopeConfig { theta: 1.0, ..plain }),
        ("theta", RopeConfig { theta: f32::NAN, ..plain }),
        ("theta", RopeConfig { theta: f32::INFINITY, ..plain }),
        ("factor", with(RopeScaling::Linear { factor: 0.0 })),
        ("factor", with(RopeScaling::Linear { factor: f32::INFINITY })),
        ("factor", with(RopeScaling::Ntk { factor: 0.5 })),
        ("rotary_dim", RopeConfig { rotary_dim: 2, ..with(RopeScaling::Ntk { factor: 2.0 }) }),
        ("factor", with(RopeScaling::DynamicNtk { factor: f32::NAN, max_position: 10 })),
        ("max_position", with(RopeScaling::DynamicNtk { factor: 2.0, max_position: 0 })),
        ("factor", yarn_with(|n| n[0] = -1.0)),
        ("beta_fast", yarn_with(|n| n[1] = 0.5)),
        ("beta_slow", yarn_with(|n| n[2] = 0.0)),
        ("attention_factor", yarn_with(|n| n[3] = 0.0)),
        ("mscale", yarn_with(|n| n[4] = f32::NAN)),
        ("mscale_all_dim", yarn_with(|n| n[5] = -1.0)),
        ("original_max_position", with(yarn(4.0, 0))),
        ("factor", llama(0.9, 1.0, 4.0, 8192)),
        ("low_freq_factor", llama(8.0, 0.0, 4.0, 8192)),
        ("high_freq_factor", llama(8.0, 4.0, 4.0, 8192)),
        ("original_max_position", llama(8.0, 1.0, 4.0, 0)),
    ];
    for (name, config) in cases {
        for result in [
            config.check(),
            config.inv_freq().map(drop),
            config.table(4).map(drop),
            config.attention_factor().map(drop),
        ] {
            match result {
                Err(Error::InvalidArgument { field, .. }) => assert_eq!(field, name, "{config:?}"),
                other => panic!("{config:?}: {other:?}"),
            }
        }
    }
    for positions in [usize::MAX, usize::MAX / 256] {
        let result = plain.table(positions);
        let named = matches!(&result, Err(Error::InvalidArgument { field: "max_positions", .. }));
        assert!(named, "{result:?}");
    }
}
