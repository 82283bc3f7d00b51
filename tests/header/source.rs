//! The sources of the ABI as cbindgen can read them: it looks into no macro, so each `versioned!` of
//! `src/capi` becomes the declaration that it makes.

/// What a `versioned!` says.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// "inflight_request".
    pub(crate) of: String,
    /// Fields whose default is not 0, and the default in Rust.
    pub(crate) defaults: Vec<(String, String)>,
}

/// The source with declarations in place of macros, which are told to `found`.
pub(crate) fn expand(source: &str, found: &mut Vec<Prepared>) -> String {
    let mut parts = source.split("\nversioned! {\n");
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (body, rest) = part.split_once("\n}\n").expect("the macro is closed");
        let (init, body) = body.trim().split_once('(').expect("a parameter follows");
        let (to, body) = body.split_once(": ").expect("a type follows");
        let (of, body) = body.split_once(" ..= ").expect("the last field follows");
        let values = body.split_once('{').and_then(|(_, values)| values.rsplit_once('}'));
        let (values, _) = values.expect("defaults follow");
        let values = values.split(',').filter_map(|value| value.trim().split_once(": "));
        let defaults = values.map(|(field, value)| (field.to_owned(), value.to_owned())).collect();
        found.push(Prepared { of: of.to_owned(), defaults });
        expanded.push_str(&format!(
            "\n/// Prepares an `{of}`: size set, defaults in all other fields,\n/// 0 where a field says \
             none.\n///\n/// `size` is `sizeof({of})`. NULL does nothing.\n///\n/// Threads: any. Since \
             0.1.\n#[unsafe(no_mangle)]\npub unsafe extern \"C\" fn {init}({to}: *mut {of}, size: \
             usize) {{}}\n{rest}"
        ));
    }
    expanded
}

#[test]
fn a_macro_becomes_the_function_that_it_makes() {
    let source = "struct a;\n\nversioned! {\n    a_init(to: a ..= c) where reserved is 0 {\n        b: \
                  1,\n        c: X,\n    }\n}\n\nstruct d;\n";
    let mut found = Vec::new();
    let expanded = expand(source, &mut found);
    assert!(expanded.starts_with("struct a;\n\n/// Prepares an `a`: "), "{expanded}");
    let declared = "\npub unsafe extern \"C\" fn a_init(to: *mut a, size: usize) {}\n\nstruct d;\n";
    assert!(expanded.ends_with(declared), "{expanded}");
    assert_eq!(found[0].of, "a");
    let defaults = [("b", "1"), ("c", "X")].map(|(of, is)| (of.to_owned(), is.to_owned()));
    assert_eq!(found[0].defaults, defaults);
}
