//! Rules of the header that hold for every function of it, also for those still to come: a program
//! is made from its declarations.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use super::build::{SANITIZED, program, run, scratch};
use super::parse::{Function, Header, header, text};

const PRELUDE: &str = r#"#include "check.h"

/* No alignment of more than a byte. */
static _Alignas(64) unsigned char memory[1 << 14];
#define ODD(type) ((type)(void *)(memory + 1))

static void refused(const char *function, const char *params, inflight_status status,
                    const inflight_error *error) {
    int is_argument = status >= 100 && status < 200;
    char field[80];
    snprintf(field, sizeof field, " %.*s ", (int)strcspn(error->field, "."), error->field);
    if (!is_argument || error->code != status || error->message[0] == 0 || field[1] == ' ' ||
        strstr(params, field) == NULL) {
        fprintf(stderr, "%s: status %d, code %d, field '%s', message '%s'\n", function, status,
                error->code, error->field, error->message);
        exit(EXIT_FAILURE);
    }
}

/* An initialiser writes as many bytes as it is told, the size first and zeros past what it knows. */
static void initialises(void (*init)(void *, size_t), size_t size) {
    unsigned char first[1 << 10], again[1 << 14];
    CHECK(size < sizeof first);
    init(NULL, size);
    size_t wrong[] = {0, 1, sizeof(size_t) - 1, SIZE_MAX, (size_t)1 << 40};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memset(again, 0xa5, sizeof again);
        init(again, wrong[i]);
        for (size_t at = 0; at < sizeof again; at++) {
            CHECK(again[at] == 0xa5);
        }
    }
    memset(first, 0, sizeof first);
    init(first, size);
    for (size_t newer = size; newer <= size + 256; newer += 8) {
        memset(again, 0xa5, sizeof again);
        init(again, newer);
        size_t told;
        memcpy(&told, again, sizeof told);
        CHECK(told == newer);
        CHECK(memcmp(first + sizeof told, again + sizeof told, size - sizeof told) == 0);
        for (size_t at = size; at < newer; at++) {
            CHECK(again[at] == 0);
        }
        CHECK(again[newer] == 0xa5);
    }
}
"#;

fn is_error(of: &str) -> bool {
    of == "struct inflight_error *"
}

/// The statements that call a function that can fail, with arguments it has to refuse.
fn refusals(function: &Function) -> String {
    let name = &function.name;
    let names: Vec<&str> = function.params.iter().map(|param| param.name.as_str()).collect();
    let names = format!("\" {} \"", names.join(" "));
    let args = |pointer: &dyn Fn(&str) -> String, error: &str| {
        let arg = |param: &super::parse::Variable| match &*param.of {
            of if is_error(of) => error.to_owned(),
            of if of.contains('*') => pointer(of),
            _ => "0".to_owned(),
        };
        function.params.iter().map(arg).collect::<Vec<_>>().join(", ")
    };
    let null = |_: &str| "NULL".to_owned();
    let odd = |of: &str| match of.contains("void") || of.contains("char") || of.contains("uint8") {
        true => "NULL".to_owned(),
        false => format!("ODD({of})"),
    };
    let mut c = String::new();
    for (what, pointer) in [("NULL", &null as &dyn Fn(&str) -> String), ("odd", &odd)] {
        let (with, without) = (args(pointer, "&error"), args(pointer, "NULL"));
        writeln!(c, "    error = new_error(); /* {what} */").expect("a String takes all");
        writeln!(c, "    status = {name}({with});").expect("a String takes all");
        writeln!(c, "    refused(\"{name}\", {names}, status, &error);").expect("takes all");
        writeln!(c, "    CHECK({name}({without}) == status);").expect("a String takes all");
    }
    let odd_error = args(&null, "ODD(struct inflight_error *)");
    writeln!(c, "    CHECK({name}({odd_error}) == INFLIGHT_STATUS_INVALID_ARGUMENT);")
        .expect("a String takes all");
    let sized = args(&null, "&error");
    for size in ["0", "sizeof error - 1", "SIZE_MAX"] {
        writeln!(c, "    error.struct_size = {size};").expect("a String takes all");
        writeln!(c, "    CHECK({name}({sized}) == INFLIGHT_STATUS_STRUCT_SIZE);")
            .expect("a String takes all");
    }
    c
}

/// The struct that a function initialises, if that is what it does.
pub(super) fn initialised(function: &Function) -> Option<&str> {
    match &function.params[..] {
        [to, size] if function.returns == "void" && size.of == "size_t" => {
            Some(to.of.strip_prefix("struct ")?.trim_end_matches([' ', '*']))
        }
        _ => None,
    }
}

fn generate(header: &Header) -> String {
    let (mut adapters, mut calls) = (String::new(), String::new());
    for function in &header.functions {
        let name = &function.name;
        let pointers = function.params.iter().filter(|p| p.of.contains('*') && !is_error(&p.of));
        if function.returns == "inflight_status" {
            let last = function.params.last().unwrap_or_else(|| panic!("{name} takes no error"));
            assert!(is_error(&last.of), "{name} takes no error last");
            if pointers.count() > 0 {
                calls.push_str(&refusals(function));
            }
        } else if let Some(of) = initialised(function) {
            writeln!(
                adapters,
                "static void adapt_{name}(void *to, size_t size) {{\n    {name}(to, size);\n}}"
            )
            .expect("a String takes all");
            writeln!(calls, "    initialises(adapt_{name}, sizeof({of}));").expect("takes all");
        } else if name.ends_with("_free") {
            writeln!(calls, "    {name}(NULL);").expect("a String takes all");
        }
    }
    format!(
        "{PRELUDE}\n{adapters}\nint main(void) {{\n    inflight_status status;\n    inflight_error \
         error = new_error();\n{calls}    return status == 0;\n}}\n"
    )
}

#[test]
fn every_function_refuses_null_misaligned_and_missized_pointers() {
    let source = scratch("generic").join("generic.c");
    fs::write(&source, generate(&header(&text()))).expect("the target directory is writable");
    run(&mut Command::new(program("generic", &source, &SANITIZED)));
}

#[test]
fn every_struct_with_a_size_has_an_initialiser() {
    let header = header(&text());
    for (name, fields) in &header.structs {
        let sized = fields.first().is_some_and(|field| field.name == "struct_size");
        let count = header.functions.iter().filter(|f| initialised(f) == Some(name)).count();
        assert_eq!(count, usize::from(sized), "{name}");
    }
}

#[test]
fn every_handle_can_be_freed_and_every_create_takes_its_out() {
    let header = header(&text());
    let has = |name: String| header.functions.iter().any(|function| function.name == name);
    for handle in &header.opaque {
        assert!(has(format!("{handle}_free")), "{handle} cannot be freed");
    }
    for function in header.functions.iter().filter(|f| f.name.ends_with("_create")) {
        let out = function.params.iter().any(|param| param.of.ends_with("**"));
        assert!(out && function.returns == "inflight_status", "{}", function.name);
    }
}
