//! This project's own format: JSON lines that say everything a request may have.

use std::collections::HashMap;

use super::field::{Fault, Field};
use super::formats::Format;
use super::json::Object;
use super::times::Times;
use super::{Clock, MAX_LEN, Prompt, Reader, Row};

/// Token ids stay below this, so that the largest u32 is free to mean "none".
const TOKEN_LIMIT: u32 = 1 << 31;

/// Reads JSON lines, whose rows must agree on how they give arrivals and clients.
pub(super) struct Jsonl {
    format: &'static Format,
    times: Times,
    /// How the first row gives its arrival.
    clock: Option<Clock>,
    /// How the first row that has a client gives it.
    clients: Option<Clients>,
}

enum Clients {
    Numbers,
    /// Names are numbered from 1 as they appear: 0 is a row without a client.
    Names(HashMap<String, u64>),
}

impl Reader for Jsonl {
    fn format(&self) -> &'static Format {
        self.format
    }

    fn clock(&self) -> Clock {
        self.clock.unwrap_or(Clock::None)
    }

    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault> {
        let object = Object::parse(line)?;
        object.only(self.format)?;
        let (prompt, prompt_len) = prompt(&object)?;
        Ok(Row {
            arrival: self.arrival(&object)?,
            prompt,
            prompt_len,
            output_len: object.require("output_len")?.tokens()?,
            priority: object.get("priority").map_or(Ok(0), Field::priority)?,
            client: object.get("client").map_or(Ok(0), |client| self.client(client))?,
            cache_salt: object.get("cache_salt").map(cache_salt).transpose()?,
            ..Row::new(id)
        })
    }
}

impl Jsonl {
    pub(super) fn new(format: &'static Format) -> Self {
        Self { format, times: Times::of_seconds(), clock: None, clients: None }
    }

    fn arrival(&mut self, object: &Object<'_>) -> Result<f64, Fault> {
        let (clock, given) = match (object.get("arrival_s"), object.get("arrival_step")) {
            (Some(_), Some(step)) => return Err(step.fault("given together with `arrival_s`")),
            (Some(seconds), None) => (Clock::Seconds, Some(seconds)),
            (None, Some(step)) => (Clock::Steps, Some(step)),
            (None, None) => (Clock::None, None),
        };
        let expected = match *self.clock.get_or_insert(clock) {
            Clock::Seconds => Some("arrival_s"),
            Clock::Steps => Some("arrival_step"),
            Clock::None => None,
        };
        match (given, expected) {
            (Some(given), Some(expected)) if given.name != expected => {
                Err(given.fault(format!("earlier rows have `{expected}`")))
            }
            (Some(given), None) => Err(given.fault("earlier rows have no arrival")),
            (None, Some(expected)) => Err(Fault::field(expected, "missing; earlier rows have it")),
            (Some(given), Some(_)) if clock == Clock::Steps => given.step(),
            (Some(given), Some(_)) => self.times.since_first(given),
            (None, None) => Ok(0.0),
        }
    }

    fn client(&mut self, client: Field<'_>) -> Result<u64, Fault> {
        let named = client.text.starts_with('"');
        let clients = self.clients.get_or_insert_with(|| {
            if named { Clients::Names(HashMap::new()) } else { Clients::Numbers }
        });
        match clients {
            Clients::Numbers if named => Err(client.fault("a name, but earlier rows have numbers")),
            Clients::Numbers => client.whole(u64::MAX),
            Clients::Names(_) if !named => {
                Err(client.fault("a number, but earlier rows have names"))
            }
            Clients::Names(names) => {
                let next = names.len() as u64 + 1;
                Ok(*names.entry(client.json("a string")?).or_insert(next))
            }
        }
    }
}

