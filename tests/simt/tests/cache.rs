//! The numbers of the cache's kernels: every f16 and bf16 to e4m3, quotients by a scale against
//! division, random appends, copies and merges against plain definitions (`checks/cache.cpp`).

use std::process::Command;

#[test]
fn kernels_of_the_cache_against_plain_definitions() {
    let Some(program) = option_env!("SIMT_CHECK_CACHE") else {
        return println!("skipped: {}", env!("SIMT_NOT_BUILT"));
    };
    for seed in ["1", "2"] {
        // Every 64th mantissa of a scale; `check-cache 1 0 1` tries all of them, in 11 s.
        let ran = Command::new(program).args([seed, "60", "64"]).output().expect("it runs");
        let said = String::from_utf8_lossy(&ran.stdout);
        let failed = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{said}{failed}");
        print!("{said}");
    }
}
