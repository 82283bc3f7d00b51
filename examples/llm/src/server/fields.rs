//! The fields of a request. Each is taken by the code that knows it, what is left is unknown, and
//! whatever is wrong is collected, so that one answer names all of it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// Faults that an answer names at most.
const MAX_FAULTS: usize = 64;
/// Characters of a client's name or value that an answer repeats at most.
const MAX_SHOWN: usize = 80;

/// What is wrong with a request: fields by their paths, and why.
#[derive(Debug, Default)]
pub struct Faults {
    all: Vec<(String, String)>,
    more: usize,
}

impl Faults {
    /// Adds one.
    pub fn add(&mut self, param: impl Into<String>, message: impl Into<String>) {
        match self.all.len() < MAX_FAULTS {
            true => self.all.push((param.into(), message.into())),
            false => self.more += 1,
        }
    }

    /// An error that names all fields, where there are any.
    pub fn into_result(self) -> Result<(), ApiError> {
        let Some((first, _)) = self.all.first() else { return Ok(()) };
        let messages = self.all.iter().map(|(param, message)| format!("{param}: {message}"));
        let more = (self.more > 0).then(|| format!("and {} more", self.more));
        let message = messages.chain(more).collect::<Vec<_>>().join("; ");
        Err(ApiError::fields(first, message))
    }
}

/// The fields of an object within a request. Fields that are null are not there.
pub struct Fields<'a> {
    /// Where the object is; empty for the request itself.
    path: String,
    map: Map<String, Value>,
    faults: &'a mut Faults,
}

impl<'a> Fields<'a> {
    /// The fields of a request.
    pub fn new(map: Map<String, Value>, faults: &'a mut Faults) -> Self {
        Self { path: String::new(), map, faults }
    }

    /// Takes a field out.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A field is wrong.
    pub fn fault(&mut self, name: &str, message: impl Into<String>) {
        let param = self.param(name);
        self.faults.add(param, message);
    }

    /// Where a field is.
    fn param(&self, name: &str) -> String {
        let name = shortened(name);
        match self.path.is_empty() {
            true => name,
            false => format!("{}.{name}", self.path),
        }
    }

    /// Takes a field that `read` knows, or `wanted` says what it has to be.
    pub fn read<T>(
        &mut self,
        name: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(name)?;
        let read = read(&value);
        if read.is_none() {
            self.fault(name, format!("{} is not {wanted}", shown(&value)));
        }
        read
    }

    pub fn boolean(&mut self, name: &str) -> Option<bool> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.read(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let wanted = match (*range.start(), *range.end()) {
            (i64::MIN, i64::MAX) => "an integer of 64 bits".to_owned(),
            (least, i64::MAX) => format!("an integer of at least {least}"),
            (least, most) => format!("an integer from {least} to {most}"),
        };
        self.read(name, &wanted, |value| as_integer(value).filter(|number| range.contains(number)))
    }

    pub fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Option<f32> {
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        let number = |value: &Value| value.as_f64().map(|number| number as f32);
        self.read(name, &wanted, |value| number(value).filter(|number| range.contains(number)))
    }