/// The prompt, by its tokens or by its length only; where the row has both they must agree.
fn prompt(object: &Object<'_>) -> Result<(Prompt, u32), Fault> {
    let Some(ids) = object.get("prompt_token_ids") else {
        return Ok((Prompt::Unique, object.require("prompt_len")?.tokens()?));
    };
    let tokens: Box<[u32]> = ids.json("a list of token ids")?;
    if let Some(token) = tokens.iter().find(|&&token| token >= TOKEN_LIMIT) {
        return Err(ids.fault(format!("token id {token} is not below 2^31")));
    }
    let found = tokens.len();
    if found > MAX_LEN as usize {
        return Err(ids.fault(format!("{found} tokens are too many: the most is {MAX_LEN}")));
    }
    if let Some(given) = object.get("prompt_len")
        && given.tokens()? as usize != found
    {
        let given_len = given.text;
        return Err(given.fault(format!("{given_len}, but `prompt_token_ids` has {found}")));
    }
    Ok((Prompt::Tokens(tokens), found as u32))
}

fn cache_salt(field: Field<'_>) -> Result<String, Fault> {
    let salt: String = field.json("a string")?;
    if salt.is_empty() { Err(field.fault("empty")) } else { Ok(salt) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, trace};
    use super::*;

    #[test]
    fn reads_rows_without_arrivals() {
        let trace = trace(
            r#"{"prompt_len": 5, "output_len": 7}
            {"output_len": 1, "prompt_token_ids": [3, 1, 2147483647], "cache_salt": "a\u0062",
             "priority": -4, "client": null, "prompt_len": 3}"#
                .replace(",\n", ",")
                .as_str(),
        );
        assert_eq!((trace.format, trace.clock), ("jsonl", Clock::None));
        let [first, second] = &trace.rows[..] else { panic!("two rows") };
        assert_eq!((&first.prompt, first.prompt_len, first.output_len), (&Prompt::Unique, 5, 7));
        assert_eq!((first.priority, first.client, &first.cache_salt), (0, 0, &None));
        assert_eq!(second.prompt, Prompt::Tokens([3, 1, 2147483647].into()));
        assert_eq!((second.prompt_len, second.priority, second.client), (3, -4, 0));
        assert_eq!(second.cache_salt.as_deref(), Some("ab"));
    }

    /// A row of lengths 1 and 1 with `more` fields.
    fn row(more: &str) -> String {
        format!("{{\"prompt_len\": 1, \"output_len\": 1{more}}}\n")
    }

    #[test]
    fn arrivals_are_seconds_or_steps() {
        let seconds = trace(&(row(r#", "arrival_s": 2.5"#) + &row(r#", "arrival_s": 3e0"#)));
        assert_eq!(seconds.clock, Clock::Seconds);
        assert_eq!((seconds.rows[0].arrival, seconds.rows[1].arrival), (0.0, 0.5));
        let steps = trace(&row(r#", "arrival_step": 12"#));
        assert_eq!((steps.clock, steps.rows[0].arrival), (Clock::Steps, 12.0));
    }

    #[test]
    fn rows_agree_on_arrivals() {
        let wrong = |first: &str, second: &str, message: &str| {
            let text = row(first) + &row(second);
            assert_eq!(error(&text), format!("t:2: field {message}"));
        };
        let (seconds, step) = (r#", "arrival_s": 0"#, r#", "arrival_step": 0"#);
        wrong(seconds, step, "`arrival_step`: earlier rows have `arrival_s`");
        wrong(step, seconds, "`arrival_s`: earlier rows have `arrival_step`");
        wrong(seconds, "", "`arrival_s`: missing; earlier rows have it");
        wrong("", step, "`arrival_step`: earlier rows have no arrival");
        let both = format!("{seconds}{step}");
        wrong(seconds, &both, "`arrival_step`: given together with `arrival_s`");
    }

    #[test]
    fn clients_are_numbers_or_names() {
        let clients = |values: &[&str]| -> Vec<u64> {
            let text: String = values.iter().map(|v| row(&format!(", \"client\": {v}"))).collect();
            trace(&text).rows.iter().map(|row| row.client).collect()
        };
        assert_eq!(clients(&["7", "0", "7"]), [7, 0, 7]);
        assert_eq!(clients(&["\"b\"", "null", "\"a\"", "\"b\""]), [1, 0, 2, 1]);
        let text = row(r#", "client": "a""#) + &row(r#", "client": 1"#);
        assert_eq!(error(&text), "t:2: field `client`: a number, but earlier rows have names");
        let text = row(r#", "client": 1"#) + &row(r#", "client": "a""#);
        assert_eq!(error(&text), "t:2: field `client`: a name, but earlier rows have numbers");
    }

    #[test]
    fn bad_rows_name_line_and_field() {
        let wrong = |bad: &str, message: &str| {
            assert_eq!(error(format!("{}{bad}\n", row(""))), format!("t:2: {message}"));
        };
        let more = |bad: &str, message: &str| wrong(row(bad).trim(), &format!("field {message}"));
        wrong(r#"{"output_len": 1}"#, "field `prompt_len`: missing");
        wrong(r#"{"prompt_len": 1}"#, "field `output_len`: missing");
        wrong(
            r#"{"prompt_len": 1.5, "output_len": 1}"#,
            "field `prompt_len`: `1.5` is not a whole number",
        );
        wrong(
            r#"{"prompt_len": "1", "output_len": 1}"#,
            "field `prompt_len`: `\"1\"` is not a whole number",
        );
        wrong(
            r#"{"prompt_len": 36893488147419103232, "output_len": 1}"#,
            "field `prompt_len`: `36893488147419103232` is too big: the most is 16777216",
        );
        wrong(
            r#"{"prompt_length": 1, "output_len": 1}"#,
            "field `prompt_length`: unknown: remove it if it does not matter; the format has \
             prompt_len, output_len, \
             prompt_token_ids, arrival_s, arrival_step, priority, client, cache_salt",
        );
        wrong(
            r#"{"prompt_len": 2, "prompt_token_ids": [1], "output_len": 1}"#,
            "field `prompt_len`: 2, but `prompt_token_ids` has 1",
        );
        let ids = |ids: &str, message: &str| {
            let bad = format!("{{\"prompt_token_ids\": {ids}, \"output_len\": 1}}");
            wrong(&bad, &format!("field `prompt_token_ids`: {message}"));
        };
        ids("[-1]", "`[-1]` is not a list of token ids");
        ids("[4294967296]", "`[4294967296]` is not a list of token ids");
        ids("[1, 2147483648]", "token id 2147483648 is not below 2^31");
        ids("\"ab\"", "`\"ab\"` is not a list of token ids");
        more(r#", "output_len": 2"#, "`output_len`: given twice: remove one");
        more(
            r#", "priority": 1e3"#,
            "`priority`: `1e3` is not a whole number from -2147483648 to 2147483647",
        );
        more(r#", "client": -1"#, "`client`: `-1` is negative");
        more(r#", "client": [1]"#, "`client`: `[1]` is not a whole number");
        more(r#", "cache_salt": """#, "`cache_salt`: empty");
        more(r#", "cache_salt": 5"#, "`cache_salt`: `5` is not a string");
        wrong("{\"prompt_len\": 1,", "not a JSON object: EOF while parsing a value at column 17");
        wrong("{\"prompt_len\": NaN}", "not a JSON object: expected value at column 16");
        wrong("[1]", "not a JSON object: invalid type: sequence, expected an object at column 0");
        wrong("{\"prompt_len\": 1} {}", "not a JSON object: trailing characters at column 19");
    }

    #[test]
    fn bad_arrivals() {
        let wrong = |more: &str, message: &str| {
            assert_eq!(error(row(more)), format!("t:1: field {message}"));
        };
        wrong(r#", "arrival_s": -1"#, "`arrival_s`: `-1` is negative");
        wrong(
            r#", "arrival_s": 1e400"#,
            "`arrival_s`: `1e400` is too big: the most is 100000000000000000000",
        );
        wrong(r#", "arrival_s": "NaN""#, "`arrival_s`: `\"NaN\"` is not a number");
        wrong(r#", "arrival_step": 0.5"#, "`arrival_step`: `0.5` is not a whole number");
        wrong(r#", "arrival_step": -1"#, "`arrival_step`: `-1` is negative");
    }
}
