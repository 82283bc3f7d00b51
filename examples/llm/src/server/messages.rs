//! The messages of a conversation.

use serde_json::Value;

use super::fields::{Fields, shown};
use super::unsupported::{OF_MESSAGES, refuse};
use crate::chat::Message;

/// Takes `messages` out.
pub fn read(fields: &mut Fields) -> Vec<Message> {
    fields.require("messages");
    let Some(items) = fields.list("messages") else { return Vec::new() };
    if items.is_empty() {
        fields.fault("messages", "is empty");
    }
    let read = |(path, item)| fields.nested(path, item).and_then(message);
    items.into_iter().filter_map(read).collect()
}

fn message(mut fields: Fields) -> Option<Message> {
    fields.require("role");
    let role = match fields.text("role").as_deref() {
        // What OpenAI calls the system since its reasoning models.
        Some("system" | "developer") => Some("system"),
        Some("user") => Some("user"),
        Some("assistant") => Some("assistant"),
        Some(role @ ("tool" | "function")) => {
            fields.fault("role", format!("\"{role}\" is not offered here: there are no tools"));
            None
        }
        Some(other) => {
            let other = shown(&Value::from(other));
            fields
                .fault("role", format!("{other} is not one of system, developer, user, assistant"));
            None
        }
        None => None,
    };
    let content = content(&mut fields);
    refuse(&mut fields, &OF_MESSAGES);
    fields.finish();
    Some(Message { role: role?.to_owned(), content: content? })
}

/// A text, or parts of it.
fn content(fields: &mut Fields) -> Option<String> {
    fields.require("content");
    let parts = match fields.take("content")? {
        Value::String(text) => return Some(text),
        Value::Array(parts) if !parts.is_empty() => fields.numbered("content", parts),
        other => {
            let message = format!("{} is not a string or a list of parts", shown(&other));
            fields.fault("content", message);
            return None;
        }
    };
    let texts = parts.into_iter().map(|(path, part)| fields.nested(path, part).and_then(part_text));
    // All of them are looked at.
    let texts: Vec<Option<String>> = texts.collect();
    texts.into_iter().collect::<Option<Vec<String>>>().map(|texts| texts.join("\n"))
}

fn part_text(mut part: Fields) -> Option<String> {
    part.require("type");
    match part.text("type").as_deref() {
        Some("text") => {
            part.require("text");
            let text = part.text("text");
            part.finish();
            text
        }
        Some(other) => {
            let other = shown(&Value::from(other));
            // Its other fields are of that type.
            part.rest();
            part.fault("type", format!("{other} is not offered here, only \"text\""));
            None
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fields::Faults;
    use super::*;

    fn all(messages: Value) -> Result<Vec<(String, String)>, Value> {
        let mut faults = Faults::default();
        let request = json!({ "messages": messages });
        let mut fields = Fields::new(request.as_object().cloned().expect("an object"), &mut faults);
        let messages = read(&mut fields);
        fields.finish();
        faults.into_result().map_err(|error| error.body_json()["error"].clone())?;
        Ok(messages.into_iter().map(|message| (message.role, message.content)).collect())
    }

    #[test]
    fn what_was_said_is_taken_whole() {
        let said = json!([
            { "role": "developer", "content": "Be brief.", "name": null },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            // As clients send an answer back.
            { "role": "assistant", "content": "", "refusal": null, "annotations": [], "audio": null,
              "function_call": null, "tool_calls": null },
        ]);
        let wanted = [("system", "Be brief."), ("user", "a\nb"), ("assistant", "")];
        let wanted = wanted.map(|(role, content)| (role.to_owned(), content.to_owned()));
        assert_eq!(all(said).unwrap(), wanted);
    }

    #[test]
    fn nothing_in_a_message_is_dropped() {
        let user = |more: Value| {
            let mut message = json!({ "role": "user", "content": "hi" });
            let fields = message.as_object_mut().expect("an object");
            fields.extend(more.as_object().cloned().expect("an object"));
            json!([message])
        };
        let part =
            |part: Value| user(json!({ "content": [{ "type": "text", "text": "a" }, part] }));
        for (messages, param) in [
            (json!(null), "messages"),
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{ "role": "user", "contnt": "hi" }]), "messages[0].content"),
            (json!([{ "content": "hi" }]), "messages[0].role"),
            (
                json!([{ "role": "user", "content": "hi" }, { "role": "wizard", "content": "hi" }]),
                "messages[1].role",
            ),
            (user(json!({ "role": "tool" })), "messages[0].role"),
            (user(json!({ "role": 5 })), "messages[0].role"),
            (user(json!({ "contnt": "hi" })), "messages[0].contnt"),
            (user(json!({ "name": "Ada" })), "messages[0].name"),
            (user(json!({ "tool_calls": [{ "id": "1" }] })), "messages[0].tool_calls"),
            (user(json!({ "tool_call_id": "1" })), "messages[0].tool_call_id"),
            (user(json!({ "refusal": "no" })), "messages[0].refusal"),
            (user(json!({ "content": null })), "messages[0].content"),
            (user(json!({ "content": [] })), "messages[0].content"),
            (user(json!({ "content": { "text": "a" } })), "messages[0].content"),
            (part(json!("a")), "messages[0].content[1]"),
            (
                part(json!({ "type": "text", "text": "a", "cache": 1 })),
                "messages[0].content[1].cache",
            ),
            (part(json!({ "type": "text" })), "messages[0].content[1].text"),
            (part(json!({ "type": "text", "text": 5 })), "messages[0].content[1].text"),
            (part(json!({ "text": "a" })), "messages[0].content[1].type"),
            (part(json!({ "type": "image_url", "image_url": {} })), "messages[0].content[1].type"),
        ] {
            let error = all(messages).expect_err(param);
            assert_eq!(error["param"], param, "{error}");
        }
        let error =
            all(json!([{ "role": "user", "contnt": "hi" }, { "role": "wizard" }])).unwrap_err();
        let message = error["message"].as_str().expect("a text");
        for param in
            ["messages[0].content", "messages[0].contnt", "messages[1].role", "messages[1].content"]
        {
            assert!(message.contains(&format!("{param}: ")), "{message}");
        }
    }
}