    /// Takes an object out; its fields have paths that begin with its name.
    pub fn object(&mut self, name: &str) -> Option<Fields<'_>> {
        let value = self.take(name)?;
        let path = self.param(name);
        self.nested(path, value)
    }

    /// The fields of a value, which is to be an object.
    pub fn nested(&mut self, path: String, value: Value) -> Option<Fields<'_>> {
        match value {
            Value::Object(map) => Some(Fields { path, map, faults: self.faults }),
            other => {
                self.faults.add(path, format!("{} is not an object", shown(&other)));
                None
            }
        }
    }

    /// Takes a list out, whose items have paths such as `messages[0]`.
    pub fn list(&mut self, name: &str) -> Option<Vec<(String, Value)>> {
        match self.take(name)? {
            Value::Array(items) => Some(self.numbered(name, items)),
            other => {
                self.fault(name, format!("{} is not a list", shown(&other)));
                None
            }
        }
    }

    /// The items of a list that was taken out, with their paths.
    pub fn numbered(&self, name: &str, items: Vec<Value>) -> Vec<(String, Value)> {
        let path = self.param(name);
        let numbered = items.into_iter().enumerate();
        numbered.map(|(number, item)| (format!("{path}[{number}]"), item)).collect()
    }

    /// Refuses a request without this field.
    pub fn require(&mut self, name: &str) {
        if self.map.get(name).is_none_or(Value::is_null) {
            self.fault(name, "is missing");
        }
    }

    /// Everything left.
    pub fn rest(&mut self) -> Map<String, Value> {
        let mut rest = std::mem::take(&mut self.map);
        rest.retain(|_, value| !value.is_null());
        rest
    }

    /// Refuses the fields that are left: a misspelt one would be taken for obeyed.
    pub fn finish(mut self) {
        for (name, _) in self.rest() {
            self.fault(&name, "is not a field that this server knows");
        }
    }
}

/// An integer, also one that is written as 1.0.
pub fn as_integer(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = |number: &f64| number.fract() == 0.0 && number.abs() <= EXACT;
    value.as_i64().or_else(|| value.as_f64().filter(whole).map(|number| number as i64))
}

/// A value as an error repeats it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        other => shortened(&other.to_string()),
    }
}

/// A client's text as an error repeats it.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn all_that_is_wrong_is_named_at_once_by_its_path() {
        let mut faults = Faults::default();
        let request = json!({
            "n": "x", "m": 1.5, "seed": u64::MAX, "top_p": 2, "on": 1, "user": null,
            "options": { "usage": true, "other": 0 }, "list": [{}, 5], "text": ["a"], "mistake": {},
        });
        let mut fields = Fields::new(object(request), &mut faults);
        assert_eq!(fields.integer("n", 1..=5), None);
        assert_eq!(fields.integer("m", 0..=i64::MAX), None);
        assert_eq!(fields.integer("seed", i64::MIN..=i64::MAX), None);
        assert_eq!(fields.number("top_p", 0.0..=1.0), None);
        assert_eq!(fields.boolean("on"), None);
        assert_eq!(fields.text("text"), None);
        let mut options = fields.object("options").unwrap();
        assert_eq!(options.boolean("usage"), Some(true));
        options.finish();
        for (path, item) in fields.list("list").unwrap() {
            fields.nested(path, item);
        }
        fields.finish();
        let error = faults.into_result().unwrap_err().body_json();
        assert_eq!(error["error"]["param"], "n");
        let message = "n: \"x\" is not an integer from 1 to 5; m: 1.5 is not an integer of at least 0; \
             seed: 18446744073709551615 is not an integer of 64 bits; \
             top_p: 2 is not a number from 0 to 1; on: 1 is not true or false; \
             text: a list of 1 is not a string; \
             options.other: is not a field that this server knows; list[1]: 5 is not an object; \
             mistake: is not a field that this server knows";
        assert_eq!(error["error"]["message"], message);
    }

    #[test]
    fn answers_are_not_longer_than_needed() {
        let mut faults = Faults::default();
        let many = (0..100).map(|number| (format!("{number}{}", "x".repeat(1000)), json!(0)));
        Fields::new(many.collect(), &mut faults).finish();
        let error = faults.into_result().unwrap_err().body_json().to_string();
        assert!(error.len() < 10_000 && error.contains("and 36 more"), "{error}");
    }

    #[test]
    fn whole_numbers_are_integers_however_they_are_written() {
        assert_eq!(as_integer(&json!(2.0)), Some(2));
        assert_eq!(as_integer(&json!(-3)), Some(-3));
        for other in [json!(1e300), json!(0.5), json!(true), json!("1"), json!(u64::MAX)] {
            assert_eq!(as_integer(&other), None, "{other}");
        }
    }
}
