//! Programs in C that call the library, rightly and wrongly, plain and with sanitizers.

use std::path::Path;
use std::process::Command;

use super::build::{SANITIZED, program, run};
use super::parse::{Function, header, text};

fn both(name: &str, args: &[&str]) {
    let source = format!("{name}.c");
    for (kind, flags) in [("plain", &[][..]), ("sanitized", &SANITIZED)] {
        let program = program(&format!("{name}_{kind}"), Path::new(&source), flags);
        let output = run(Command::new(program).args(args));
        print!("{kind}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// The tables of faults.
const TABLES: [(&str, &str); 5] = [
    ("faults", include_str!("faults.c")),
    ("faults_cache", include_str!("faults_cache.c")),
    ("faults_device", include_str!("faults_device.c")),
    ("faults_attention", include_str!("faults_attention.c")),
    ("faults_append", include_str!("faults_append.c")),
];

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    for (table, _) in TABLES {
        both(table, &[]);
    }
}

/// Plain: sanitizers take more address space than there is.
#[test]
fn too_much_memory_is_a_status() {
    let program = program("faults_memory", Path::new("faults_memory.c"), &[]);
    run(&mut Command::new(program));
}

#[test]
fn eight_threads_submit_and_cancel_while_one_steps() {
    both("threads", &["4000"]);
}

#[test]
fn views_are_what_the_header_says() {
    both("views", &[]);
}

#[test]
fn no_thread_outlives_its_device() {
    both("device", &[]);
}

/// Plain: sanitizers have locks of their own, which a child inherits as they are.
#[test]
fn children_refuse_what_their_parent_made_and_make_their_own() {
    let program = program("fork", Path::new("fork.c"), &[]);
    let output = run(Command::new(program).arg("20"));
    print!("{}", String::from_utf8_lossy(&output.stdout));
    // All functions that there are.
    let (header, program) = (header(&text()), include_str!("fork.c"));
    let has_handle = |f: &&Function| {
        let is_one =
            |of: &str| header.opaque.iter().any(|handle| of.contains(&format!("{handle} ")));
        f.params.iter().any(|param| is_one(&param.of) && !param.of.ends_with("**"))
    };
    for function in header.functions.iter().filter(has_handle) {
        let frees = function.name.ends_with("_free");
        assert_eq!(frees, function.returns == "void", "{}: say what a child gets", function.name);
        let wanted = format!("FORKED({}(", function.name);
        assert!(frees || program.contains(&wanted), "fork.c does not call {}", function.name);
    }
}

#[test]
fn reserved_fields_are_refused_when_they_are_not_0() {
    both("reserved", &[]);
    // All structs that a caller fills in: those that a function or another struct reads.
    let (header, program) = (header(&text()), include_str!("reserved.c"));
    let params = header.functions.iter().flat_map(|function| &function.params);
    let given = header.structs.iter().filter(|(name, _)| !name.ends_with("_view"));
    let fields = given.flat_map(|(_, fields)| fields);
    let read: Vec<&str> = params.chain(fields).map(|variable| &*variable.of).collect();
    for (name, fields) in &header.structs {
        let reads = |of: &&str| {
            **of == format!("const struct {name} *") || **of == format!("struct {name}")
        };
        if fields.iter().any(|field| field.name == "reserved") && read.iter().any(reads) {
            assert!(program.contains(&format!("RESERVED({name}, ")), "{name}");
        }
    }
}

#[test]
fn a_step_from_the_scheduler_to_attention() {
    for (kind, flags) in [("plain", &[][..]), ("sanitized", &SANITIZED)] {
        let program = program(&format!("attention_{kind}"), Path::new("attention.c"), flags);
        let output = run(&mut Command::new(program));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "12 rows\n", "{kind}");
    }
}

#[test]
fn a_step_allocates_nothing() {
    let program = program("steps", Path::new("steps.c"), &["-DCOUNT_ALLOCATIONS"]);
    let output = run(&mut Command::new(program));
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn every_function_has_a_table_of_faults() {
    let fails = |f: &&Function| f.returns == "inflight_status";
    let tabled = |f: &&Function| {
        let call = format!("{}(", f.name);
        // A call of a table ends with `error`: others have `NULL` or a detail of their own.
        let is_row = |rest: &str| {
            let end = rest.find(';').unwrap_or(rest.len());
            rest[..end].contains("error)")
        };
        TABLES.iter().any(|(_, table)| table.split(&call).skip(1).any(is_row))
    };
    let header = header(&text());
    let without = header.functions.iter().filter(fails).filter(|f| !tabled(f));
    let without: Vec<_> = without.map(|f| &f.name).collect();
    assert!(without.is_empty(), "no table of faults has {without:?}");
}
