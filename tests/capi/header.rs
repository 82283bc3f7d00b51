//! The header by itself, and against what the library exports.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::build::{SANITIZED, STRICT, compiler, library_dir, program, root, run, scratch};
use super::parse::{code, header, text};

#[test]
fn compiles_alone_and_twice_in_every_language() {
    let dir = scratch("header");
    // Only what the header itself includes, and itself again; two such files in one program.
    let unit = "#include <inflight.h>\n#include \"inflight.h\"\n";
    for (variable, standard, extension) in [
        ("CC", "c99", "c"),
        ("CC", "c11", "c"),
        ("CC", "c17", "c"),
        ("CXX", "c++17", "cc"),
        ("CXX", "c++20", "cc"),
    ] {
        let name = standard.replace('+', "p");
        let sources = ["a", "b"].map(|part| dir.join(format!("{name}_{part}.{extension}")));
        for (source, function) in sources.iter().zip(["int other(void);", "int main(void) "]) {
            let body = match function.ends_with(' ') {
                true => "int other(void);\nint main(void) { return other(); }\n",
                false => {
                    "int other(void);\nint other(void) {\n    return \
                          inflight_version_number() != INFLIGHT_VERSION_NUMBER;\n}\n"
                }
            };
            fs::write(source, format!("{unit}{body}")).expect("the target directory is writable");
        }
        let library = library_dir();
        let mut compile = compiler(variable);
        compile.arg(format!("-std={standard}")).args(STRICT).args(&sources);
        compile.arg("-L").arg(&library).arg("-linflight").arg("-o").arg(dir.join(&name));
        run(compile.arg(format!("-Wl,-rpath,{}", library.display())));
        run(&mut Command::new(dir.join(&name)));
    }
}

/// What the examples of the header and of the guide call, for one request that is served.
const SERVER: &str = r#"
#include "check.h"
enum { MOST = 2 };
#define check(call) CHECK((call) == INFLIGHT_STATUS_OK)
static uint64_t clock_now;
static uint32_t delivered, waited, finished;
static uint64_t now(void) { return clock_now++; }
static int serving(void) { return waited == 0; }
static void wait_for_requests(void) { waited++; }
static void run_model(const inflight_step_view *step, uint32_t *sampled) {
    memset(sampled, 0, step->num_sampling * sizeof *sampled);
}
static void deliver(const inflight_outputs_view *outputs) { delivered += outputs->num_tokens; }
static inline void tell(const inflight_event *events, size_t n) {
    for (size_t i = 0; i < n; i++) {
        finished += events[i].kind == INFLIGHT_EVENT_FINISHED;
    }
}
int main(void) {
    static const uint32_t prompt[] = {1, 2, 3};
    static uint32_t sampled[8];
"#;

/// Runs an example: one request of 5 tokens is served, and the events are as many as it takes.
fn serves(name: &str, before: &str, example: &str, finished: u32) {
    let after = format!("CHECK(delivered == 5 && waited == 1 && finished == {finished});");
    let program_text = format!("{SERVER}{before}\n{example}\n{after}\nreturn 0;\n}}\n");
    let source = scratch("header").join(format!("{name}.c"));
    fs::write(&source, program_text).expect("the target directory is writable");
    run(&mut Command::new(program(name, &source, &SANITIZED)));
}

#[test]
fn the_loops_that_readers_copy_serve_a_request() {
    let header = text();
    let lines = header.lines().skip_while(|line| !line.starts_with(" *     "));
    let lines = lines.map_while(|line| line.strip_prefix(" *     "));
    let before = "inflight_request request = new_request(1, prompt, 3, 5);";
    serves("header_loop", before, &lines.collect::<Vec<_>>().join("\n"), 0);

    let guide = fs::read_to_string(root().join("docs/c-abi.md")).expect("the guide is there");
    let (_, rest) = guide.split_once("```c\n").expect("it has an example");
    let (example, _) = rest.split_once("```").expect("it ends");
    let before = "inflight_error error = new_error();
        inflight_event events[MOST];
        size_t num_events;
        inflight_scheduler_config config = new_config(64);
        inflight_scheduler *scheduler = new_scheduler(&config);
        inflight_submitter_free(new_submitter(scheduler));
        const size_t prompt_len = 3;";
    let example = format!("{example}inflight_scheduler_free(scheduler);");
    serves("guide_loop", before, &example, 1);
}

#[test]
fn is_mostly_manual() {
    let text = text();
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    let code = code(&text).lines().filter(|line| !line.trim().is_empty()).count();
    let share = 100 * (lines - code) / lines;
    println!("{lines} lines, {share} % of them comment");
    assert!(share > 55, "{share} % of the header are comment");
}

#[test]
fn versions_are_those_of_the_library() {
    let source = scratch("header").join("version.c");
    let body = r#"
        #include <inflight.h>
        #include <stdio.h>
        #include <string.h>
        int main(void) {
            char text[32];
            snprintf(text, sizeof text, "%d.%d.%d", INFLIGHT_VERSION_MAJOR, INFLIGHT_VERSION_MINOR,
                     INFLIGHT_VERSION_PATCH);
            uint32_t packed = INFLIGHT_VERSION_MAJOR * 1000000u + INFLIGHT_VERSION_MINOR * 1000u +
                              INFLIGHT_VERSION_PATCH;
            puts(text);
            return strcmp(text, inflight_version_string()) != 0 ||
                   packed != INFLIGHT_VERSION_NUMBER || packed != inflight_version_number() ||
                   inflight_abi_version() != INFLIGHT_ABI_VERSION;
        }"#;
    fs::write(&source, body).expect("the target directory is writable");
    let output = run(&mut Command::new(program("version", &source, &[])));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_library_exports_the_functions_of_the_header_and_nothing_else() {
    let header = header(&text());
    let declared: BTreeSet<&str> = header.functions.iter().map(|f| f.name.as_str()).collect();
    let library = library_dir().join("libinflight.so");
    let listed = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library)).stdout;
    let listed = String::from_utf8(listed).expect("names are ASCII");
    let exported: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    println!("{} functions", declared.len());
    assert_eq!(exported, declared);
}
