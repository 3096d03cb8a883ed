//! How pages are shown: as they came, as a table, or line by line.

use cli::failure::Failure;
use cli::format;
use cli::output::{Format, Output};
use serde_json::Value;

/// Rows under a head; in the plain form one line each, in columns that `awk` can take apart.
pub fn rows(output: &mut Output, page: &Value, head: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    match output.format() {
        Format::Json => output.json(page)?,
        Format::Table => output.table(head, rows)?,
        Format::Simple => {
            for row in rows {
                output.line(row.join(" "))?;
            }
        }
    }
    Ok(())
}

/// A page with a text for people in its field `text`, or a message.
pub fn text(output: &mut Output, page: &Value) -> Result<(), Failure> {
    let text = page["text"].as_str().or(page["message"].as_str());
    match (output.format_of_lines(), text) {
        (Format::Simple | Format::Table, Some(text)) => output.line(text.trim_end())?,
        _ => output.json(page)?,
    }
    Ok(())
}

/// A page field by field.
pub fn fields(output: &mut Output, page: &Value) -> Result<(), Failure> {
    let Value::Object(fields) = page else { return text(output, page) };
    match output.format_of_lines() {
        Format::Json => output.json(page)?,
        _ => {
            for (name, value) in fields {
                output.line(format!("{name}: {}", plain(value)))?;
            }
        }
    }
    Ok(())
}

/// A value as people write it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// The elements of a list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// A size without a space in it, so that it is one column.
pub fn size(value: &Value) -> String {
    format::size(number(value)).replace(' ', "")
}

/// A key that came as hexadecimal.
pub fn key(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or_default());
    let bytes: Option<Vec<u8>> = pairs.map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    match bytes.as_deref() {
        Some([]) => "\"\"".to_owned(),
        Some(bytes) => format::readable(bytes),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_readable() {
        assert_eq!(key(&json!("6B657901")), "key\\x01");
        assert_eq!((key(&json!("")), key(&json!("6X"))), ("\"\"".to_owned(), "6X".to_owned()));
        assert_eq!((size(&json!(2048)), plain(&Value::Null)), ("2.0KiB".to_owned(), "-".to_owned()));
    }
}
