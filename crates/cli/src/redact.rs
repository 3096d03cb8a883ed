//! Taking secrets out of texts that leave the house.
//!
//! Two kinds of things are taken out of logs and configuration files: the values of fields whose name says that they are
//! nobody's business (`key=…`, `value: …`, `password = "…"`), and private keys in PEM. It is the field that is known by its name,
//! not the secret by its looks: what stands in a field of another name stays, so servers never log keys or values under
//! other names.

const REMOVED: &str = "[removed]";

/// Names of fields, in lower case. A longer name counts too when it ends with `_` and one of these.
const SECRET_FIELDS: [&str; 11] = [
    "key",
    "value",
    "range_end",
    "prefix",
    "prev_value",
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "credentials",
];

/// The text without secrets.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN ") && line.contains("PRIVATE KEY") {
            in_pem = true;
            out.push_str(REMOVED);
            out.push('\n');
        }
        if !in_pem {
            redact_line(line, &mut out);
        }
        if line.contains("-----END ") {
            in_pem = false;
        }
    }
    out
}

fn redact_line(line: &str, out: &mut String) {
    let mut rest = line;
    while let Some(at) = rest.find(['=', ':']) {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        out.push_str(before);
        out.push_str(&rest[at..=at]);
        rest = after;
        if !is_secret(name_before(before)) {
            continue;
        }
        let blank = after.len() - after.trim_start_matches([' ', '\t']).len();
        // `key: value` of prose, such as an error's text, ends at the line; so does nothing at all.
        let length = value_length(&after[blank..], before.ends_with([' ', '\t']) || blank > 0);
        if length > 0 {
            out.push_str(&after[..blank]);
            out.push_str(REMOVED);
            rest = &after[blank + length..];
        }
    }
    out.push_str(rest);
}

/// The word that ends a text, without quotes and blanks after it.
fn name_before(text: &str) -> &str {
    let text = text.trim_end_matches([' ', '\t', '"', '\'']);
    let start = text
        .rfind(|char: char| !(char.is_alphanumeric() || matches!(char, '_' | '-')))
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    &text[start..]
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    SECRET_FIELDS.iter().any(|field| name == *field || name.strip_suffix(field).is_some_and(|rest| rest.ends_with('_')))
}

/// How much of a text is the value that it begins with: a quoted one, or up to a blank, or all of the line.
fn value_length(text: &str, whole_line: bool) -> usize {
    let line = text.trim_end_matches(['\r', '\n']);
    if let Some(quote) = line.chars().next().filter(|char| matches!(char, '"' | '\'')) {
        let mut escaped = false;
        for (at, char) in line.char_indices().skip(1) {
            match char {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                char if char == quote => return at + 1,
                _ => {}
            }
        }
        return line.len();
    }
    if whole_line { line.len() } else { line.find([' ', '\t']).unwrap_or(line.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_by_their_names() {
        for (line, expected) in [
            (
                "WARN api: Slow request, key=/secret/x latency=15ms",
                "WARN api: Slow request, key=[removed] latency=15ms",
            ),
            ("put key=\"a \\\" b\" value='c d' took=3", "put key=[removed] value=[removed] took=3"),
            ("password = hunter2 and more", "password = [removed]"),
            ("root_password = \"x\" # why", "root_password = [removed] # why"),
            ("{\"Authorization\": \"Bearer abc\", \"n\": 1}", "{\"Authorization\": [removed], \"n\": 1}"),
            ("monkey=1 latency=2ms code=CF1001", "monkey=1 latency=2ms code=CF1001"),
            ("key_file = \"/etc/x.key\"", "key_file = \"/etc/x.key\""),
            ("key=\nnext=1", "key=\nnext=1"),
            ("größe=1 key=ü", "größe=1 key=[removed]"),
        ] {
            assert_eq!(redact(line), expected);
        }
    }

    #[test]
    fn private_keys_in_pem() {
        let text = "a\n-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\nb=1\n";
        assert_eq!(redact(text), "a\n[removed]\nb=1\n");
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert_eq!(redact(certificate), certificate);
    }
}
